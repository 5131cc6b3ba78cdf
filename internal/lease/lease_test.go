package lease_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steward/internal/lease"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

// The tests' nodes live faster than real ones.
const (
	beat = 50 * time.Millisecond
	life = 800 * time.Millisecond
)

type member struct {
	*lease.Nodes
	stop func() // ends Run and waits for it
}

// join opens a node; a mute one gives no sign of life after the first, as if it were killed or paused.
func join(t *testing.T, db *sqldb.DB, name string, now func() time.Time) *lease.Nodes {
	t.Helper()
	n, err := lease.Open(t.Context(), lease.Config{DB: db, Self: lease.Node{Name: name, Version: "1", Console: "https://" + name}, Beat: beat, Life: life, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func running(t *testing.T, db *sqldb.DB, name string, now func() time.Time) *member {
	t.Helper()
	m := &member{Nodes: join(t, db, name, now)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(m.stop)
	return m
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not in time: " + what)
		}
	}
}

// work is what is done once: it counts who is at it.
type work struct {
	mu      sync.Mutex
	running int
	most    int
	by      []string // who began, in order
}

func (w *work) do(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		w.mu.Lock()
		w.running++
		w.most = max(w.most, w.running)
		w.by = append(w.by, name)
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		w.running--
		w.mu.Unlock()
		return ctx.Err()
	}
}

func (w *work) begun() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.by)
}

// once runs the work on a node until the returned function is called.
func once(t *testing.T, n *lease.Nodes, do func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Once(ctx, "timers", do) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func each(t *testing.T, test func(t *testing.T, db *sqldb.DB)) {
	sqldbtest.Each(t, []sqldb.Migration{lease.Migration()}, test)
}

func postgres(t *testing.T) *sqldb.DB {
	t.Helper()
	return sqldbtest.Open(t, sqldbtest.PostgresEngine, lease.Migration())
}

func TestSingleNodeHasEveryLeaseAtOnceAndKeepsIt(t *testing.T) {
	db := sqldbtest.SQLite(t, lease.Migration())
	killed := join(t, db, "a", time.Now)
	var first work
	once(t, killed, first.do("killed"))
	eventually(t, "it begins", func() bool { return len(first.begun()) == 1 })
	// Started again on the same file, without a word of the one before.
	n := join(t, db, "a", time.Now)
	var w work
	stop := once(t, n, w.do("a"))
	eventually(t, "it begins", func() bool { return len(w.begun()) == 1 })
	list, err := n.List(t.Context())
	if err != nil || len(list) != 1 || !list[0].Alive || !list[0].Self || !slices.Equal(list[0].Leases, []string{"timers"}) {
		t.Errorf("%+v, %v", list, err)
	}
	stop()
	if got := w.begun(); len(got) != 1 || w.running != 0 {
		t.Errorf("begun by %v, %d at it", got, w.running)
	}
}

func TestWorkIsDoneByOneNodeAndHandedOverOnStop(t *testing.T) {
	db := postgres(t)
	var w work
	nodes := map[string]*member{}
	stops := map[string]func(){}
	for _, name := range []string{"a", "b", "c"} {
		nodes[name] = running(t, db, name, time.Now)
		stops[name] = once(t, nodes[name].Nodes, w.do(name))
	}
	for begun := 1; begun <= 3; begun++ {
		eventually(t, "a node begins", func() bool { return len(w.begun()) == begun })
		holder := w.begun()[begun-1]
		list, err := nodes[holder].Alive(t.Context())
		if err != nil || len(list) != 4-begun {
			t.Fatalf("%d nodes live, %v", len(list), err)
		}
		for _, n := range list {
			if holds := len(n.Leases) == 1; holds != (n.Name == holder) {
				t.Errorf("%s holds %v", n.Name, n.Leases)
			}
		}
		stops[holder]()
		nodes[holder].stop()
	}
	if w.most != 1 {
		t.Errorf("%d nodes were at it at a time", w.most)
	}
}

func TestWorkOfANodeThatFallsSilentGoesOnElsewhere(t *testing.T) {
	db := postgres(t)
	var w work
	silent := join(t, db, "a", time.Now)
	once(t, silent, w.do("a"))
	eventually(t, "a begins", func() bool { return len(w.begun()) == 1 })
	b := running(t, db, "b", time.Now)
	once(t, b.Nodes, w.do("b"))
	eventually(t, "b takes over", func() bool { return slices.Equal(w.begun(), []string{"a", "b"}) })
	if w.most != 1 {
		t.Errorf("%d nodes were at it at a time: the silent one must have given up before", w.most)
	}
	eventually(t, "b finds a silent", func() bool {
		list, err := b.List(t.Context())
		return err == nil && len(list) == 2 && !list[0].Alive && list[0].Console == "https://a" && list[1].Alive
	})
}

func TestPausedHolderIsFenced(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		write := func(ctx context.Context) error {
			return db.Write(t.Context(), func(tx *sqldb.Tx) error { return lease.Fence(ctx, tx) })
		}
		if err := write(t.Context()); err != nil {
			t.Fatalf("without a lease: %v", err)
		}
		paused := join(t, db, "a", time.Now)
		resume, wrote := make(chan struct{}), make(chan error, 1)
		began := make(chan struct{})
		stop := once(t, paused, func(ctx context.Context) error {
			if err := write(ctx); err != nil {
				t.Errorf("while it holds the lease: %v", err)
			}
			close(began)
			<-resume // as SIGSTOP would do: it does not look at its context
			wrote <- write(context.WithoutCancel(ctx))
			return nil
		})
		<-began
		b := running(t, db, "b", time.Now)
		var w work
		once(t, b.Nodes, w.do("b"))
		eventually(t, "b takes over", func() bool { return len(w.begun()) == 1 })
		close(resume)
		if err := <-wrote; !errors.Is(err, lease.ErrLost) {
			t.Errorf("after b has taken over: %v", err)
		}
		stop()
		if got := w.begun(); len(got) != 1 {
			t.Errorf("the late return of a disturbed b: %v", got)
		}
	})
}

