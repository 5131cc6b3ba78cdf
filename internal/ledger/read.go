package ledger

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
)

// Filter picks sequenced events. Empty fields pick everything; all that are set must hold.
type Filter struct {
	Tenant  device.TenantID
	Device  device.ID
	Kinds   []string // whole kinds, or rooms ("update" is all of update.*)
	Subject string
	Actor   string // the actor's ID
	Since   time.Time
	Until   time.Time // exclusive
	After   int64     // skip this many events from the ledger's start: sequence >= After; what Wait returned continues
	Before  int64     // sequence < Before; 0 is no bound
	Limit   int       // events per page; 0 means 50, at most MaxPage
	Cursor  string    // next of the page before; made for one order and one Newest
	Newest  bool      // newest first, else in the order of the tree

	devices     string // sub-SELECT of device IDs that may be seen; "" is no bound
	devicesArgs []any
}

// MaxPage bounds Filter.Limit.
const MaxPage = 1000

const defaultPage = 50

// Within narrows the filter to what the scope may see: its tenant's events and, when the scope has a
// selector, only those of the devices it picks.
func (l *Ledger) Within(scope device.Scope, f Filter) Filter {
	f.Tenant = scope.Tenant
	if scope.Selector.Empty() {
		return f
	}
	if l.cfg.Devices == nil {
		f.devices, f.devicesArgs = "SELECT id FROM ledger_event WHERE FALSE", nil
		return f
	}
	f.devices, f.devicesArgs = l.cfg.Devices(scope)
	return f
}

// Events returns a page of events and the cursor of the next, "" after the last. An event is readable
// once it is sequenced, some milliseconds after its commit. A cursor of the wrong form is a
// *fault.Invalid.
func (l *Ledger) Events(ctx context.Context, f Filter) (events []Event, next string, err error) {
	if f.Limit <= 0 {
		f.Limit = defaultPage
	}
	f.Limit = min(f.Limit, MaxPage)
	if err := f.resume(); err != nil {
		return nil, "", err
	}
	q := f.query()
	if events, err = readEvents(ctx, l.cfg.DB, q.SQL(), q.Args()...); err != nil {
		return nil, "", err
	}
	if len(events) > f.Limit { // one more was read to know
		events = events[:f.Limit]
		next = f.cursorAfter(events[f.Limit-1])
	}
	return events, next, nil
}

func (f Filter) query() *sqldb.Builder {
	q := sqldb.NewQuery("SELECT " + eventColumns + " FROM ledger_event WHERE sequence IS NOT NULL")
	tenant := "tenant"
	if f.Device != "" || f.Subject != "" {
		tenant = "tenant || ''" // the device's or subject's index is the better one, and without statistics SQLite takes the tenant's
	}
	for _, c := range []struct{ column, value string }{
		{tenant, string(f.Tenant)}, {"device", string(f.Device)}, {"subject", f.Subject}, {"actor_id", f.Actor},
	} {
		if c.value != "" {
			q.Add("AND "+c.column+" = ?", c.value)
		}
	}
	// What the partial indexes are for.
	if f.Device != "" {
		q.Add("AND device <> ''")
	}
	if f.Subject != "" {
		q.Add("AND subject <> ''")
	}
	if !f.Since.IsZero() {
		q.Add("AND at >= ?", sqldb.Micros(f.Since))
	}
	if !f.Until.IsZero() {
		q.Add("AND at < ?", sqldb.Micros(f.Until))
	}
	f.addKinds(q)
	if f.devices != "" {
		q.Add("AND device <> '' AND device IN ("+f.devices+")", f.devicesArgs...)
	}
	if f.After > 0 {
		q.Add("AND sequence >= ?", f.After)
	}
	if f.Before > 0 {
		q.Add("AND sequence < ?", f.Before)
	}
	if f.Newest {
		q.Add("ORDER BY sequence DESC")
	} else {
		q.Add("ORDER BY sequence")
	}
	return q.Add("LIMIT ?", f.Limit+1)
}

func (f Filter) addKinds(q *sqldb.Builder) {
	if len(f.Kinds) == 0 {
		return
	}
	q.Add("AND (")
	for i, kind := range f.Kinds {
		if i > 0 {
			q.Add("OR")
		}
		if strings.Contains(kind, ".") {
			q.Add("kind = ?", kind)
		} else {
			q.Add("room = ?", kind)
		}
	}
	q.Add(")")
}

