package sqldb_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestStatementOverManyRowsChangesEachOnce(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{items}, func(t *testing.T, db *sqldb.DB) {
		for _, rows := range []int{0, 1, 3, 300} {
			var names []string
			var numbers []int64
			for i := range rows {
				names, numbers = append(names, fmt.Sprintf("it's %d of %d", i, rows)), append(numbers, int64(-i))
			}
			statements := 0
			ctx := sqldb.Trace(t.Context(), func(string, []any) { statements++ })
			err := db.Write(ctx, func(tx *sqldb.Tx) error {
				n, err := tx.ExecRows(ctx, "INSERT INTO item (name, n) SELECT name, number FROM v WHERE true",
					sqldb.Column{Name: "name", Values: names}, sqldb.Column{Name: "number", Values: numbers})
				if err == nil && n != int64(rows) {
					err = fmt.Errorf("%d rows changed of %d", n, rows)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if most := 4; statements > most {
				t.Errorf("%d rows took %d statements", rows, statements)
			}
			for i, name := range names {
				var n int64
				if err := db.QueryRowContext(t.Context(), "SELECT n FROM item WHERE name = $1", name).Scan(&n); err != nil || n != numbers[i] {
					t.Fatalf("row %d has %d: %v", i, n, err)
				}
			}
		}
	})
}

func TestAmongFindsExactlyTheNumbers(t *testing.T) {
	sqldbtest.Each(t, nil, func(t *testing.T, db *sqldb.DB) {
		for _, nums := range [][]int64{nil, {7}, {3, 9, -1, 1 << 60}} {
			condition, arg := db.Dialect().Among("n", nums)
			q := sqldb.NewQuery("SELECT n FROM (SELECT 3 AS n UNION SELECT 7 UNION SELECT 9 UNION SELECT "+fmt.Sprint(int64(1<<60))+") x WHERE "+condition+" ORDER BY n", arg)
			got, err := sqldb.Collect(context.Background(), db, sqldb.Value[int64], q.SQL(), q.Args()...)
			want := slices.DeleteFunc(slices.Sorted(slices.Values(nums)), func(n int64) bool { return n < 0 })
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("among %v: %v, %v", nums, got, err)
			}
			var texts []string
			for _, n := range nums {
				texts = append(texts, fmt.Sprintf("%d'\"<é", n))
			}
			condition, arg = db.Dialect().AmongTexts("s", texts)
			q = sqldb.NewQuery(`SELECT s FROM (SELECT '3''"<é' AS s UNION SELECT '7''"<é') x WHERE `+condition, arg)
			found, err := sqldb.Collect(context.Background(), db, sqldb.Value[string], q.SQL(), q.Args()...)
			if err != nil || len(found) != min(len(want), 1) || len(found) == 1 && found[0] != texts[0] {
				t.Errorf("among %q: %q, %v", texts, found, err)
			}
		}
	})
}
