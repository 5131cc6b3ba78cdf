package twin

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/wire"
)

type appendFunc func(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error

func (f appendFunc) Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error {
	return f(ctx, tx, events...)
}

// squad hands reports to a Service as one batch: a test can't make concurrent callers meet.
type squad struct {
	*testing.T
	s   *Service
	db  *sqldb.DB
	now time.Time
}

func eachSquad(t *testing.T, cfg Config, test func(q *squad)) {
	t.Helper()
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration(), Migration()}, func(t *testing.T, db *sqldb.DB) {
		q := &squad{T: t, db: db, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		cfg.DB, cfg.Key, cfg.Now = db, key, func() time.Time { return q.now }
		q.s = New(cfg)
		test(q)
	})
}

func squadDevice(num int64) device.Device {
	return device.Device{Num: num, ID: device.ID(fmt.Sprintf("dev-%016d", num)), Tenant: "default", Stage: device.Active}
}

func squadReport(num, sequence int64, sections map[wire.Section]string) wire.Report {
	r := wire.Report{Protocol: 1, Boot: fmt.Sprintf("b%d", num), Instance: fmt.Sprintf("i%d", num), Sequence: sequence, Sections: map[wire.Section]wire.Hash{}}
	for section, body := range sections {
		r.Sections[section] = wire.HashOf([]byte(body))
	}
	return r
}

// knows makes the bodies known by a device of its own.
func (q *squad) knows(bodies ...string) {
	q.Helper()
	for i, body := range bodies {
		r := squadReport(1000, int64(i), map[wire.Section]string{"x": body})
		if _, err := q.s.Report(q.Context(), squadDevice(1000), r); err != nil {
			q.Fatal(err)
		}
		if err := q.s.Upload(q.Context(), squadDevice(1000), wire.HashOf([]byte(body)), []byte(body)); err != nil {
			q.Fatal(err)
		}
	}
}

// meet lets devices from 1 to n report for the first time.
func (q *squad) meet(n int64) {
	q.Helper()
	for num := range n {
		if _, err := q.s.Report(q.Context(), squadDevice(num+1), squadReport(num+1, 0, nil)); err != nil {
			q.Fatal(err)
		}
	}
}

func (q *squad) calls(reports ...wire.Report) []*call[*reportCall] {
	var out []*call[*reportCall]
	for _, r := range reports {
		var num int64
		if _, err := fmt.Sscanf(r.Boot, "b%d", &num); err != nil {
			q.Fatal(err)
		}
		out = append(out, &call[*reportCall]{item: &reportCall{device: squadDevice(num), report: r, started: q.now}})
	}
	return out
}

func (q *squad) reported(num int64, section wire.Section) string {
	q.Helper()
	body, _, err := q.s.Reported(q.Context(), q.db, num, section)
	if err != nil && !errors.Is(err, fault.NotFound) {
		q.Fatal(err)
	}
	return string(body)
}

func TestBatchOfManyDevicesTakesTheStatementsOfOne(t *testing.T) {
	const many = batchLimit
	appended := 0
	cfg := Config{Recorded: []wire.Section{"services"}, Ledger: appendFunc(func(context.Context, *sqldb.Tx, ...ledger.Event) error {
		appended++
		return nil
	})}
	eachSquad(t, cfg, func(q *squad) {
		q.knows(`{"v":1}`, `{"v":2}`)
		q.meet(many)
		var took []int
		for round, n := range []int64{1, many} {
			var reports []wire.Report
			for num := range n { // half of them with a document that is not known, some having started anew
				body := fmt.Sprintf(`{"v":%d}`, round+1+int(num%2)*100)
				r := squadReport(num+1, int64(round+1), map[wire.Section]string{"services": body})
				if num%16 == 15 {
					r.Boot += "again"
				}
				reports = append(reports, r)
			}
			statements, before := 0, appended
			calls := q.calls(reports...)
			q.s.takeTogether(sqldb.Trace(q.Context(), func(string, []any) { statements++ }), calls)
			for i, c := range calls {
				if c.err != nil || !c.item.settled || len(c.item.missing) != i%2 {
					q.Fatalf("report %d: %+v, %v", i, c.item.outcome, c.err)
				}
			}
			if appended-before != 1 {
				q.Errorf("the ledger was called %d times for %d reports", appended-before, n)
			}
			took = append(took, statements)
		}
		// Three reads; on SQLite up to eight statements, one for each power of two, where PostgreSQL takes one.
		most := map[sqldb.Dialect]int{sqldb.Postgres: took[0] + 2, sqldb.SQLite: 3 + 3*8}[q.db.Dialect()]
		if took[0] > 6 || took[1] > most {
			q.Errorf("%d statements for one report, %d for %d: at most %d", took[0], took[1], many, most)
		}
		if got := q.reported(1, "services"); got != `{"v":2}` {
			q.Errorf("reported %s", got)
		}
	})
}

