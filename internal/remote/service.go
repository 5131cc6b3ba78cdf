package remote

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/ui"
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
}

// Bus carries wake-ups between nodes; *bus.Bus is one.
type Bus interface {
	Publish(subject string, data []byte) error
	Subscribe(subject string, handle func(subject string, data []byte)) (cancel func(), err error)
}

// Config of a Service. All fields without a remark are required.
type Config struct {
	DB      *sqldb.DB
	Ledger  Ledger
	Devices Devices
	Bus     Bus // nil for a single node
	Log     *slog.Logger
	Now     func() time.Time // nil means time.Now

	// Group returns the selector of a named group; nil means that there are no groups.
	Group func(ctx context.Context, tenant device.TenantID, name string) (device.Selector, error)
	// Once runs do on one node at a time, for as long as ctx lasts; nil runs it directly, for a single
	// node. Doing it on two nodes at once would only cost, so nothing depends on it.
	Once func(ctx context.Context, name string, do func(ctx context.Context) error) error
	// Rate is how many commands a tenant may give on this node; the zero value means DefaultRate.
	Rate Rate
}

// Rate is how many commands a tenant may give: on average, and at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// DefaultRate lets five full batches follow one another.
var DefaultRate = Rate{PerSecond: 100, Burst: 5 * MaxBatch}

// Service is the room; safe for concurrent use.
type Service struct {
	cfg   Config
	now   func() time.Time
	pages *ui.Pages // set by Pages

	origin  string // tells this node's messages from those of others
	watch   watchers
	results waiters
	handed  handed
	rate    buckets
	stop    stopping
}

// New returns the room on a migrated database. Run does its timers.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rate == (Rate{}) {
		cfg.Rate = DefaultRate
	}
	return &Service{
		cfg: cfg, now: cfg.Now, origin: device.RandomName(5), rate: buckets{rate: cfg.Rate, of: map[device.TenantID]*bucket{}},
		handed: handed{ids: map[string]time.Time{}}, stop: stopping{done: make(chan struct{})},
	}
}

// find returns a device of the reader's scope.
func (s *Service) find(ctx context.Context, q sqldb.Reader, scope device.Scope, id string) (device.Device, error) {
	parsed, err := device.ParseID(id)
	if err != nil {
		return device.Device{}, fault.New(fault.NotFound, "there is no device %.60q", id)
	}
	d, err := s.cfg.Devices.ByID(ctx, q, scope.Tenant, parsed)
	if err == nil && !scope.Allows(d) {
		return device.Device{}, fault.New(fault.NotFound, "there is no device %s", id)
	}
	return d, err
}

// get returns a command whose device is in the scope.
func (s *Service) get(ctx context.Context, q sqldb.Reader, scope device.Scope, id string) (Command, error) {
	none := fault.New(fault.NotFound, "there is no command %.60q; finished ones are kept for %d days", id, int(KeepFinished.Hours()/24))
	c, ok, err := byID(ctx, q, id)
	if err != nil {
		return Command{}, err
	}
	if !ok || c.tenant != scope.Tenant {
		return Command{}, none
	}
	if !scope.Selector.Empty() {
		d, err := s.cfg.Devices.ByNum(ctx, q, c.num)
		if err != nil {
			return Command{}, err
		}
		if !scope.Allows(d) {
			return Command{}, none
		}
	}
	return c, nil
}

// Get returns one command with parameters and output; fault.NotFound outside of the reader's scope.
func (s *Service) Get(ctx context.Context, who httpapi.Principal, id string) (Command, error) {
	return s.get(ctx, s.cfg.DB, who.Scope, id)
}

// buckets bound what a tenant gives on this node.
type buckets struct {
	rate Rate
	mu   sync.Mutex
	of   map[device.TenantID]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// take takes n commands from the tenant's bucket, or says how long to wait for them and takes none.
func (b *buckets) take(tenant device.TenantID, n int, now time.Time) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.of[tenant]
	if t == nil {
		t = &bucket{left: float64(b.rate.Burst), at: now}
		b.of[tenant] = t
	}
	if gone := now.Sub(t.at); gone > 0 {
		t.left, t.at = min(t.left+gone.Seconds()*b.rate.PerSecond, float64(b.rate.Burst)), now
	}
	if short := float64(n) - t.left; short > 0 {
		return time.Duration(short / b.rate.PerSecond * float64(time.Second)), false
	}
	t.left -= float64(n)
	return 0, true
}

// back returns what was taken for commands that were not given.
func (b *buckets) back(tenant device.TenantID, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := b.of[tenant]; t != nil {
		t.left = min(t.left+float64(n), float64(b.rate.Burst))
	}
}
