package registry

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

// Contacts is what the desk needs of monitoring.
type Contacts interface {
	// Of returns what is known of these devices; one that is left out has never been in contact.
	Of(ctx context.Context, nums []int64) (map[int64]Presence, error)
	// Where is the condition that the device whose number is in numColumn has the state, with "?"
	// placeholders. The column is given as "d.num".
	Where(numColumn, state string) (string, []any)
}

// Recent reads the newest events of the ledger; *ledger.Ledger does.
type Recent interface {
	Within(scope device.Scope, f ledger.Filter) ledger.Filter
	Events(ctx context.Context, f ledger.Filter) (events []ledger.Event, next string, err error)
}

// DeskConfig says what other rooms add to the registry's pages. All of it but the Registry may be
// left out.
type DeskConfig struct {
	Registry *Service // required

	// Presence fills the presence column and filter; nil leaves both out.
	Presence Contacts
	// PresenceCounts returns how many devices of the scope are in each state; nil counts them by
	// Presence.Where, at most once in ten seconds.
	PresenceCounts func(ctx context.Context, scope device.Scope) (map[string]int64, error)
	// PresenceIn is a SELECT of one column, the numbers of the tenant's devices in the state, with "?"
	// placeholders, that an index answers. It lets a list of the few devices that are offline begin with
	// them; nil, and "" for a state that no index finds, looks at each device of the list with
	// Presence.Where.
	PresenceIn func(tenant device.TenantID, state string) (query string, args []any)
	// Facts returns short words about devices for their row in a list, e.g. the state of an update.
	Facts func(ctx context.Context, nums []int64) (map[int64][]string, error)
	// ModelNames returns what people call hardware models; one that is left out is shown by its ID.
	ModelNames func(ctx context.Context, tenant device.TenantID, ids []string) (map[string]string, error)
	// Panels are the parts of a device's page.
	Panels []ui.Panel
	// Notices say on the home page what needs somebody now.
	Notices []func(ctx context.Context, scope device.Scope) ([]ui.Notice, error)
	// Recent fills the home page's list of events.
	Recent Recent
	// Sentence says for people what an event means; nil shows its kind.
	Sentence func(e ledger.Event) string

	Log *slog.Logger // nil means slog.Default
}

// Desk shows devices to people and programs and takes their wishes.
type Desk struct {
	*Service
	cfg    DeskConfig
	log    *slog.Logger
	counts presenceCounts
}

// NewDesk returns a Desk.
func NewDesk(cfg DeskConfig) *Desk {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Panels = slices.Clone(cfg.Panels)
	slices.SortStableFunc(cfg.Panels, func(a, b ui.Panel) int { return a.Order - b.Order })
	return &Desk{Service: cfg.Registry, cfg: cfg, log: cfg.Log}
}

// Row is a device as lists show it.
type Row struct {
	device.Device
	ModelName string    `json:"model_name,omitempty"`
	Presence  *Presence `json:"presence,omitempty" doc:"Absent for devices that are not in service"`
	Facts     []string  `json:"facts,omitempty" doc:"Short words of other rooms, e.g. the state of an update"`
}

// List returns the devices of the scope that pass the filter, from the cursor on, and the cursor of the
// next page. They come in the order in which they were created; a search puts them in the order of the
// term that it found. Where few of many devices pass, a page may be short or empty with more behind its
// cursor: it ends when it has looked at as many devices as a page may cost.
func (dk *Desk) List(ctx context.Context, scope device.Scope, f Filter, page httpapi.PageIn) ([]Row, string, error) {
	return dk.list(ctx, scope, f, page, pageRows)
}

func (dk *Desk) list(ctx context.Context, scope device.Scope, f Filter, page httpapi.PageIn, look int) ([]Row, string, error) {
	var after position
	if err := httpapi.DecodeCursor(page.Cursor, &after); err != nil {
		return nil, "", err
	}
	limit := page.Limit
	if limit <= 0 {
		limit = 50
	}
	found, err := dk.find(ctx, scope, f, after, limit+1, look)
	if err != nil {
		return nil, "", err
	}
	next := ""
	devices := found.devices
	switch {
	case len(devices) > limit:
		devices = devices[:limit]
		last := devices[limit-1]
		next = httpapi.EncodeCursor(position{Term: last.term, Num: last.Num})
	case found.stopped != nil:
		next = httpapi.EncodeCursor(*found.stopped)
	}
	rows := make([]Row, len(devices))
	for i, d := range devices {
		rows[i] = Row{Device: d.Device}
	}
	return rows, next, dk.fill(ctx, scope.Tenant, rows)
}

// Get returns one device of the scope as a list would show it.
func (dk *Desk) Get(ctx context.Context, scope device.Scope, id device.ID) (Row, error) {
	d, err := dk.inScope(ctx, dk.db, scope, id)
	if err != nil {
		return Row{}, err
	}
	rows := []Row{{Device: d}}
	err = dk.fill(ctx, scope.Tenant, rows)
	return rows[0], err
}

