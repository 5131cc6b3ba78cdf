package purchase_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

var start = time.Date(2026, 3, 31, 9, 0, 0, 0, time.UTC)

// desk is the room with real neighbours on a real database.
type desk struct {
	*purchase.Service
	t       testing.TB
	db      *sqldb.DB
	ledger  *ledger.Ledger
	devices *registry.Service
	mu      sync.Mutex
	now     time.Time
	onStep  func()
	who     httpapi.Principal
}

func (k *desk) clock() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

func (k *desk) pass(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now = k.now.Add(d)
}

// each runs a test on both engines with two models, a supplier and nothing ordered.
func each(t *testing.T, test func(t *testing.T, k *desk)) {
	migrations := []sqldb.Migration{ledger.Migration(), registry.Migration(), purchase.Migration()}
	sqldbtest.Each(t, migrations, func(t *testing.T, db *sqldb.DB) {
		k := newDesk(t, db)
		test(t, k)
		k.wantStockKept()
	})
}

func newDesk(t testing.TB, db *sqldb.DB) *desk {
	k := &desk{t: t, db: db, ledger: ledgertest.New(t, db), now: start}
	k.who = httpapi.Principal{
		Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}, Role: httpapi.Operator,
		Scope: device.Scope{Tenant: device.DefaultTenant},
	}
	quiet := slog.New(slog.DiscardHandler)
	k.devices = registry.New(registry.Config{DB: db, Ledger: k.ledger, Now: k.clock, Log: quiet, MovedMany: []registry.MovedMany{
		func(ctx context.Context, tx *sqldb.Tx, moved []device.Moved) error { return k.Moved(ctx, tx, moved) },
	}})
	k.Service = purchase.New(purchase.Config{DB: db, Devices: stepped{k.devices, k}, Ledger: k.ledger, Now: k.clock, Log: quiet})
	k.must(k.SaveSupplier(t.Context(), k.who, "acme", purchase.SupplierSpec{Name: "Acme Ltd."}, ""))
	k.must(k.SaveModel(t.Context(), k.who, "gw-1", purchase.ModelSpec{
		Maker: "Acme", Name: "Gateway 1", PartNumber: "GW1-EU", Architecture: "arm64", Interfaces: []string{"ethernet"}, WarrantyMonths: 1,
	}, ""))
	k.must(k.SaveModel(t.Context(), k.who, "cam", purchase.ModelSpec{Maker: "Acme", Name: "Camera", Architecture: "arm"}, ""))
	return k
}

// wantStockKept counts stock anew; every test ends with it.
func (k *desk) wantStockKept() {
	k.t.Helper()
	for name, check := range map[string]func() ([]string, error){
		"stock":   func() ([]string, error) { return k.CheckStock(k.t.Context(), k.db, device.DefaultTenant) },
		"devices": func() ([]string, error) { return k.devices.CheckCounts(k.t.Context(), k.db) },
	} {
		if wrong, err := check(); err != nil || len(wrong) > 0 {
			k.t.Errorf("kept counts of %s: %q, %v", name, wrong, err)
		}
	}
}

