package monitoring

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
)

// rowsPerStatement keeps statements below the engines' limits of placeholders.
const rowsPerStatement = 500

// never is a check_at that doesn't come: of offline devices, which the index leaves out anyway.
const neverCheck = int64(1) << 62

// seenRow is a row of monitoring_seen.
type seenRow struct {
	num         int64
	tenant      device.TenantID
	device      device.ID
	lastContact time.Time
	interval    time.Duration
	state       State
	since       time.Time
	excused     time.Time // silence before it doesn't count
}

// stateChange is what a row is set to.
type stateChange struct {
	num     int64
	state   State
	since   time.Time
	checkAt time.Time
}

// countChange is what to add to the kept counts.
type countChange map[countKey]int64

type countKey struct {
	tenant device.TenantID
	state  State
}

func (c countChange) move(tenant device.TenantID, from, to State) {
	if from != Never { // new rows are counted nowhere yet
		c[countKey{tenant, from}]--
	}
	c[countKey{tenant, to}]++
}

func missing(err error) bool { return errors.Is(err, fault.NotFound) }

func marks(n int) string { return "?" + strings.Repeat(", ?", n-1) }

func anys(nums []int64) []any {
	out := make([]any, len(nums))
	for i, n := range nums {
		out[i] = n
	}
	return out
}

func exec(ctx context.Context, tx *sqldb.Tx, q *sqldb.Builder) error {
	_, err := tx.Exec(ctx, q.SQL(), q.Args()...)
	return err
}

// upsertContacts writes one statement. A row that another node has written with a later contact stays.
func upsertContacts(ctx context.Context, tx *sqldb.Tx, nums []int64, batch map[int64]contact, intervals map[device.TenantID]int64) error {
	q := sqldb.NewQuery("INSERT INTO monitoring_seen (num, tenant, device, last_contact, interval_s, state, state_since, check_at) VALUES")
	for i, num := range nums {
		c := batch[num]
		comma := ","
		if i == len(nums)-1 {
			comma = ""
		}
		at := sqldb.Micros(c.at)
		q.Add("(?, ?, ?, ?, ?, 0, ?, ?)"+comma, num, string(c.tenant), string(c.device), at, intervals[c.tenant], at, neverCheck)
	}
	q.Add(`ON CONFLICT (num) DO UPDATE SET last_contact = excluded.last_contact, interval_s = excluded.interval_s
		WHERE excluded.last_contact > monitoring_seen.last_contact`)
	return exec(ctx, tx, q)
}

const seenColumns = "num, tenant, device, last_contact, interval_s, state, state_since, excused"

func scanSeen(rows *sql.Rows, err error) ([]seenRow, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []seenRow
	for rows.Next() {
		var r seenRow
		var seconds int64
		if err := rows.Scan(&r.num, &r.tenant, &r.device, sqldb.ScanMicros(&r.lastContact), &seconds, &r.state, sqldb.ScanMicros(&r.since), sqldb.ScanMicros(&r.excused)); err != nil {
			return nil, err
		}
		r.interval = time.Duration(seconds) * time.Second
		out = append(out, r)
	}
	return out, rows.Err()
}

func notOnline(ctx context.Context, tx *sqldb.Tx, nums []int64) ([]seenRow, error) {
	q := sqldb.NewQuery("SELECT "+seenColumns+" FROM monitoring_seen WHERE num IN ("+marks(len(nums))+") AND state <> 1 ORDER BY num", anys(nums)...)
	return scanSeen(tx.QueryContext(ctx, q.SQL(), q.Args()...))
}

// dueRows locks rows whose time has come. On PostgreSQL those that another node works on are left to it.
func dueRows(ctx context.Context, tx *sqldb.Tx, now time.Time) ([]seenRow, error) {
	q := sqldb.NewQuery("SELECT "+seenColumns+" FROM monitoring_seen WHERE state < 3 AND check_at <= ? ORDER BY check_at LIMIT ?", sqldb.Micros(now), rowsPerStatement)
	q.Add(tx.Dialect().Pick("", "FOR UPDATE SKIP LOCKED"))
	return scanSeen(tx.QueryContext(ctx, q.SQL(), q.Args()...))
}

// setStates changes the rows in one statement. The first row's casts give the columns their types on
// PostgreSQL, where those of placeholders are not known.
func setStates(ctx context.Context, tx *sqldb.Tx, changes []stateChange) error {
	q := sqldb.NewQuery("WITH c(num, state, since, look) AS (VALUES")
	for i, c := range changes {
		check := neverCheck
		if c.state != Offline {
			// A microsecond later than the limit: at the limit itself the state is still the better one.
			check = sqldb.Micros(c.checkAt) + 1
		}
		row := ", (?, ?, ?, ?)"
		if i == 0 {
			row = "(CAST(? AS BIGINT), CAST(? AS SMALLINT), CAST(? AS BIGINT), CAST(? AS BIGINT))"
		}
		q.Add(row, c.num, int(c.state), sqldb.Micros(c.since), check)
	}
	q.Add(") UPDATE monitoring_seen SET state = c.state, state_since = c.since, check_at = c.look FROM c WHERE monitoring_seen.num = c.num")
	return exec(ctx, tx, q)
}

// writeCounts adds to the kept counts in a fixed order, so that two nodes don't wait for each other.
func writeCounts(ctx context.Context, tx *sqldb.Tx, counts countChange) error {
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b countKey) int {
		if c := strings.Compare(string(a.tenant), string(b.tenant)); c != 0 {
			return c
		}
		return int(a.state) - int(b.state)
	})
	for _, k := range keys {
		if counts[k] == 0 {
			continue
		}
		q := sqldb.NewQuery(`INSERT INTO monitoring_count (tenant, state, n) VALUES (?, ?, ?)
			ON CONFLICT (tenant, state) DO UPDATE SET n = monitoring_count.n + excluded.n`, string(k.tenant), int(k.state), counts[k])
		if err := exec(ctx, tx, q); err != nil {
			return err
		}
	}
	return nil
}

