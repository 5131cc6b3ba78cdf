package sqldb_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"steward/internal/sqldb/sqldbtest"
)

// BenchmarkWrite measures acknowledged one-row transactions per second with so many writers at a
// time, and how many of them share a commit.
func BenchmarkWrite(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		for _, writers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/writers=%d", engine, writers), func(b *testing.B) {
				db := sqldbtest.Open(b, engine, items)
				var next atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				for range writers {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if err := insert(b.Context(), db, fmt.Sprint(i)); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				s := db.Stats()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(s.Writes)/float64(s.Commits), "rows/commit")
				b.ReportMetric(float64(s.Retries)/float64(b.N), "retries/row")
			})
		}
	}
}