func (k *desk) must(_ any, err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// order places an order of the lines.
func (k *desk) order(number string, lines ...purchase.LineSpec) purchase.Order {
	k.t.Helper()
	o, err := k.CreateOrder(k.t.Context(), k.who, purchase.OrderSpec{Number: number, Supplier: "acme", Currency: "EUR", Due: "2026-04-30", Lines: lines})
	k.must(o, err)
	o, err = k.Place(k.t.Context(), k.who, o.ID, httpapi.ETag(o.Revision))
	k.must(o, err)
	return o
}

func line(model string, quantity, price int64) purchase.LineSpec {
	return purchase.LineSpec{Model: model, Quantity: quantity, UnitPrice: price}
}

func (k *desk) file(rows ...string) purchase.File {
	k.t.Helper()
	f, err := purchase.ReadFile(strings.NewReader("serial,model,line\n" + strings.Join(rows, "\n") + "\n"))
	k.must(f, err)
	return f
}

func (k *desk) book(o purchase.Order, rows ...string) purchase.Booked {
	k.t.Helper()
	b, err := k.BookDelivery(k.t.Context(), k.who, o.ID, "DN-1", k.file(rows...))
	k.must(b, err)
	return b
}

func (k *desk) serial(serial string) device.Device {
	k.t.Helper()
	d, err := k.devices.BySerial(k.t.Context(), k.db, device.DefaultTenant, serial)
	k.must(d, err)
	return d
}

// stages counts devices by stage.
func (k *desk) stages() map[device.Stage]int {
	k.t.Helper()
	rows, err := k.db.QueryContext(k.t.Context(), "SELECT stage, COUNT(*) FROM registry_device GROUP BY stage")
	k.must(rows, err)
	defer rows.Close() //nolint:errcheck // the test ends
	counts := map[device.Stage]int{}
	for rows.Next() {
		var st device.Stage
		var n int
		k.must(nil, rows.Scan(&st, &n))
		counts[st] = n
	}
	k.must(nil, rows.Err())
	return counts
}

func (k *desk) wantStages(want string) {
	k.t.Helper()
	if got := strings.TrimPrefix(fmt.Sprint(k.stages()), "map"); got != "["+want+"]" {
		k.t.Errorf("stages %s, want [%s]", got, want)
	}
}

func wantLine(t *testing.T, o purchase.Order, no int, extra, received, cancelled, open int64) {
	t.Helper()
	l, _ := o.Line(no)
	if l.Extra != extra || l.Received != received || l.Cancelled != cancelled || l.OpenUnits() != open {
		t.Errorf("line %d: extra %d, received %d, cancelled %d, open %d; want %d %d %d %d", no, l.Extra, l.Received, l.Cancelled, l.OpenUnits(), extra, received, cancelled, open)
	}
}

func TestPlacingCreatesUnitsAndBookingReceivesThem(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 3, 19900), line("cam", 1, 5000))
		if o.State != purchase.Placed || o.Open() != 4 {
			t.Errorf("state %s, open %d", o.State, o.Open())
		}
		k.wantStages("ordered:4")
		b := k.book(o, "G1,GW1-EU,", "C1,cam,2")
		if b.Repeated || b.Delivery.Booked != 2 || b.Order.State != purchase.PartlyReceived {
			t.Errorf("%+v", b)
		}
		wantLine(t, b.Order, 1, 0, 1, 0, 2)
		wantLine(t, b.Order, 2, 0, 1, 0, 0)
		k.wantStages("ordered:2 received:2")
		d := k.serial("G1")
		if d.Stage != device.Received || d.Model != "gw-1" {
			t.Errorf("device %+v", d)
		}
		kinds := ledgertest.Kinds(t, k.ledger, d.ID)
		if want := []string{"device.created", "device.identified", "device.moved", "purchase.received"}; !slices.Equal(kinds, want) {
			t.Errorf("events of the device %v, want %v", kinds, want)
		}
		b = k.book(b.Order, "G2,gw-1,1", "G3,gw-1,1")
		if b.Order.State != purchase.Received {
			t.Errorf("state %s, want received", b.Order.State)
		}
		k.wantStages("received:4")
		o, err := k.Close(t.Context(), k.who, o.ID, "")
		if err != nil || o.State != purchase.Closed || o.Ended.IsZero() {
			t.Errorf("close: %v, %+v", err, o)
		}
	})
}

