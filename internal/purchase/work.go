package purchase

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/job"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// Placing an order, booking a delivery and cancelling what is open may be about 100,000 devices. What is
// small is done in the transaction that asks for it. What is not is begun there, checked so far that
// nothing can refuse it any more, and then done in steps that hold the database for a moment each; until
// the last one the order shows how far it is and takes nothing else. When the server stops in between,
// it goes on with it as soon as it runs again.

// Task is a kind of long work on an order.
type Task string

// The tasks.
const (
	Placing    Task = "place"
	Booking    Task = "book"
	Cancelling Task = "cancel"
)

// Words says what the task does, for people.
func (t Task) Words() string {
	return map[Task]string{Placing: "being placed", Booking: "taking in a delivery", Cancelling: "being cancelled"}[t]
}

// Progress is how far long work on an order is.
type Progress struct {
	Task    Task      `json:"task" enum:"place,book,cancel"`
	Done    int64     `json:"done" doc:"Units that it is done with"`
	Total   int64     `json:"total"`
	Started time.Time `json:"started"`
}

// atOnce is up to how many units are dealt with in the transaction that asks for it.
const atOnce = 200

// work is a row of purchase_work.
type work struct {
	order    string
	tenant   device.TenantID
	actor    device.Actor
	delivery string
	line     int
	reason   string
	Progress
}

// who is the party that asked for the work, for the ledger.
func (w work) who() httpapi.Principal {
	return httpapi.Principal{Actor: w.actor, Scope: device.Scope{Tenant: w.tenant}}
}

// begin notes work on a locked order and, when it is small, does it at once.
func (s *Service) begin(ctx context.Context, tx *sqldb.Tx, o *Order, w work, parts ...bookingPart) error {
	w.order, w.tenant, w.Started = o.ID, o.Tenant, s.cfg.Now().UTC()
	if err := insertWork(ctx, tx, w); err != nil {
		return fmt.Errorf("begin work on %s: %w", o.ID, err)
	}
	if err := insertParts(ctx, tx, o.ID, parts); err != nil {
		return err
	}
	if w.Total > atOnce {
		o.Progress = &w.Progress
		return nil
	}
	// Twice the size, since rows of two kinds wait in parts of their own.
	if _, err := (*orderWork)(s).Step(ctx, tx, o.ID, 2*atOnce); err != nil {
		return err
	}
	now, err := readOrder(ctx, tx, o.Tenant, o.ID)
	if err == nil && now.Progress != nil {
		err = fmt.Errorf("work on %s was not done at once: %d of %d", o.ID, now.Progress.Done, now.Progress.Total)
	}
	*o = now
	return err
}

// finish goes on with the work on an order for as long as the patience lasts and returns the order as
// it is then.
func (s *Service) finish(ctx context.Context, o Order, patience time.Duration) (Order, error) {
	if o.Progress == nil {
		return o, nil
	}
	if _, err := s.runner.Do(ctx, o.ID, patience); err != nil {
		// The work was begun and goes on; what failed is told by Run if it fails again.
		s.cfg.Log.WarnContext(ctx, "work on an order goes on later", "order", o.ID, "error", err)
	}
	return readOrder(context.WithoutCancel(ctx), s.cfg.DB, o.Tenant, o.ID)
}

// Run goes on with long work that nobody waits for, until ctx ends.
func (s *Service) Run(ctx context.Context) error { return s.runner.Run(ctx) }

// orderWork is the room's long work; IDs are those of orders.
type orderWork Service

// Waiting implements job.Work.
func (x *orderWork) Waiting(ctx context.Context, untouched time.Time) ([]string, error) {
	return sqldb.Collect(ctx, x.cfg.DB, sqldb.Value[string],
		"SELECT order_id FROM purchase_work WHERE touched <= $1 ORDER BY touched LIMIT 100", sqldb.Micros(untouched))
}

// Step implements job.Work.
func (x *orderWork) Step(ctx context.Context, tx *sqldb.Tx, id string, size int) (done bool, err error) {
	s := (*Service)(x)
	// The update takes the row's lock on PostgreSQL: two nodes step one after the other.
	if n, err := tx.Exec(ctx, "UPDATE purchase_work SET touched = $1 WHERE order_id = $2", sqldb.Micros(s.cfg.Now()), id); err != nil || n == 0 {
		return n == 0, err
	}
	w, err := readWork(ctx, tx, id)
	if err != nil {
		return false, err
	}
	o, err := readOrder(ctx, tx, w.tenant, id)
	if err != nil {
		return false, err
	}
	step := map[Task]func(context.Context, *sqldb.Tx, *Order, *work, int) (bool, error){
		Placing: s.stepPlace, Booking: s.stepBook, Cancelling: s.stepCancel,
	}[w.Task]
	if step == nil {
		return false, fmt.Errorf("order %s has work of the unknown kind %q", id, w.Task)
	}
	if done, err = step(ctx, tx, &o, &w, size); err != nil {
		return false, fmt.Errorf("%s %s: %w", w.Task, id, err)
	}
	if done {
		return true, endWork(ctx, tx, id)
	}
	_, err = tx.Exec(ctx, "UPDATE purchase_work SET done = $1 WHERE order_id = $2", w.Done, id)
	return false, err
}