func TestClocksThatDifferOrJumpMoveNoLease(t *testing.T) {
	db := postgres(t)
	var jump atomic.Int64
	var w work
	a := running(t, db, "a", func() time.Time { return time.Now().Add(time.Duration(jump.Load())) })
	b := running(t, db, "b", func() time.Time { return time.Now().Add(-24 * time.Hour) })
	once(t, a.Nodes, w.do("a"))
	eventually(t, "a begins", func() bool { return len(w.begun()) == 1 })
	once(t, b.Nodes, w.do("b"))
	beats := func() (n int64) {
		if err := db.QueryRowContext(t.Context(), "SELECT MIN(beat) FROM lease_node").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, by := range []time.Duration{time.Hour, -1000 * time.Hour, 9000 * time.Hour, 0} {
		jump.Store(int64(by))
		// The database's own clock jumps too.
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "UPDATE lease_node SET seen = seen + $1", by.Microseconds())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		from := beats()
		eventually(t, "some beats", func() bool { return beats() > from+5 })
		alive, err := b.Alive(t.Context())
		if err != nil || len(alive) != 2 {
			t.Errorf("after a jump of %v: %+v, %v", by, alive, err)
		}
	}
	if got := w.begun(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the work moved: %v", got)
	}
}

func TestWorkGoesOnAfterTheDatabaseWasAway(t *testing.T) {
	db := postgres(t)
	a := running(t, db, "a", time.Now)
	var w work
	once(t, a.Nodes, w.do("a"))
	eventually(t, "it begins", func() bool { return len(w.begun()) == 1 })
	away := func(name string) {
		t.Helper()
		from, to := "lease_node", "lease_gone"
		if name == "back" {
			from, to = to, from
		}
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "ALTER TABLE "+from+" RENAME TO "+to)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	away("away")
	eventually(t, "the node gives the work up", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.running == 0
	})
	away("back")
	eventually(t, "it begins again", func() bool { return len(w.begun()) == 2 })
}

func TestErrorOfTheWorkEndsOnceAndFreesTheLease(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		n := running(t, db, "a", time.Now)
		broken := errors.New("broken")
		for range 2 {
			if err := n.Once(t.Context(), "timers", func(context.Context) error { return broken }); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		}
		var runs atomic.Int64
		stop := once(t, n.Nodes, func(context.Context) error { runs.Add(1); return nil })
		eventually(t, "work that is done for now is looked at again", func() bool { return runs.Load() > 2 })
		stop()
	})
}

func TestNodeThatIsFollowedByOneOfItsNameLeavesTheList(t *testing.T) {
	db := postgres(t)
	join(t, db, "a", time.Now) // killed
	a := running(t, db, "a", time.Now)
	running(t, db, "b", time.Now)
	eventually(t, "only the living are listed", func() bool {
		list, err := a.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(list) == 2 && list[0].ID == a.ID() && list[0].Alive && list[1].Alive
	})
}

func TestNodeLeavesNothingBehindWhenItStops(t *testing.T) {
	db := postgres(t)
	ignore := goleak.IgnoreCurrent()
	n := running(t, db, "a", time.Now)
	var w work
	stop := once(t, n.Nodes, w.do("a"))
	eventually(t, "it begins", func() bool { return len(w.begun()) == 1 })
	stop()
	n.stop()
	goleak.VerifyNone(t, ignore, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
	for _, query := range []string{"SELECT COUNT(*) FROM lease_node", "SELECT COUNT(*) FROM lease_lease WHERE holder <> ''"} {
		var rows int
		if err := db.QueryRowContext(t.Context(), query).Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%s: %d, %v", query, rows, err)
		}
	}
}