func TestProvenanceAndStockComeFromTheDelivery(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 3, 19900))
		k.book(o, "G1,gw-1,", "G2,gw-1,")
		p, ok, err := k.Provenance(t.Context(), k.db, k.serial("G1").Num)
		if err != nil || !ok || p.Number != "PO-1" || p.Supplier != "Acme Ltd." || p.Maker != "Acme" || p.ModelName != "Gateway 1" ||
			p.UnitPrice != 19900 || p.Currency != "EUR" || !p.Delivered.Equal(start) || p.WarrantyEnd != "2026-04-30" {
			t.Errorf("provenance %+v, %v, %v", p, ok, err)
		}
		if _, ok, err := k.Provenance(t.Context(), k.db, 999_999); ok || err != nil {
			t.Errorf("provenance of a device that was never bought: %v, %v", ok, err)
		}
		stock, err := k.Stock(t.Context(), k.who)
		if err != nil || len(stock) != 1 || stock[0].Units != 2 || stock[0].Value != 39800 || stock[0].WarrantyEnd != "2026-04-30" {
			t.Errorf("stock %+v, %v", stock, err)
		}
		for serial, want := range map[string]bool{"G1": true, "G3": false, "": false} {
			if got, err := k.Bought(t.Context(), k.db, device.DefaultTenant, serial); err != nil || got != want {
				t.Errorf("bought %q = %v, %v", serial, got, err)
			}
		}
		if got, _ := k.Bought(t.Context(), k.db, "other", "G1"); got {
			t.Error("another tenant has bought it too")
		}
	})
}

func TestSameFileIsBookedOnceEvenAtTheSameTime(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 2, 1))
		f := k.file("G1,gw-1,", "G2,gw-1,")
		var wg sync.WaitGroup
		results := make([]purchase.Booked, 4)
		errs := make([]error, 4)
		for i := range results {
			wg.Go(func() { results[i], errs[i] = k.BookDelivery(context.Background(), k.who, o.ID, "", f) })
		}
		wg.Wait()
		fresh := 0
		for i, b := range results {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			if !b.Repeated {
				fresh++
			}
			if b.Delivery.ID != results[0].Delivery.ID {
				t.Error("two deliveries of one file")
			}
		}
		if fresh != 1 {
			t.Errorf("booked %d times", fresh)
		}
		k.wantStages("received:2")
		c, err := k.CheckDelivery(t.Context(), k.who, o.ID, f)
		if err != nil || c.Repeated == nil || len(c.Matched)+len(c.Discrepancies) != 0 {
			t.Errorf("preview of a booked file: %+v, %v", c, err)
		}
	})
}

func TestPreviewChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 2, 1))
		c, err := k.CheckDelivery(t.Context(), k.who, o.ID, k.file("G1,gw-1,", "X,odd,"))
		if err != nil || len(c.Matched) != 1 || len(c.Discrepancies) != 1 || len(c.Short) != 1 {
			t.Errorf("%+v, %v", c, err)
		}
		after, err := k.Order(t.Context(), k.who, o.ID)
		if err != nil || after.Revision != o.Revision {
			t.Errorf("revision %d, was %d (%v)", after.Revision, o.Revision, err)
		}
		k.wantStages("ordered:2")
	})
}

