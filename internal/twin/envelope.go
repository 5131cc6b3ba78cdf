package twin

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// batchLimit is how many devices one statement, or one transaction of reports, is for.
const batchLimit = 256

// Epoch returns the epoch of a device's desired state; 0 when it never had one.
func (s *Service) Epoch(ctx context.Context, num int64) (epoch int64, err error) {
	err = s.epochs.do(ctx, epochCall{num, &epoch})
	return epoch, err
}

// Epochs returns the epochs of many devices in few statements. Those that never had one are left out.
func (s *Service) Epochs(ctx context.Context, nums []int64) (map[int64]int64, error) {
	type row struct{ num, epoch int64 }
	out := make(map[int64]int64, len(nums))
	for chunk := range slices.Chunk(nums, 4*batchLimit) {
		condition, arg := s.db.Dialect().Among("num", chunk)
		q := sqldb.NewQuery("SELECT num, epoch FROM twin_epoch WHERE "+condition, arg)
		rows, err := sqldb.Collect(ctx, s.db, func(rows *sql.Rows) (r row, err error) {
			err = rows.Scan(&r.num, &r.epoch)
			return r, err
		}, q.SQL(), q.Args()...)
		if err != nil {
			return nil, fmt.Errorf("read epochs: %w", err)
		}
		for _, r := range rows {
			out[r.num] = r.epoch
		}
	}
	return out, nil
}

type epochCall struct {
	num   int64
	epoch *int64
}

func (s *Service) readEpochs(ctx context.Context, calls []*call[epochCall]) {
	nums := make([]int64, len(calls))
	for i, c := range calls {
		nums[i] = c.item.num
	}
	epochs, err := s.Epochs(ctx, nums)
	for _, c := range calls {
		*c.item.epoch, c.err = epochs[c.item.num], err
	}
}

// Envelope returns the device's desired state, signed now or lately enough that half of its life is
// left, and its epoch. A quarantined device gets one without sections. The bytes are shared: they must
// not be changed.
func (s *Service) Envelope(ctx context.Context, d device.Device) (envelope []byte, epoch int64, err error) {
	var sealed wire.Sealed
	err = s.sealing.do(ctx, sealCall{d, &sealed})
	return sealed.Envelope, sealed.Epoch, err
}

type sealCall struct {
	device device.Device
	sealed *wire.Sealed
}

func (s *Service) sealBatch(ctx context.Context, calls []*call[sealCall]) {
	ds := make([]device.Device, len(calls))
	for i, c := range calls {
		ds[i] = c.item.device
	}
	sealed, err := s.Envelopes(ctx, ds)
	for i, c := range calls {
		if c.err = err; err == nil {
			*c.item.sealed = sealed[i]
		}
	}
}

// Envelopes returns what Envelope does for many devices, in their order and in few statements.
func (s *Service) Envelopes(ctx context.Context, ds []device.Device) ([]wire.Sealed, error) {
	out := make([]wire.Sealed, 0, len(ds))
	for chunk := range slices.Chunk(ds, 2*batchLimit) {
		desired, err := s.desired(ctx, chunk)
		if err != nil {
			return nil, fmt.Errorf("read desired states: %w", err)
		}
		for _, d := range chunk {
			envelope, err := s.seal(d, desired[d.Num])
			if err != nil {
				return nil, fmt.Errorf("seal desired state of %s: %w", d.ID, err)
			}
			out = append(out, wire.Sealed{Num: d.Num, Epoch: desired[d.Num].epoch, Envelope: envelope})
		}
	}
	return out, nil
}

// desiredState is a device's epoch and what belongs to it.
type desiredState struct {
	epoch    int64
	sections map[wire.Section]wire.Hash
}

// desired reads epochs and sections in one statement, so that they belong together.
func (s *Service) desired(ctx context.Context, ds []device.Device) (map[int64]desiredState, error) {
	nums := make([]int64, len(ds))
	for i, d := range ds {
		nums[i] = d.Num
	}
	condition, arg := s.db.Dialect().Among("e.num", nums)
	q := sqldb.NewQuery(`SELECT e.num, e.epoch, COALESCE(t.section, ''), COALESCE(doc.hash, '') FROM twin_epoch e
		LEFT JOIN twin_desired t ON t.num = e.num LEFT JOIN twin_document doc ON doc.document = t.document
		WHERE `+condition, arg)
	rows, err := s.db.QueryContext(ctx, q.SQL(), q.Args()...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := make(map[int64]desiredState, len(ds))
	for rows.Next() {
		var num, epoch int64
		var section wire.Section
		var hash wire.Hash
		if err := rows.Scan(&num, &epoch, &section, &hash); err != nil {
			return nil, err
		}
		state, known := out[num]
		if !known {
			state = desiredState{epoch, map[wire.Section]wire.Hash{}}
			out[num] = state
		}
		if section != "" {
			state.sections[section] = hash
		}
	}
	return out, rows.Err()
}

func (s *Service) seal(d device.Device, state desiredState) ([]byte, error) {
	key := envelopeKey{num: d.Num, epoch: state.epoch, withheld: withheld(d)}
	now := s.now().UTC().Truncate(time.Second)
	if e, ok := s.envelopes.get(key, now.Add(-s.cfg.EnvelopeLife/2)); ok {
		return e, nil
	}
	desired := wire.Desired{
		Protocol: wire.Protocol, Device: string(d.ID), Epoch: state.epoch, Sections: state.sections,
		Issued: now, Expires: now.Add(s.cfg.EnvelopeLife),
	}
	if key.withheld || desired.Sections == nil {
		desired.Sections = map[wire.Section]wire.Hash{}
	}
	envelope, err := wire.Seal(wire.DesiredType, desired, s.cfg.Key)
	if err == nil {
		s.envelopes.put(key, now, envelope)
	}
	return envelope, err
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

// envelopes remembers the last signed envelopes, about 1 KB each. What this saves is a thousand devices
// asking again and again while the link is disturbed.
type envelopes struct {
	mu    sync.Mutex
	of    map[int64]keptEnvelope
	order []int64 // devices in the order of their first envelope, a ring of maxEnvelopes
	next  int
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

// maxEnvelopes bounds what is remembered.
const maxEnvelopes = 4096

func (e *envelopes) get(key envelopeKey, notBefore time.Time) ([]byte, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k, ok := e.of[key.num]
	if !ok || k.key != key || k.issued.Before(notBefore) {
		return nil, false
	}
	return k.bytes, true
}

// put keeps an envelope, in the place of the device that has been kept for longest when all are taken.
func (e *envelopes) put(key envelopeKey, issued time.Time, bytes []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil {
		e.of = map[int64]keptEnvelope{}
	}
	if _, has := e.of[key.num]; !has {
		if len(e.order) < maxEnvelopes {
			e.order = append(e.order, key.num)
		} else {
			delete(e.of, e.order[e.next])
			e.order[e.next] = key.num
			e.next = (e.next + 1) % maxEnvelopes
		}
	}
	e.of[key.num] = keptEnvelope{key, issued, bytes}
}
