package purchase

import (
	"context"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// OrderFilter picks orders for a list.
type OrderFilter struct {
	State     State  // empty: all
	Supplier  string // empty: all
	Number    string // empty: all
	Overdue   bool   // only those with open units after the agreed day
	Undecided bool   // only those with discrepancies that wait for a decision
	Limit     int    // 1 to 1000
	Cursor    string // next of the page before
}

// Orders returns a page of orders, newest first, and the cursor of the next one.
func (s *Service) Orders(ctx context.Context, who httpapi.Principal, f OrderFilter) ([]Order, string, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return nil, "", err
	}
	var after position
	if err := httpapi.DecodeCursor(f.Cursor, &after); err != nil {
		return nil, "", err
	}
	if f.State != "" {
		if _, err := ParseState(string(f.State)); err != nil {
			return nil, "", fault.Bad("query.state", "%v", err)
		}
	}
	f.Limit = min(max(f.Limit, 1), 1000)
	orders, err := readOrders(ctx, s.cfg.DB, tenant, f, after, DateOf(s.cfg.Now()))
	if err != nil {
		return nil, "", fmt.Errorf("list orders: %w", err)
	}
	next := ""
	if len(orders) > f.Limit {
		orders = orders[:f.Limit]
		last := orders[f.Limit-1]
		next = httpapi.EncodeCursor(position{Created: sqldb.Micros(last.Created), ID: last.ID})
	}
	return orders, next, nil
}

// Order returns one order with its lines.
func (s *Service) Order(ctx context.Context, who httpapi.Principal, id string) (Order, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Order{}, err
	}
	return readOrder(ctx, s.cfg.DB, tenant, id)
}

// CreateOrder keeps a new draft. It creates no device yet.
func (s *Service) CreateOrder(ctx context.Context, who httpapi.Principal, spec OrderSpec) (Order, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Order{}, err
	}
	if err := spec.Check(); err != nil {
		return Order{}, err
	}
	o := Order{ID: "ord-" + device.RandomName(10), Tenant: tenant, State: Draft, Created: s.cfg.Now().UTC(), Revision: 1}
	o.write(spec)
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if err := checkReferences(ctx, tx, o); err != nil {
			return err
		}
		if err := insertOrder(ctx, tx, o); err != nil {
			return numberTaken(err, o)
		}
		return s.recordOrder(ctx, tx, who, "purchase.order_created", o, "")
	})
	return o, err
}

// ChangeOrder replaces what is written in a draft.
func (s *Service) ChangeOrder(ctx context.Context, who httpapi.Principal, id string, spec OrderSpec, ifMatch string) (Order, error) {
	if err := spec.Check(); err != nil {
		return Order{}, err
	}
	return s.changeOrder(ctx, who, id, ifMatch, func(tx *sqldb.Tx, o *Order) error {
		if err := o.need("changing it", Draft); err != nil {
			return err
		}
		o.write(spec)
		if err := checkReferences(ctx, tx, *o); err != nil {
			return err
		}
		if err := updateOrder(ctx, tx, *o); err != nil {
			return numberTaken(err, *o)
		}
		if err := replaceLines(ctx, tx, *o); err != nil {
			return err
		}
		return s.recordOrder(ctx, tx, who, "purchase.order_changed", *o, "")
	})
}

// Place turns a draft into an order: each unit becomes a device in stage ordered. It is placed as a
// whole: until the last device is there the order's state is placing. Place waits for that as long as
// ctx lasts and goes on without the caller then; BeginPlace waits for a moment only.
func (s *Service) Place(ctx context.Context, who httpapi.Principal, id, ifMatch string) (Order, error) {
	o, err := s.beginPlace(ctx, who, id, ifMatch)
	if err != nil {
		return Order{}, err
	}
	return s.finish(ctx, o, slow)
}

// BeginPlace is Place for those who look at the order's progress.
func (s *Service) BeginPlace(ctx context.Context, who httpapi.Principal, id, ifMatch string) (Order, error) {
	o, err := s.beginPlace(ctx, who, id, ifMatch)
	if err != nil {
		return Order{}, err
	}
	return s.finish(ctx, o, moment)
}

func (s *Service) beginPlace(ctx context.Context, who httpapi.Principal, id, ifMatch string) (Order, error) {
	return s.changeOrder(ctx, who, id, ifMatch, func(tx *sqldb.Tx, o *Order) error {
		if err := o.need("placing it", Draft); err != nil {
			return err
		}
		if err := checkReferences(ctx, tx, *o); err != nil {
			return err
		}
		o.State, o.Placed = BeingPlaced, s.cfg.Now().UTC()
		if err := updateOrder(ctx, tx, *o); err != nil {
			return err
		}
		w := work{actor: who.Actor, Progress: Progress{Task: Placing, Total: o.Ordered()}}
		if err := s.recordBegin(ctx, tx, who, *o, w); err != nil {
			return err
		}
		return s.begin(ctx, tx, o, w)
	})
}