func TestReportsOfOneDeviceInABatchAreTakenInOrder(t *testing.T) {
	eachSquad(t, Config{}, func(q *squad) {
		q.knows(`{"v":1}`, `{"v":2}`)
		q.meet(2)
		calls := q.calls(
			squadReport(1, 1, map[wire.Section]string{"services": `{"v":1}`, "a": "not known"}),
			squadReport(2, 1, map[wire.Section]string{"services": `{"v":1}`}),
			squadReport(1, 2, map[wire.Section]string{"services": `{"v":2}`}),
			squadReport(1, 1, map[wire.Section]string{"services": `{"v":1}`}), // a replay
			squadReport(1, 3, map[wire.Section]string{"a": `{"v":1}`}),
			squadReport(2, 2, map[wire.Section]string{"a": "not known"}),
		)
		q.s.takeTogether(q.Context(), calls)
		for i, missing := range []int{1, 0, 0, 0, 0, 1} {
			if c := calls[i]; c.err != nil || !c.item.settled || len(c.item.missing) != missing || c.item.contact == (i == 3) {
				q.Errorf("report %d: %+v, %v", i, c.item.outcome, c.err)
			}
		}
		if a, b := q.reported(1, "services"), q.reported(1, "a"); a != `{"v":2}` || b != `{"v":1}` {
			q.Errorf("reported %s and %s", a, b)
		}
		all, err := pictures(q.Context(), q.db, []int64{1, 2}, false)
		if err != nil || len(all[1].pending) != 0 || len(all[2].pending) != 1 || all[1].session.sequence != 3 {
			q.Errorf("pictures %+v, %+v, %v", all[1], all[2], err)
		}
	})
}

func TestReportsThatConcernARoomAreLeftToBeTakenAloneWithThoseBehindThem(t *testing.T) {
	react := func(context.Context, *sqldb.Tx, device.Device, []byte) error { return nil }
	eachSquad(t, Config{Reactions: map[wire.Section]Reaction{"update": react}}, func(q *squad) {
		q.knows(`{"v":1}`)
		q.meet(5)
		full := squadReport(3, 2, nil)
		full.Full = true
		ahead := squadReport(4, 1, nil)
		ahead.Epoch = 9
		calls := q.calls(
			squadReport(1, 1, map[wire.Section]string{"update": `{"v":1}`}),
			squadReport(1, 2, map[wire.Section]string{"services": `{"v":1}`}),
			squadReport(2, 1, map[wire.Section]string{"update": "not known"}), // no body, no reaction
			squadReport(3, 1, map[wire.Section]string{"services": `{"v":1}`}), full,
			ahead,
			squadReport(77, 1, nil), // never met
			squadReport(5, 1, map[wire.Section]string{"services": `{"v":1}`}),
		)
		q.s.takeTogether(q.Context(), calls)
		var alone []int
		for i, c := range calls {
			if c.err != nil || c.item.alone == c.item.settled {
				q.Errorf("report %d: %+v, %v", i, c.item, c.err)
			}
			if c.item.alone {
				alone = append(alone, i)
			}
		}
		if want := []int{0, 1, 4, 5, 6}; !slices.Equal(alone, want) {
			q.Errorf("alone %v, want %v", alone, want)
		}
		if calls[0].item.finished == nil || calls[1].item.behind != (<-chan struct{})(calls[0].item.finished) || calls[4].item.behind != nil {
			q.Error("the reports of a device do not wait for one another")
		}
	})
}

