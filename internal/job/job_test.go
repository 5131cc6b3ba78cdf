package job_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"steward/internal/job"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

var tables = []sqldb.Migration{{Room: "sum", Files: fstest.MapFS{"00001_sum.sql": {Data: []byte(
	"-- +goose Up\nCREATE TABLE sum (id TEXT PRIMARY KEY, done BIGINT NOT NULL, total BIGINT NOT NULL, touched BIGINT NOT NULL);")}}}}

// sums is long work that counts up to a total.
type sums struct {
	db *sqldb.DB

	mu    sync.Mutex
	fail  error
	sizes []int
	step  func() // called in each step's transaction
}

func (s *sums) Waiting(ctx context.Context, untouched time.Time) ([]string, error) {
	return sqldb.Collect(ctx, s.db, sqldb.Value[string], "SELECT id FROM sum WHERE done < total AND touched <= $1 ORDER BY id", sqldb.Micros(untouched))
}

func (s *sums) Step(ctx context.Context, tx *sqldb.Tx, id string, size int) (bool, error) {
	s.mu.Lock()
	s.sizes = append(s.sizes, size)
	step, fail := s.step, s.fail
	s.mu.Unlock()
	if step != nil {
		step()
	}
	var done, total int64
	err := tx.QueryRowContext(ctx, "UPDATE sum SET done = CASE WHEN done + $1 > total THEN total ELSE done + $2 END, touched = $3 WHERE id = $4 RETURNING done, total",
		size, size, sqldb.Micros(time.Now()), id).Scan(&done, &total)
	return done == total, errors.Join(err, fail)
}

func (s *sums) add(t *testing.T, id string, total int64, touched time.Time) {
	t.Helper()
	if err := s.db.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(t.Context(), "INSERT INTO sum (id, done, total, touched) VALUES ($1, 0, $2, $3)", id, total, sqldb.Micros(touched))
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func (s *sums) done(t *testing.T, id string) (done int64) {
	t.Helper()
	if err := s.db.QueryRowContext(context.Background(), "SELECT done FROM sum WHERE id = $1", id).Scan(&done); err != nil {
		t.Fatal(err)
	}
	return done
}

func (s *sums) until(t *testing.T, id string, want int64) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); s.done(t, id) != want; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s is at %d, want %d", id, s.done(t, id), want)
		}
	}
}

// running runs the runner until the test ends.
func running(t *testing.T, r *job.Runner) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func each(t *testing.T, test func(t *testing.T, s *sums, r *job.Runner)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		s := &sums{db: db}
		test(t, s, job.New(job.Config{Name: "sums", DB: db, Work: s, Log: slog.New(slog.DiscardHandler)}))
	})
}

func TestWorkIsDoneInStepsWhileTheCallerWaits(t *testing.T) {
	each(t, func(t *testing.T, s *sums, r *job.Runner) {
		s.add(t, "a", 10_000, time.Now())
		if done, err := r.Do(t.Context(), "a", time.Minute); !done || err != nil || s.done(t, "a") != 10_000 {
			t.Errorf("done %v, %v: %d", done, err, s.done(t, "a"))
		}
		if len(s.sizes) < 3 || s.sizes[1] <= s.sizes[0] {
			t.Errorf("steps of %v: want them to grow while they are quick", s.sizes)
		}
	})
}

func TestWorkThatTheCallerLeavesIsFinishedByRun(t *testing.T) {
	each(t, func(t *testing.T, s *sums, r *job.Runner) {
		s.add(t, "a", 1_000_000, time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		s.step = cancel // leaves in the first step, which is lost
		running(t, r)
		if done, _ := r.Do(ctx, "a", time.Minute); done {
			t.Fatal("done at once")
		}
		s.mu.Lock()
		s.step = nil
		s.mu.Unlock()
		s.until(t, "a", 1_000_000)
	})
}

func TestWorkOfAProcessThatDiedIsTakenOver(t *testing.T) {
	each(t, func(t *testing.T, s *sums, r *job.Runner) {
		s.add(t, "old", 5000, time.Now().Add(-time.Minute))
		running(t, r)
		s.until(t, "old", 5000)
	})
}

func TestWorkThatAnotherNodeIsAtIsLeftToIt(t *testing.T) {
	db := sqldbtest.Open(t, sqldbtest.PostgresEngine, tables...)
	s := &sums{db: db}
	s.add(t, "theirs", 5000, time.Now().Add(time.Minute)) // touched just now by a clock that is ahead
	s.add(t, "old", 5000, time.Now().Add(-time.Minute))
	running(t, job.New(job.Config{Name: "sums", DB: db, Work: s}))
	s.until(t, "old", 5000)
	if n := s.done(t, "theirs"); n != 0 {
		t.Errorf("another's work is at %d", n)
	}
}

func TestErrorOfAStepUndoesItAndIsReturned(t *testing.T) {
	each(t, func(t *testing.T, s *sums, r *job.Runner) {
		broken := errors.New("disk on fire")
		s.add(t, "a", 5000, time.Now())
		s.fail = broken
		if done, err := r.Do(t.Context(), "a", time.Minute); done || !errors.Is(err, broken) || s.done(t, "a") != 0 {
			t.Errorf("done %v, %v: %d", done, err, s.done(t, "a"))
		}
	})
}