// A cursor is the sequence to go on from, and the direction so that it isn't used in the other one.
func (f Filter) cursorAfter(last Event) string {
	text := "up:" + strconv.FormatInt(last.Sequence+1, 10)
	if f.Newest {
		text = "down:" + strconv.FormatInt(last.Sequence, 10)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

func (f *Filter) resume() error {
	if f.Cursor == "" {
		return nil
	}
	wrong := fault.Bad("query.cursor", "not a cursor of this list; begin again without one")
	text, err := base64.RawURLEncoding.DecodeString(f.Cursor)
	if err != nil {
		return wrong
	}
	direction, number, _ := strings.Cut(string(text), ":")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || (direction == "down") != f.Newest || (direction != "up" && direction != "down") {
		return wrong
	}
	if !f.Newest {
		f.After = max(f.After, n)
		return nil
	}
	if n == 0 {
		f.After, f.Before = 1, 1 // nothing is older than the first
		return nil
	}
	if f.Before == 0 || n < f.Before {
		f.Before = n
	}
	return nil
}

// ByID returns one event, sequenced or not; fault.NotFound when there is none within the scope.
func (l *Ledger) ByID(ctx context.Context, scope device.Scope, id string) (Event, error) {
	f := l.Within(scope, Filter{})
	q := sqldb.NewQuery("SELECT "+eventColumns+" FROM ledger_event WHERE id = ? AND tenant = ?", id, string(f.Tenant))
	if f.devices != "" {
		q.Add("AND device IN ("+f.devices+")", f.devicesArgs...)
	}
	events, err := readEvents(ctx, l.cfg.DB, q.SQL(), q.Args()...)
	if err != nil {
		return Event{}, err
	}
	if len(events) == 0 {
		return Event{}, fault.New(fault.NotFound, "there is no event %s", id)
	}
	return events[0], nil
}

// Checkpoint returns the newest signed tree head as a signed note (c2sp.org/tlog-checkpoint).
func (l *Ledger) Checkpoint(ctx context.Context) ([]byte, error) {
	h, err := readHead(ctx, l.cfg.DB)
	if err != nil {
		return nil, err
	}
	if h.checkpoint == "" {
		return nil, fault.New(fault.Unavailable, "the ledger has no signed tree head yet; try again in a moment")
	}
	return []byte(h.checkpoint), nil
}

// Size returns how many events have their place in the tree.
func (l *Ledger) Size(ctx context.Context) (int64, error) { return readSize(ctx, l.cfg.DB) }

// Pending returns how many committed events wait for their place. Above zero for long means that no
// node sequences.
func (l *Ledger) Pending(ctx context.Context) (n int64, err error) {
	err = l.cfg.DB.QueryRowContext(ctx, "SELECT COUNT(*) FROM ledger_event WHERE sequence IS NULL").Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count pending ledger events: %w", err)
	}
	return n, nil
}

// Verifier returns the public key's text for VerifyProof.
func (l *Ledger) Verifier() (string, error) {
	if l.cfg.Key == nil {
		return "", errors.New("the ledger has no key")
	}
	return l.cfg.Key.Verifier(), nil
}

// TopicsSince lists the first parts of the kinds of the tenant's events with after <= sequence < to,
// each once, in alphabetical order: what live pages have to refresh.
func (l *Ledger) TopicsSince(ctx context.Context, tenant device.TenantID, after, to int64) ([]string, error) {
	rows, err := l.cfg.DB.QueryContext(ctx,
		// "|| ''" keeps SQLite from walking through all of the tenant's kinds instead of the few newest rows.
		"SELECT DISTINCT kind FROM ledger_event WHERE tenant || '' = $1 AND sequence >= $2 AND sequence < $3", string(tenant), after, to)
	if err != nil {
		return nil, fmt.Errorf("read ledger topics: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var topics []string
	for rows.Next() {
		var kind string
		if err := rows.Scan(&kind); err != nil {
			return nil, fmt.Errorf("read ledger topics: %w", err)
		}
		topic, _, _ := strings.Cut(kind, ".")
		topics = append(topics, topic)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read ledger topics: %w", err)
	}
	slices.Sort(topics)
	return slices.Compact(topics), nil
}

// eventAt reads the event with an ID.
func eventAt(ctx context.Context, q sqldb.Reader, id string) (Event, error) {
	events, err := readEvents(ctx, q, "SELECT "+eventColumns+" FROM ledger_event WHERE id = $1", id)
	if err != nil {
		return Event{}, err
	}
	if len(events) == 0 {
		return Event{}, fmt.Errorf("event %s: %w", id, fault.NotFound)
	}
	return events[0], nil
}
