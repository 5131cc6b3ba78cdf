package remote

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// rowsPerStatement keeps statements below the engines' limits of placeholders.
const rowsPerStatement = 500

// The columns of a list, and of one command with its bodies.
const (
	listColumns = "c.id, c.num, c.tenant, c.device, c.batch, c.name, c.actor_kind, c.actor_id, c.actor_name, c.issued, c.deadline, c.state, c.delivered, c.finished, c.late, c.device_time, c.cause, c.output_sha256"
	fullColumns = listColumns + ", c.params, c.output"
)

func scan(rows interface{ Scan(...any) error }, bodies bool) (Command, error) {
	var c Command
	var params, output string
	to := []any{
		&c.ID, &c.num, &c.tenant, &c.Device, &c.Batch, &c.Name, &c.By.Kind, &c.By.ID, &c.By.Name, sqldb.ScanMicros(&c.Issued), sqldb.ScanMicros(&c.Deadline),
		&c.State, sqldb.ScanMicros(&c.Delivered), sqldb.ScanMicros(&c.Finished), &c.Late, sqldb.ScanMicros(&c.DeviceTime), &c.Cause, &c.OutputSHA256,
	}
	if bodies {
		to = append(to, &params, &output)
	}
	err := rows.Scan(to...)
	if params != "" {
		c.Params = []byte(params)
	}
	if output != "" {
		c.Output = []byte(output)
	}
	return c, err
}