func TestDiscrepanciesWaitAndAreDecidedOnce(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 1, 100), line("cam", 2, 50))
		b := k.book(o, "G1,gw-1,", "G2,gw-1,", "G3,gw-1,", "X1,toaster,", "C9,cam,1", "T1,cam,", "T1,cam,")
		if b.Delivery.Booked != 1 || b.Delivery.Undecided != 6 {
			t.Fatalf("%+v", b.Delivery)
		}
		decide := func(dec purchase.Decision) error {
			_, err := k.Decide(t.Context(), k.who, b.Delivery.ID, dec)
			return err
		}
		k.must(nil, decide(purchase.Decision{FileLines: []int{3}, Action: purchase.Accept})) // over, onto line 1
		k.must(nil, decide(purchase.Decision{FileLines: []int{3}, Action: purchase.Accept})) // the same again
		if err := decide(purchase.Decision{FileLines: []int{3}, Action: purchase.Return}); !errors.Is(err, fault.Conflict) {
			t.Errorf("deciding differently: %v", err)
		}
		k.must(nil, decide(purchase.Decision{Kind: purchase.Over, Action: purchase.Return, Note: "sent back"}))
		if err := decide(purchase.Decision{FileLines: []int{5}, Action: purchase.Accept, Line: 1}); !errors.Is(err, fault.Conflict) {
			t.Errorf("accepting an unknown model: %v", err)
		}
		k.must(nil, decide(purchase.Decision{FileLines: []int{5}, Action: purchase.Reject}))
		k.must(nil, decide(purchase.Decision{FileLines: []int{6}, Action: purchase.Accept, Line: 2})) // fits line 2
		// One of the two rows of T1 is real; the other one can't be accepted as well.
		k.must(nil, decide(purchase.Decision{FileLines: []int{7}, Action: purchase.Accept}))
		if err := decide(purchase.Decision{FileLines: []int{8}, Action: purchase.Accept}); !errors.Is(err, fault.Conflict) {
			t.Errorf("accepting a serial number twice: %v", err)
		}
		k.must(nil, decide(purchase.Decision{FileLines: []int{8}, Action: purchase.Reject}))

		o, err := k.Order(t.Context(), k.who, o.ID)
		k.must(o, err)
		wantLine(t, o, 1, 1, 2, 0, 0)
		wantLine(t, o, 2, 0, 2, 0, 0)
		if o.State != purchase.Received {
			t.Errorf("state %s", o.State)
		}
		k.wantStages("received:4")
		list, _, err := k.Discrepancies(t.Context(), k.who, purchase.DiscrepancyFilter{Delivery: b.Delivery.ID, Limit: 100})
		k.must(list, err)
		got := ""
		for _, x := range list {
			got += fmt.Sprintf("%d:%s:%s:%d:%s ", x.FileLine, x.Kind, x.Decision, x.DecisionLine, x.Actor.Name)
		}
		want := "3:over:accept:1:Ada 4:over:return:0:Ada 5:unknown_model:reject:0:Ada 6:wrong_model:accept:2:Ada 7:twice:accept:2:Ada 8:twice:reject:0:Ada "
		if got != want {
			t.Errorf("decisions\n%s, want\n%s", got, want)
		}
	})
}

func TestDecisionOfSeveralRowsHoldsForAllOrNone(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 1, 100))
		b := k.book(o, "A1,gw-1,", "G2,gw-1,", "X1,toaster,")
		_, err := k.Decide(t.Context(), k.who, b.Delivery.ID, purchase.Decision{FileLines: []int{3, 4}, Action: purchase.Accept, Line: 1})
		if !errors.Is(err, fault.Conflict) {
			t.Fatalf("accepting an unknown model: %v", err)
		}
		k.wantStages("received:1")
		d, err := k.Deliveries(t.Context(), k.who, o.ID)
		if err != nil || d[0].Undecided != 2 {
			t.Errorf("%+v, %v", d, err)
		}
	})
}

func TestUnitOfAnotherModelReplacesAnOpenOne(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 1, 100))
		b := k.book(o, "C1,cam,")
		_, err := k.Decide(t.Context(), k.who, b.Delivery.ID, purchase.Decision{FileLines: []int{2}, Action: purchase.Accept, Line: 1})
		k.must(nil, err)
		o, err = k.Order(t.Context(), k.who, o.ID)
		k.must(o, err)
		wantLine(t, o, 1, 1, 1, 1, 0)
		k.wantStages("received:1 retired:1")
		if d := k.serial("C1"); d.Model != "cam" {
			t.Errorf("model %s", d.Model)
		}
	})
}

func TestDeviceThatEnrolledTooEarlyIsLinkedToItsOrder(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		var early device.Device
		k.must(nil, k.db.Write(t.Context(), func(tx *sqldb.Tx) (err error) {
			early, err = k.devices.Create(t.Context(), tx, device.System("provisioning"), device.New{
				Tenant: device.DefaultTenant, Serial: "E1", Stage: device.Quarantined, Reason: "not bought",
			})
			return err
		}))
		o := k.order("PO-1", line("gw-1", 1, 100))
		b := k.book(o, "E1,gw-1,")
		if b.Delivery.Undecided != 1 {
			t.Fatalf("%+v", b.Delivery)
		}
		_, err := k.Decide(t.Context(), k.who, b.Delivery.ID, purchase.Decision{Kind: purchase.KnownSerial, Action: purchase.Accept})
		k.must(nil, err)
		if ok, err := k.Bought(t.Context(), k.db, device.DefaultTenant, "E1"); !ok || err != nil {
			t.Errorf("bought %v, %v", ok, err)
		}
		if d := k.serial("E1"); d.ID != early.ID || d.Stage != device.Quarantined {
			t.Errorf("device %+v", d)
		}
		if kinds := ledgertest.Kinds(t, k.ledger, early.ID); !slices.Contains(kinds, "purchase.received") {
			t.Errorf("events %v", kinds)
		}
		// A second delivery of it is a mistake of somebody.
		b = k.book(k.order("PO-2", line("gw-1", 1, 100)), "E1,gw-1,")
		_, err = k.Decide(t.Context(), k.who, b.Delivery.ID, purchase.Decision{Kind: purchase.KnownSerial, Action: purchase.Accept})
		if !errors.Is(err, fault.Conflict) {
			t.Errorf("accepting a device that was bought: %v", err)
		}
	})
}

