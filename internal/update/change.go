package update

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// change is one change of what a set of devices should run of one release name. The set is marked
// first, by a random number in update_device.picked: every later statement takes the devices from
// there, so that all see the same set whatever happens beside them, and each is one statement for all
// devices. On PostgreSQL the marking also locks the rows, so that two changes of one device follow one
// another.
type change struct {
	s    *Service
	tx   *sqldb.Tx
	name string // of the release
	mark int64
	at   time.Time

	devices int64 // that were picked
}

// manyDevices is from how many devices on a change tells the planner what it has written: PostgreSQL
// knows of rows that were written in this transaction only after an ANALYZE, and joins 100,000 of them
// row by row otherwise.
const manyDevices = 1000

// plan lets the planner see the rows of a big change. SQLite plans by the indexes alone.
func (c *change) plan(ctx context.Context, tables string) error {
	analyze := c.tx.Dialect().Pick("", "ANALYZE "+tables)
	if analyze == "" || c.devices < manyDevices {
		return nil
	}
	_, err := c.exec(ctx, "look at what was written", sqldb.NewQuery(analyze))
	return err
}

const picked = `(SELECT num FROM update_device WHERE picked = ?)`

func (c *change) exec(ctx context.Context, doing string, b *sqldb.Builder) (int64, error) {
	n, err := c.tx.Exec(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return n, fmt.Errorf("%s: %w", doing, err)
	}
	return n, nil
}

// pickMatching marks the devices that a sub-SELECT names, meeting them where they are new.
func (c *change) pickMatching(ctx context.Context, tenant device.TenantID, devices string, args []any) (int64, error) {
	b := sqldb.NewQuery(`WITH matching (num) AS (`).Add(devices, args...).Add(`)
		INSERT INTO update_device (num, tenant, picked) SELECT num, ?, ? FROM matching WHERE TRUE ORDER BY num
		ON CONFLICT (num) DO UPDATE SET picked = excluded.picked`, tenant, c.mark)
	return c.pick(ctx, b)
}

func (c *change) pick(ctx context.Context, b *sqldb.Builder) (n int64, err error) {
	if c.devices, err = c.exec(ctx, "pick devices", b); err != nil {
		return 0, err
	}
	return c.devices, c.plan(ctx, "update_device")
}

func (c *change) pickOne(ctx context.Context, num int64) error {
	_, err := c.exec(ctx, "pick device", sqldb.NewQuery(`UPDATE update_device SET picked = ? WHERE num = ?`, c.mark, num))
	return err
}

// pickUncommitted marks the devices that are asked for the assignment and have not committed it.
func (c *change) pickUncommitted(ctx context.Context, a Assignment) (int64, error) {
	return c.pick(ctx, sqldb.NewQuery(`UPDATE update_device SET picked = ? WHERE num IN
		(SELECT num FROM update_state WHERE assignment = ? AND current = 1 AND state <> ?)`, c.mark, a.num, wire.UpdateCommitted))
}

// pickFailed marks the devices that failed the assignment, for the cause when one is given.
func (c *change) pickFailed(ctx context.Context, a Assignment, cause string) (int64, error) {
	b := sqldb.NewQuery(`UPDATE update_device SET picked = ? WHERE num IN
		(SELECT num FROM update_state WHERE assignment = ? AND current = 1 AND state IN (?, ?)`,
		c.mark, a.num, wire.UpdateFailed, wire.UpdateRolledBack)
	if cause != "" {
		b.Add(`AND cause = ?`, cause)
	}
	return c.pick(ctx, b.Add(`)`))
}

const openStates = `('pending', 'downloading', 'downloaded', 'installed', 'healthy')`

// tally adds the rows of update_state that the condition picks to the kept counters, or takes them away
// (sign "-"); with a state they count as that one, else each as its own.
func (c *change) tally(ctx context.Context, sign string, as State, where string, args ...any) error {
	column, group := "state", ", state"
	if as != "" {
		column, group = "'"+string(as)+"'", ""
	}
	_, err := c.exec(ctx, "count progress", sqldb.NewQuery(`INSERT INTO update_count (assignment, state, shard, n)
		SELECT assignment, `+column+`, num % `+shards+`, `+sign+`COUNT(*) FROM update_state `+where+`
		GROUP BY assignment, num % `+shards+group+`
		ON CONFLICT (assignment, state, shard) DO UPDATE SET n = update_count.n + excluded.n`, args...))
	return err
}

// retire ends what the devices are asked for now: open states become the given one, results stay.
func (c *change) retire(ctx context.Context, ending State) error {
	where := `WHERE name = ? AND current = 1 AND num IN ` + picked
	open := where + ` AND state IN ` + openStates
	if err := c.tally(ctx, "-", "", open, c.name, c.mark); err != nil {
		return err
	}
	if err := c.tally(ctx, "", ending, open, c.name, c.mark); err != nil {
		return err
	}
	_, err := c.exec(ctx, "end what is asked for", sqldb.NewQuery(`UPDATE update_state SET current = 0, changed = ?,
		state = CASE WHEN state IN `+openStates+` THEN ? ELSE state END`, sqldb.Micros(c.at), ending).Add(where, c.name, c.mark))
	return err
}

