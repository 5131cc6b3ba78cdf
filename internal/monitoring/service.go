package monitoring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/monitoring/series"
	"steward/internal/sqldb"
	"steward/internal/ui"
	"steward/internal/wire"
)

// Ledger is what the room needs of the ledger.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Devices is what the room needs of the registry.
type Devices interface {
	ByNum(ctx context.Context, q sqldb.Reader, num int64) (device.Device, error)
	ByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error)
	Matching(scope device.Scope, sel device.Selector, stages []device.Stage) (sql string, args []any)
	Counts(ctx context.Context, q sqldb.Reader, scope device.Scope) (map[device.Stage]int64, error)
}

// Twin is what the room needs of the desired state.
type Twin interface {
	SetDesired(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section, doc any) error
	SetDesiredWhere(ctx context.Context, tx *sqldb.Tx, numsSQL string, args []any, section wire.Section, doc any) (int64, error)
}

// store keeps the metrics: series.Store inside this process, or series.Remote.
type store interface {
	Write(ctx context.Context, tenant, device string, samples []series.Sample) (series.Refused, error)
	Instant(ctx context.Context, scope series.Scope, expr string, at time.Time) ([]series.Line, error)
	Range(ctx context.Context, scope series.Scope, expr string, r series.Range) ([]series.Line, error)
	Forget(ctx context.Context, until time.Time, devices ...string) error
	Close() error
}

// defaultKeep is how long metrics are kept.
const defaultKeep = 15 * 24 * time.Hour

// Config of a Service. All fields without a remark are required.
type Config struct {
	DB      *sqldb.DB
	Ledger  Ledger
	Devices Devices
	Twin    Twin
	Dir     string        // of the metrics
	Keep    time.Duration // how long metrics are kept; 0 means 15 days
	Log     *slog.Logger
	Now     func() time.Time // nil means time.Now

	// Outside is the metrics' store that all nodes share; nil keeps in Dir what this node's devices measure.
	Outside *series.RemoteConfig
	// Partial returns the name of this node when others keep metrics of their own, so that what is shown may
	// not be all, and else "". nil means that there are no others.
	Partial func() string

	// Node names this start of this node; it is asked once Run or the link has begun. nil means a random
	// name. NodeAlive tells whether another one runs; nil means that there is none.
	Node      func() string
	NodeAlive func(id string) bool
	// NodeName is how people call a node; nil, and "", leave the ID.
	NodeName func(id string) string
	// Once runs do on one node at a time, for as long as ctx lasts; nil runs it directly, for a single
	// node. Doing it on two nodes at once would only cost, so nothing depends on it.
	Once func(ctx context.Context, name string, do func(ctx context.Context) error) error
}

// Service is the room.
type Service struct {
	cfg    Config
	series store
	parser *series.Parser
	now    func() time.Time
	pages  *ui.Pages // set by Pages

	contacts  contacts
	links     links
	forgets   forgetter
	dead      map[string]time.Time // nodes that are gone, since when; of the sweep alone
	events    *httpapi.Limiter     // by device number
	policies  policyCache
	charts    cache[chartKey, GroupCharts]
	full      cache[device.TenantID, []series.Line]    // disks nearly full
	counted   cache[countedKey, map[State]int64]       // large groups
	connected cache[device.TenantID, map[string]int64] // devices by node
}

// Open opens the metrics and returns the room. Call Close at the end, after Run has returned.
func Open(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Node == nil {
		name := device.RandomName(10)
		cfg.Node = func() string { return name }
	}
	store, err := openStore(cfg)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, series: store, parser: series.NewParser(), now: cfg.Now, dead: map[string]time.Time{},
		events: httpapi.NewLimiter(httpapi.Rate{PerSecond: eventPerSecond, Burst: eventBurst}, cfg.Now),
	}
	s.forgets.file = forgottenFile(cfg.Dir)
	s.links.open, s.links.dirty = map[int64]*openLink{}, map[int64]linkNote{}
	s.contacts.waiting = map[int64]contact{}
	s.contacts.troubles = map[troubleKey]troubleNote{}
	s.contacts.full = make(chan struct{}, 1)
	s.policies.known = map[device.TenantID]cachedPolicy{}
	return s, nil
}

