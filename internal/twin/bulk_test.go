package twin

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"testing"

	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// countingTx counts the statements that change rows.
type countingTx struct {
	*sqldb.Tx
	statements int
}

func (c *countingTx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	c.statements++
	return c.Tx.Exec(ctx, query, args...)
}

const fleetSQL = `WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?) SELECT n FROM c`

func TestBulkChangeTakesTheSameStatementsForOneAndForManyDevices(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration(), Migration()}, func(t *testing.T, db *sqldb.DB) {
		want := map[sqldb.Dialect]int{sqldb.SQLite: 2, sqldb.Postgres: 1}[db.Dialect()]
		for i, devices := range []int{1, 2000} {
			err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
				b := bulk{nums: fleetSQL, args: []any{devices}, section: "update", document: int64(i + 1), now: 1}
				for _, do := range []struct {
					name             string
					sqlite, postgres func() []*sqldb.Builder
				}{{"set", b.setSQLite, b.setPostgres}, {"clear", b.clearSQLite, b.clearPostgres}} {
					c := &countingTx{Tx: tx}
					n, err := b.run(t.Context(), c, do.sqlite, do.postgres)
					if err != nil {
						return err
					}
					if c.statements != want || n != int64(devices) {
						return fmt.Errorf("%s of %d devices: %d statements for %d rows, want %d", do.name, devices, c.statements, n, want)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// BenchmarkSetDesiredWhere changes one section of 10,000 devices, each time to another document.
func BenchmarkSetDesiredWhere(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			db := sqldbtest.Open(b, engine, ledger.Migration(), Migration())
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				b.Fatal(err)
			}
			s := New(Config{DB: db, Key: key})
			for i := 0; b.Loop(); i++ {
				err := db.Write(b.Context(), func(tx *sqldb.Tx) error {
					n, err := s.SetDesiredWhere(b.Context(), tx, fleetSQL, []any{10_000}, "update", i)
					if err == nil && n != 10_000 {
						err = fmt.Errorf("%d devices changed", n)
					}
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
