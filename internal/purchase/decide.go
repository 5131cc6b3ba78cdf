package purchase

import (
	"context"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// maxDecisions bounds how many discrepancies one call decides.
const maxDecisions = 1000

// DiscrepancyFilter picks discrepancies for a list.
type DiscrepancyFilter struct {
	Order, Delivery string // empty: all
	Kind            Kind   // empty: all
	Undecided       bool   // only those that wait
	Limit           int    // 1 to 1000
	Cursor          string
	after           discrepancyPosition
}

type discrepancyPosition struct {
	Delivery string
	FileLine int
}

// Discrepancies returns a page in the order of deliveries and their lines, and the next page's cursor.
func (s *Service) Discrepancies(ctx context.Context, who httpapi.Principal, f DiscrepancyFilter) ([]Discrepancy, string, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return nil, "", err
	}
	if err := httpapi.DecodeCursor(f.Cursor, &f.after); err != nil {
		return nil, "", err
	}
	f.Limit = min(max(f.Limit, 1), maxDecisions)
	list, err := readDiscrepancies(ctx, s.cfg.DB, tenant, f)
	if err != nil {
		return nil, "", fmt.Errorf("list discrepancies: %w", err)
	}
	next := ""
	if len(list) > f.Limit {
		list = list[:f.Limit]
		last := list[f.Limit-1]
		next = httpapi.EncodeCursor(discrepancyPosition{last.Delivery, last.FileLine})
	}
	return list, next, nil
}

// Deliveries lists what was booked for an order.
func (s *Service) Deliveries(ctx context.Context, who httpapi.Principal, order string) ([]Delivery, error) {
	o, err := s.Order(ctx, who, order)
	if err != nil {
		return nil, err
	}
	return readDeliveries(ctx, s.cfg.DB, o.Tenant, o.ID)
}

// delivery returns one delivery.
func (s *Service) delivery(ctx context.Context, who httpapi.Principal, id string) (Delivery, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Delivery{}, err
	}
	return readDelivery(ctx, s.cfg.DB, tenant, id)
}

// Decide settles discrepancies of a delivery: all named ones or none. A decision is final; deciding
// the same again is no error, deciding differently is a conflict.
func (s *Service) Decide(ctx context.Context, who httpapi.Principal, delivery string, dec Decision) (decided []Discrepancy, err error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return nil, err
	}
	if err := dec.Check(); err != nil {
		return nil, err
	}
	d, err := readDelivery(ctx, s.cfg.DB, tenant, delivery)
	if err != nil {
		return nil, err
	}
	_, err = s.changeOrder(ctx, who, d.Order, "", func(tx *sqldb.Tx, o *Order) error {
		decided = decided[:0]
		list, err := s.pick(ctx, tx, o.Tenant, d, dec)
		if err != nil {
			return err
		}
		in := &receiver{s: s, who: who, order: o, delivery: d}
		for _, x := range list {
			if err := in.decide(ctx, tx, &x, dec); err != nil {
				return err
			}
			decided = append(decided, x)
		}
		return s.settle(ctx, tx, o)
	})
	if err != nil {
		return nil, err
	}
	return decided, nil
}

// pick reads the discrepancies that a decision is about.
func (s *Service) pick(ctx context.Context, q sqldb.Reader, tenant device.TenantID, d Delivery, dec Decision) ([]Discrepancy, error) {
	if len(dec.FileLines) == 0 {
		list, err := readDiscrepancies(ctx, q, tenant, DiscrepancyFilter{Delivery: d.ID, Kind: dec.Kind, Undecided: true, Limit: maxDecisions})
		return list[:min(len(list), maxDecisions)], err
	}
	if len(dec.FileLines) > maxDecisions {
		return nil, fault.Bad("body.file_lines", "%d lines: at most %d at once", len(dec.FileLines), maxDecisions)
	}
	var list []Discrepancy
	for i, line := range dec.FileLines {
		x, err := readDiscrepancy(ctx, q, tenant, d.ID, line)
		if err != nil {
			return nil, err
		}
		if dec.Kind != "" && x.Kind != dec.Kind {
			return nil, fault.Bad(fmt.Sprintf("body.file_lines[%d]", i), "line %d is %s, not %s", line, x.Kind, dec.Kind)
		}
		list = append(list, x)
	}
	return list, nil
}

