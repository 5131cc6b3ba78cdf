package update

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// shards is over how many rows a counter is spread.
const shards = "16"

func insertAssignment(ctx context.Context, tx *sqldb.Tx, a *Assignment) error {
	by, err := json.Marshal(a.CreatedBy)
	if err != nil {
		return err
	}
	return tx.QueryRowContext(ctx, `INSERT INTO update_assignment
			(id, tenant, name, version, target, selector, author_scope, note, state, created, created_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING num`,
		a.ID, a.Tenant, a.Release, a.Version, a.target, a.Selector.String(), a.authorScope, a.Note, a.State,
		sqldb.Micros(a.Created), string(by)).Scan(&a.num)
}

// overtake ends older assignments of the release that can't decide anything any more, because the new
// one matches all that they match: the same selector, or all devices.
func overtake(ctx context.Context, tx *sqldb.Tx, a Assignment) error {
	b := sqldb.NewQuery(`UPDATE update_assignment SET state = ?, superseded_by = ?, ended = ?
		WHERE tenant = ? AND name = ? AND state = ? AND num < ?`,
		Overtaken, a.ID, sqldb.Micros(a.Created), a.Tenant, a.Release, Active, a.num)
	if !a.Selector.Empty() {
		b.Add(`AND selector = ?`, a.Selector.String())
	}
	if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
		return fmt.Errorf("end older assignments: %w", err)
	}
	// What was on its way to devices for them need not arrive.
	b = sqldb.NewQuery(`DELETE FROM update_work WHERE kind <> ? AND assignment IN
		(SELECT num FROM update_assignment WHERE tenant = ? AND name = ? AND superseded_by = ?)`, string(Cancelling), a.Tenant, a.Release, a.ID)
	if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
		return fmt.Errorf("end changes of older assignments: %w", err)
	}
	return nil
}

