package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// hold occupies the writer until release is called, so that what is started meanwhile queues up.
func hold(t *testing.T, db *sqldb.DB) (release func()) {
	t.Helper()
	inside, gate, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once sync.Once // it may be run again
	go func() {
		done <- db.Write(context.Background(), func(*sqldb.Tx) error {
			once.Do(func() { close(inside) })
			<-gate
			return nil
		})
	}()
	<-inside
	return func() {
		close(gate)
		if err := <-done; err != nil {
			t.Errorf("the held write: %v", err)
		}
	}
}

func TestQueuedWriteIsWithdrawnWhenItsContextEnds(t *testing.T) {
	db := sqldbtest.SQLite(t, items)
	release := hold(t, db)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	err := db.Write(ctx, func(*sqldb.Tx) error { t.Error("run after it was given up"); return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	release()
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Error(err)
	}
}

func TestNobodyLeadsForEver(t *testing.T) {
	db := sqldbtest.SQLite(t, items)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	release := hold(t, db) // this write leads while the others arrive
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := insert(ctx, db, fmt.Sprintf("%d-%d", w, i)); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	released := make(chan struct{})
	go func() { release(); close(released) }()
	select {
	case <-released:
	case <-time.After(20 * time.Second):
		t.Error("the first writer still leads for the others")
	}
	stop()
	wg.Wait()
}

// full makes SQLite believe that the disk holds only as many more pages.
func full(t *testing.T, db *sqldb.DB, morePages int) {
	t.Helper()
	err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
		var pages int
		if err := tx.QueryRowContext(t.Context(), "PRAGMA page_count").Scan(&pages); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), fmt.Sprintf("PRAGMA max_page_count = %d", pages+morePages))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFullDiskFailsOnlyWhoNeedsTheSpace(t *testing.T) {
	db := sqldbtest.SQLite(t, items)
	full(t, db, 8)
	big := make([]byte, 1<<20)
	results := make(chan error, 20)
	var hogged error
	release := hold(t, db)
	var wg sync.WaitGroup
	wg.Go(func() {
		hogged = db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "INSERT INTO item (name, body) VALUES ($1, $2)", "hog", big)
			return err
		})
	})
	for i := range cap(results) {
		wg.Go(func() { results <- insert(t.Context(), db, fmt.Sprint("small ", i)) })
	}
	release()
	wg.Wait()
	if !sqldb.IsFull(hogged) {
		t.Errorf("the hog got %v, want a full disk", hogged)
	}
	for range cap(results) {
		if err := <-results; err != nil {
			t.Errorf("a neighbour got %v", err)
		}
	}
	if n := count(t, db); n != cap(results) {
		t.Errorf("%d rows", n)
	}
}

func TestFullDiskIsToldOnPostgres(t *testing.T) {
	db := sqldbtest.Open(t, sqldbtest.PostgresEngine)
	err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(t.Context(), "DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = 'disk_full'; END $$")
		return err
	})
	if !sqldb.IsFull(err) {
		t.Errorf("error %v", err)
	}
}

func TestFunctionThatEndsItsGoroutineHoldsNobodyUp(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_ = db.Write(context.Background(), func(tx *sqldb.Tx) error {
				if err := insertIn(context.Background(), tx, "lost"); err != nil {
					t.Error(err)
				}
				runtime.Goexit()
				return nil
			})
		}()
		<-gone
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := insert(ctx, db, "kept"); err != nil {
			t.Fatal(err)
		}
		if has(t, db, "lost") {
			t.Error("the ended function's row is there")
		}
	})
}

func TestCloseWaitsForRunningWritesAndRefusesLaterOnes(t *testing.T) {
	url := sqldbtest.URL(t, sqldbtest.SQLiteEngine, items)
	db, err := sqldb.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	release := hold(t, db)
	queued := make(chan error, 1)
	go func() { queued <- insert(context.Background(), db, "queued") }()
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	release()
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	queuedErr := <-queued
	if err := insert(t.Context(), db, "late"); !errors.Is(err, sqldb.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
	again := sqldbtest.OpenURL(t, url)
	if has(t, again, "queued") != (queuedErr == nil) {
		t.Errorf("the queued write said %v and its row is there: %v", queuedErr, has(t, again, "queued"))
	}
}

func TestPostgresRunsAFunctionAgainWhenItAsks(t *testing.T) {
	db := sqldbtest.Open(t, sqldbtest.PostgresEngine, items)
	if err := insert(t.Context(), db, "counter"); err != nil {
		t.Fatal(err)
	}
	add := func(tx *sqldb.Tx, between func()) error {
		var n int
		if err := tx.QueryRowContext(t.Context(), "SELECT n FROM item").Scan(&n); err != nil {
			return err
		}
		between()
		_, err := tx.Exec(t.Context(), "UPDATE item SET n = $1", n+1)
		return err
	}
	runs, after := 0, 0
	err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
		runs++
		tx.AfterCommit(func() { after++ })
		return add(tx, func() {
			if runs > 1 {
				return
			}
			if err := db.Write(t.Context(), func(other *sqldb.Tx) error { return add(other, func() {}) }); err != nil {
				t.Error(err)
			}
		})
	})
	if err != nil || runs != 2 || after != 1 || db.Stats().Retries != 1 {
		t.Errorf("error %v, %d runs, %d after-commits, %+v", err, runs, after, db.Stats())
	}
	var n int
	if err := db.QueryRowContext(t.Context(), "SELECT n FROM item").Scan(&n); err != nil || n != 2 {
		t.Errorf("counted to %d, error %v", n, err)
	}
}