// inScope returns a device that the scope allows to see; every other one is fault.NotFound.
func (dk *Desk) inScope(ctx context.Context, q sqldb.Reader, scope device.Scope, id device.ID) (device.Device, error) {
	d, err := dk.ByID(ctx, q, scope.Tenant, id)
	if err == nil && !scope.Allows(d) {
		err = fault.New(fault.NotFound, "no device %s", id)
	}
	return d, err
}

// fill adds what other rooms know.
func (dk *Desk) fill(ctx context.Context, tenant device.TenantID, rows []Row) error {
	nums := make([]int64, len(rows))
	for i, r := range rows {
		nums[i] = r.Num
	}
	if len(rows) == 0 {
		return nil
	}
	if dk.cfg.Presence != nil {
		known, err := dk.cfg.Presence.Of(ctx, nums)
		if err != nil {
			return fmt.Errorf("presence of %d devices: %w", len(nums), err)
		}
		for i := range rows {
			if p, ok := known[rows[i].Num]; ok {
				rows[i].Presence = &p
			} else if rows[i].Stage.InService() {
				rows[i].Presence = &Presence{State: Never}
			}
		}
	}
	if dk.cfg.Facts != nil {
		facts, err := dk.cfg.Facts(ctx, nums)
		if err != nil {
			return fmt.Errorf("facts of %d devices: %w", len(nums), err)
		}
		for i := range rows {
			rows[i].Facts = facts[rows[i].Num]
		}
	}
	return dk.fillModels(ctx, tenant, rows)
}

func (dk *Desk) fillModels(ctx context.Context, tenant device.TenantID, rows []Row) error {
	var ids []string
	for _, r := range rows {
		if r.Model != "" && !slices.Contains(ids, r.Model) {
			ids = append(ids, r.Model)
		}
	}
	if len(ids) == 0 || dk.cfg.ModelNames == nil {
		return nil
	}
	names, err := dk.cfg.ModelNames(ctx, tenant, ids)
	if err != nil {
		return fmt.Errorf("names of models: %w", err)
	}
	for i := range rows {
		rows[i].ModelName = names[rows[i].Model]
	}
	return nil
}

// Fleet is the state of a scope in numbers.
type Fleet struct {
	Total    int64                  `json:"total"`
	Stages   map[device.Stage]int64 `json:"stages"`
	Presence map[string]int64       `json:"presence,omitempty" doc:"Of the devices in service"`
}

// Fleet counts the devices of a scope by stage and presence.
func (dk *Desk) Fleet(ctx context.Context, scope device.Scope) (Fleet, error) {
	stages, err := dk.Counts(ctx, dk.db, scope)
	if err != nil {
		return Fleet{}, err
	}
	f := Fleet{Stages: stages}
	for _, n := range stages {
		f.Total += n
	}
	f.Presence, err = dk.presenceOf(ctx, scope)
	return f, err
}

// presenceLife is how long counts by presence are good for.
const presenceLife = 10 * time.Second

// maxPresenceScopes bounds how many scopes' counts are remembered.
const maxPresenceScopes = 64

// presenceCounts remembers counts by scope. The lock is held while counting, so that many viewers of
// the home page count once.
type presenceCounts struct {
	mu sync.Mutex
	of map[string]countedPresence
}

type countedPresence struct {
	at     time.Time
	counts map[string]int64
}

func (dk *Desk) presenceOf(ctx context.Context, scope device.Scope) (map[string]int64, error) {
	switch {
	case dk.cfg.PresenceCounts != nil:
		return dk.cfg.PresenceCounts(ctx, scope)
	case dk.cfg.Presence == nil:
		return nil, nil
	}
	dk.counts.mu.Lock()
	defer dk.counts.mu.Unlock()
	key := string(scope.Tenant) + "?" + scope.Selector.String()
	if c, ok := dk.counts.of[key]; ok && dk.now().Sub(c.at) < presenceLife {
		return c.counts, nil
	}
	matching, args := dk.Matching(scope, device.Selector{}, inService())
	counts := map[string]int64{}
	for _, state := range PresenceStates {
		cond, condArgs := dk.cfg.Presence.Where("d.num", state)
		q := sqldb.NewQuery("SELECT COUNT(*) FROM registry_device d WHERE d.num IN ("+matching+")", args...).Add("AND "+cond, condArgs...)
		var n int64
		if err := dk.db.QueryRowContext(ctx, q.SQL(), q.Args()...).Scan(&n); err != nil {
			return nil, fmt.Errorf("count devices that are %s: %w", state, err)
		}
		counts[state] = n
	}
	if dk.counts.of == nil || len(dk.counts.of) >= maxPresenceScopes {
		dk.counts.of = map[string]countedPresence{}
	}
	dk.counts.of[key] = countedPresence{dk.now(), counts}
	return counts, nil
}

// inService lists the stages in which devices talk to Steward.
func inService() []device.Stage {
	return slices.DeleteFunc(slices.Clone(device.Stages), func(s device.Stage) bool { return !s.InService() })
}
