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
)

// CheckDelivery tells what booking the file would do, and changes nothing.
func (s *Service) CheckDelivery(ctx context.Context, who httpapi.Principal, order string, f File) (Check, error) {
	o, err := s.Order(ctx, who, order)
	if err != nil {
		return Check{}, err
	}
	if d, ok, err := deliveryOfFile(ctx, s.cfg.DB, o, f.SHA256); err != nil || ok {
		return Check{SHA256: f.SHA256, Rows: len(f.Rows), Matched: []Match{}, Discrepancies: []Discrepancy{}, Short: []Short{}, Repeated: &d}, err
	}
	if err := o.need("a delivery", Placed, PartlyReceived, Received); err != nil {
		return Check{}, err
	}
	return s.check(ctx, s.cfg.DB, o, f)
}

func (s *Service) check(ctx context.Context, q sqldb.Reader, o Order, f File) (Check, error) {
	names, err := modelNames(ctx, q, o.Tenant)
	if err != nil {
		return Check{}, err
	}
	return checkRows(o, names, func(serial string) (string, error) {
		d, err := s.cfg.Devices.BySerial(ctx, q, o.Tenant, serial)
		switch {
		case errors.Is(err, fault.NotFound):
			return "", nil
		case err != nil:
			return "", fmt.Errorf("look for serial number %s: %w", serial, err)
		}
		return string(d.ID), nil
	}, f)
}

// Booked is the result of booking a file.
type Booked struct {
	Delivery Delivery `json:"delivery"`
	Repeated bool     `json:"repeated" doc:"True when the file had been booked before, and nothing was done now"`
	Order    Order    `json:"order"`
}

// BookDelivery books the rows that fit and keeps the others as discrepancies, all in one transaction.
// The same file is booked once per order: asked again, the answer is the delivery that it became.
func (s *Service) BookDelivery(ctx context.Context, who httpapi.Principal, order, note string, f File) (Booked, error) {
	bad := &fault.Invalid{}
	if text(bad, "query.note", note, false, maxNoteBytes); len(bad.Fields) > 0 {
		return Booked{}, bad
	}
	o, err := s.Order(ctx, who, order)
	if err != nil {
		return Booked{}, err
	}
	if d, ok, err := deliveryOfFile(ctx, s.cfg.DB, o, f.SHA256); err != nil || ok {
		return Booked{Delivery: d, Repeated: true, Order: o}, err
	}
	var b Booked
	b.Order, err = s.changeOrder(ctx, who, order, "", func(tx *sqldb.Tx, o *Order) error {
		b = Booked{}
		d, ok, err := deliveryOfFile(ctx, tx, *o, f.SHA256)
		if err != nil || ok { // somebody was faster
			b.Delivery, b.Repeated = d, true
			return err
		}
		if err := o.need("a delivery", Placed, PartlyReceived, Received); err != nil {
			return err
		}
		c, err := s.check(ctx, tx, *o, f)
		if err != nil {
			return err
		}
		b.Delivery = Delivery{
			ID: "del-" + device.RandomName(10), Order: o.ID, SHA256: f.SHA256, Note: note, Rows: int64(c.Rows),
			Booked: int64(len(c.Matched)), Discrepancies: int64(len(c.Discrepancies)), Undecided: int64(len(c.Discrepancies)),
			Created: s.cfg.Now().UTC(), Actor: who.Actor,
		}
		return s.book(ctx, tx, who, o, b.Delivery, c)
	})
	return b, err
}

func (s *Service) book(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, o *Order, d Delivery, c Check) error {
	if err := insertDelivery(ctx, tx, o.Tenant, d); err != nil {
		return fmt.Errorf("insert delivery: %w", err)
	}
	if err := insertDiscrepancies(ctx, tx, o.Tenant, d, c.Discrepancies); err != nil {
		return err
	}
	in := receiver{s: s, who: who, order: o, delivery: d}
	rows := make([][]Row, len(o.Lines)+1) // by order line
	for _, m := range c.Matched {
		rows[m.OrderLine] = append(rows[m.OrderLine], m.Row)
	}
	for i := range o.Lines {
		if err := in.receive(ctx, tx, &o.Lines[i], rows[i+1]); err != nil {
			return err
		}
	}
	if err := s.settle(ctx, tx, o); err != nil {
		return err
	}
	return s.record(ctx, tx, who, ledger.Event{Kind: "purchase.delivery_booked", Subject: o.ID, Data: ledger.Facts(map[string]any{
		"delivery": d.ID, "number": o.Number, "sha256": d.SHA256, "rows": d.Rows, "booked": d.Booked, "discrepancies": d.Discrepancies, "state": o.State,
	})})
}