func openStore(cfg Config) (store, error) {
	if cfg.Outside != nil {
		outside := *cfg.Outside
		outside.Log, outside.Now = cfg.Log, cfg.Now
		return series.NewRemote(outside)
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	return series.Open(series.Config{Dir: cfg.Dir, Keep: cfg.Keep, Log: cfg.Log, Now: cfg.Now})
}

// OutsideStats counts what went to the metrics' store outside; false without one.
func (s *Service) OutsideStats() (series.RemoteStats, bool) {
	remote, ok := s.series.(*series.Remote)
	if !ok {
		return series.RemoteStats{}, false
	}
	return remote.Stats(), true
}

// partial is the node that the metrics come from when they may not be all; see Config.
func (s *Service) partial() string {
	if s.cfg.Outside != nil || s.cfg.Partial == nil {
		return ""
	}
	return s.cfg.Partial()
}

// Close writes the last contacts and closes the metrics.
func (s *Service) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(s.flush(ctx), s.series.Close())
}

// The rhythm of Run.
const (
	flushEvery  = time.Second
	sweepEvery  = 5 * time.Second
	forgetEvery = 5 * time.Second
	tidyEvery   = 10 * time.Minute
)

// sweepName is the lease under which one node judges silence.
const sweepName = "monitoring.sweep"

// Run writes contacts once a second and, on one node at a time, looks for devices that have fallen silent,
// until ctx ends. Every node runs it. Errors of the database are logged and tried again: contacts wait
// meanwhile.
func (s *Service) Run(ctx context.Context) error {
	swept := make(chan error, 1)
	go func() { swept <- s.once(ctx, sweepName, s.sweepLoop) }()
	flush, forget, own := time.NewTicker(flushEvery), time.NewTicker(forgetEvery), time.NewTicker(checkOwnEvery)
	defer flush.Stop()
	defer forget.Stop()
	defer own.Stop()
	for {
		var err error
		select {
		case <-ctx.Done(): // Close writes what is left
			if err := <-swept; !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case <-flush.C:
			err = s.flush(ctx)
		case <-s.contacts.full:
			err = s.flush(ctx)
		case <-forget.C:
			err = s.forgetSeries(ctx) // each node has series of its own
		case <-own.C:
			err = s.checkOwn(ctx)
		}
		s.logAgain(ctx, err)
	}
}

func (s *Service) logAgain(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.ErrorContext(ctx, "monitoring tries again", "error", err)
	}
}

func (s *Service) once(ctx context.Context, name string, do func(ctx context.Context) error) error {
	if s.cfg.Once == nil {
		return do(ctx)
	}
	return s.cfg.Once(ctx, name, do)
}

// sweepLoop is what one node does at a time: it judges silence and dead nodes, and forgets what is old.
func (s *Service) sweepLoop(ctx context.Context) error {
	sweep, tidy := time.NewTicker(sweepEvery), time.NewTicker(tidyEvery)
	defer sweep.Stop()
	defer tidy.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			err = errors.Join(s.endDead(ctx), s.Sweep(ctx))
		case <-tidy.C:
			err = errors.Join(s.forgetEvents(ctx), s.forgetEnded(ctx), s.forgetForgotten(ctx))
		}
		s.logAgain(ctx, err)
	}
}

// Moved is told of each move of a device in its transaction: one that enters service gets the tenant's
// policy as its desired section, one that is disposed of or goes to a new owner is forgotten.
func (s *Service) Moved(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
	switch d.Stage {
	case device.Enrolled, device.Active:
		p, err := s.policyIn(ctx, tx, d.Tenant)
		if err != nil {
			return err
		}
		if err := s.cfg.Twin.SetDesired(ctx, tx, d.Num, wire.SectionMonitoring, p.desired()); err != nil {
			return fmt.Errorf("monitoring policy of %s: %w", d.ID, err)
		}
	case device.Received:
		if from == "" || from == device.Ordered {
			return nil // it has measured nothing yet; a late sweep would take what it sends when it enrolls
		}
		return s.forget(ctx, tx, d)
	case device.Disposed:
		return s.forget(ctx, tx, d)
	case device.Staged:
		if from.InService() { // it enrolls anew: until then nobody expects it
			return s.forgetSeen(ctx, tx, d)
		}
	}
	return nil
}

// Forget deletes a device's contacts and troubles, and its series within seconds.
func (s *Service) Forget(ctx context.Context, num int64) error {
	d, err := s.cfg.Devices.ByNum(ctx, s.cfg.DB, num)
	if err != nil {
		return err
	}
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return s.forget(ctx, tx, d) })
}

// forget deletes what the database has of a device, and notes that its series are to go: those lie
// outside of the transaction, so Run deletes them afterwards.
func (s *Service) forget(ctx context.Context, tx *sqldb.Tx, d device.Device) error {
	if err := s.forgetContact(ctx, tx, d); err != nil {
		return fmt.Errorf("forget %s: %w", d.ID, err)
	}
	return nil
}

// policyCache spares a query per report.
type policyCache struct {
	mu    sync.Mutex
	known map[device.TenantID]cachedPolicy
}

type cachedPolicy struct {
	Policy
	until time.Time
}
