package sqldb_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"steward/internal/sqldb"
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

// BenchmarkStatement measures narrow statements within one transaction: what a statement costs by itself.
func BenchmarkStatement(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		for name, do := range map[string]func(tx *sqldb.Tx, i int) error{
			"exec": func(tx *sqldb.Tx, i int) error {
				_, err := tx.Exec(b.Context(), "UPDATE item SET n = $1 WHERE num = $2", i, i%1000+1)
				return err
			},
			"query": func(tx *sqldb.Tx, i int) error {
				var n int64
				return tx.QueryRowContext(b.Context(), "SELECT n FROM item WHERE num = $1", i%1000+1).Scan(&n)
			},
			"savepoint": func(tx *sqldb.Tx, _ int) error {
				if _, err := tx.Exec(b.Context(), "SAVEPOINT a"); err != nil {
					return err
				}
				_, err := tx.Exec(b.Context(), "RELEASE SAVEPOINT a")
				return err
			},
		} {
			b.Run(engine+"/"+name, func(b *testing.B) {
				db := sqldbtest.Open(b, engine, items)
				b.ReportAllocs()
				err := db.Write(b.Context(), func(tx *sqldb.Tx) error {
					for i := range 1000 {
						if err := insertIn(b.Context(), tx, fmt.Sprint(i)); err != nil {
							return err
						}
					}
					b.ResetTimer()
					for i := range b.N {
						if err := do(tx, i); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
