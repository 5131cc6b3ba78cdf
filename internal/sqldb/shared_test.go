package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"steward/internal/sqldb"
)

// crowd starts shared writes behind one that holds the lead, lets them go together and returns what each got.
func crowd(t *testing.T, db *sqldb.DB, fns ...func(ctx context.Context, tx *sqldb.Tx) error) []error {
	t.Helper()
	inside, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	wg.Go(func() {
		err := db.WriteShared(context.Background(), func(*sqldb.Tx) error {
			once.Do(func() { close(inside) })
			<-gate
			return nil
		})
		if err != nil {
			t.Errorf("the held write: %v", err)
		}
	})
	<-inside
	outcomes := make([]error, len(fns))
	for i, fn := range fns {
		wg.Go(func() {
			outcomes[i] = db.WriteShared(context.Background(), func(tx *sqldb.Tx) error { return fn(context.Background(), tx) })
		})
	}
	for deadline := time.Now().Add(10 * time.Second); sqldb.Queued(db) < len(fns); {
		if time.Now().After(deadline) {
			t.Fatal("the writes do not wait")
		}
		<-time.After(time.Millisecond)
	}
	close(gate)
	wg.Wait()
	return outcomes
}

func TestSharedWritesShareACommitAndAFailedOneLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		mine := errors.New("mine")
		var fns []func(context.Context, *sqldb.Tx) error
		for i := range 20 {
			fns = append(fns, func(ctx context.Context, tx *sqldb.Tx) error {
				if err := insertIn(ctx, tx, fmt.Sprint("row ", i)); err != nil {
					return err
				}
				switch i {
				case 3:
					return mine
				case 7:
					return insertIn(ctx, tx, "row 7") // not unique: PostgreSQL gives the transaction up
				case 11:
					panic("eleven")
				}
				return nil
			})
		}
		before := db.Stats()
		outcomes := crowd(t, db, fns...)
		after := db.Stats()
		for i, err := range outcomes {
			bad := i == 3 || i == 7 || i == 11
			if (err != nil) != bad || (i == 3 && !errors.Is(err, mine)) || (i == 7 && !sqldb.IsUnique(err)) {
				t.Errorf("write %d: %v", i, err)
			}
			if has(t, db, fmt.Sprint("row ", i)) == bad {
				t.Errorf("row %d is there: %v", i, !bad)
			}
		}
		if writes, commits := after.Writes-before.Writes, after.Commits-before.Commits; writes != 18 || commits > 4 {
			t.Errorf("%d writes in %d commits", writes, commits)
		}
	})
}

func TestSharedWritesKeepTheirEffectsInOrderAndSeeThem(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		if err := insert(t.Context(), db, "counter"); err != nil {
			t.Fatal(err)
		}
		// Beside them, a write of its own kind collides with them on PostgreSQL and makes them run again.
		add := func(ctx context.Context, tx *sqldb.Tx) error {
			var n int64
			if err := tx.QueryRowContext(ctx, "SELECT n FROM item WHERE name = $1", "counter").Scan(&n); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "UPDATE item SET n = $1 WHERE name = $2", n+1, "counter")
			return err
		}
		var others sync.WaitGroup
		for range 20 {
			others.Go(func() {
				if err := db.Write(context.Background(), func(tx *sqldb.Tx) error { return add(context.Background(), tx) }); err != nil {
					t.Error(err)
				}
			})
		}
		for i, err := range crowd(t, db, slices.Repeat([]func(context.Context, *sqldb.Tx) error{add}, 100)...) {
			if err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		}
		others.Wait()
		var n int64
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM item WHERE name = 'counter'").Scan(&n); err != nil || n != 120 {
			t.Errorf("counted %d of 120: %v", n, err)
		}
	})
}

func TestSharedWriteCallsBackOnlyAfterItsOwnCommit(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		var mu sync.Mutex
		calls := map[int]int{}
		var fns []func(context.Context, *sqldb.Tx) error
		for i := range 10 {
			fns = append(fns, func(ctx context.Context, tx *sqldb.Tx) error {
				tx.AfterCommit(func() {
					mu.Lock()
					defer mu.Unlock()
					calls[i]++
				})
				if err := insertIn(ctx, tx, fmt.Sprint(i)); err != nil || i != 4 {
					return err
				}
				return errors.New("four")
			})
		}
		crowd(t, db, fns...)
		for i := range 10 {
			if want := map[bool]int{true: 0, false: 1}[i == 4]; calls[i] != want {
				t.Errorf("write %d was called back %d times", i, calls[i])
			}
		}
	})
}

func TestSharedWriteWhoseContextEndsIsNotRun(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		inside, gate, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		var once sync.Once
		go func() {
			done <- db.WriteShared(context.Background(), func(*sqldb.Tx) error {
				once.Do(func() { close(inside) })
				<-gate
				return nil
			})
		}()
		<-inside
		cancel()
		if err := db.WriteShared(ctx, func(*sqldb.Tx) error { t.Error("it was run"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
