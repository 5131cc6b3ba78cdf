package purchase_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/sqldb"
)

// many is how many units the tests of long work have: more than one transaction takes.
const many = 700

// running runs the room's long work until the test ends.
func (k *desk) running() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	k.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			k.t.Error(err)
		}
	})
}

// until waits for the order to be as wanted.
func (k *desk) until(id string, want func(purchase.Order) bool) purchase.Order {
	k.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); ; <-tick.C {
		o, err := k.Order(context.Background(), k.who, id)
		k.must(o, err)
		if want(o) {
			return o
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("order is %s with %+v", o.State, o.Progress)
		}
	}
}

func idle(o purchase.Order) bool { return o.Progress == nil }

// draft keeps an order of many units.
func (k *desk) draft(number string) purchase.Order {
	k.t.Helper()
	o, err := k.CreateOrder(k.t.Context(), k.who, purchase.OrderSpec{Number: number, Supplier: "acme", Currency: "EUR",
		Lines: []purchase.LineSpec{line("gw-1", many-100, 100), line("cam", 100, 50)}})
	k.must(o, err)
	return o
}

// deliver is a delivery file for the whole order.
func (k *desk) deliver(prefix string) purchase.File {
	rows := make([]string, many)
	for i := range rows {
		model := "gw-1"
		if i >= many-100 {
			model = "cam"
		}
		rows[i] = fmt.Sprintf("%s%04d,%s,", prefix, i, model)
	}
	return k.file(rows...)
}

func TestLongWorkIsResumedAfterACrashAndShowsItsProgress(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.draft("PO-1")
		k.crashing(func(ctx context.Context) { _, _ = k.Place(ctx, k.who, o.ID, "") })
		o, err := k.Order(t.Context(), k.who, o.ID)
		if err != nil || o.State != purchase.BeingPlaced || o.Progress == nil || o.Progress.Total != many || o.Progress.Done == many || o.Progress.Task != purchase.Placing {
			t.Fatalf("order is %s with %+v, %v", o.State, o.Progress, err)
		}
		k.refusesEverything(o)

		k.pass(time.Minute) // another node may take it over
		k.running()
		o = k.until(o.ID, idle)
		if o.State != purchase.Placed || o.Open() != many {
			t.Fatalf("order is %s, %d open", o.State, o.Open())
		}
		k.wantStages(fmt.Sprintf("ordered:%d", many))

		var b purchase.Booked
		k.crashing(func(ctx context.Context) { b, _ = k.BookDelivery(ctx, k.who, o.ID, "", k.deliver("S")) })
		k.pass(time.Minute)
		o = k.until(o.ID, idle)
		if o.State != purchase.Received || o.Delivered() != many {
			t.Fatalf("order is %s, %d delivered", o.State, o.Delivered())
		}
		list, err := k.Deliveries(t.Context(), k.who, o.ID)
		if err != nil || len(list) != 1 || list[0].Booked != many || list[0].Waiting != 0 || list[0].Discrepancies != 0 {
			t.Errorf("deliveries %+v, %v (asked for %s)", list, err, b.Delivery.ID)
		}
		stock, err := k.Stock(t.Context(), k.who)
		if err != nil || len(stock) != 2 || stock[0].Units+stock[1].Units != many || stock[0].Value+stock[1].Value != 100*50+(many-100)*100 {
			t.Errorf("stock %+v, %v", stock, err)
		}
	})
}

// crashing runs fn under a context that ends in the middle of the second step of long work, as the process
// would by a crash: that step is lost.
func (k *desk) crashing(fn func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	steps := 0
	k.step(func() {
		if steps++; steps == 2 {
			cancel()
		}
	})
	fn(ctx)
	k.step(nil)
}

// stepped is the registry that tells of each bulk change, in its transaction.
type stepped struct {
	*registry.Service
	k *desk
}

func (s stepped) CreateMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.New) ([]device.Device, error) {
	s.k.stepping()
	return s.Service.CreateMany(ctx, tx, actor, list)
}

func (s stepped) ReceiveMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.Arrival) ([]device.Device, error) {
	s.k.stepping()
	return s.Service.ReceiveMany(ctx, tx, actor, list)
}

func (s stepped) MoveMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, moves []device.Move) ([]device.Device, error) {
	s.k.stepping()
	return s.Service.MoveMany(ctx, tx, actor, moves)
}

// step sets what is called at each bulk change.
func (k *desk) step(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onStep = fn
}

func (k *desk) stepping() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.onStep != nil {
		k.onStep()
	}
}

