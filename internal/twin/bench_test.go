package twin_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

// The benchmarks' fleet: each device has reported five sections, all with documents that the fleet shares.
const benchDevices = 10_000

var benchSections = []wire.Section{"agent", "inventory", "packages", "services", "update"}

// crew is the fleet of a benchmark. Each device is used by one goroutine at a time, as agents do.
type crew struct {
	*house
	agents []*agent
	docs   []map[wire.Section]string // what the device reports
}

func newCrew(b *testing.B, engine string, devices int) *crew {
	b.Helper()
	db := sqldbtest.Open(b, engine, tables...)
	cfg := twin.Config{}
	cfg.Reactions = map[wire.Section]twin.Reaction{
		"update":    func(context.Context, *sqldb.Tx, device.Device, []byte) error { return nil },
		"inventory": func(context.Context, *sqldb.Tx, device.Device, []byte) error { return nil },
	}
	var contacts atomic.Int64
	cfg.Contact = func(context.Context, *sqldb.Tx, device.Device, wire.Report) error { return nil }
	cfg.ContactUnchanged = func(device.Device, wire.Report) { contacts.Add(1) }
	c := &crew{house: newHouse(b, db, cfg)}
	for num := range int64(devices) {
		a := &agent{boot: fmt.Sprintf("boot-%d-abcdefghijkl", num), instance: fmt.Sprintf("instance-%d-abcdefgh", num)}
		docs := map[wire.Section]string{}
		for _, section := range benchSections {
			docs[section] = body(section, 0)
		}
		c.agents, c.docs = append(c.agents, a), append(c.docs, docs)
	}
	for _, section := range benchSections { // every document is known
		for version := range 4 {
			c.report(unit(1), c.agents[0].next(false, map[wire.Section]string{section: body(section, version)}))
			if err := c.s.Upload(b.Context(), unit(1), wire.HashOf([]byte(body(section, version))), []byte(body(section, version))); err != nil {
				b.Fatal(err)
			}
		}
	}
	c.write(func(tx *sqldb.Tx) error {
		_, err := c.s.SetDesiredWhere(b.Context(), tx, fleetUpTo, []any{devices}, "monitoring", "all")
		return err
	})
	c.all(b, 256, devices, func(num int64, _ int) wire.Report { return c.agents[num-1].next(true, c.docs[num-1]) })
	return c
}

func body(section wire.Section, version int) string {
	return fmt.Sprintf(`{"section":%q,"version":%d}`, section, version)
}

// all sends n reports by so many callers, to each device in turn.
func (c *crew) all(b *testing.B, callers, n int, next func(num int64, round int) wire.Report) {
	b.Helper()
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for i := caller; i < n; i += callers {
				num := int64(i%benchDevices) + 1
				if _, err := c.s.Report(b.Context(), unit(num), next(num, i/benchDevices)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// cpu is the processor time of this process: with PostgreSQL, what the server costs is not in it.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (c *crew) measure(b *testing.B, callers int, next func(num int64, round int) wire.Report) {
	b.Helper()
	before, used := c.db.Stats(), cpu()
	b.ResetTimer()
	c.all(b, callers, b.N, next)
	b.StopTimer()
	used = cpu() - used
	s := c.db.Stats()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reports/s")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/float64(max(1, s.Commits-before.Commits)), "reports/commit")
}

// BenchmarkReports measures acknowledged reports: changed ones with a document that the server knows, those
// that only say which epoch was accepted, and those that say nothing new.
func BenchmarkReports(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		for _, callers := range []int{64, 256} {
			b.Run(fmt.Sprintf("%s/changed/callers=%d", engine, callers), func(b *testing.B) {
				c := newCrew(b, engine, benchDevices)
				c.measure(b, callers, func(num int64, round int) wire.Report {
					return c.agents[num-1].next(false, map[wire.Section]string{"services": body("services", round%2+1)})
				})
			})
			b.Run(fmt.Sprintf("%s/accepted/callers=%d", engine, callers), func(b *testing.B) {
				c := newCrew(b, engine, benchDevices)
				c.measure(b, callers, func(num int64, round int) wire.Report {
					r := c.agents[num-1].next(false, nil)
					r.Epoch = int64(1 - round%2)
					return r
				})
			})
			b.Run(fmt.Sprintf("%s/unchanged/callers=%d", engine, callers), func(b *testing.B) {
				c := newCrew(b, engine, benchDevices)
				c.measure(b, callers, func(num int64, _ int) wire.Report { return c.agents[num-1].next(false, c.docs[num-1]) })
			})
		}
	}
}

// BenchmarkEnvelopes reads and signs the desired states of 500 devices at a time.
func BenchmarkEnvelopes(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			c := newCrew(b, engine, benchDevices)
			ds := make([]device.Device, 500)
			used := cpu()
			b.ResetTimer()
			for i := range b.N {
				for k := range ds {
					ds[k] = unit(int64((i*len(ds)+k)%benchDevices) + 1)
				}
				if _, err := c.s.Envelopes(b.Context(), ds); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N*len(ds)), "cpu-µs/device")
		})
	}
}

// BenchmarkNewDevice is what a device does after it has enrolled: a full report of five sections, of which
// the fleet shares three, the upload of the other two, and the report again.
func BenchmarkNewDevice(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			c := newCrew(b, engine, 1)
			var retries int64
			before, used := c.db.Stats(), cpu()
			b.ResetTimer()
			var wg sync.WaitGroup
			var next atomic.Int64
			for range 64 {
				wg.Go(func() {
					for num := next.Add(1) + 1; num <= int64(b.N)+1; num = next.Add(1) + 1 {
						if err := c.enroll(b.Context(), num); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			used = cpu() - used
			retries = c.db.Stats().Retries - before.Retries
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "devices/s")
			b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(retries)/float64(b.N), "retries/op")
		})
	}
}

func (c *crew) enroll(ctx context.Context, num int64) error {
	a := &agent{boot: fmt.Sprint("boot-", num), instance: "i"}
	docs := map[wire.Section]string{}
	for _, section := range benchSections {
		docs[section] = body(section, 0)
	}
	docs["inventory"], docs["update"] = fmt.Sprintf(`{"inventory":%d}`, num), fmt.Sprintf(`{"update":%d}`, num)
	for {
		answer, err := c.s.Report(ctx, unit(num), a.next(true, docs))
		if err != nil || len(answer.Missing) == 0 {
			return err
		}
		for _, section := range []wire.Section{"inventory", "update"} {
			if err := c.s.Upload(ctx, unit(num), wire.HashOf([]byte(docs[section])), []byte(docs[section])); err != nil {
				return err
			}
		}
	}
}
