package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/job"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// BulkRun is a bulk change of more devices than are changed while the caller waits. Which devices it is
// was settled when it began. It goes through them in small transactions and goes on when the server has
// stopped in between; a device that can't be changed when its turn comes is refused and the others are
// changed.
type BulkRun struct {
	ID        string       `json:"id"`
	Wish      Bulk         `json:"wish"`
	Actor     device.Actor `json:"actor"`
	Total     int64        `json:"total"`
	Done      int64        `json:"done" doc:"Devices changed, or as wished already"`
	Refused   int64        `json:"refused"`
	Created   time.Time    `json:"created"`
	Ended     time.Time    `json:"ended,omitzero" doc:"Absent while it is under way"`
	Refusals  []Outcome    `json:"refusals,omitempty" doc:"The first of those that were refused, with the reasons"`
	tenant    device.TenantID
	scopeText string
}

// Handled is how many devices have had their turn.
func (r BulkRun) Handled() int64 { return r.Done + r.Refused }

// Words says what it does, for people.
func (r BulkRun) Words() string { return r.Wish.words() }

const (
	partDevices = 100  // of one row of registry_bulk_part
	maxRefusals = 1000 // kept of one run
	bulkMoment  = time.Second
)

// begin keeps a run of the devices. Its parts are a few bytes per device, so this is a short transaction.
func (dk *Desk) begin(ctx context.Context, who httpapi.Principal, b Bulk, found []foundDevice) (BulkRun, error) {
	b.Filter.IDs = nil // settled; and there may be many
	run := BulkRun{ID: "blk-" + device.RandomName(10), Wish: b, Actor: who.Actor, Total: int64(len(found)),
		Created: dk.now().UTC().Truncate(time.Microsecond), tenant: who.Scope.Tenant, scopeText: who.Scope.Selector.String()}
	nums := make([]int64, len(found))
	for i, d := range found {
		nums[i] = d.Num
	}
	slices.Sort(nums) // neighbours lie beside each other in the tables too
	err := dk.db.Write(ctx, func(tx *sqldb.Tx) error {
		if err := insertRun(ctx, tx, run, nums); err != nil {
			return err
		}
		return dk.tell(ctx, tx, ledger.Event{Tenant: run.tenant, Kind: "device.bulk_begun", Subject: run.ID, Actor: run.Actor, Reason: b.Reason,
			Data: ledger.Facts(map[string]any{"action": b.Action, "what": b.words(), "devices": run.Total})})
	})
	if err != nil {
		return BulkRun{}, fmt.Errorf("begin a bulk change: %w", err)
	}
	if _, err := dk.runner.Do(ctx, run.ID, bulkMoment); err != nil {
		dk.log.WarnContext(ctx, "a bulk change goes on later", "run", run.ID, "error", err)
	}
	return readRun(context.WithoutCancel(ctx), dk.db, run.tenant, run.ID)
}

// BulkRunOf returns a run of the tenant. Who sees a part of the fleet sees only what was done within it.
func (dk *Desk) BulkRunOf(ctx context.Context, scope device.Scope, id string) (BulkRun, error) {
	run, err := readRun(ctx, dk.db, scope.Tenant, id)
	if own := scope.Selector.String(); err == nil && own != "" && own != run.scopeText {
		err = fault.New(fault.NotFound, "there is no bulk change %.40q", id)
	}
	return run, err
}

// bulkWork is the room's long work; IDs are those of runs.
type bulkWork Service

// Waiting implements job.Work.
func (x *bulkWork) Waiting(ctx context.Context, untouched time.Time) ([]string, error) {
	return sqldb.Collect(ctx, x.db, sqldb.Value[string],
		"SELECT id FROM registry_bulk WHERE ended = 0 AND touched <= $1 ORDER BY touched LIMIT 100", sqldb.Micros(untouched))
}

