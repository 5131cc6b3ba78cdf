package purchase

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
	if err := o.takesDelivery(); err != nil {
		return Check{}, err
	}
	return s.check(ctx, s.cfg.DB, o, f)
}

// takesDelivery refuses a delivery that the order's state does not allow.
func (o Order) takesDelivery() error {
	if err := o.busy(); err != nil {
		return err
	}
	return o.need("a delivery", Placed, PartlyReceived, Received)
}

func (s *Service) check(ctx context.Context, q sqldb.Reader, o Order, f File) (Check, error) {
	names, err := modelNames(ctx, q, o.Tenant)
	if err != nil {
		return Check{}, err
	}
	serials := make([]string, len(f.Rows))
	for i, r := range f.Rows {
		serials[i] = r.Serial
	}
	owners, err := s.owners(ctx, q, o.Tenant, serials)
	if err != nil {
		return Check{}, err
	}
	return checkRows(o, names, func(serial string) string { return owners[serial] }, f)
}

// owners tells which device has a serial number already.
func (s *Service) owners(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serials []string) (map[string]string, error) {
	found, err := s.cfg.Devices.BySerials(ctx, q, tenant, serials)
	if err != nil {
		return nil, err
	}
	owners := make(map[string]string, len(found))
	for _, d := range found {
		owners[d.Serial] = string(d.ID)
	}
	return owners, nil
}

// Booked is the result of booking a file.
type Booked struct {
	Delivery Delivery `json:"delivery"`
	Repeated bool     `json:"repeated" doc:"True when the file had been booked before, and nothing was done now"`
	Order    Order    `json:"order"`
}

// BookDelivery books the rows that fit and keeps the others as discrepancies. The same file is booked
// once per order: asked again, the answer is the delivery that it became. A file is booked as a whole:
// once it is accepted nothing but a serial number that somebody else takes meanwhile can keep a row from
// being booked, and that row becomes a discrepancy. BookDelivery waits until all is booked, as long as
// ctx lasts, and goes on without the caller then.
func (s *Service) BookDelivery(ctx context.Context, who httpapi.Principal, order, note string, f File) (Booked, error) {
	return s.book(ctx, who, order, deliveryWish{note, f, slow})
}

// BeginDelivery is BookDelivery for those who look at the order's progress.
func (s *Service) BeginDelivery(ctx context.Context, who httpapi.Principal, order, note string, f File) (Booked, error) {
	return s.book(ctx, who, order, deliveryWish{note, f, moment})
}

type deliveryWish struct {
	note     string
	file     File
	patience time.Duration
}

func (s *Service) book(ctx context.Context, who httpapi.Principal, order string, wish deliveryWish) (b Booked, err error) {
	bad := &fault.Invalid{}
	if text(bad, "query.note", wish.note, false, maxNoteBytes); len(bad.Fields) > 0 {
		return Booked{}, bad
	}
	// A large file is held against the order before the transaction that accepts it, and again when
	// somebody has changed the order meanwhile.
	for range 5 {
		b, err = s.accept(ctx, who, order, wish)
		if !errors.Is(err, errOrderChanged) {
			break
		}
	}
	if err != nil || b.Repeated {
		return b, err
	}
	if b.Order, err = s.finish(ctx, b.Order, wish.patience); err != nil {
		return b, err
	}
	b.Delivery, err = readDelivery(context.WithoutCancel(ctx), s.cfg.DB, b.Order.Tenant, b.Delivery.ID)
	return b, err
}