func TestOneBadReportDoesNotSpoilItsBatch(t *testing.T) {
	broken := errors.New("broken")
	var mu sync.Mutex
	fail := true
	cfg := Config{Recorded: []wire.Section{"packages"}, Ledger: appendFunc(func(_ context.Context, _ *sqldb.Tx, events ...ledger.Event) error {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			if fail && e.Device == squadDevice(3).ID {
				return broken
			}
		}
		return nil
	})}
	eachSquad(t, cfg, func(q *squad) {
		q.knows(`{"v":1}`)
		q.meet(8)
		many := map[wire.Section]string{}
		for i := range MaxSections {
			many[wire.Section(fmt.Sprintf("s%d", i))] = "not known"
		}
		if _, err := q.s.Report(q.Context(), squadDevice(5), squadReport(5, 1, many)); err != nil {
			q.Fatal(err)
		}
		// The callers meet behind one that holds the lead.
		release := make(chan struct{})
		run := q.s.takes.run
		q.s.takes.run = func(ctx context.Context, calls []*call[*reportCall]) {
			<-release
			run(ctx, calls)
		}
		var wg sync.WaitGroup
		outcomes := make([]error, 9)
		for num := int64(1); num <= 8; num++ {
			wg.Go(func() {
				r := squadReport(num, 2, map[wire.Section]string{"packages": `{"v":1}`})
				_, outcomes[num] = q.s.Report(q.Context(), squadDevice(num), r)
			})
		}
		waitQueued(q.T, &q.s.takes, 7)
		close(release)
		wg.Wait()
		for num := int64(1); num <= 8; num++ {
			want := map[int64]error{3: broken, 5: fault.Unprocessable}[num]
			if !errors.Is(outcomes[num], want) {
				q.Errorf("device %d: %v, want %v", num, outcomes[num], want)
			}
			if got := q.reported(num, "packages"); (got == `{"v":1}`) != (want == nil) {
				q.Errorf("device %d has %q", num, got)
			}
		}
	})
}

func waitQueued[T any](t *testing.T, g *together[T], n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		g.mu.Lock()
		queued := len(g.queue)
		g.mu.Unlock()
		if queued == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d calls wait, want %d", queued, n)
		}
		<-time.After(time.Millisecond)
	}
}

func TestBatchKeepsTheDocumentsThatItBeginsToUse(t *testing.T) {
	eachSquad(t, Config{}, func(q *squad) {
		q.knows(`{"v":1}`, `{"v":2}`)
		q.meet(3)
		if _, err := q.s.Report(q.Context(), squadDevice(1000), squadReport(1000, 9, map[wire.Section]string{"x": `{"v":2}`})); err != nil {
			q.Fatal(err)
		}
		q.now = q.now.Add(documentLife/2 + time.Minute) // {"v":1} is used by nobody and may be swept in half a day
		calls := q.calls(squadReport(1, 1, map[wire.Section]string{"a": `{"v":1}`}), squadReport(2, 1, map[wire.Section]string{"a": `{"v":1}`}))
		q.s.takeTogether(q.Context(), calls)
		if !calls[0].item.settled || !calls[1].item.settled {
			q.Fatal("not taken")
		}
		// Until both name something else, and the sweep looks with the time of the first use.
		q.now = q.now.Add(documentLife / 2)
		calls = q.calls(squadReport(1, 2, map[wire.Section]string{"a": `{"v":2}`}), squadReport(2, 2, map[wire.Section]string{"a": `{"v":2}`}))
		q.s.takeTogether(q.Context(), calls)
		if n, err := q.s.Sweep(q.Context()); err != nil || n != 0 {
			q.Errorf("swept %d documents that were touched half a day ago: %v", n, err)
		}
		q.now = q.now.Add(documentLife)
		if n, err := q.s.Sweep(q.Context()); err != nil || n != 1 {
			q.Errorf("swept %d documents of one that nobody has: %v", n, err)
		}
	})
}