// Step implements job.Work.
func (x *bulkWork) Step(ctx context.Context, tx *sqldb.Tx, id string, size int) (done bool, err error) {
	s := (*Service)(x)
	// The update takes the row's lock on PostgreSQL: two nodes step one after the other.
	n, err := tx.Exec(ctx, "UPDATE registry_bulk SET touched = $1 WHERE id = $2 AND ended = 0", sqldb.Micros(s.now()), id)
	if err != nil || n == 0 {
		return n == 0, err
	}
	run, err := scanRun(tx.QueryRowContext(ctx, "SELECT "+runColumns+" FROM registry_bulk WHERE id = $1", id))
	if err != nil {
		return false, fmt.Errorf("read bulk change %s: %w", id, err)
	}
	nums, more, err := takeNums(ctx, tx, id, max(1, size/partDevices))
	if err != nil {
		return false, err
	}
	outcomes, err := s.applyRun(ctx, tx, run, nums)
	if err != nil {
		return false, fmt.Errorf("bulk change %s: %w", id, err)
	}
	if err := countRun(ctx, tx, &run, outcomes); err != nil || more {
		return false, err
	}
	if _, err := tx.Exec(ctx, "UPDATE registry_bulk SET ended = $1 WHERE id = $2", sqldb.Micros(s.now()), id); err != nil {
		return false, err
	}
	return true, s.tell(ctx, tx, ledger.Event{Tenant: run.tenant, Kind: "device.bulk_ended", Subject: id, Actor: run.Actor,
		Data: ledger.Facts(map[string]any{"what": run.Wish.words(), "done": run.Done, "refused": run.Refused})})
}

// applyRun changes the devices together. When a room refuses one of them in the transaction, each is
// tried by itself.
func (s *Service) applyRun(ctx context.Context, tx *sqldb.Tx, run BulkRun, nums []int64) ([]Outcome, error) {
	var outcomes []Outcome
	err := savepoint(ctx, tx, func() (err error) {
		outcomes, err = s.applyTogether(ctx, tx, run, nums)
		return err
	})
	if err == nil || !isRefusal(err) {
		return outcomes, err
	}
	outcomes = outcomes[:0]
	for _, num := range nums {
		var one []Outcome
		err := savepoint(ctx, tx, func() (err error) {
			one, err = s.applyTogether(ctx, tx, run, []int64{num})
			return err
		})
		switch {
		case err == nil:
			outcomes = append(outcomes, one...)
		case !isRefusal(err):
			return nil, err
		default:
			d, readErr := s.ByNum(ctx, tx, num)
			if readErr != nil {
				return nil, readErr
			}
			outcomes = append(outcomes, Outcome{ID: d.ID, Name: d.DisplayName(), Detail: err.Error()})
		}
	}
	return outcomes, nil
}

// applyTogether changes those of the devices that may be changed and tells why the others may not.
func (s *Service) applyTogether(ctx context.Context, tx *sqldb.Tx, run BulkRun, nums []int64) ([]Outcome, error) {
	scope, err := run.scope()
	if err != nil {
		return nil, err
	}
	found, err := lockDevices(ctx, tx, nums)
	if err != nil {
		return nil, err
	}
	outcomes, willing := make([]Outcome, len(found)), found[:0:0]
	var changes []change
	var events []ledger.Event
	for i, d := range found {
		outcomes[i] = Outcome{ID: d.ID, Name: d.DisplayName(), OK: true}
		after, err := s.wouldBe(ctx, tx, scope, run.Wish, d)
		switch {
		case err == nil:
			willing = append(willing, d)
			changes = append(changes, change{d, after})
			events = append(events, s.describedEvents(run.Actor, change{d, after}, run.Wish.Reason)...)
		case isRefusal(err):
			outcomes[i].OK, outcomes[i].Detail = false, err.Error()
		default:
			return nil, err
		}
	}
	if run.Wish.Action == MoveAction {
		moves := make([]device.Move, len(willing))
		for i, d := range willing {
			moves[i] = device.Move{Num: d.Num, To: run.Wish.To, Reason: run.Wish.Reason}
		}
		_, err := s.MoveMany(ctx, tx, run.Actor, moves)
		return outcomes, err
	}
	if err := s.writeAll(ctx, tx, changes); err != nil {
		return nil, err
	}
	return outcomes, s.tell(ctx, tx, events...)
}

// wouldBe returns the device as the wish would leave it, or why it can't. A move is written elsewhere.
func (s *Service) wouldBe(ctx context.Context, q sqldb.Reader, scope device.Scope, b Bulk, d device.Device) (device.Device, error) {
	if b.Action == MoveAction {
		if !scope.Allows(d) {
			return d, fault.New(fault.NotFound, "no device %s", d.ID)
		}
		if err := byHand(b.To); err != nil {
			return d, err
		}
		return d, s.MayMove(ctx, q, d, b.To)
	}
	c := b.change(scope)
	after, err := described(d, c)
	if err != nil {
		return d, err
	}
	return after, c.Check(d, after)
}

func (r BulkRun) scope() (device.Scope, error) {
	sel, err := device.ParseSelector(r.scopeText)
	return device.Scope{Tenant: r.tenant, Selector: sel}, err
}

