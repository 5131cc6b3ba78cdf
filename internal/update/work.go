package update

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/job"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// A change of what 100,000 devices run is decided in one small transaction, which is all that the caller
// waits for, and reaches the devices in steps: each takes the next devices in the order of their
// numbers. What was decided counts at once: a device that comes to match in between, or leaves, is
// reconciled by the same rule, and a step passes over devices that have been given the assignment, or a
// newer one, already. When the server stops in between, it goes on when it runs again.

// Task is a kind of change that is under way.
type Task string

// The tasks.
const (
	Assigning  Task = "assign"
	Cancelling Task = "cancel"
	Retrying   Task = "retry"
)

// Words says what the task does, for people.
func (t Task) Words() string {
	return map[Task]string{Assigning: "being given to its devices", Cancelling: "being taken back", Retrying: "being tried again"}[t]
}

// Progress is how far a change is.
type Progress struct {
	Task    Task      `json:"task" enum:"assign,cancel,retry"`
	Done    int64     `json:"done" doc:"Devices that it has reached"`
	Total   int64     `json:"total" doc:"Devices, as counted when it began"`
	Started time.Time `json:"started"`
}

const (
	stepsAtOnce = 3
	atOnce      = 200         // devices that a change may have to be done in the transaction that decides it
	moment      = time.Second // how long the caller stays with a larger one
)

// work is a row of update_work.
type work struct {
	assignment int64
	cause      string
	position   int64
	Progress
}

// begin notes a change and, when it is small, makes it at once. It returns how many devices it was, when
// it is done.
func (s *Service) begin(ctx context.Context, tx *sqldb.Tx, a *Assignment, w work) (devices int64, err error) {
	w.assignment, w.Started = a.num, s.now()
	now := sqldb.Micros(w.Started)
	if _, err := tx.Exec(ctx, `INSERT INTO update_work (assignment, id, kind, cause, position, total, done, started, touched)
		VALUES ($1, $2, $3, $4, 0, $5, 0, $6, $7)`, a.num, a.ID, string(w.Task), w.cause, w.Total, now, now); err != nil {
		return 0, fmt.Errorf("begin a change of many devices: %w", err)
	}
	if w.Total > atOnce {
		a.Progress = &w.Progress
		return w.Total, nil
	}
	for range stepsAtOnce {
		done, err := s.step(ctx, tx, &w, 2*atOnce)
		if done || err != nil {
			return w.Done, err
		}
	}
	a.Progress = &w.Progress // few devices, but hard to find
	return w.Total, nil
}

// finish stays with a change for a moment and returns the assignment as it is then.
func (s *Service) finish(ctx context.Context, scope device.Scope, a Assignment) (Assignment, error) {
	if a.Progress != nil {
		if _, err := s.runner.Do(ctx, a.ID, moment); err != nil {
			// It was decided and goes on; what failed is told by Run if it fails again.
			s.cfg.Log.WarnContext(ctx, "a change of many devices goes on later", "assignment", a.ID, "error", err)
		}
	}
	return s.Assignment(context.WithoutCancel(ctx), scope, a.ID)
}

// changes is the room's long work; IDs are those of assignments.
type changes Service

// Waiting implements job.Work.
func (x *changes) Waiting(ctx context.Context, untouched time.Time) ([]string, error) {
	return sqldb.Collect(ctx, x.cfg.DB, sqldb.Value[string],
		"SELECT id FROM update_work WHERE touched <= $1 ORDER BY touched LIMIT 100", sqldb.Micros(untouched))
}

// Step implements job.Work.
func (x *changes) Step(ctx context.Context, tx *sqldb.Tx, id string, size int) (done bool, err error) {
	s := (*Service)(x)
	w := work{}
	// The update takes the row's lock on PostgreSQL: two nodes step one after the other.
	err = tx.QueryRowContext(ctx, `UPDATE update_work SET touched = $1 WHERE id = $2
		RETURNING assignment, kind, cause, position, total, done, started`, sqldb.Micros(s.now()), id).
		Scan(&w.assignment, &w.Task, &w.cause, &w.position, &w.Total, &w.Done, sqldb.ScanMicros(&w.Started))
	if errors.Is(err, sql.ErrNoRows) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the change of %s: %w", id, err)
	}
	return s.step(ctx, tx, &w, size)
}