func endAssignment(ctx context.Context, tx *sqldb.Tx, a Assignment, state AssignmentState, at time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE update_assignment SET state = $1, ended = $2 WHERE num = $3`, state, sqldb.Micros(at), a.num)
	return err
}

// An assignment is read with the change that is under way, if any, in one statement.
const assignmentColumns = `SELECT a.num, a.id, a.tenant, a.name, a.version, a.target, a.selector, a.author_scope, a.note, a.state, a.superseded_by,
	a.created, a.created_by, a.ended, COALESCE(w.kind, ''), COALESCE(w.done, 0), COALESCE(w.total, 0), COALESCE(w.started, 0)
	FROM update_assignment a LEFT JOIN update_work w ON w.assignment = a.num WHERE `

func scanAssignment(scan func(...any) error) (Assignment, error) {
	var a Assignment
	var p Progress
	var selector, by string
	err := scan(&a.num, &a.ID, &a.Tenant, &a.Release, &a.Version, &a.target, &selector, &a.authorScope, &a.Note,
		&a.State, &a.SupersededBy, sqldb.ScanMicros(&a.Created), &by, sqldb.ScanMicros(&a.Ended),
		&p.Task, &p.Done, &p.Total, sqldb.ScanMicros(&p.Started))
	if err != nil {
		return a, err
	}
	if p.Task != "" {
		a.Progress = &p
	}
	if a.Selector, err = device.ParseSelector(selector); err != nil {
		return a, fmt.Errorf("read assignment %s: %w", a.ID, err)
	}
	if err := json.Unmarshal([]byte(by), &a.CreatedBy); err != nil {
		return a, fmt.Errorf("read assignment %s: %w", a.ID, err)
	}
	return a, nil
}

func queryAssignments(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) ([]Assignment, error) {
	return sqldb.Collect(ctx, q, func(rows *sql.Rows) (Assignment, error) { return scanAssignment(rows.Scan) }, b.SQL(), b.Args()...)
}

func assignmentByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Assignment, error) {
	a, err := scanAssignment(q.QueryRowContext(ctx, assignmentColumns+`a.id = $1 AND a.tenant = $2`, id, tenant).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		err = fault.New(fault.NotFound, "there is no assignment %.60q", id)
	}
	return a, err
}

func assignmentByNum(ctx context.Context, q sqldb.Reader, num int64) (Assignment, error) {
	return scanAssignment(q.QueryRowContext(ctx, assignmentColumns+`a.num = $1`, num).Scan)
}

func activeAssignments(ctx context.Context, q sqldb.Reader, tenant device.TenantID) ([]Assignment, error) {
	return queryAssignments(ctx, q, sqldb.NewQuery(assignmentColumns+`a.tenant = ? AND a.state = ? ORDER BY a.num DESC`, tenant, Active))
}

// asked counts, from kept counters, the devices that are asked for the assignment and in a state that is
// wanted.
func asked(ctx context.Context, q sqldb.Reader, a Assignment, wanted func(State) bool) (n int64, err error) {
	counts, err := countStates(ctx, q, sqldb.NewQuery(`SELECT state, SUM(n) FROM update_tally WHERE assignment = ? AND current = 1 GROUP BY state`, a.num))
	for state, some := range counts {
		if wanted(state) {
			n += some
		}
	}
	return n, err
}

// countFailed counts the devices that may try again.
func countFailed(ctx context.Context, q sqldb.Reader, a Assignment, cause string) (n int64, err error) {
	if cause == "" {
		return asked(ctx, q, a, failed)
	}
	err = q.QueryRowContext(ctx, `SELECT COUNT(*) FROM update_state WHERE assignment = $1 AND state IN ($2, $3) AND current = 1 AND cause = $4`,
		a.num, wire.UpdateFailed, wire.UpdateRolledBack, cause).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count failures: %w", err)
	}
	return n, nil
}

// meetDevice makes the device's row.
func meetDevice(ctx context.Context, tx *sqldb.Tx, d device.Device) error {
	_, err := tx.Exec(ctx, `INSERT INTO update_device (num, tenant) VALUES ($1, $2)
		ON CONFLICT (num) DO UPDATE SET tenant = excluded.tenant`, d.Num, d.Tenant)
	return err
}

// stateRow is how far a device is with one assignment.
type stateRow struct {
	assignment   int64
	assignmentID string
	name         string
	version      string
	attempt      int
	current      bool
	state        State
	cause        string
	step         string
}

const stateColumns = `s.assignment, a.id, s.name, s.version, s.attempt, s.current, s.state, s.cause, s.step`

func scanState(scan func(...any) error) (r stateRow, err error) {
	err = scan(&r.assignment, &r.assignmentID, &r.name, &r.version, &r.attempt, &r.current, &r.state, &r.cause, &r.step)
	return r, err
}

// currentOf returns what the device is asked for, by release name.
func currentOf(ctx context.Context, q sqldb.Reader, num int64) (map[string]stateRow, error) {
	rows, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (stateRow, error) { return scanState(rows.Scan) },
		`SELECT `+stateColumns+` FROM update_state s JOIN update_assignment a ON a.num = s.assignment WHERE s.num = $1 AND s.current = 1`, num)
	out := make(map[string]stateRow, len(rows))
	for _, r := range rows {
		out[r.name] = r
	}
	return out, err
}

// stateOf returns the device's row of an assignment; ok is false when it was never asked for it.
func stateOf(ctx context.Context, q sqldb.Reader, d device.Device, assignment string) (r stateRow, ok bool, err error) {
	r, err = scanState(q.QueryRowContext(ctx, `SELECT `+stateColumns+` FROM update_assignment a JOIN update_state s ON s.assignment = a.num
		WHERE a.id = $1 AND a.tenant = $2 AND s.num = $3`, assignment, d.Tenant, d.Num).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	}
	return r, err == nil, err
}

// moveCount moves one device from a state's counter to another's, in a fixed order so that two reports
// can't wait for one another.
func moveCount(ctx context.Context, tx *sqldb.Tx, row stateRow, num int64, to State) error {
	steps := []struct {
		state State
		n     int
	}{{row.state, -1}, {to, 1}}
	if to < row.state {
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, step := range steps {
		b := sqldb.NewQuery(`INSERT INTO update_tally (assignment, state, current, shard, n) VALUES (?, ?, ?, ? % `+shards+`, ?)
			ON CONFLICT (assignment, state, current, shard) DO UPDATE SET n = update_tally.n + excluded.n`, row.assignment, step.state, flag(row.current), num, step.n)
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("count progress: %w", err)
		}
	}
	return nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func storeProgress(ctx context.Context, tx *sqldb.Tx, row stateRow, num int64, p wire.UpdateProgress, at time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE update_state SET state = $1, step = $2, cause = $3, changed = $4 WHERE assignment = $5 AND num = $6`,
		p.State, p.Step, p.Cause, sqldb.Micros(at), row.assignment, num)
	return err
}