func scanAll(rows *sql.Rows, err error, bodies bool) ([]Command, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []Command
	for rows.Next() {
		c, err := scan(rows, bodies)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

func scanTexts(rows *sql.Rows, err error) (out []string, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, rows.Err()
}

func byID(ctx context.Context, q sqldb.Reader, id string) (c Command, ok bool, err error) {
	if !idPattern.MatchString(id) {
		return Command{}, false, nil
	}
	c, err = scan(q.QueryRowContext(ctx, "SELECT "+fullColumns+" FROM remote_command c WHERE c.id = $1", id), true)
	if errors.Is(err, sql.ErrNoRows) {
		return Command{}, false, nil
	}
	if err != nil {
		return Command{}, false, fmt.Errorf("read command %s: %w", id, err)
	}
	return c, true, nil
}

// openOf lists the open commands of a device that are not past their deadline, oldest first.
func openOf(ctx context.Context, q sqldb.Reader, num int64, now time.Time) ([]Command, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+fullColumns+" FROM remote_command c WHERE c.num = $1 AND c.state < 2 AND c.deadline > $2 ORDER BY c.issued, c.id", num, sqldb.Micros(now))
	return scanAll(rows, err, true)
}

func openNames(ctx context.Context, q sqldb.Reader, num int64, now time.Time) ([]string, error) {
	return scanTexts(q.QueryContext(ctx, "SELECT name FROM remote_command WHERE num = $1 AND state < 2 AND deadline > $2", num, sqldb.Micros(now)))
}

func countOpen(ctx context.Context, q sqldb.Reader, num int64) (n int, err error) {
	err = q.QueryRowContext(ctx, "SELECT COUNT(*) FROM remote_command WHERE num = $1 AND state < 2", num).Scan(&n)
	return n, err
}

func insert(ctx context.Context, tx *sqldb.Tx, c Command) error {
	_, err := tx.Exec(ctx, `INSERT INTO remote_command (id, num, tenant, device, batch, name, params, actor_kind, actor_id, actor_name, issued, deadline, state)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0)`,
		c.ID, c.num, string(c.tenant), string(c.Device), c.Batch, c.Name, string(c.Params), string(c.By.Kind), c.By.ID, c.By.Name,
		sqldb.Micros(c.Issued), sqldb.Micros(c.Deadline))
	if err != nil {
		return fmt.Errorf("store command: %w", err)
	}
	return forgetOldest(ctx, tx, c.num)
}

// forgetOldest keeps a device's history within its bound, whatever it is asked.
func forgetOldest(ctx context.Context, tx *sqldb.Tx, num int64) error {
	_, err := tx.Exec(ctx, `DELETE FROM remote_command WHERE state >= 2 AND id IN
		(SELECT id FROM remote_command WHERE num = $1 ORDER BY issued DESC, id DESC LIMIT $2 OFFSET $3)`, num, rowsPerStatement, keepPerDevice+MaxOpen)
	if err != nil {
		return fmt.Errorf("forget old commands: %w", err)
	}
	return nil
}

// writeEnd stores how a command ended; false when its state is no longer the one that was read.
func writeEnd(ctx context.Context, tx *sqldb.Tx, before State, c Command) (bool, error) {
	q := sqldb.NewQuery(`UPDATE remote_command SET state = ?, finished = ?, late = ?, device_time = ?, cause = ?, output = ?, output_sha256 = ?`,
		int(c.State), sqldb.Micros(c.Finished), flag(c.Late), sqldb.Micros(c.DeviceTime), c.Cause, string(c.Output), c.OutputSHA256).
		Add("WHERE id = ? AND state = ?", c.ID, int(before))
	n, err := tx.Exec(ctx, q.SQL(), q.Args()...)
	if err != nil {
		return false, fmt.Errorf("end command %s: %w", c.ID, err)
	}
	return n == 1, nil
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func writeDelivered(ctx context.Context, tx *sqldb.Tx, ids []string, at time.Time) error {
	q := sqldb.NewQuery("UPDATE remote_command SET state = 1, delivered = ? WHERE state = 0 AND id IN ("+marks(len(ids))+")",
		append([]any{sqldb.Micros(at)}, anys(ids)...)...)
	_, err := tx.Exec(ctx, q.SQL(), q.Args()...)
	return err
}

func marks(n int) string { return "?" + strings.Repeat(", ?", n-1) }

func anys(texts []string) []any {
	out := make([]any, len(texts))
	for i, t := range texts {
		out[i] = t
	}
	return out
}

func dueIDs(ctx context.Context, q sqldb.Reader, now time.Time, limit int) ([]string, error) {
	ids, err := scanTexts(q.QueryContext(ctx, "SELECT id FROM remote_command WHERE state < 2 AND deadline <= $1 ORDER BY deadline LIMIT $2", sqldb.Micros(now), limit))
	if err != nil {
		return nil, fmt.Errorf("expire commands: %w", err)
	}
	return ids, nil
}

func prune(ctx context.Context, tx *sqldb.Tx, before time.Time) (int64, error) {
	n, err := tx.Exec(ctx, `DELETE FROM remote_command WHERE id IN
		(SELECT id FROM remote_command WHERE state >= 2 AND finished < $1 ORDER BY finished LIMIT $2)`, sqldb.Micros(before), rowsPerStatement)
	if err != nil || n > 0 {
		return n, err
	}
	return tx.Exec(ctx, `DELETE FROM remote_batch WHERE id IN (SELECT b.id FROM remote_batch b WHERE b.issued < $1
		AND NOT EXISTS (SELECT 1 FROM remote_command c WHERE c.batch = b.id AND c.batch <> '') ORDER BY b.issued LIMIT $2)`,
		sqldb.Micros(before.Add(-MaxDeadline)), rowsPerStatement)
}

// position is where a page of a list ends.
type position struct {
	Issued int64
	ID     string
}

// Filter picks commands for a list; what is empty picks all.
type Filter struct {
	Device string // ID
	Batch  string
	State  string
	Name   string
	Limit  int // 1 to 1000
	Cursor string
}

// List returns a page of commands of the devices in the reader's scope, newest first and without their
// bodies, and the cursor of the next one.
func (s *Service) List(ctx context.Context, who httpapi.Principal, f Filter) (list []Command, next string, err error) {
	var after position
	if err := httpapi.DecodeCursor(f.Cursor, &after); err != nil {
		return nil, "", err
	}
	q := sqldb.NewQuery("SELECT "+listColumns+" FROM remote_command c WHERE c.tenant = ?", string(who.Scope.Tenant))
	if f.Device != "" {
		d, err := s.find(ctx, s.cfg.DB, who.Scope, f.Device)
		if err != nil {
			return nil, "", err
		}
		q.Add("AND c.num = ?", d.Num)
	}
	if f.Batch != "" {
		q.Add("AND c.batch <> '' AND c.batch = ?", f.Batch)
	}
	if f.State != "" {
		state, err := ParseState(f.State)
		if err != nil {
			return nil, "", err
		}
		q.Add("AND c.state = ?", int(state))
	}
	if f.Name != "" {
		q.Add("AND c.name = ?", f.Name)
	}
	if !who.Scope.Selector.Empty() {
		nums, args := s.cfg.Devices.Matching(who.Scope, device.Selector{}, nil)
		q.Add("AND c.num IN ("+nums+")", args...)
	}
	if f.Cursor != "" {
		q.Add("AND (c.issued, c.id) < (?, ?)", after.Issued, after.ID)
	}
	f.Limit = min(max(f.Limit, 1), 1000)
	q.Add("ORDER BY c.issued DESC, c.id DESC LIMIT ?", f.Limit+1)
	rows, err := s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...)
	if list, err = scanAll(rows, err, false); err != nil {
		return nil, "", fmt.Errorf("list commands: %w", err)
	}
	if len(list) > f.Limit {
		list = list[:f.Limit]
		last := list[f.Limit-1]
		next = httpapi.EncodeCursor(position{sqldb.Micros(last.Issued), last.ID})
	}
	return list, next, nil
}

// Batch is a command that was given to a selection of devices, and how far they are.
type Batch struct {
	ID       string           `json:"id" doc:"bat-…"`
	Selector string           `json:"selector"`
	Name     string           `json:"name"`
	Devices  int64            `json:"devices" doc:"How many were given the command"`
	States   map[string]int64 `json:"states" nullable:"false" doc:"How many of your devices are in which state; old results are forgotten"`
	By       device.Actor     `json:"by"`
	Issued   time.Time        `json:"issued"`
	Deadline time.Time        `json:"deadline"`
}

// Batch returns one batch; fault.NotFound when none of its devices is in the reader's scope.
func (s *Service) Batch(ctx context.Context, who httpapi.Principal, id string) (Batch, error) {
	none := fault.New(fault.NotFound, "there is no batch %.60q", id)
	b := Batch{States: map[string]int64{}}
	if !idPattern.MatchString(id) {
		return b, none
	}
	row := s.cfg.DB.QueryRowContext(ctx, `SELECT id, selector, name, devices, actor_kind, actor_id, actor_name, issued, deadline
		FROM remote_batch WHERE id = $1 AND tenant = $2`, id, string(who.Scope.Tenant))
	err := row.Scan(&b.ID, &b.Selector, &b.Name, &b.Devices, &b.By.Kind, &b.By.ID, &b.By.Name, sqldb.ScanMicros(&b.Issued), sqldb.ScanMicros(&b.Deadline))
	if errors.Is(err, sql.ErrNoRows) {
		return b, none
	}
	if err != nil {
		return b, fmt.Errorf("read batch: %w", err)
	}
	q := sqldb.NewQuery("SELECT c.state, COUNT(*) FROM remote_command c WHERE c.batch <> '' AND c.batch = ?", id)
	if !who.Scope.Selector.Empty() {
		nums, args := s.cfg.Devices.Matching(who.Scope, device.Selector{}, nil)
		q.Add("AND c.num IN ("+nums+")", args...)
	}
	rows, err := s.cfg.DB.QueryContext(ctx, q.Add("GROUP BY c.state").SQL(), q.Args()...)
	if err != nil {
		return b, fmt.Errorf("read batch: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var state State
		var n int64
		if err := rows.Scan(&state, &n); err != nil {
			return b, fmt.Errorf("read batch: %w", err)
		}
		b.States[state.String()] = n
	}
	if len(b.States) == 0 && !who.Scope.Selector.Empty() {
		return Batch{}, none
	}
	return b, rows.Err()
}

func insertBatch(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, b Batch) error {
	_, err := tx.Exec(ctx, `INSERT INTO remote_batch (id, tenant, selector, name, devices, actor_kind, actor_id, actor_name, issued, deadline)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		b.ID, string(tenant), b.Selector, b.Name, b.Devices, string(b.By.Kind), b.By.ID, b.By.Name, sqldb.Micros(b.Issued), sqldb.Micros(b.Deadline))
	if err != nil {
		return fmt.Errorf("store batch: %w", err)
	}
	return nil
}

func openIDs(ctx context.Context, q sqldb.Reader, num int64) ([]string, error) {
	return scanTexts(q.QueryContext(ctx, "SELECT id FROM remote_command WHERE num = $1 AND state < 2 ORDER BY issued, id", num))
}

// shownBytes is how much of an output a device's page shows; a longer one has a page of its own.
const shownBytes = 1 << 10

// recent lists a device's newest commands with the outputs that are short.
func recent(ctx context.Context, q sqldb.Reader, num int64, limit int) ([]Command, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+listColumns+`, '', CASE WHEN LENGTH(c.output) <= $1 THEN c.output ELSE '' END
		FROM remote_command c WHERE c.num = $2 ORDER BY c.issued DESC, c.id DESC LIMIT $3`, shownBytes, num, limit)
	list, err := scanAll(rows, err, true)
	if err != nil {
		return nil, fmt.Errorf("read recent commands: %w", err)
	}
	return list, nil
}