func TestCancellingRetiresOpenUnitsOnly(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 2, 100), line("cam", 3, 50))
		k.book(o, "G1,gw-1,")
		p, err := k.PreviewCancel(t.Context(), k.who, o.ID, 0)
		if err != nil || p.Units != 4 || p.State != purchase.Received || len(p.Lines) != 2 {
			t.Fatalf("%+v, %v", p, err)
		}
		p, err = k.PreviewCancel(t.Context(), k.who, o.ID, 2)
		if err != nil || p.Units != 3 || p.State != purchase.PartlyReceived {
			t.Fatalf("%+v, %v", p, err)
		}
		o, err = k.Cancel(t.Context(), k.who, o.ID, 2, "supplier is sold out", httpapi.ETag(p.Revision))
		k.must(o, err)
		wantLine(t, o, 2, 0, 0, 3, 0)
		k.wantStages("ordered:1 received:1 retired:3")
		if _, err = k.Cancel(t.Context(), k.who, o.ID, 0, "too late", httpapi.ETag(p.Revision)); !errors.Is(err, fault.Precondition) {
			t.Errorf("cancelling with an old tag: %v", err)
		}
		if _, err = k.Cancel(t.Context(), k.who, o.ID, 0, " ", ""); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("cancelling without a reason: %v", err)
		}
		o, err = k.Cancel(t.Context(), k.who, o.ID, 0, "too late", "")
		if err != nil || o.State != purchase.Received {
			t.Errorf("%+v, %v", o, err)
		}
		k.wantStages("received:1 retired:4")
		query, args := k.Undelivered(device.DefaultTenant)
		b := sqldb.NewQuery("SELECT COUNT(*) FROM registry_device WHERE stage = 'retired' AND num IN ("+query+")", args...)
		var n int
		if err := k.db.QueryRowContext(t.Context(), b.SQL(), b.Args()...).Scan(&n); err != nil || n != 4 {
			t.Errorf("%d undelivered, %v", n, err)
		}
		whole := k.order("PO-2", line("cam", 2, 50))
		whole, err = k.Cancel(t.Context(), k.who, whole.ID, 0, "changed our mind", "")
		if err != nil || whole.State != purchase.Cancelled || whole.Ended.IsZero() {
			t.Errorf("%+v, %v", whole, err)
		}
		if _, err := k.BookDelivery(t.Context(), k.who, whole.ID, "", k.file("C5,cam,")); !errors.Is(err, fault.Conflict) {
			t.Errorf("delivery on a cancelled order: %v", err)
		}
	})
}

