package purchase_test

import (
	"context"
	"fmt"
	"testing"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/sqldb/sqldbtest"
)

func TestReadsDoNotGrowWithTheUnitsOfAnOrder(t *testing.T) {
	work := map[int64]map[string]sqldbtest.Work{}
	const few, lots = 400, 4000
	for _, units := range []int64{few, lots} {
		k := newDesk(t, sqldbtest.SQLite(t, ledger.Migration(), registry.Migration(), purchase.Migration()))
		o := k.order("PO-1", line("gw-1", units, 100))
		rows := make([]string, units/2+1)
		for i := range rows {
			rows[i] = fmt.Sprintf("S%05d,gw-1,", i)
		}
		rows[0] = "X,toaster,"
		k.book(o, rows...)
		work[units] = map[string]sqldbtest.Work{}
		for name, read := range map[string]func(ctx context.Context) error{
			"stock":      func(ctx context.Context) error { _, err := k.Stock(ctx, k.who); return err },
			"warranties": func(ctx context.Context) error { _, err := k.EndingWarranties(ctx, k.who); return err },
			"notices":    func(ctx context.Context) error { _, err := k.Notices(ctx, k.who.Scope); return err },
			"orders": func(ctx context.Context) error {
				_, _, err := k.Orders(ctx, k.who, purchase.OrderFilter{Undecided: true, Limit: 50})
				return err
			},
			"discrepancies": func(ctx context.Context) error {
				_, _, err := k.Discrepancies(ctx, k.who, purchase.DiscrepancyFilter{Undecided: true, Limit: 50})
				return err
			},
			"bought": func(ctx context.Context) error {
				_, err := k.Bought(ctx, k.db, device.DefaultTenant, "S00001")
				return err
			},
			"provenance": func(ctx context.Context) error {
				_, _, err := k.Provenance(ctx, k.db, k.serial("S00001").Num)
				return err
			},
		} {
			work[units][name] = sqldbtest.Count(t, k.db, read)
		}
	}
	for name, small := range work[few] {
		big := work[lots][name]
		t.Logf("%-15s %2d queries, %4d pages; ten times the units: %2d queries, %4d pages", name, small.Queries, small.Pages, big.Queries, big.Pages)
		if big.Queries > small.Queries || big.Pages > small.Pages+20 {
			t.Errorf("%s grows with the units: %+v, then %+v", name, small, big)
		}
	}
}