func (in *receiver) decide(ctx context.Context, tx *sqldb.Tx, x *Discrepancy, dec Decision) error {
	if x.Decision != "" {
		if x.Decision == dec.Action {
			return nil
		}
		return fault.New(fault.Conflict, "line %d of the file was decided already: %s by %s", x.FileLine, x.Decision, x.Actor.Name)
	}
	if dec.Action == Accept {
		l, err := in.accept(ctx, tx, *x, dec.Line)
		if err != nil {
			return err
		}
		x.DecisionLine = l.Line
	}
	actor := in.who.Actor
	x.Decision, x.Decided, x.Actor, x.DecisionNote = dec.Action, in.s.cfg.Now().UTC(), &actor, dec.Note
	if err := writeDecision(ctx, tx, *x); err != nil {
		return fmt.Errorf("write decision: %w", err)
	}
	return in.s.record(ctx, tx, in.who, ledger.Event{Kind: "purchase.discrepancy_decided", Subject: in.order.ID, Reason: dec.Note, Data: ledger.Facts(map[string]any{
		"number": in.order.Number, "delivery": in.delivery.ID, "file_line": x.FileLine, "serial": x.Serial, "model": x.Model,
		"kind": x.Kind, "decision": x.Decision, "line": x.DecisionLine,
	})})
}

// accept takes a unit into stock after all: onto an open unit of the line when the model is the
// line's, else as an extra unit. A unit of another model that is accepted on a line with open units
// replaces one of them, which is cancelled.
func (in *receiver) accept(ctx context.Context, tx *sqldb.Tx, x Discrepancy, line int) (*Line, error) {
	if in.order.State == Closed || in.order.State == Cancelled {
		return nil, fault.New(fault.Conflict, "order %s is %s and takes no more units: return or reject this one", in.order.Number, in.order.State)
	}
	names, err := modelNames(ctx, tx, in.order.Tenant)
	if err != nil {
		return nil, err
	}
	model, ok := names[x.Model]
	if !ok {
		return nil, fault.New(fault.Conflict, "no hardware model has the ID or part number %q: add it first, or return or reject the unit", x.Model)
	}
	l, err := in.lineFor(x, model, line)
	if err != nil {
		return nil, err
	}
	existing, err := in.s.cfg.Devices.BySerials(ctx, tx, in.order.Tenant, []string{x.Serial})
	switch {
	case err != nil:
		return nil, err
	case len(existing) > 1:
		return nil, fault.New(fault.Conflict, "several devices have the serial number %s, %s and %s among them: return or reject this row",
			x.Serial, existing[0].ID, existing[1].ID)
	case len(existing) == 1:
		return l, in.acceptExisting(ctx, tx, existing[0], l, x.Row)
	case l.OpenUnits() > 0 && l.Model == model:
		return l, in.receive(ctx, tx, l, []Row{x.Row})
	case l.OpenUnits() > 0:
		if err := in.s.cancelUnits(ctx, tx, in.who, *in.order, l, 1, "replaced by "+model+" "+x.Serial); err != nil {
			return nil, err
		}
	}
	return l, in.receiveExtra(ctx, tx, l, x.Row, model)
}

// acceptExisting links a device that was there before its goods-in, e.g. one that enrolled too early
// and was quarantined: it takes the place of an open unit.
func (in *receiver) acceptExisting(ctx context.Context, tx *sqldb.Tx, d device.Device, l *Line, r Row) error {
	bought, err := hasUnit(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	if bought {
		return fault.New(fault.Conflict, "%s has the serial number %s and was bought already: return or reject this row", d.ID, r.Serial)
	}
	if d.Stage == device.Retired || d.Stage == device.Disposed {
		return fault.New(fault.Conflict, "%s has the serial number %s and is %s: return or reject this row", d.ID, r.Serial, d.Stage)
	}
	if l.OpenUnits() > 0 {
		if err := in.s.cancelUnits(ctx, tx, in.who, *in.order, l, 1, "it is "+string(d.ID)+", which was there before"); err != nil {
			return err
		}
	}
	return in.adopt(ctx, tx, d, l, r)
}

// lineFor finds the order line to accept on: the named one, else the only one with the model.
func (in *receiver) lineFor(x Discrepancy, model string, line int) (*Line, error) {
	if line == 0 {
		line = x.Line
	}
	if line > 0 {
		if _, ok := in.order.Line(line); !ok {
			return nil, fault.Bad("body.line", "order %s has no line %d", in.order.Number, line)
		}
		return &in.order.Lines[line-1], nil
	}
	found := 0
	for _, l := range in.order.Lines {
		if l.Model == model {
			if found > 0 {
				return nil, fault.Bad("body.line", "lines %d and %d are both about %s: name one", found, l.Line, model)
			}
			found = l.Line
		}
	}
	if found == 0 {
		return nil, fault.Bad("body.line", "no line of order %s is about %s: name the line to accept it on", in.order.Number, model)
	}
	return &in.order.Lines[found-1], nil
}

func hasUnit(ctx context.Context, q sqldb.Reader, num int64) (bool, error) {
	n, err := count(ctx, q, sqldb.NewQuery("SELECT COUNT(*) FROM purchase_unit WHERE num = ?", num))
	return n > 0, err
}
