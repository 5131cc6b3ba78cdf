package sqldb_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestWriteIsSeenAfterCommitAndNotBefore(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			if err := insertIn(t.Context(), tx, "a"); err != nil {
				return err
			}
			if n := count(t, tx); n != 1 {
				t.Errorf("inside: %d rows", n)
			}
			if n := count(t, db); n != 0 {
				t.Errorf("outside, before the commit: %d rows", n)
			}
			return nil
		})
		if err != nil || count(t, db) != 1 {
			t.Errorf("error %v, %d rows", err, count(t, db))
		}
	})
}

func TestFailedFunctionLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		mine := errors.New("mine")
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			if err := insertIn(t.Context(), tx, "a"); err != nil {
				return err
			}
			return fmt.Errorf("wrapped: %w", mine)
		})
		if !errors.Is(err, mine) || count(t, db) != 0 {
			t.Errorf("error %v, %d rows", err, count(t, db))
		}
	})
}

func TestPanicBecomesAnErrorAndLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			if err := insertIn(t.Context(), tx, "a"); err != nil {
				return err
			}
			panic("broken")
		})
		if err == nil || !strings.Contains(err.Error(), "broken") || count(t, db) != 0 {
			t.Errorf("error %v, %d rows", err, count(t, db))
		}
		if err := insert(t.Context(), db, "b"); err != nil {
			t.Errorf("the next write: %v", err)
		}
	})
}

func TestConcurrentWritersAllSucceed(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		const writers, rows = 32, 20
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range rows {
					if err := insert(t.Context(), db, fmt.Sprintf("%d-%d", w, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := count(t, db); n != writers*rows {
			t.Errorf("%d rows, want %d", n, writers*rows)
		}
		if s := db.Stats(); s.Writes != writers*rows || (db.Dialect() == sqldb.SQLite && s.Commits >= s.Writes/2) {
			t.Errorf("%+v: want shared commits", s)
		}
	})
}

func TestNoUpdateIsLost(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		if err := insert(t.Context(), db, "counter"); err != nil {
			t.Fatal(err)
		}
		const writers, rounds = 8, 20
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range rounds {
					err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
						var n int
						if err := tx.QueryRowContext(t.Context(), "SELECT n FROM item WHERE name = $1", "counter").Scan(&n); err != nil {
							return err
						}
						_, err := tx.Exec(t.Context(), "UPDATE item SET n = $1 WHERE name = $2", n+1, "counter")
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM item").Scan(&n); err != nil || n != writers*rounds {
			t.Errorf("counted to %d, want %d (error %v)", n, writers*rounds, err)
		}
	})
}

func TestRuleOverManyRowsHoldsUnderConcurrency(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		const most = 3
		full := errors.New("full")
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
					var n int
					if err := tx.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM item").Scan(&n); err != nil {
						return err
					}
					if n >= most {
						return full
					}
					return insertIn(t.Context(), tx, fmt.Sprint(w))
				})
				if err != nil && !errors.Is(err, full) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := count(t, db); n != most {
			t.Errorf("%d rows, want %d", n, most)
		}
	})
}

func TestAfterCommitRunsInOrderAndOnlyAfterSuccess(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		var calls []string
		note := func(s string) func() {
			return func() {
				if !has(t, db, "a") {
					t.Error("called before the commit was visible")
				}
				calls = append(calls, s)
			}
		}
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			tx.AfterCommit(note("first"))
			tx.AfterCommit(note("second"))
			return insertIn(t.Context(), tx, "a")
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Write(t.Context(), func(tx *sqldb.Tx) error {
			tx.AfterCommit(note("of a failure"))
			return insertIn(t.Context(), tx, "a")
		})
		if !sqldb.IsUnique(err) || !slices.Equal(calls, []string{"first", "second"}) {
			t.Errorf("error %v, calls %v", err, calls)
		}
	})
}