// refusesEverything tells that nobody gets in the way of work that is under way.
func (k *desk) refusesEverything(o purchase.Order) {
	k.t.Helper()
	ctx := k.t.Context()
	_, place := k.Place(ctx, k.who, o.ID, "")
	_, cancel := k.Cancel(ctx, k.who, o.ID, 0, "no more", "")
	_, preview := k.PreviewCancel(ctx, k.who, o.ID, 0)
	_, book := k.BookDelivery(ctx, k.who, o.ID, "", k.file("X1,gw-1,"))
	_, check := k.CheckDelivery(ctx, k.who, o.ID, k.file("X1,gw-1,"))
	for what, err := range map[string]error{"place": place, "cancel": cancel, "preview": preview, "book": book, "check": check} {
		if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), fmt.Sprintf("of %d units", many)) {
			k.t.Errorf("%s while it is placed: %v", what, err)
		}
	}
}

func TestOthersWriteBetweenTheStepsOfLongWork(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o := k.draft("PO-1")
		var wg sync.WaitGroup
		stop, between, id := make(chan struct{}), 0, o.ID
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := k.SaveSupplier(context.Background(), k.who, "other", purchase.SupplierSpec{Name: fmt.Sprint("Other ", between)}, ""); err != nil {
					t.Error(err)
					return
				}
				if now, err := k.Order(context.Background(), k.who, id); err == nil && now.State == purchase.BeingPlaced && now.Progress.Done > 0 {
					between++
				}
			}
		})
		o, err := k.Place(t.Context(), k.who, o.ID, "")
		close(stop)
		wg.Wait()
		if err != nil || o.State != purchase.Placed {
			t.Fatalf("order is %s, %v", o.State, err)
		}
		if between == 0 {
			t.Error("nobody else wrote while the order was placed")
		}
	})
}

func TestSerialNumberThatIsTakenWhileADeliveryIsBookedBecomesADiscrepancy(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o, err := k.Place(t.Context(), k.who, k.draft("PO-1").ID, "")
		k.must(o, err)
		f := k.deliver("S")
		last := f.Rows[many-1].Serial
		k.crashing(func(ctx context.Context) { _, _ = k.BookDelivery(ctx, k.who, o.ID, "", f) })
		k.must(nil, k.db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := k.devices.Create(t.Context(), tx, k.who.Actor, device.New{Tenant: device.DefaultTenant, Serial: last, Stage: device.Received, Reason: "found"})
			return err
		}))
		k.pass(time.Minute)
		k.running()
		o = k.until(o.ID, idle)
		list, _, err := k.Discrepancies(t.Context(), k.who, purchase.DiscrepancyFilter{Order: o.ID, Limit: 10})
		if err != nil || len(list) != 1 || list[0].Serial != last || list[0].Kind != purchase.KnownSerial {
			t.Fatalf("discrepancies %+v, %v", list, err)
		}
		if o.State != purchase.PartlyReceived || o.Open() != 1 {
			t.Errorf("order is %s, %d open", o.State, o.Open())
		}
	})
}

func TestCancellingManyUnitsIsLongWorkToo(t *testing.T) {
	each(t, func(t *testing.T, k *desk) {
		o, err := k.Place(t.Context(), k.who, k.draft("PO-1").ID, "")
		k.must(o, err)
		k.crashing(func(ctx context.Context) { _, _ = k.Cancel(ctx, k.who, o.ID, 1, "sold out", "") })
		k.pass(time.Minute)
		k.running()
		o = k.until(o.ID, idle)
		wantLine(t, o, 1, 0, 0, many-100, 0)
		wantLine(t, o, 2, 0, 0, 0, 100)
		o, err = k.Cancel(t.Context(), k.who, o.ID, 0, "the rest too", "")
		if err != nil || o.State != purchase.Cancelled || o.Ended.IsZero() {
			t.Fatalf("order is %s, %v", o.State, err)
		}
		k.wantStages(fmt.Sprintf("retired:%d", many))
		var told []string
		for _, e := range ledgertest.Events(t, k.ledger, ledger.Filter{Tenant: device.DefaultTenant, Subject: o.ID}) {
			told = append(told, e.Kind)
		}
		kinds := strings.Join(told, " ")
		want := "purchase.order_created purchase.work_begun purchase.order_placed purchase.work_begun purchase.line_cancelled purchase.order_cancelled"
		if kinds != want {
			t.Errorf("events %s, want %s", kinds, want)
		}
	})
}