func TestDraftIsChangedAndPlacedOrderIsNot(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		spec := purchase.OrderSpec{Number: "PO-1", Supplier: "acme", Currency: "EUR", Lines: []purchase.LineSpec{line("gw-1", 1, 1)}}
		o, err := k.CreateOrder(t.Context(), k.who, spec)
		k.must(o, err)
		if _, err := k.CreateOrder(t.Context(), k.who, spec); !errors.Is(err, fault.Conflict) {
			t.Errorf("second order of the number: %v", err)
		}
		spec.Lines = append(spec.Lines, line("cam", 2, 5))
		changed, err := k.ChangeOrder(t.Context(), k.who, o.ID, spec, httpapi.ETag(o.Revision))
		if err != nil || len(changed.Lines) != 2 || changed.Revision != o.Revision+1 {
			t.Fatalf("%+v, %v", changed, err)
		}
		if _, err := k.ChangeOrder(t.Context(), k.who, o.ID, spec, httpapi.ETag(o.Revision)); !errors.Is(err, fault.Precondition) {
			t.Errorf("old tag: %v", err)
		}
		bad := spec
		bad.Supplier, bad.Lines = "nobody", []purchase.LineSpec{line("gw-1", 1, 1), line("odd", 1, 1)}
		var invalid *fault.Invalid
		if _, err := k.ChangeOrder(t.Context(), k.who, o.ID, bad, ""); !errors.As(err, &invalid) || len(invalid.Fields) != 2 || invalid.Fields[1].Location != "body.lines[1].model" {
			t.Errorf("unknown references: %v", err)
		}
		k.must(k.Place(t.Context(), k.who, o.ID, ""))
		if _, err := k.Place(t.Context(), k.who, o.ID, ""); !errors.Is(err, fault.Conflict) {
			t.Errorf("placing twice: %v", err)
		}
		if _, err := k.ChangeOrder(t.Context(), k.who, o.ID, spec, ""); !errors.Is(err, fault.Conflict) {
			t.Errorf("changing a placed order: %v", err)
		}
		k.wantStages("ordered:3")
		if err := k.DeleteSupplier(t.Context(), k.who, "acme"); !errors.Is(err, fault.Conflict) {
			t.Errorf("deleting a supplier with orders: %v", err)
		}
		if err := k.DeleteModel(t.Context(), k.who, "cam"); !errors.Is(err, fault.Conflict) {
			t.Errorf("deleting an ordered model: %v", err)
		}
	})
}

func TestCatalogueKeepsNamesApartAndChecksTags(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		spec := purchase.ModelSpec{Maker: "Other", Name: "Thing", Architecture: "amd64", PartNumber: "GW1-EU"}
		if _, err := k.SaveModel(t.Context(), k.who, "thing", spec, ""); !errors.Is(err, fault.Conflict) {
			t.Errorf("part number of another model: %v", err)
		}
		spec.PartNumber = "cam"
		if _, err := k.SaveModel(t.Context(), k.who, "thing", spec, ""); !errors.Is(err, fault.Conflict) {
			t.Errorf("part number that is another model's ID: %v", err)
		}
		spec.PartNumber = "T-1"
		m, err := k.SaveModel(t.Context(), k.who, "thing", spec, "")
		k.must(m, err)
		spec.Note = "changed"
		k.must(k.SaveModel(t.Context(), k.who, "thing", spec, httpapi.ETag(m.Revision)))
		if _, err := k.SaveModel(t.Context(), k.who, "thing", spec, httpapi.ETag(m.Revision)); !errors.Is(err, fault.Precondition) {
			t.Errorf("old tag: %v", err)
		}
		k.must(nil, k.DeleteModel(t.Context(), k.who, "thing"))
		if _, err := k.Model(t.Context(), k.who, "thing"); !errors.Is(err, fault.NotFound) {
			t.Errorf("deleted model: %v", err)
		}
		if _, err := k.SaveSupplier(t.Context(), k.who, "acme", purchase.SupplierSpec{Name: "Acme"}, `"7"`); !errors.Is(err, fault.Precondition) {
			t.Errorf("old tag of a supplier: %v", err)
		}
	})
}