// insertHistory notes a state that was reached; told is false when it was known.
func insertHistory(ctx context.Context, tx *sqldb.Tx, row stateRow, num int64, e HistoryEntry) (fresh bool, err error) {
	n, err := tx.Exec(ctx, `INSERT INTO update_history (num, assignment, attempt, state, name, version, step, cause, output, reached, received)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (num, assignment, attempt, state) DO NOTHING`,
		num, row.assignment, e.Attempt, e.State, row.name, row.version, e.Step, e.Cause, e.Output, sqldb.Micros(e.Reached), sqldb.Micros(e.Received))
	return n > 0, err
}

// Installed is a release that runs on a device.
type Installed = wire.InstalledRelease

func installedOn(ctx context.Context, q sqldb.Reader, num int64) ([]Installed, error) {
	return sqldb.Collect(ctx, q, func(rows *sql.Rows) (i Installed, err error) {
		err = rows.Scan(&i.Name, &i.Version, sqldb.ScanMicros(&i.Since))
		return i, err
	}, `SELECT name, version, since FROM update_installed WHERE num = $1 ORDER BY name`, num)
}

func replaceInstalled(ctx context.Context, tx *sqldb.Tx, num int64, list []Installed) error {
	if _, err := tx.Exec(ctx, `DELETE FROM update_installed WHERE num = $1`, num); err != nil {
		return err
	}
	for _, i := range list {
		if _, err := tx.Exec(ctx, `INSERT INTO update_installed (num, name, version, since) VALUES ($1, $2, $3, $4)
			ON CONFLICT (num, name) DO NOTHING`, num, i.Name, i.Version, sqldb.Micros(i.Since)); err != nil {
			return err
		}
	}
	return nil
}

// CheckCounts counts all progress anew and returns a sentence for each kept counter that is wrong, at
// most 20. It reads every device and so is for checks of the whole database, not for requests.
func (s *Service) CheckCounts(ctx context.Context, q sqldb.Reader) ([]string, error) {
	wrong, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (string, error) {
		var assignment, current, kept, counted int64
		var state string
		err := rows.Scan(&assignment, &state, &current, &kept, &counted)
		return fmt.Sprintf("updates: kept %d, counted %d of assignment number %d in state %s, current %d", kept, counted, assignment, state, current), err
	}, `SELECT COALESCE(k.assignment, t.assignment), COALESCE(k.state, t.state), COALESCE(k.current, t.current), COALESCE(k.n, 0), COALESCE(t.n, 0)
		FROM (SELECT assignment, state, current, SUM(n) AS n FROM update_tally GROUP BY assignment, state, current) k
		FULL JOIN (SELECT assignment, state, current, COUNT(*) AS n FROM update_state GROUP BY assignment, state, current) t
			ON t.assignment = k.assignment AND t.state = k.state AND t.current = k.current
		WHERE COALESCE(k.n, 0) <> COALESCE(t.n, 0) LIMIT 20`)
	if err != nil {
		return nil, fmt.Errorf("check the counts of updates: %w", err)
	}
	return wrong, nil
}
