package purchase_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/ledger"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/sqldb/sqldbtest"
)

// BenchmarkOrder places an order of 100,000 units and books its delivery from CSV while somebody else
// writes all the time. The metrics are units a second and how long the other writer waits for a
// transaction of one row: that is what others feel of it.
func BenchmarkOrder(b *testing.B) {
	const units = 100_000
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			k := newDesk(b, sqldbtest.Open(b, engine, ledger.Migration(), registry.Migration(), purchase.Migration()))
			sequencing := sideBySide(func(ctx context.Context) { _ = k.ledger.Run(ctx) })
			defer sequencing()
			var csv strings.Builder
			csv.WriteString("serial,model\n")
			for i := range units {
				fmt.Fprintf(&csv, "SN-%08d,gw-1\n", i)
			}
			o, err := k.CreateOrder(b.Context(), k.who, purchase.OrderSpec{Number: "PO", Supplier: "acme", Currency: "EUR", Lines: []purchase.LineSpec{line("gw-1", units, 100)}})
			k.must(o, err)
			b.Run("place", func(b *testing.B) {
				k.felt(b, units, func() { k.must(k.Place(b.Context(), k.who, o.ID, "")) })
			})
			b.Run("book", func(b *testing.B) {
				f, err := purchase.ReadFile(strings.NewReader(csv.String()))
				k.must(f, err)
				k.felt(b, units, func() { k.must(k.BookDelivery(b.Context(), k.who, o.ID, "", f)) })
			})
			b.Run("stock", func(b *testing.B) {
				for b.Loop() {
					if rows, err := k.Stock(b.Context(), k.who); err != nil || len(rows) != 1 || rows[0].Units != units {
						b.Fatal(rows, err)
					}
				}
			})
			k.wantStockKept()
		})
	}
}

// sideBySide runs fn until the returned function is called.
func sideBySide(fn func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { fn(ctx) })
	return func() { cancel(); wg.Wait() }
}

// felt runs the work once, whatever b.N is: it can't be repeated.
func (k *desk) felt(b *testing.B, units int, work func()) {
	b.Helper()
	if b.N > 1 {
		return
	}
	var waits []time.Duration
	n := 0
	stop := sideBySide(func(ctx context.Context) {
		for ctx.Err() == nil {
			began := time.Now()
			n++
			_, err := k.SaveSupplier(context.Background(), k.who, "other", purchase.SupplierSpec{Name: fmt.Sprint("Other ", n)}, "")
			if err != nil {
				b.Error(err)
				return
			}
			waits = append(waits, time.Since(began))
		}
	})
	began := time.Now()
	work()
	took := time.Since(began)
	stop()
	slices.Sort(waits)
	b.ReportMetric(float64(units)/took.Seconds(), "units/s")
	b.ReportMetric(float64(waits[len(waits)/2].Milliseconds()), "other-p50-ms")
	b.ReportMetric(float64(waits[len(waits)*99/100].Milliseconds()), "other-p99-ms")
	b.ReportMetric(float64(waits[len(waits)-1].Milliseconds()), "other-max-ms")
}
