package twin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Service keeps the documents of all devices. It is safe for concurrent use.
type Service struct {
	cfg       Config
	db        *sqldb.DB
	log       *slog.Logger
	now       func() time.Time
	waiters   waiters
	envelopes envelopes
}

// New returns a Service. Run must run for the wake-ups of other nodes and for sweeping.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Recorded == nil {
		cfg.Recorded = []wire.Section{wire.SectionInventory, wire.SectionPackages}
	}
	cfg.EnvelopeLife = cmp.Or(cfg.EnvelopeLife, 24*time.Hour)
	return &Service{cfg: cfg, db: cfg.DB, log: cfg.Log, now: cfg.Now}
}

// sweepEvery is how often unused documents are looked for.
const sweepEvery = time.Hour

// Run listens for the wake-ups of other nodes and sweeps unused documents until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if s.cfg.Bus != nil {
		cancel, err := s.cfg.Bus.Subscribe(subjectPrefix+"*", func(subject string, _ []byte) { s.waiters.wakeSubject(subject) })
		if err != nil {
			return fmt.Errorf("listen for changes of desired state: %w", err)
		}
		defer cancel()
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		switch n, err := s.Sweep(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.ErrorContext(ctx, "sweep of documents failed", "error", err)
		case n > 0:
			s.log.InfoContext(ctx, "swept unused documents", "documents", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Epoch returns the epoch of a device's desired state; 0 when it never had one.
func (s *Service) Epoch(ctx context.Context, num int64) (epoch int64, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT COALESCE(MAX(epoch), 0) FROM twin_epoch WHERE num = $1", num).Scan(&epoch)
	if err != nil {
		return 0, fmt.Errorf("read epoch: %w", err)
	}
	return epoch, nil
}

// Document returns the body of a document of the device's desired state. Every other document is
// fault.NotFound, whether it exists or not, and so is every document for a quarantined device.
func (s *Service) Document(ctx context.Context, d device.Device, hash wire.Hash) ([]byte, error) {
	if withheld(d) {
		return nil, errWithheld
	}
	return s.document(ctx, d.Num, hash)
}

// Envelope returns the device's desired state, signed now or lately enough that half of its life is
// left, and its epoch. A quarantined device gets one without sections.
func (s *Service) Envelope(ctx context.Context, d device.Device) (envelope []byte, epoch int64, err error) {
	desired, err := s.desired(ctx, d)
	if err != nil {
		return nil, 0, err
	}
	key := envelopeKey{num: d.Num, epoch: desired.Epoch, withheld: withheld(d)}
	now := s.now().UTC().Truncate(time.Second)
	if e, ok := s.envelopes.get(key, now.Add(-s.cfg.EnvelopeLife/2)); ok {
		return e, desired.Epoch, nil
	}
	desired.Issued, desired.Expires = now, now.Add(s.cfg.EnvelopeLife)
	if envelope, err = wire.Seal(wire.DesiredType, desired, s.cfg.Key); err != nil {
		return nil, 0, fmt.Errorf("seal desired state of %s: %w", d.ID, err)
	}
	s.envelopes.put(key, now, envelope)
	return envelope, desired.Epoch, nil
}

// desired reads epoch and sections in one statement, so that they belong together.
func (s *Service) desired(ctx context.Context, d device.Device) (wire.Desired, error) {
	out := wire.Desired{Protocol: wire.Protocol, Device: string(d.ID), Sections: map[wire.Section]wire.Hash{}}
	rows, err := s.db.QueryContext(ctx, `SELECT e.epoch, COALESCE(t.section, ''), COALESCE(doc.hash, '') FROM twin_epoch e
		LEFT JOIN twin_desired t ON t.num = e.num LEFT JOIN twin_document doc ON doc.document = t.document
		WHERE e.num = $1`, d.Num)
	if err != nil {
		return out, fmt.Errorf("read desired state of %s: %w", d.ID, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var section wire.Section
		var hash wire.Hash
		if err := rows.Scan(&out.Epoch, &section, &hash); err != nil {
			return out, err
		}
		if section != "" && !withheld(d) {
			out.Sections[section] = hash
		}
	}
	return out, rows.Err()
}

// withheld tells whether a device may talk to Steward and receives nothing.
func withheld(d device.Device) bool { return d.Stage == device.Quarantined }

// StageMoved gives the device a new epoch when it enters or leaves quarantine, where it receives
// nothing, so that it fetches what is true now. It has the form in which the registry tells of moves.
func (s *Service) StageMoved(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
	if d.Stage != device.Quarantined && from != device.Quarantined {
		return nil
	}
	return s.bump(ctx, tx, d.Num)
}

// envelopes remembers the last signed envelopes. Signing is cheap; what this saves is a thousand
// devices asking again and again after a restart of the link.
type envelopes struct {
	mu sync.Mutex
	of map[int64]keptEnvelope
}

type envelopeKey struct {
	num, epoch int64
	withheld   bool
}

type keptEnvelope struct {
	key    envelopeKey
	issued time.Time
	bytes  []byte
}

// maxEnvelopes bounds what is remembered: about 1 KB each.
const maxEnvelopes = 4096

func (e *envelopes) get(key envelopeKey, notBefore time.Time) ([]byte, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k, ok := e.of[key.num]
	if !ok || k.key != key || k.issued.Before(notBefore) {
		return nil, false
	}
	return slices.Clone(k.bytes), true
}

func (e *envelopes) put(key envelopeKey, issued time.Time, bytes []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil || len(e.of) >= maxEnvelopes {
		e.of = map[int64]keptEnvelope{} // forgetting all is simpler than an order of use, and as good here
	}
	e.of[key.num] = keptEnvelope{key, issued, slices.Clone(bytes)}
}