// CancelPreview is what cancelling would do.
type CancelPreview struct {
	Order     string      `json:"order"`
	Revision  int64       `json:"revision" doc:"Send it back as If-Match to cancel exactly this"`
	Units     int64       `json:"units" doc:"Open units, whose devices would go from ordered to retired"`
	Lines     []CancelRow `json:"lines"`
	State     State       `json:"state" doc:"Of the order afterwards"`
	Undecided int64       `json:"undecided" doc:"Discrepancies that would still wait for a decision"`
}

// CancelRow is one line of a CancelPreview.
type CancelRow struct {
	Line  int    `json:"line"`
	Model string `json:"model"`
	Units int64  `json:"units"`
}

// PreviewCancel tells what Cancel would do; line 0 means the whole order.
func (s *Service) PreviewCancel(ctx context.Context, who httpapi.Principal, id string, line int) (CancelPreview, error) {
	o, err := s.Order(ctx, who, id)
	if err != nil {
		return CancelPreview{}, err
	}
	undecided, err := countUndecided(ctx, s.cfg.DB, o.Tenant, o.ID)
	if err != nil {
		return CancelPreview{}, fmt.Errorf("count discrepancies of %s: %w", id, err)
	}
	if err := o.busy(); err != nil {
		return CancelPreview{}, err
	}
	p := CancelPreview{Order: o.ID, Revision: o.Revision, Lines: []CancelRow{}, Undecided: undecided}
	if err := o.mayCancel(line); err != nil {
		return CancelPreview{}, err
	}
	for i, l := range o.Lines {
		if n := l.OpenUnits(); o.State.Open() && n > 0 && (line == 0 || line == l.Line) {
			p.Units += n
			p.Lines = append(p.Lines, CancelRow{Line: l.Line, Model: l.Model, Units: n})
			o.Lines[i].Cancelled += n
		}
	}
	if p.State = Cancelled; o.State != Draft {
		p.State = o.settled()
	}
	return p, nil
}

// mayCancel refuses what has nothing to cancel.
func (o Order) mayCancel(line int) error {
	if line == 0 {
		return o.need("cancelling it", Draft, Placed, PartlyReceived)
	}
	l, ok := o.Line(line)
	if !ok {
		return fault.New(fault.NotFound, "order %s has no line %d", o.Number, line)
	}
	if err := o.need("cancelling a line", Placed, PartlyReceived); err != nil {
		return err
	}
	if l.OpenUnits() == 0 {
		return fault.New(fault.Conflict, "nothing of line %d is open any more", line)
	}
	return nil
}

// Cancel gives up what is still open: of the whole order when line is 0, else of one line. The open
// units' devices retire; what was delivered stays. It waits as Place does.
func (s *Service) Cancel(ctx context.Context, who httpapi.Principal, id string, line int, reason, ifMatch string) (Order, error) {
	o, err := s.beginCancel(ctx, who, id, cancelWish{line, reason, ifMatch})
	if err != nil {
		return Order{}, err
	}
	return s.finish(ctx, o, slow)
}

type cancelWish struct {
	line            int
	reason, ifMatch string
}

func (s *Service) beginCancel(ctx context.Context, who httpapi.Principal, id string, wish cancelWish) (Order, error) {
	bad := &fault.Invalid{}
	if text(bad, "body.reason", wish.reason, true, maxTextBytes); len(bad.Fields) > 0 {
		return Order{}, bad
	}
	return s.changeOrder(ctx, who, id, wish.ifMatch, func(tx *sqldb.Tx, o *Order) error {
		if err := o.mayCancel(wish.line); err != nil {
			return err
		}
		if o.State == Draft {
			o.State, o.Ended = Cancelled, s.cfg.Now().UTC()
			return errors.Join(updateOrder(ctx, tx, *o), s.recordOrder(ctx, tx, who, "purchase.order_cancelled", *o, wish.reason))
		}
		w := work{actor: who.Actor, line: wish.line, reason: wish.reason, Progress: Progress{Task: Cancelling}}
		for _, l := range o.Lines {
			if wish.line == 0 || wish.line == l.Line {
				w.Total += l.OpenUnits()
			}
		}
		if err := s.recordBegin(ctx, tx, who, *o, w); err != nil {
			return err
		}
		return s.begin(ctx, tx, o, w)
	})
}

// cancelUnits retires n open units of the line and counts them.
func (s *Service) cancelUnits(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, o Order, l *Line, n int64, reason string) error {
	if n == 0 {
		return nil
	}
	nums, err := openUnits(ctx, tx, o.ID, l.Line, n)
	if err != nil {
		return err
	}
	if int64(len(nums)) != n {
		return fmt.Errorf("order %s line %d counts %d open units and has %d", o.ID, l.Line, n, len(nums))
	}
	moves, units := make([]device.Move, n), make([]unit, n)
	for i, num := range nums {
		moves[i] = device.Move{Num: num, To: device.Retired, Reason: "never delivered: " + reason}
		units[i] = unit{num: num, line: l.Line, model: l.Model, state: unitCancelled}
	}
	if _, err := s.cfg.Devices.MoveMany(ctx, tx, who.Actor, moves); err != nil {
		return err
	}
	l.Cancelled += n
	return updateUnits(ctx, tx, units)
}