func TestOrdersAreListedInPagesAndFiltered(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		for i := range 5 {
			k.order(fmt.Sprintf("PO-%d", i), line("gw-1", 1, 1))
			k.pass(time.Second)
		}
		k.book(k.first(purchase.OrderFilter{Number: "PO-2", Limit: 1}), "G1,gw-1,", "X,odd,")
		var got []string
		cursor := ""
		for {
			list, next, err := k.Orders(t.Context(), k.who, purchase.OrderFilter{Limit: 2, Cursor: cursor})
			k.must(list, err)
			for _, o := range list {
				got = append(got, o.Number)
			}
			if cursor = next; next == "" {
				break
			}
		}
		if fmt.Sprint(got) != "[PO-4 PO-3 PO-2 PO-1 PO-0]" {
			t.Errorf("listed %v", got)
		}
		if o := k.first(purchase.OrderFilter{State: purchase.Received, Limit: 9}); o.Number != "PO-2" || len(o.Lines) != 1 {
			t.Errorf("received: %+v", o)
		}
		if o := k.first(purchase.OrderFilter{Undecided: true, Limit: 9}); o.Number != "PO-2" {
			t.Errorf("undecided: %+v", o)
		}
		if list, _, _ := k.Orders(t.Context(), k.who, purchase.OrderFilter{Overdue: true, Limit: 9}); len(list) != 0 {
			t.Errorf("overdue: %+v", list)
		}
		k.pass(31 * 24 * time.Hour)
		if list, _, _ := k.Orders(t.Context(), k.who, purchase.OrderFilter{Overdue: true, Limit: 9}); len(list) != 4 {
			t.Errorf("%d overdue, want 4", len(list))
		}
		if _, _, err := k.Orders(t.Context(), k.who, purchase.OrderFilter{Cursor: "garbage", Limit: 1}); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("wrong cursor: %v", err)
		}
	})
}

func (k *desk) first(f purchase.OrderFilter) purchase.Order {
	k.t.Helper()
	list, _, err := k.Orders(k.t.Context(), k.who, f)
	k.must(list, err)
	if len(list) != 1 {
		k.t.Fatalf("%d orders for %+v", len(list), f)
	}
	return list[0]
}

func TestNoticesSayWhatIsDue(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		titles := func() string {
			list, err := k.Notices(t.Context(), k.who.Scope)
			k.must(list, err)
			s := ""
			for _, n := range list {
				s += n.Title + "; "
			}
			return s
		}
		if got := titles(); got != "" {
			t.Errorf("notices of an empty house: %s", got)
		}
		o := k.order("PO-1", line("gw-1", 2, 1))
		k.book(o, "G1,gw-1,", "X,odd,")
		if got, want := titles(), "1 delivered unit waits for a decision; Warranty of 1 device ends within 60 days; "; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		m, err := k.Model(t.Context(), k.who, "gw-1")
		k.must(m, err)
		m.SupportEnd = "2026-06-01"
		k.must(k.SaveModel(t.Context(), k.who, "gw-1", m.ModelSpec, ""))
		k.must(nil, k.db.Write(t.Context(), func(tx *sqldb.Tx) error {
			for _, st := range []device.Stage{device.Staged, device.Enrolled} {
				if _, err := k.devices.Move(t.Context(), tx, k.who.Actor, device.Move{Num: k.serial("G1").Num, To: st, Reason: "test"}); err != nil {
					return err
				}
			}
			return nil
		}))
		if got, want := titles(), "Support of Acme Gateway 1 ends on 2026-06-01"; !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
		k.pass(90 * 24 * time.Hour)
		if got := titles(); !strings.Contains(got, "1 order is overdue") || !strings.Contains(got, "ended on 2026-06-01") {
			t.Errorf("%q", got)
		}
	})
}

func TestWhoSeesAPartOfTheFleetSeesNoOrders(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.order("PO-1", line("gw-1", 1, 1))
		part := k.who
		part.Scope.Selector = device.MustSelector("site=berlin")
		if _, err := k.Order(t.Context(), part, o.ID); !errors.Is(err, fault.Forbidden) {
			t.Errorf("order: %v", err)
		}
		if _, err := k.Stock(t.Context(), part); !errors.Is(err, fault.Forbidden) {
			t.Errorf("stock: %v", err)
		}
		other := k.who
		other.Scope.Tenant = "other"
		if _, err := k.Order(t.Context(), other, o.ID); !errors.Is(err, fault.NotFound) {
			t.Errorf("order of another tenant: %v", err)
		}
		if _, err := k.Place(t.Context(), other, o.ID, ""); !errors.Is(err, fault.NotFound) {
			t.Errorf("placing an order of another tenant: %v", err)
		}
	})
}
