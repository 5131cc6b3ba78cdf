package registry

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// benchDevices is how many devices the benchmarks of lists have; STEWARD_BENCH_DEVICES changes it.
func benchDevices(b *testing.B) int {
	b.Helper()
	s := os.Getenv("STEWARD_BENCH_DEVICES")
	if s == "" {
		return 1_000_000
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// measured runs one read again and again and reports how many queries it takes and its 99th percentile,
// beside what go test reports.
func measured(b *testing.B, read func(ctx context.Context) error) {
	b.Helper()
	var queries atomic.Int64
	counting := sqldb.Trace(b.Context(), func(string, []any) { queries.Add(1) })
	if err := read(counting); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := read(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(queries.Load()), "queries/op")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkMillion reads the first page, and one in the middle, of each list, and counts and roll-ups, of a
// fleet of a million devices on both engines. Seeding takes one to two minutes on each.
func BenchmarkMillion(b *testing.B) {
	n := benchDevices(b)
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			db := sqldbtest.Open(b, engine, Migration())
			fill(b, db, n)
			dk := filledDesk(db)
			for _, tt := range lists {
				middle := position{Num: int64(n / 2), Term: "s" + strconv.Itoa(100000000+n/2)}
				for name, cursor := range map[string]string{"first": "", "middle": httpapi.EncodeCursor(middle)} {
					b.Run(strings.ReplaceAll(tt.name, " ", "-")+"/"+name, func(b *testing.B) {
						measured(b, func(ctx context.Context) error {
							_, _, err := dk.List(ctx, device.Scope{Tenant: "default"}, tt.filter, httpapi.PageIn{Limit: 50, Cursor: cursor})
							return err
						})
					})
				}
			}
			for _, sel := range []string{"", "site=site-7", "site!=site-7", "!rare", "site=site-7,batch=new"} {
				b.Run("count-by-stage/"+sel, func(b *testing.B) {
					measured(b, func(ctx context.Context) error {
						_, err := dk.Counts(ctx, db, device.Scope{Tenant: "default", Selector: device.MustSelector(sel)})
						return err
					})
				})
			}
			b.Run("label-keys", func(b *testing.B) {
				measured(b, func(ctx context.Context) error { _, err := dk.LabelKeys(ctx, db, "default"); return err })
			})
			b.Run("label-values", func(b *testing.B) {
				measured(b, func(ctx context.Context) error {
					_, err := dk.LabelValues(ctx, db, "default", "site", nil, 50)
					return err
				})
			})
			b.Run("serial-number", func(b *testing.B) {
				measured(b, func(ctx context.Context) error {
					_, err := dk.BySerial(ctx, db, "default", fmt.Sprint("S", 100000000+n/2))
					return err
				})
			})
		})
	}
}