// Close ends an order that has nothing open and nothing to decide.
func (s *Service) Close(ctx context.Context, who httpapi.Principal, id, ifMatch string) (Order, error) {
	return s.changeOrder(ctx, who, id, ifMatch, func(tx *sqldb.Tx, o *Order) error {
		if err := o.need("closing it", Received); err != nil {
			return err
		}
		n, err := countUndecided(ctx, tx, o.Tenant, o.ID)
		if err != nil {
			return err
		}
		if n > 0 {
			return fault.New(fault.Conflict, "order %s has %d discrepancies to decide first", o.Number, n)
		}
		o.State, o.Ended = Closed, s.cfg.Now().UTC()
		if err := updateOrder(ctx, tx, *o); err != nil {
			return err
		}
		return s.recordOrder(ctx, tx, who, "purchase.order_closed", *o, "")
	})
}

// changeOrder runs a change on the locked order, with its revision already raised.
func (s *Service) changeOrder(ctx context.Context, who httpapi.Principal, id, ifMatch string, change func(*sqldb.Tx, *Order) error) (o Order, err error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Order{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		// The update takes the row's lock on PostgreSQL: changes of one order run one after the other.
		if _, err := tx.Exec(ctx, "UPDATE purchase_order SET revision = revision + 1 WHERE tenant = $1 AND id = $2", tenant, id); err != nil {
			return err
		}
		if o, err = readOrder(ctx, tx, tenant, id); err != nil {
			return err
		}
		if err := o.busy(); err != nil {
			return err
		}
		if err := httpapi.CheckMatch(ifMatch, o.Revision-1); err != nil {
			return err
		}
		return change(tx, &o)
	})
	if err != nil {
		return Order{}, err
	}
	return o, nil
}

// settle writes the counts of the lines and the state that follows from them.
func (s *Service) settle(ctx context.Context, tx *sqldb.Tx, o *Order) error {
	if o.State.Open() || o.State == Received {
		if o.State = o.settled(); o.State == Cancelled {
			o.Ended = s.cfg.Now().UTC()
		}
	}
	if err := saveCounts(ctx, tx, *o); err != nil {
		return err
	}
	return updateOrder(ctx, tx, *o)
}

func (o *Order) write(spec OrderSpec) {
	o.Number, o.Supplier, o.Currency, o.Due, o.Note = spec.Number, spec.Supplier, spec.Currency, spec.Due, spec.Note
	o.Lines = make([]Line, len(spec.Lines))
	for i, l := range spec.Lines {
		o.Lines[i] = Line{Line: i + 1, LineSpec: l}
	}
}

// checkReferences names the supplier and the models that do not exist.
func checkReferences(ctx context.Context, q sqldb.Reader, o Order) error {
	bad := &fault.Invalid{}
	if _, err := readSupplier(ctx, q, o.Tenant, o.Supplier); errors.Is(err, fault.NotFound) {
		bad.Add("body.supplier", "there is no supplier %q: add it first", o.Supplier)
	} else if err != nil {
		return err
	}
	models, err := readModels(ctx, q, o.Tenant)
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(models))
	for _, m := range models {
		known[m.ID] = true
	}
	for i, l := range o.Lines {
		if !known[l.Model] {
			bad.Add(fmt.Sprintf("body.lines[%d].model", i), "there is no hardware model %q: add it first", l.Model)
		}
	}
	return bad.OrNil()
}

func numberTaken(err error, o Order) error {
	if sqldb.IsUnique(err) {
		return fault.New(fault.Conflict, "there is an order with the number %s already", o.Number)
	}
	return err
}

// recordOrder appends an event about the order. The lines may be longer than an event can hold, so
// their hash stands for them.
func (s *Service) recordOrder(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, kind string, o Order, reason string) error {
	lines, err := wire.Canonical(o.Lines)
	if err != nil {
		return err
	}
	return s.record(ctx, tx, who, ledger.Event{Kind: kind, Subject: o.ID, Reason: reason, Data: ledger.Facts(struct {
		Number   string    `json:"number"`
		Supplier string    `json:"supplier"`
		State    State     `json:"state"`
		Currency string    `json:"currency"`
		Value    int64     `json:"value"`
		Units    int64     `json:"units"`
		Received int64     `json:"received"`
		Open     int64     `json:"open"`
		Lines    wire.Hash `json:"lines_sha256"`
	}{o.Number, o.Supplier, o.State, o.Currency, o.Value(), o.Ordered(), o.Delivered(), o.Open(), wire.HashOf(lines)})})
}