// receiver takes units of one delivery into stock.
type receiver struct {
	s        *Service
	who      httpapi.Principal
	order    *Order
	delivery Delivery
	months   map[string]int // model → months of warranty
}

// receive books rows onto open units of the line, of which there are enough.
func (in *receiver) receive(ctx context.Context, tx *sqldb.Tx, l *Line, rows []Row) error {
	if len(rows) == 0 {
		return nil
	}
	nums, err := openUnits(ctx, tx, in.order.ID, l.Line, int64(len(rows)))
	if err != nil {
		return fmt.Errorf("find open units of line %d: %w", l.Line, err)
	}
	if len(nums) != len(rows) {
		return fmt.Errorf("order %s line %d has %d open units for %d rows", in.order.ID, l.Line, len(nums), len(rows))
	}
	reason := in.reason(l)
	for i, r := range rows {
		if _, err := in.s.cfg.Devices.AssignSerial(ctx, tx, in.who.Actor, nums[i], r.Serial); err != nil {
			return fmt.Errorf("line %d of the file: %w", r.FileLine, err)
		}
		d, err := in.s.cfg.Devices.Move(ctx, tx, in.who.Actor, device.Move{Num: nums[i], To: device.Received, Reason: reason})
		if err != nil {
			return fmt.Errorf("line %d of the file: %w", r.FileLine, err)
		}
		u, err := in.unit(ctx, tx, d, l, r)
		if err != nil {
			return err
		}
		if err := updateUnit(ctx, tx, u); err != nil {
			return fmt.Errorf("update unit: %w", err)
		}
		if err := in.recordReceived(ctx, tx, d, l, r); err != nil {
			return err
		}
	}
	l.Received += int64(len(rows))
	return nil
}

// receiveExtra takes a unit into stock that no open unit of the line stands for: it is a new device.
func (in *receiver) receiveExtra(ctx context.Context, tx *sqldb.Tx, l *Line, r Row, model string) error {
	d, err := in.s.cfg.Devices.Create(ctx, tx, in.who.Actor, device.New{
		Tenant: in.order.Tenant, Serial: r.Serial, Model: model, Stage: device.Received, Reason: in.reason(l),
	})
	if err != nil {
		return err
	}
	return in.adopt(ctx, tx, d, l, r)
}

// adopt counts a device that exists as an extra unit of the line.
func (in *receiver) adopt(ctx context.Context, tx *sqldb.Tx, d device.Device, l *Line, r Row) error {
	u, err := in.unit(ctx, tx, d, l, r)
	if err != nil {
		return err
	}
	if err := insertUnits(ctx, tx, *in.order, []unit{u}); err != nil {
		return err
	}
	l.Extra++
	l.Received++
	return in.recordReceived(ctx, tx, d, l, r)
}

func (in *receiver) reason(l *Line) string {
	return fmt.Sprintf("order %s, line %d, delivery %s", in.order.Number, l.Line, in.delivery.ID)
}

// unit returns the row of a received device; the warranty runs from the day of delivery.
func (in *receiver) unit(ctx context.Context, q sqldb.Reader, d device.Device, l *Line, r Row) (unit, error) {
	model := d.Model
	if model == "" {
		model = l.Model
	}
	if in.months == nil {
		models, err := readModels(ctx, q, in.order.Tenant)
		if err != nil {
			return unit{}, fmt.Errorf("read models: %w", err)
		}
		in.months = map[string]int{}
		for _, m := range models {
			in.months[m.ID] = m.WarrantyMonths
		}
	}
	u := unit{
		num: d.Num, line: l.Line, model: model, state: unitReceived, delivery: in.delivery.ID,
		serial: r.Serial, mac: r.MAC, delivered: in.delivery.Created,
	}
	if n := in.months[model]; n > 0 {
		u.warrantyEnd = DateOf(u.delivered).AddMonths(n)
	}
	return u, nil
}

func (in *receiver) recordReceived(ctx context.Context, tx *sqldb.Tx, d device.Device, l *Line, r Row) error {
	return in.s.record(ctx, tx, in.who, ledger.Event{Kind: "purchase.received", Device: d.ID, Subject: in.order.ID, Data: ledger.Facts(map[string]any{
		"order": in.order.Number, "order_id": in.order.ID, "line": l.Line, "delivery": in.delivery.ID,
		"serial": r.Serial, "model": d.Model, "supplier": in.order.Supplier,
	})})
}
