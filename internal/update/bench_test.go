package update_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
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

// BenchmarkAssignToFleet assigns a release to a whole fleet that has another already, while somebody else
// writes all the time. The metrics: after what time the caller has its answer, how many devices a second
// the change reaches, how often the twin was told a document (once per step and group of devices that
// wanted the same), and how long the other writer waits for a transaction of one row.
func BenchmarkAssignToFleet(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		for _, n := range []int{1_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) { benchAssign(b, sqldbtest.Open(b, engine, tables...), n) })
		}
	}
}

func benchAssign(b *testing.B, db *sqldb.DB, n int) {
	h := newHouse(b, db)
	told := &counted{Service: h.twin}
	h.Service = update.New(update.Config{DB: db, Ledger: h.ledger, Twin: told, Devices: h.reg, Releases: h.releases, Now: h.now})
	for made := 0; made < n; made += 1000 {
		h.made(made, 1000)
	}
	h.running()
	h.until(h.assign("tools", "1", "site in (s0,s1,s2)"), fmt.Sprintf("pending %d", n*3/10)) // so that there are two groups
	told.calls = 0
	var answered time.Duration
	waits := h.meanwhile(func() {
		b.ResetTimer()
		for i := range b.N {
			began := time.Now()
			a := h.assign("app", fmt.Sprintf("%d", i), "")
			answered += time.Since(began)
			h.until(a, fmt.Sprintf("pending %d", n))
		}
		b.StopTimer()
	})
	b.ReportMetric(float64(answered.Milliseconds())/float64(b.N), "answer-ms")
	b.ReportMetric(float64(told.calls)/float64(b.N), "documents/op")
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "devices/s")
	b.ReportMetric(float64(waits[len(waits)*99/100].Milliseconds()), "other-p99-ms")
	b.ReportMetric(float64(waits[len(waits)-1].Milliseconds()), "other-max-ms")
}

// made makes n devices in service behind the first ones, at ten sites.
func (h *house) made(first, n int) {
	h.write(func(tx *sqldb.Tx) error {
		ctx := context.Background()
		list, moves := make([]device.New, n), make([]device.Move, n)
		for i := range list {
			list[i] = device.New{Tenant: tenant, Serial: fmt.Sprintf("S-%d", first+i), Stage: device.Staged, Reason: "test",
				Labels: map[string]string{"site": fmt.Sprintf("s%d", i%10)}}
		}
		devices, err := h.reg.CreateMany(ctx, tx, operator, list)
		for i, d := range devices {
			moves[i] = device.Move{Num: d.Num, To: device.Enrolled, Reason: "test"}
		}
		if err == nil {
			_, err = h.reg.MoveMany(ctx, tx, operator, moves)
		}
		return err
	})
}

// meanwhile writes one row again and again while fn runs and returns how long each took, in order.
func (h *house) meanwhile(fn func()) []time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	var waits []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			err := h.db.Write(context.Background(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec(context.Background(), "UPDATE ledger_cursor SET at = at WHERE name = 'nobody'")
				return err
			})
			if err != nil {
				h.Error(err)
				return
			}
			waits = append(waits, time.Since(began))
		}
	})
	fn()
	cancel()
	wg.Wait()
	slices.Sort(waits)
	return waits
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