func readWatch(ctx context.Context, tx *sqldb.Tx) (since, alive time.Time, node string, err error) {
	q := "SELECT since, alive, node FROM monitoring_watch WHERE id = 1" + tx.Dialect().Pick("", " FOR UPDATE")
	err = tx.QueryRowContext(ctx, q).Scan(sqldb.ScanMicros(&since), sqldb.ScanMicros(&alive), &node)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return since, alive, node, err
}

func writeWatch(ctx context.Context, tx *sqldb.Tx, since, alive time.Time, node string) error {
	return exec(ctx, tx, sqldb.NewQuery(`INSERT INTO monitoring_watch (id, since, alive, node) VALUES (1, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET since = excluded.since, alive = excluded.alive, node = excluded.node`, sqldb.Micros(since), sqldb.Micros(alive), node))
}

func readPresence(ctx context.Context, q sqldb.Reader, nums []int64, into map[int64]Presence) error {
	b := sqldb.NewQuery("SELECT "+seenColumns+" FROM monitoring_seen WHERE num IN ("+marks(len(nums))+")", anys(nums)...)
	rows, err := scanSeen(q.QueryContext(ctx, b.SQL(), b.Args()...))
	for _, r := range rows {
		into[r.num] = Presence{State: r.state, LastContact: r.lastContact, Since: r.since}
	}
	return err
}

func (s *Service) forgetContact(ctx context.Context, tx *sqldb.Tx, d device.Device) error {
	if err := s.forgetSeen(ctx, tx, d); err != nil {
		return err
	}
	for _, table := range []string{"monitoring_trouble", "monitoring_event", "monitoring_link"} {
		if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE num = $1", d.Num); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, "INSERT INTO monitoring_forgotten (at, device) VALUES ($1, $2) ON CONFLICT (at, device) DO NOTHING", sqldb.Micros(s.now()), string(d.ID))
	return err
}

// forgetSeen forgets that the device was ever in contact.
func (s *Service) forgetSeen(ctx context.Context, tx *sqldb.Tx, d device.Device) error {
	tx.AfterCommit(func() { s.drop(d.Num) })
	row, err := scanSeen(tx.QueryContext(ctx, "SELECT "+seenColumns+" FROM monitoring_seen WHERE num = $1"+tx.Dialect().Pick("", " FOR UPDATE"), d.Num))
	if err != nil {
		return err
	}
	if len(row) == 1 && row[0].state != Never {
		if err := writeCounts(ctx, tx, countChange{{row[0].tenant, row[0].state}: -1}); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, "DELETE FROM monitoring_seen WHERE num = $1", d.Num)
	return err
}

// drop takes back what waits to be written of a device that was forgotten.
func (s *Service) drop(num int64) {
	s.links.forget(num)
	s.contacts.mu.Lock()
	defer s.contacts.mu.Unlock()
	delete(s.contacts.waiting, num)
	for key := range s.contacts.troubles {
		if key.num == num {
			delete(s.contacts.troubles, key)
		}
	}
}

// inService are the stages in which a device is expected to be in contact.
var inService = []device.Stage{device.Enrolled, device.Active, device.Quarantined, device.InTransfer, device.Retired}

func readCounts(rows *sql.Rows, err error) (map[State]int64, error) {
	if err != nil {
		return nil, fmt.Errorf("count presence: %w", err)
	}
	defer rows.Close()
	counts := map[State]int64{}
	for rows.Next() {
		var state State
		var n int64
		if err := rows.Scan(&state, &n); err != nil {
			return nil, fmt.Errorf("count presence: %w", err)
		}
		counts[state] += n
	}
	return counts, rows.Err()
}

func numbers(rows *sql.Rows, err error) (out []int64, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, rows.Err()
}

func texts(rows *sql.Rows, err error) (out []string, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, rows.Err()
}

func writeTroubles(ctx context.Context, tx *sqldb.Tx, troubles map[troubleKey]troubleNote) error {
	keys := slices.SortedFunc(maps.Keys(troubles), func(a, b troubleKey) int {
		if a.num != b.num {
			return int(min(max(a.num-b.num, -1), 1))
		}
		return strings.Compare(a.kind, b.kind)
	})
	for _, k := range keys {
		t := troubles[k]
		err := exec(ctx, tx, sqldb.NewQuery(`INSERT INTO monitoring_trouble (num, kind, tenant, n, first, last, detail) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (num, kind) DO UPDATE SET n = monitoring_trouble.n + excluded.n, last = excluded.last, detail = excluded.detail`,
			k.num, k.kind, string(t.tenant), t.n, sqldb.Micros(t.first), sqldb.Micros(t.last), t.detail))
		if err != nil {
			return err
		}
	}
	return nil
}

// Troubles lists what is wrong with what a device sends, now or before.
func (s *Service) Troubles(ctx context.Context, num int64) ([]Trouble, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, "SELECT kind, n, first, last, detail FROM monitoring_trouble WHERE num = $1 ORDER BY kind", num)
	if err != nil {
		return nil, fmt.Errorf("read troubles: %w", err)
	}
	defer rows.Close()
	var out []Trouble
	for rows.Next() {
		var t Trouble
		if err := rows.Scan(&t.Kind, &t.Count, sqldb.ScanMicros(&t.First), sqldb.ScanMicros(&t.Last), &t.Detail); err != nil {
			return nil, fmt.Errorf("read troubles: %w", err)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}