// busy refuses what can't be done while long work is under way.
func (o Order) busy() error {
	if p := o.Progress; p != nil {
		return fault.New(fault.Conflict, "order %s is %s: %d of %d units; try again when that is done", o.Number, p.Task.Words(), p.Done, p.Total)
	}
	return nil
}

// raise gives the order its next revision: what people have read of it is old now.
func (o *Order) raise() { o.Revision++ }

func insertWork(ctx context.Context, tx *sqldb.Tx, w work) error {
	now := sqldb.Micros(w.Started)
	_, err := tx.Exec(ctx, `INSERT INTO purchase_work (order_id, tenant, kind, actor, delivery, line, reason, total, done, started, touched)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $10)`,
		w.order, w.tenant, string(w.Task), actorJSON(w.actor), w.delivery, w.line, w.reason, w.Total, now, now)
	return err
}

func readWork(ctx context.Context, q sqldb.Reader, order string) (w work, err error) {
	var actor string
	err = q.QueryRowContext(ctx, "SELECT order_id, tenant, kind, actor, delivery, line, reason, total, done, started FROM purchase_work WHERE order_id = $1", order).
		Scan(&w.order, &w.tenant, &w.Task, &actor, &w.delivery, &w.line, &w.reason, &w.Total, &w.Done, sqldb.ScanMicros(&w.Started))
	if err != nil {
		return w, fmt.Errorf("read work on %s: %w", order, err)
	}
	return w, json.Unmarshal([]byte(actor), &w.actor)
}

func endWork(ctx context.Context, tx *sqldb.Tx, order string) error {
	_, err := tx.Exec(ctx, "DELETE FROM purchase_work WHERE order_id = $1", order)
	if err != nil {
		return fmt.Errorf("end work on %s: %w", order, err)
	}
	return nil
}

// stepPlace creates the next units of the order as devices.
func (s *Service) stepPlace(ctx context.Context, tx *sqldb.Tx, o *Order, w *work, size int) (done bool, err error) {
	var before int64 // units of the lines before
	for _, l := range o.Lines {
		if n := min(before+l.Quantity-w.Done, int64(size)); n > 0 {
			if err := s.createUnits(ctx, tx, w.who(), *o, l, int(n)); err != nil {
				return false, fmt.Errorf("create units of line %d: %w", l.Line, err)
			}
			w.Done += n
			size -= int(n)
		}
		before += l.Quantity
	}
	if w.Done < w.Total {
		return false, nil
	}
	o.State = Placed
	o.raise()
	if err := updateOrder(ctx, tx, *o); err != nil {
		return false, err
	}
	return true, s.recordOrder(ctx, tx, w.who(), "purchase.order_placed", *o, "")
}

// createUnits brings n units of the line into being.
func (s *Service) createUnits(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, o Order, l Line, n int) error {
	one := device.New{Tenant: o.Tenant, Model: l.Model, Stage: device.Ordered, Reason: fmt.Sprintf("order %s, line %d", o.Number, l.Line)}
	wish := make([]device.New, n)
	for i := range wish {
		wish[i] = one
	}
	devices, err := s.cfg.Devices.CreateMany(ctx, tx, who.Actor, wish)
	if err != nil {
		return err
	}
	units := make([]unit, n)
	for i, d := range devices {
		units[i] = unit{num: d.Num, line: l.Line, model: l.Model, state: unitOpen}
	}
	return insertUnits(ctx, tx, o, units)
}

// stepCancel retires the next open units of the order, or of one line.
func (s *Service) stepCancel(ctx context.Context, tx *sqldb.Tx, o *Order, w *work, size int) (done bool, err error) {
	done = true
	for i := range o.Lines {
		l := &o.Lines[i]
		if w.line != 0 && w.line != l.Line {
			continue
		}
		n := min(l.OpenUnits(), int64(size))
		if err := s.cancelUnits(ctx, tx, w.who(), *o, l, n, w.reason); err != nil {
			return false, fmt.Errorf("cancel the open units of line %d: %w", l.Line, err)
		}
		w.Done += n
		size -= int(n)
		done = done && l.OpenUnits() == 0
	}
	if !done {
		return false, saveCounts(ctx, tx, *o)
	}
	kind := "purchase.order_cancelled"
	if w.line != 0 {
		kind = "purchase.line_cancelled"
	}
	o.raise()
	if err := s.settle(ctx, tx, o); err != nil {
		return false, err
	}
	return true, s.recordOrder(ctx, tx, w.who(), kind, *o, w.reason)
}

// recordBegin tells of long work when it begins; what is done at once is told by its end alone.
func (s *Service) recordBegin(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, o Order, w work) error {
	if w.Total <= atOnce {
		return nil
	}
	return s.record(ctx, tx, who, ledger.Event{Kind: "purchase.work_begun", Subject: o.ID, Reason: w.reason, Data: ledger.Facts(map[string]any{
		"number": o.Number, "task": w.Task, "what": w.Task.Words(), "units": w.Total, "delivery": w.delivery,
	})})
}

// newRunner returns what drives the room's long work.
func (s *Service) newRunner() *job.Runner {
	return job.New(job.Config{Name: "purchase", DB: s.cfg.DB, Work: (*orderWork)(s), Now: s.cfg.Now, Log: s.cfg.Log})
}

var errOrderChanged = errors.New("the order has changed since the file was checked")