// accept takes a file in: from then on it is a delivery of the order.
func (s *Service) accept(ctx context.Context, who httpapi.Principal, order string, wish deliveryWish) (Booked, error) {
	f := wish.file
	seen, err := s.Order(ctx, who, order)
	if err != nil {
		return Booked{}, err
	}
	if d, ok, err := deliveryOfFile(ctx, s.cfg.DB, seen, f.SHA256); err != nil || ok {
		return Booked{Delivery: d, Repeated: true, Order: seen}, err
	}
	if err := seen.takesDelivery(); err != nil {
		return Booked{}, err
	}
	c, err := s.check(ctx, s.cfg.DB, seen, f)
	if err != nil {
		return Booked{}, err
	}
	var b Booked
	b.Order, err = s.changeOrder(ctx, who, order, "", func(tx *sqldb.Tx, o *Order) error {
		b = Booked{}
		d, ok, err := deliveryOfFile(ctx, tx, *o, f.SHA256)
		if err != nil || ok { // somebody was faster
			b.Delivery, b.Repeated = d, true
			return err
		}
		if err := o.takesDelivery(); err != nil {
			return err
		}
		if !slices.Equal(o.Lines, seen.Lines) {
			return errOrderChanged
		}
		b.Delivery = Delivery{
			ID: "del-" + device.RandomName(10), Order: o.ID, SHA256: f.SHA256, Note: wish.note, Rows: int64(c.Rows),
			Waiting: int64(c.Rows), Created: s.cfg.Now().UTC(), Actor: who.Actor,
		}
		if err := insertDelivery(ctx, tx, o.Tenant, b.Delivery); err != nil {
			return fmt.Errorf("insert delivery: %w", err)
		}
		return s.beginBooking(ctx, tx, who, o, booking{b.Delivery, c})
	})
	return b, err
}

// booking is a delivery with what its rows are held to be.
type booking struct {
	delivery Delivery
	check    Check
}

// bookingPart is some of a delivery's rows, as they wait in the database.
type bookingPart struct {
	Matched       []Match       `json:"m,omitempty"`
	Discrepancies []Discrepancy `json:"d,omitempty"`
}

// rows is how many.
func (p bookingPart) rows() int { return len(p.Matched) + len(p.Discrepancies) }

// partRows is how many rows wait in one part, at most: the smallest step.
const partRows = 100

// parts divides the rows.
func (c Check) parts() []bookingPart {
	var parts []bookingPart
	for some := range slices.Chunk(c.Matched, partRows) {
		parts = append(parts, bookingPart{Matched: some})
	}
	for some := range slices.Chunk(c.Discrepancies, partRows) {
		parts = append(parts, bookingPart{Discrepancies: some})
	}
	return parts
}

func (s *Service) beginBooking(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, o *Order, b booking) error {
	w := work{actor: who.Actor, delivery: b.delivery.ID, Progress: Progress{Task: Booking, Total: b.delivery.Rows}}
	w.order, w.tenant = o.ID, o.Tenant
	if err := s.recordBegin(ctx, tx, who, *o, w); err != nil {
		return err
	}
	return s.begin(ctx, tx, o, w, b.check.parts()...)
}

// stepBook books the rows of the next parts.
func (s *Service) stepBook(ctx context.Context, tx *sqldb.Tx, o *Order, w *work, size int) (done bool, err error) {
	parts, more, err := takeParts(ctx, tx, o.ID, max(1, size/partRows))
	if err != nil {
		return false, err
	}
	d, err := readDelivery(ctx, tx, o.Tenant, w.delivery)
	if err != nil {
		return false, err
	}
	in := receiver{s: s, who: w.who(), order: o, delivery: d}
	rows, wrong, err := s.sorted(ctx, tx, *o, parts)
	if err != nil {
		return false, err
	}
	for _, p := range parts {
		d.Waiting -= int64(p.rows())
		w.Done += int64(p.rows())
	}
	for _, some := range rows {
		d.Booked += int64(len(some))
	}
	for i := range o.Lines {
		if err := in.receive(ctx, tx, &o.Lines[i], rows[i+1]); err != nil {
			return false, err
		}
	}
	if err := insertDiscrepancies(ctx, tx, o.Tenant, d, wrong); err != nil {
		return false, err
	}
	d.Discrepancies += int64(len(wrong))
	if err := updateDelivery(ctx, tx, d); err != nil {
		return false, err
	}
	if !more {
		o.raise()
	}
	if err := s.settle(ctx, tx, o); err != nil || more {
		return false, err
	}
	return true, s.record(ctx, tx, w.who(), ledger.Event{Kind: "purchase.delivery_booked", Subject: o.ID, Data: ledger.Facts(map[string]any{
		"delivery": d.ID, "number": o.Number, "sha256": d.SHA256, "rows": d.Rows, "booked": d.Booked, "discrepancies": d.Discrepancies, "state": o.State,
	})})
}

