package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
)

func openTest(t testing.TB) *DB {
	t.Helper()
	db, err := Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	run(t, db, "CREATE TABLE item (num INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)")
	return db
}

func run(t testing.TB, db *DB, query string, args ...any) {
	t.Helper()
	err := db.Write(context.Background(), func(tx *Tx) error {
		_, err := tx.Exec(context.Background(), query, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// cached returns how many statements the writer's connection keeps.
func cached(t *testing.T, db *DB) (n int) {
	t.Helper()
	conn, err := db.write.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // gives it back to the pool
	if err := conn.Raw(func(c any) error {
		n = c.(*cachedConn).used.Len()
		if n != len(c.(*cachedConn).byText) {
			return fmt.Errorf("%d statements in order, %d by text", n, len(c.(*cachedConn).byText))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStatementIsCompiledOnceForAllItsUses(t *testing.T) {
	db := openTest(t)
	run(t, db, "INSERT INTO item (name) VALUES ($1)", "a")
	before := cached(t, db)
	for i := range 50 {
		run(t, db, "INSERT INTO item (name) VALUES ($1)", fmt.Sprint(i))
	}
	if after := cached(t, db); after != before {
		t.Errorf("%d statements before, %d after", before, after)
	}
}

func TestTheSameQueryMayRunInsideItself(t *testing.T) {
	db := openTest(t)
	for i := range 3 {
		run(t, db, "INSERT INTO item (name) VALUES ($1)", fmt.Sprint(i))
	}
	const query = "SELECT name FROM item WHERE num > $1 ORDER BY num"
	var seen []string
	err := db.Write(t.Context(), func(tx *Tx) error {
		outer, err := tx.QueryContext(t.Context(), query, 0)
		if err != nil {
			return err
		}
		defer outer.Close() //nolint:errcheck // outer.Err tells
		for outer.Next() {
			var name, after string
			if err := outer.Scan(&name); err != nil {
				return err
			}
			err := tx.QueryRowContext(t.Context(), query, 1).Scan(&after)
			if err != nil {
				return err
			}
			seen = append(seen, name+after)
		}
		return outer.Err()
	})
	if err != nil || fmt.Sprint(seen) != "[01 11 21]" {
		t.Errorf("%v, %v", seen, err)
	}
}

func TestStatementsBecomeNewWithTheSchema(t *testing.T) {
	db := openTest(t)
	run(t, db, "INSERT INTO item (name) VALUES ('a')")
	columns := func() int {
		rows, err := db.QueryContext(t.Context(), "SELECT * FROM item")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells
		names, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	if n := columns(); n != 2 {
		t.Fatalf("%d columns", n)
	}
	run(t, db, "ALTER TABLE item ADD COLUMN note TEXT NOT NULL DEFAULT ''")
	if n := columns(); n != 3 {
		t.Errorf("%d columns after one was added", n)
	}
}

func TestRefusedStatementLeavesTheNextUseAlone(t *testing.T) {
	db := openTest(t)
	insert := func(name any) error {
		return db.Write(t.Context(), func(tx *Tx) error {
			_, err := tx.Exec(t.Context(), "INSERT INTO item (name) VALUES ($1)", name)
			return err
		})
	}
	if err := insert("a"); err != nil {
		t.Fatal(err)
	}
	if err := insert("a"); !IsUnique(err) {
		t.Errorf("a second a: %v", err)
	}
	if err := insert(nil); err == nil {
		t.Error("NULL was taken, or the argument of the use before")
	}
	if err := insert("b"); err != nil {
		t.Errorf("after refusals: %v", err)
	}
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM item").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestOnlySoManyStatementsAreKept(t *testing.T) {
	db := openTest(t)
	for i := range maxStatements + 50 {
		run(t, db, fmt.Sprintf("UPDATE item SET name = 'n%d' WHERE num = $1", i), 1)
	}
	if n := cached(t, db); n != maxStatements {
		t.Errorf("%d are kept, want %d", n, maxStatements)
	}
	run(t, db, "INSERT INTO item (name) VALUES ('still works')")
}

func TestRowsThatAreNotReadToTheirEndAreGivenBack(t *testing.T) {
	db := openTest(t)
	for i := range 10 {
		run(t, db, "INSERT INTO item (name) VALUES ($1)", fmt.Sprint(i))
	}
	for range 3 {
		err := db.Write(t.Context(), func(tx *Tx) error {
			rows, err := tx.QueryContext(t.Context(), "SELECT name FROM item ORDER BY num")
			if err != nil {
				return err
			}
			if !rows.Next() {
				return sql.ErrNoRows
			}
			var first string
			if err := rows.Scan(&first); err != nil || first != "0" {
				t.Errorf("begins with %q, %v", first, err)
			}
			return rows.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkStatements runs many statements in one transaction, as goods-in does.
func BenchmarkStatements(b *testing.B) {
	db := openTest(b)
	err := db.Write(b.Context(), func(tx *Tx) error {
		for i := range b.N {
			if _, err := tx.Exec(b.Context(), `INSERT INTO item (name) VALUES ($1)
				ON CONFLICT (name) DO UPDATE SET name = excluded.name`, fmt.Sprint(i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