// take asks the devices for the assignment. A device that had it before goes on where it was; when it
// was taken away in the middle it begins again.
func (c *change) take(ctx context.Context, a Assignment) error {
	// Who comes back from a state that the server gave leaves that state's count.
	if err := c.tally(ctx, "-", "", `WHERE assignment = ? AND state IN (?, ?, ?) AND num IN `+picked,
		a.num, Superseded, Cancelled, Withdrawn, c.mark); err != nil {
		return err
	}
	if _, err := c.exec(ctx, "ask devices", sqldb.NewQuery(`INSERT INTO update_state (assignment, num, name, version, attempt, current, state, changed)
		SELECT ?, num, ?, ?, 1, 1, ?, ? FROM update_device WHERE picked = ?
		ON CONFLICT (assignment, num) DO UPDATE SET current = 1, changed = excluded.changed,
			state = CASE WHEN update_state.state IN (?, ?, ?) THEN excluded.state ELSE update_state.state END`,
		a.num, c.name, a.Version, wire.UpdatePending, sqldb.Micros(c.at), c.mark, Superseded, Cancelled, Withdrawn)); err != nil {
		return err
	}
	// Results stood in the count all the time; what is pending now is new in it.
	return c.tally(ctx, "", "", `WHERE assignment = ? AND state = ? AND num IN `+picked, a.num, wire.UpdatePending, c.mark)
}

// restore asks the devices for what they had committed last, where there is such a thing.
func (c *change) restore(ctx context.Context) error {
	_, err := c.exec(ctx, "go back to what was committed", sqldb.NewQuery(`UPDATE update_state SET current = 1
		WHERE name = ? AND state = ? AND num IN `+picked+`
		AND assignment = (SELECT MAX(p.assignment) FROM update_state p WHERE p.num = update_state.num AND p.name = ? AND p.state = ?)`,
		c.name, wire.UpdateCommitted, c.mark, c.name, wire.UpdateCommitted))
	return err
}

// again raises the attempt of the devices.
func (c *change) again(ctx context.Context, a Assignment) error {
	where := `WHERE assignment = ? AND num IN ` + picked
	if err := c.tally(ctx, "-", "", where, a.num, c.mark); err != nil {
		return err
	}
	if _, err := c.exec(ctx, "try again", sqldb.NewQuery(`UPDATE update_state SET attempt = attempt + 1, state = ?, step = '', cause = '', changed = ?`,
		wire.UpdatePending, sqldb.Micros(c.at)).Add(where, a.num, c.mark)); err != nil {
		return err
	}
	return c.tally(ctx, "", "", where, a.num, c.mark)
}

// group is a set of the marked devices that want the same document now and are asked for the same of
// this release name: they will want the same document after the change too.
type group struct {
	wants, assignment int64
	attempt           int
}

// rewrite gives each marked device the document that follows from what it is asked for. It costs three
// statements per group, however many devices are in it.
func (c *change) rewrite(ctx context.Context) error {
	if err := c.plan(ctx, "update_state"); err != nil {
		return err
	}
	groups, err := c.groups(ctx)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := c.rewriteGroup(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

const groupFrom = `FROM update_device d LEFT JOIN update_state s ON s.num = d.num AND s.name = ? AND s.current = 1 WHERE d.picked = ?`

func (c *change) groups(ctx context.Context) ([]group, error) {
	b := sqldb.NewQuery(`SELECT d.wants, COALESCE(s.assignment, 0), COALESCE(s.attempt, 0) `+groupFrom+`
		GROUP BY d.wants, COALESCE(s.assignment, 0), COALESCE(s.attempt, 0)`, c.name, c.mark)
	rows, err := c.tx.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("group devices: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []group
	for rows.Next() {
		var g group
		if err := rows.Scan(&g.wants, &g.assignment, &g.attempt); err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

func (c *change) rewriteGroup(ctx context.Context, g group) error {
	doc, err := documentByNum(ctx, c.tx, g.wants)
	if err != nil {
		return err
	}
	var ref *wire.ReleaseRef
	if g.assignment != 0 {
		a, err := assignmentByNum(ctx, c.tx, g.assignment)
		if err != nil {
			return err
		}
		r := a.ref(g.attempt)
		ref = &r
	}
	doc = replaceRef(doc, c.name, ref)
	next, err := documentNum(ctx, c.tx, doc)
	if err != nil || next == g.wants {
		return err
	}
	nums := `SELECT d.num ` + groupFrom + ` AND d.wants = ? AND COALESCE(s.assignment, 0) = ? AND COALESCE(s.attempt, 0) = ?`
	args := []any{c.name, c.mark, g.wants, g.assignment, g.attempt}
	if next == 0 {
		_, err = c.s.cfg.Twin.ClearDesiredWhere(ctx, c.tx, nums, args, wire.SectionUpdate)
	} else {
		_, err = c.s.cfg.Twin.SetDesiredWhere(ctx, c.tx, nums, args, wire.SectionUpdate, doc)
	}
	if err != nil {
		return fmt.Errorf("set the desired releases: %w", err)
	}
	_, err = c.exec(ctx, "keep what devices want", sqldb.NewQuery(`UPDATE update_device SET wants = ? WHERE num IN (`, next).Add(nums, args...).Add(`)`))
	return err
}

// documentNum returns the number of a document, keeping it when it is new; 0 for the empty one.
func documentNum(ctx context.Context, tx *sqldb.Tx, doc wire.UpdateDesired) (num int64, err error) {
	if len(doc.Releases) == 0 {
		return 0, nil
	}
	body, err := wire.Canonical(doc)
	if err != nil {
		return 0, err
	}
	hash := wire.HashOf(body)
	err = tx.QueryRowContext(ctx, `INSERT INTO update_document (hash, body) VALUES ($1, $2)
		ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash RETURNING num`, hash, string(body)).Scan(&num)
	return num, err
}

func documentByNum(ctx context.Context, q sqldb.Reader, num int64) (doc wire.UpdateDesired, err error) {
	if num == 0 {
		return doc, nil
	}
	var body string
	err = q.QueryRowContext(ctx, `SELECT body FROM update_document WHERE num = $1`, num).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return doc, fmt.Errorf("desired document %d is gone", num)
	}
	if err != nil {
		return doc, err
	}
	return doc, wire.Decode([]byte(body), &doc)
}