// step takes the next devices and notes how far it came.
func (s *Service) step(ctx context.Context, tx *sqldb.Tx, w *work, size int) (done bool, err error) {
	a, err := assignmentByNum(ctx, tx, w.assignment)
	if err != nil {
		return false, err
	}
	c := change{s: s, tx: tx, name: a.Release, mark: newMark(), at: s.now()}
	take := map[Task]func(context.Context, *change, Assignment, *work, int) ([]int64, error){
		Assigning: s.stepAssign, Cancelling: s.stepCancel, Retrying: s.stepRetry,
	}[w.Task]
	if take == nil {
		return false, fmt.Errorf("assignment %s has a change of the unknown kind %q", a.ID, w.Task)
	}
	nums, err := take(ctx, &c, a, w, min(size, stepDevices))
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", w.Task, a.ID, err)
	}
	before := w.Done
	w.Done += int64(len(nums))
	if err := analyze(ctx, tx, before, w.Done); err != nil {
		return false, err
	}
	if w.position == 0 {
		return true, s.end(ctx, tx, a, *w)
	}
	_, err = tx.Exec(ctx, `UPDATE update_work SET position = $1, done = $2 WHERE assignment = $3`, w.position, w.Done, w.assignment)
	return false, err
}

// analyze lets PostgreSQL see what the steps have written, whenever that has doubled: it believes a table
// small until somebody looks, and its own look may be a minute late.
func analyze(ctx context.Context, tx *sqldb.Tx, before, done int64) error {
	if tx.Dialect() != sqldb.Postgres || done < atOnce || bits.Len64(uint64(before)) == bits.Len64(uint64(done)) {
		return nil
	}
	if _, err := tx.Exec(ctx, "ANALYZE update_state, update_device"); err != nil {
		return fmt.Errorf("look at what was written: %w", err)
	}
	return nil
}

// end removes the work. What took more than one transaction is told when it is done.
func (s *Service) end(ctx context.Context, tx *sqldb.Tx, a Assignment, w work) error {
	if _, err := tx.Exec(ctx, `DELETE FROM update_work WHERE assignment = $1`, w.assignment); err != nil || w.Total <= atOnce {
		return err
	}
	return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: a.Tenant, Kind: EventComplete, Subject: a.ID, Actor: device.System("update"),
		Data: ledger.Facts(map[string]any{"release": a.Release, "version": a.Version, "task": w.Task, "devices": w.Done}),
	})
}

// stepDevices bounds the devices of one step.
const stepDevices = 2000

// stepAssign gives the assignment to the next devices that match and do not have it, or a newer one.
func (s *Service) stepAssign(ctx context.Context, c *change, a Assignment, w *work, size int) ([]int64, error) {
	nums, next, err := s.cfg.Devices.Part(ctx, c.tx, device.Scope{Tenant: a.Tenant},
		device.Part{Selector: a.Selector, Stages: stages, After: w.position, Limit: size})
	if err != nil {
		return nil, err
	}
	w.position = next
	ahead, err := c.ahead(ctx, a, nums)
	if err != nil {
		return nil, err
	}
	nums = slices.DeleteFunc(nums, func(num int64) bool { return ahead[num] })
	return nums, c.run(ctx, a.Tenant, nums,
		func(ctx context.Context) error { return c.retire(ctx, Superseded) },
		func(ctx context.Context) error { return c.take(ctx, a) },
		c.rewrite)
}

// stepCancel takes the assignment from the next devices that have not committed it.
func (s *Service) stepCancel(ctx context.Context, c *change, a Assignment, w *work, size int) ([]int64, error) {
	nums, err := c.next(ctx, w, size, func(r askedRow) bool { return r.state != wire.UpdateCommitted })
	if err != nil {
		return nil, err
	}
	return nums, c.run(ctx, a.Tenant, nums,
		func(ctx context.Context) error { return c.retire(ctx, Cancelled) },
		c.restore, c.rewrite)
}

// stepRetry asks the next devices that failed for another attempt.
func (s *Service) stepRetry(ctx context.Context, c *change, a Assignment, w *work, size int) ([]int64, error) {
	asked := w.Started
	nums, err := c.next(ctx, w, size, func(r askedRow) bool {
		return failed(r.state) && (w.cause == "" || w.cause == r.cause) && !r.changed.After(asked)
	})
	if err != nil {
		return nil, err
	}
	return nums, c.run(ctx, a.Tenant, nums, func(ctx context.Context) error { return c.again(ctx, a) }, c.rewrite)
}

// underWay refuses what can't be done while a change of the assignment is.
func underWay(a Assignment) error {
	if a.Progress == nil {
		return nil
	}
	return fault.New(fault.Conflict, "assignment %s is %s: %d of %d devices; try again when that is done",
		a.ID, a.Progress.Task.Words(), a.Progress.Done, a.Progress.Total)
}

// Run goes on with changes of many devices and follows the ledger, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop() // one without the other is no service
		ended <- s.runner.Run(ctx)
	}()
	err := s.cfg.Ledger.Consume(ctx, "update", s.Follow)
	stop()
	return errors.Join(err, <-ended)
}

func (s *Service) newRunner() *job.Runner {
	return job.New(job.Config{Name: "update", DB: s.cfg.DB, Work: (*changes)(s), Now: s.cfg.Now, Log: s.cfg.Log})
}
