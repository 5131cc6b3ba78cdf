package update_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/update"
	"steward/internal/wire"
)

// counted counts the statements that the room's change of the desired state needs.
type counted struct {
	*twin.Service
	calls int
}

func (c *counted) SetDesiredWhere(ctx context.Context, tx *sqldb.Tx, nums string, args []any, section wire.Section, doc any) (int64, error) {
	c.calls++
	return c.Service.SetDesiredWhere(ctx, tx, nums, args, section, doc)
}

// BenchmarkAssignToFleet assigns a release to a whole fleet that has another already. The metric
// "documents" is how often the twin was told a new document: once per group of devices that wanted the
// same, whatever their number.
func BenchmarkAssignToFleet(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		for _, n := range []int{1_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) { benchAssign(b, sqldbtest.Open(b, engine, tables...), n) })
		}
	}
}

func benchAssign(b *testing.B, db *sqldb.DB, n int) {
	ctx := context.Background()
	h := newHouse(b, db)
	told := &counted{Service: h.twin}
	h.Service = update.New(update.Config{DB: db, Ledger: h.ledger, Twin: told, Devices: h.reg, Releases: h.releases, Now: h.now})
	for made := 0; made < n; made += 1000 {
		h.write(func(tx *sqldb.Tx) error {
			for i := range 1000 {
				d, err := h.reg.Create(ctx, tx, operator, device.New{
					Tenant: tenant, Serial: fmt.Sprintf("S-%d", made+i), Stage: device.Staged, Reason: "test",
					Labels: map[string]string{"site": fmt.Sprintf("s%d", i%10)},
				})
				if err == nil {
					_, err = h.reg.Move(ctx, tx, operator, device.Move{Num: d.Num, To: device.Enrolled, Reason: "test"})
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	h.assign("tools", "1", "site in (s0,s1,s2)") // so that there are two groups
	told.calls = 0
	b.ResetTimer()
	for i := range b.N {
		h.assign("app", fmt.Sprintf("%d", i), "")
	}
	b.StopTimer()
	b.ReportMetric(float64(told.calls)/float64(b.N), "documents/op")
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "devices/s")
}

// BenchmarkReport is what one device's step costs the server.
func BenchmarkReport(b *testing.B) {
	db := sqldbtest.SQLite(b, ledger.Migration(), registry.Migration(), twin.Migration(), update.Migration())
	h := newHouse(b, db)
	devices := h.devices(200, nil)
	a := h.assign("app", "1", "")
	states := []wire.UpdateState{wire.UpdateDownloading, wire.UpdateDownloaded, wire.UpdateInstalled, wire.UpdateHealthy, wire.UpdateCommitted}
	b.ResetTimer()
	for i := range b.N {
		if i > 0 && i%(len(devices)*len(states)) == 0 {
			b.StopTimer()
			a = h.assign("app", fmt.Sprint(1+i), "")
			b.StartTimer()
		}
		p := progress(a, 1, states[i/len(devices)%len(states)], "")
		p.Changed = time.Unix(int64(i), 0)
		h.report(p, devices[i%len(devices)])
	}
}