// sorted divides rows into those to book, by the number of their order line, and discrepancies: among
// them those whose serial numbers were taken since the file was checked.
func (s *Service) sorted(ctx context.Context, q sqldb.Reader, o Order, parts []bookingPart) (rows [][]Row, wrong []Discrepancy, err error) {
	rows = make([][]Row, len(o.Lines)+1)
	for _, p := range parts {
		known, err := s.knownMeanwhile(ctx, q, o.Tenant, p.Matched)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range p.Matched {
			if owner := known[m.Serial]; owner != "" {
				wrong = append(wrong, Discrepancy{Row: m.Row, Kind: KnownSerial, Detail: owner + " has this serial number already"})
				continue
			}
			rows[m.OrderLine] = append(rows[m.OrderLine], m.Row)
		}
		wrong = append(wrong, p.Discrepancies...)
	}
	return rows, wrong, nil
}

// knownMeanwhile tells which serial numbers were taken since the file was checked.
func (s *Service) knownMeanwhile(ctx context.Context, q sqldb.Reader, tenant device.TenantID, matched []Match) (map[string]string, error) {
	serials := make([]string, len(matched))
	for i, m := range matched {
		serials[i] = m.Serial
	}
	return s.owners(ctx, q, tenant, serials)
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
	byNum := make(map[int64]Row, len(rows))
	arrivals := make([]device.Arrival, len(rows))
	for i, r := range rows {
		byNum[nums[i]] = r
		arrivals[i] = device.Arrival{Num: nums[i], Serial: r.Serial, Reason: in.reason(l)}
	}
	devices, err := in.s.cfg.Devices.ReceiveMany(ctx, tx, in.who.Actor, arrivals)
	if err != nil {
		return err
	}
	units, events := make([]unit, len(devices)), make([]ledger.Event, len(devices))
	for i, d := range devices {
		if units[i], err = in.unit(ctx, tx, d, l, byNum[d.Num]); err != nil {
			return err
		}
		events[i] = in.received(d, l, byNum[d.Num])
	}
	if err := updateUnits(ctx, tx, units); err != nil {
		return err
	}
	l.Received += int64(len(rows))
	return in.stocked(ctx, tx, units, devices, events)
}

// stocked counts received units by the stages of their devices, and tells of them.
func (in *receiver) stocked(ctx context.Context, tx *sqldb.Tx, units []unit, devices []device.Device, events []ledger.Event) error {
	change := stockChange{}
	for i, u := range units {
		change[u.in(in.order.Tenant, in.order.ID, devices[i].Stage)]++
	}
	if err := change.write(ctx, tx); err != nil {
		return err
	}
	if err := in.s.cfg.Ledger.Append(ctx, tx, events...); err != nil {
		return fmt.Errorf("record the delivery of %d units: %w", len(events), err)
	}
	return nil
}

// receiveExtra takes a unit into stock that no open unit of the line stands for: it is a new device.
func (in *receiver) receiveExtra(ctx context.Context, tx *sqldb.Tx, l *Line, r Row, model string) error {
	list, err := in.s.cfg.Devices.CreateMany(ctx, tx, in.who.Actor, []device.New{{
		Tenant: in.order.Tenant, Serial: r.Serial, Model: model, Stage: device.Received, Reason: in.reason(l),
	}})
	if err != nil {
		return err
	}
	return in.adopt(ctx, tx, list[0], l, r)
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
	return in.stocked(ctx, tx, []unit{u}, []device.Device{d}, []ledger.Event{in.received(d, l, r)})
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

// received is the event of a unit that was delivered.
func (in *receiver) received(d device.Device, l *Line, r Row) ledger.Event {
	return ledger.Event{Tenant: in.order.Tenant, Actor: in.who.Actor, Kind: "purchase.received", Device: d.ID, Subject: in.order.ID, Data: ledger.Facts(map[string]any{
		"order": in.order.Number, "order_id": in.order.ID, "line": l.Line, "delivery": in.delivery.ID,
		"serial": r.Serial, "model": d.Model, "supplier": in.order.Supplier,
	})}
}