const runColumns = "id, tenant, scope, actor, wish, total, done, refused, created, ended"

func scanRun(row interface{ Scan(...any) error }) (r BulkRun, err error) {
	var actor, wish string
	if err = row.Scan(&r.ID, &r.tenant, &r.scopeText, &actor, &wish, &r.Total, &r.Done, &r.Refused,
		sqldb.ScanMicros(&r.Created), sqldb.ScanMicros(&r.Ended)); err != nil {
		return r, err
	}
	return r, errors.Join(json.Unmarshal([]byte(actor), &r.Actor), json.Unmarshal([]byte(wish), &r.Wish))
}

func readRun(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (BulkRun, error) {
	r, err := scanRun(q.QueryRowContext(ctx, "SELECT "+runColumns+" FROM registry_bulk WHERE id = $1 AND tenant = $2", id, tenant))
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "there is no bulk change %.40q", id)
	}
	if err != nil {
		return r, fmt.Errorf("read bulk change %.40s: %w", id, err)
	}
	r.Refusals, err = sqldb.Collect(ctx, q, func(rows *sql.Rows) (o Outcome, err error) {
		err = rows.Scan(&o.ID, &o.Name, &o.Detail)
		return o, err
	}, "SELECT device, name, detail FROM registry_bulk_refused WHERE bulk = $1 ORDER BY device LIMIT $2", id, previewRefuse)
	return r, err
}

func insertRun(ctx context.Context, tx *sqldb.Tx, r BulkRun, nums []int64) error {
	actor, err := json.Marshal(r.Actor)
	if err != nil {
		return err
	}
	wish, err := json.Marshal(r.Wish)
	if err != nil {
		return err
	}
	at := sqldb.Micros(r.Created)
	if _, err := tx.Exec(ctx, `INSERT INTO registry_bulk (id, tenant, scope, actor, wish, total, done, refused, created, touched, ended)
		VALUES ($1, $2, $3, $4, $5, $6, 0, 0, $7, $8, 0)`, r.ID, r.tenant, r.scopeText, string(actor), string(wish), r.Total, at, at); err != nil {
		return err
	}
	part := 0
	for some := range slices.Chunk(slices.Collect(slices.Chunk(nums, partDevices)), batchRows) {
		q := sqldb.NewQuery("INSERT INTO registry_bulk_part (bulk, part, nums) VALUES")
		for i, nums := range some {
			text, err := json.Marshal(nums)
			if err != nil {
				return err
			}
			q.Add(comma(i)+"(?, ?, ?)", r.ID, part, string(text))
			part++
		}
		if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
			return err
		}
	}
	return nil
}

// takeNums removes the next parts of a run and returns their devices, and whether there are more.
func takeNums(ctx context.Context, tx *sqldb.Tx, run string, parts int) (nums []int64, more bool, err error) {
	last, read := -1, 0
	lists, err := sqldb.Collect(ctx, tx, func(rows *sql.Rows) (some []int64, err error) {
		var part int
		var text string
		if err = rows.Scan(&part, &text); err != nil {
			return nil, err
		}
		if read++; read > parts {
			return nil, nil // only told that it is there
		}
		last = part
		return some, json.Unmarshal([]byte(text), &some)
	}, "SELECT part, nums FROM registry_bulk_part WHERE bulk = $1 ORDER BY part LIMIT $2", run, parts+1)
	if err != nil {
		return nil, false, fmt.Errorf("read the devices of a bulk change: %w", err)
	}
	if _, err := tx.Exec(ctx, "DELETE FROM registry_bulk_part WHERE bulk = $1 AND part <= $2", run, last); err != nil {
		return nil, false, err
	}
	return slices.Concat(lists...), read > parts, nil
}

// countRun adds what became of devices to the run.
func countRun(ctx context.Context, tx *sqldb.Tx, r *BulkRun, outcomes []Outcome) error {
	for _, o := range outcomes {
		if o.OK {
			r.Done++
			continue
		}
		if r.Refused++; r.Refused > maxRefusals {
			continue
		}
		if _, err := tx.Exec(ctx, "INSERT INTO registry_bulk_refused (bulk, device, name, detail) VALUES ($1, $2, $3, $4)",
			r.ID, string(o.ID), o.Name, o.Detail); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, "UPDATE registry_bulk SET done = $1, refused = $2 WHERE id = $3", r.Done, r.Refused, r.ID)
	return err
}

func (s *Service) newRunner() *job.Runner {
	return job.New(job.Config{Name: "devices", DB: s.db, Work: (*bulkWork)(s), Now: s.now, Log: s.log})
}