func TestRefusalsAreToldApart(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		if err := insert(t.Context(), db, "a"); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			query  string
			unique bool
		}{
			"unique column": {"INSERT INTO item (name) VALUES ('a')", true},
			"primary key":   {"INSERT INTO item (num, name) VALUES (1, 'b')", true},
			"not null":      {"INSERT INTO item (name) VALUES (NULL)", false},
			"syntax":        {"INSERT item", false},
		} {
			err := db.Write(t.Context(), func(tx *sqldb.Tx) error { _, err := tx.Exec(t.Context(), c.query); return err })
			if err == nil || sqldb.IsUnique(err) != c.unique || sqldb.IsFull(err) {
				t.Errorf("%s: %v: unique %v, full %v", name, err, sqldb.IsUnique(err), sqldb.IsFull(err))
			}
		}
	})
}

func TestLargeBatchIsWrittenInOneTransaction(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		const rows = 20_000
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			for first := 0; first < rows; first += 10_000 {
				q := sqldb.NewQuery("INSERT INTO item (name, n, body) VALUES")
				for i := range 10_000 {
					comma := ","
					if i == 0 {
						comma = ""
					}
					q.Add(comma+"(?, ?, ?)", fmt.Sprint("item ", first+i), first+i, []byte{byte(i)})
				}
				if n, err := tx.Exec(t.Context(), q.SQL(), q.Args()...); err != nil || n != 10_000 {
					return fmt.Errorf("%d rows: %w", n, err)
				}
			}
			return nil
		})
		if err != nil || count(t, db) != rows {
			t.Errorf("error %v, %d rows", err, count(t, db))
		}
	})
}

func TestEndedContextStopsAWriteAndLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Write(ctx, func(tx *sqldb.Tx) error {
			if err := insertIn(ctx, tx, "a"); err != nil {
				return err
			}
			cancel()
			return insertIn(ctx, tx, "b")
		})
		if !errors.Is(err, context.Canceled) || count(t, db) != 0 {
			t.Errorf("ended inside: error %v, %d rows", err, count(t, db))
		}
		err = db.Write(ctx, func(*sqldb.Tx) error { t.Error("run with an ended context"); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended before: %v", err)
		}
		if err := insert(t.Context(), db, "c"); err != nil {
			t.Errorf("the next write: %v", err)
		}
	})
}

func TestTransactionIsDeadAfterItsFunction(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		var leaked *sqldb.Tx
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error { leaked = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := insertIn(t.Context(), leaked, "a"); !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("exec: %v", err)
		}
		if _, err := leaked.QueryContext(t.Context(), "SELECT 1"); !errors.Is(err, sql.ErrTxDone) { //nolint:rowserrcheck,sqlclosecheck // there are no rows
			t.Errorf("query: %v", err)
		}
		var n int
		if err := leaked.QueryRowContext(t.Context(), "SELECT 1").Scan(&n); err == nil {
			t.Error("query row: no error")
		}
	})
}

func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		t.Run(engine, func(t *testing.T) {
			url := sqldbtest.URL(t, engine, items)
			for range 3 { // the second and third child recover what the one before left
				if acknowledged := killWriter(t, url); len(acknowledged) > 0 {
					db := sqldbtest.OpenURL(t, url)
					for _, name := range acknowledged {
						if !has(t, db, name) {
							t.Errorf("%s was acknowledged and is lost", name)
						}
					}
					err := db.Write(t.Context(), func(tx *sqldb.Tx) error { _, err := tx.Exec(t.Context(), "DELETE FROM item"); return err })
					if err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// killWriter lets a child process write, kills it with -9 in the middle and returns what it was told
// is durable.
func killWriter(t *testing.T, url string) (acknowledged []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), childEnv+"="+url)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acknowledged = append(acknowledged, lines.Text())
		if len(acknowledged) == 200 {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = child.Wait() // says that it was killed
	if len(acknowledged) < 200 {
		t.Fatalf("the child wrote only %d rows", len(acknowledged))
	}
	return acknowledged
}

func TestPathWithSpecialCharactersIsTakenLiterally(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%20e", "x.db")
	db := sqldbtest.OpenURL(t, "sqlite:"+path)
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info, err)
	}
}

func TestUnusableURLIsRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, url := range []string{"", "mysql://x", "postgres://nobody@127.0.0.1:1/none?connect_timeout=2", "sqlite:/dev/null/x.db"} {
		if db, err := sqldb.Open(ctx, url); err == nil {
			_ = db.Close()
			t.Errorf("%q: opened", url)
		}
	}
}
