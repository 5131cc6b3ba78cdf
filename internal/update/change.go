package update

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
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
}

const picked = `(SELECT num FROM update_device WHERE picked = ?)`

func (c *change) exec(ctx context.Context, doing string, b *sqldb.Builder) (int64, error) {
	n, err := c.tx.Exec(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return n, fmt.Errorf("%s: %w", doing, err)
	}
	return n, nil
}

// run picks the devices and does the steps to them; without devices it does nothing.
func (c *change) run(ctx context.Context, tenant device.TenantID, nums []int64, steps ...func(context.Context) error) error {
	if len(nums) == 0 {
		return nil
	}
	if err := c.pick(ctx, tenant, nums); err != nil {
		return err
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// byIndex has PostgreSQL go from the picked devices to their rows by indexes, for the rest of the
// transaction. It knows nothing of rows that were written just now, and would read whole tables for
// joins with them: a step over some hundred devices would cost as much as there are devices.
func (c *change) byIndex(ctx context.Context) error {
	if c.tx.Dialect() != sqldb.Postgres {
		return nil
	}
	_, err := c.exec(ctx, "set the planner", sqldb.NewQuery(
		"SELECT set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('enable_seqscan', 'off', true)"))
	return err
}

// rowsAtOnce bounds the rows of one statement: SQLite takes 32,766 arguments.
const rowsAtOnce = 500

// pick marks devices, meeting them where they are new. The order of their numbers is that in which
// PostgreSQL locks them.
func (c *change) pick(ctx context.Context, tenant device.TenantID, nums []int64) error {
	if err := c.byIndex(ctx); err != nil {
		return err
	}
	for chunk := range slices.Chunk(slices.Sorted(slices.Values(nums)), rowsAtOnce) {
		b := sqldb.NewQuery(`INSERT INTO update_device (num, tenant, picked) VALUES`)
		for i, num := range chunk {
			if i > 0 {
				b.Add(`,`)
			}
			b.Add(`(?, ?, ?)`, num, string(tenant), c.mark)
		}
		if _, err := c.exec(ctx, "pick devices", b.Add(`ON CONFLICT (num) DO UPDATE SET picked = excluded.picked`)); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) pickOne(ctx context.Context, num int64) error {
	if err := c.byIndex(ctx); err != nil {
		return err
	}
	_, err := c.exec(ctx, "pick device", sqldb.NewQuery(`UPDATE update_device SET picked = ? WHERE num = ?`, c.mark, num))
	return err
}

// ahead tells which of the devices are asked for the assignment already, or for a newer one of the same
// release.
func (c *change) ahead(ctx context.Context, a Assignment, nums []int64) (map[int64]bool, error) {
	out := map[int64]bool{}
	for chunk := range slices.Chunk(nums, rowsAtOnce) {
		b := sqldb.NewQuery(`SELECT num FROM update_state WHERE name = ? AND current = 1 AND assignment >= ? AND num IN (`, a.Release, a.num)
		for i, num := range chunk {
			if i > 0 {
				b.Add(`,`)
			}
			b.Add(`?`, num)
		}
		b.Add(`)`)
		found, err := sqldb.Collect(ctx, c.tx, sqldb.Value[int64], b.SQL(), b.Args()...)
		if err != nil {
			return nil, fmt.Errorf("look for newer assignments: %w", err)
		}
		for _, num := range found {
			out[num] = true
		}
	}
	return out, nil
}

// askedRow is a device that has had the assignment.
type askedRow struct {
	num     int64
	current bool
	state   State
	cause   string
	changed time.Time
}

// next returns the next devices that are asked for the assignment and wanted, and moves the work on: to 0
// at the end. It looks at a few rows for each device that it may return, so that a step stays short
// however few are wanted.
func (c *change) next(ctx context.Context, w *work, size int, wanted func(askedRow) bool) ([]int64, error) {
	rows, err := sqldb.Collect(ctx, c.tx, func(rows *sql.Rows) (r askedRow, err error) {
		err = rows.Scan(&r.num, &r.current, &r.state, &r.cause, sqldb.ScanMicros(&r.changed))
		return r, err
	}, `SELECT num, current, state, cause, changed FROM update_state WHERE assignment = $1 AND num > $2 ORDER BY num LIMIT $3`,
		w.assignment, w.position, 4*size)
	if err != nil {
		return nil, fmt.Errorf("look for the next devices: %w", err)
	}
	w.position = 0
	var nums []int64
	for i, r := range rows {
		if r.current && wanted(r) {
			nums = append(nums, r.num)
		}
		if len(nums) == size || i == 4*size-1 {
			w.position = r.num
			break
		}
	}
	return nums, nil
}

const openStates = `('pending', 'downloading', 'downloaded', 'installed', 'healthy')`

// pickedStates are the rows of update_state, under the name s, of the marked devices. CROSS JOIN has SQLite
// begin with the devices: it would walk all rows of an assignment for the order that a GROUP BY wants.
const pickedStates = `FROM update_device d CROSS JOIN update_state s WHERE d.picked = ? AND s.num = d.num AND `

const addCounts = ` ON CONFLICT (assignment, state, current, shard) DO UPDATE SET n = update_tally.n + excluded.n`

// tally adds the marked devices' rows that the condition picks to the kept counters, or takes them away
// (sign "-"), each as what it is at that moment: a statement that changes rows stands between the two.
func (c *change) tally(ctx context.Context, sign, where string, args ...any) error {
	_, err := c.exec(ctx, "count progress", sqldb.NewQuery(`INSERT INTO update_tally (assignment, state, current, shard, n)
		SELECT s.assignment, s.state, s.current, s.num % `+shards+`, `+sign+`COUNT(*) `+pickedStates, c.mark).
		Add(where, args...).Add(`GROUP BY s.assignment, s.state, s.current, s.num % `+shards+addCounts))
	return err
}

// counted takes the rows that the condition picks out of the counters, changes them and counts them again.
func (c *change) counted(ctx context.Context, where string, args []any, change func() error) error {
	if err := c.tally(ctx, "-", where, args...); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return c.tally(ctx, "", where, args...)
}

// retire ends what the devices are asked for now: open states become the given one, results stay.
func (c *change) retire(ctx context.Context, ending State) error {
	if err := c.tally(ctx, "-", `s.name = ? AND s.current = 1`, c.name); err != nil {
		return err
	}
	// Counted as what they become, before they are no longer found by being current.
	if _, err := c.exec(ctx, "count progress", sqldb.NewQuery(`INSERT INTO update_tally (assignment, state, current, shard, n)
		SELECT s.assignment, CASE WHEN s.state IN `+openStates+` THEN CAST(? AS TEXT) ELSE s.state END AS ending, 0, s.num % `+shards+`, COUNT(*)`, ending).
		Add(pickedStates+`s.name = ? AND s.current = 1`, c.mark, c.name).
		Add(`GROUP BY s.assignment, ending, s.num % `+shards+addCounts)); err != nil {
		return err
	}
	_, err := c.exec(ctx, "end what is asked for", sqldb.NewQuery(`UPDATE update_state SET current = 0, changed = ?,
		state = CASE WHEN state IN `+openStates+` THEN ? ELSE state END WHERE name = ? AND current = 1 AND num IN `+picked,
		sqldb.Micros(c.at), ending, c.name, c.mark))
	return err
}

// take asks the devices for the assignment. A device that had it before goes on where it was; when it
// was taken away in the middle it begins again.
func (c *change) take(ctx context.Context, a Assignment) error {
	return c.counted(ctx, `s.assignment = ?`, []any{a.num}, func() error {
		_, err := c.exec(ctx, "ask devices", sqldb.NewQuery(`INSERT INTO update_state (assignment, num, name, version, attempt, current, state, changed)
			SELECT ?, num, ?, ?, 1, 1, ?, ? FROM update_device WHERE picked = ?
			ON CONFLICT (assignment, num) DO UPDATE SET current = 1, changed = excluded.changed,
				state = CASE WHEN update_state.state IN (?, ?, ?) THEN excluded.state ELSE update_state.state END`,
			a.num, c.name, a.Version, wire.UpdatePending, sqldb.Micros(c.at), c.mark, Superseded, Cancelled, Withdrawn))
		return err
	})
}

// lastCommitted is the condition on rows under the name s that they are what the device committed last.
const lastCommitted = `s.name = ? AND s.state = ? AND s.assignment =
	(SELECT MAX(p.assignment) FROM update_state p WHERE p.num = s.num AND p.name = ? AND p.state = ?)`

// restore asks the devices for what they had committed last, where there is such a thing.
func (c *change) restore(ctx context.Context) error {
	args := []any{c.name, wire.UpdateCommitted, c.name, wire.UpdateCommitted}
	return c.counted(ctx, lastCommitted, args, func() error {
		_, err := c.exec(ctx, "go back to what was committed", sqldb.NewQuery(`UPDATE update_state AS s SET current = 1 WHERE s.num IN `+picked+` AND `, c.mark).
			Add(lastCommitted, args...))
		return err
	})
}

// again raises the attempt of the devices.
func (c *change) again(ctx context.Context, a Assignment) error {
	return c.counted(ctx, `s.assignment = ?`, []any{a.num}, func() error {
		_, err := c.exec(ctx, "try again", sqldb.NewQuery(`UPDATE update_state SET attempt = attempt + 1, state = ?, step = '', cause = '', changed = ?
			WHERE assignment = ? AND num IN `+picked, wire.UpdatePending, sqldb.Micros(c.at), a.num, c.mark))
		return err
	})
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
	groups, err := sqldb.Collect(ctx, c.tx, func(rows *sql.Rows) (g group, err error) {
		err = rows.Scan(&g.wants, &g.assignment, &g.attempt)
		return g, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("group devices: %w", err)
	}
	return groups, nil
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
	// The group again, device by device: a join of the picked with the picked may compare all with all.
	asked := `(SELECT s.%s FROM update_state s WHERE s.num = update_device.num AND s.name = ? AND s.current = 1)`
	_, err = c.exec(ctx, "keep what devices want", sqldb.NewQuery(`UPDATE update_device SET wants = ? WHERE picked = ? AND wants = ?`, next, c.mark, g.wants).
		Add(`AND COALESCE(`+fmt.Sprintf(asked, "assignment")+`, 0) = ?`, c.name, g.assignment).
		Add(`AND COALESCE(`+fmt.Sprintf(asked, "attempt")+`, 0) = ?`, c.name, g.attempt))
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
