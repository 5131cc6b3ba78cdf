package twin_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

var (
	start  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	tables = []sqldb.Migration{ledger.Migration(), twin.Migration()}
)

// house is a twin on a database of its own with a clock that the test moves.
type house struct {
	testing.TB
	db  *sqldb.DB
	s   *twin.Service
	cfg twin.Config
	pub ed25519.PublicKey

	mu  sync.Mutex
	now time.Time
}

func newHouse(t testing.TB, db *sqldb.DB, cfg twin.Config) *house {
	h := &house{TB: t, db: db, now: start}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DB, cfg.Key, cfg.Now, h.pub = db, key, h.clock, pub
	h.cfg, h.s = cfg, twin.New(cfg)
	return h
}

func (h *house) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *house) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

func each(t *testing.T, cfg twin.Config, test func(h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(newHouse(t, db, cfg)) })
}

// unit returns a device as the link would hand it over; the twin needs no row of it.
func unit(num int64) device.Device {
	return device.Device{Num: num, ID: device.ID(fmt.Sprintf("dev-%016d", num)), Tenant: "default", Stage: device.Active}
}

func (h *house) write(fn func(tx *sqldb.Tx) error) {
	h.Helper()
	if err := h.db.Write(context.Background(), fn); err != nil {
		h.Fatal(err)
	}
}

func (h *house) set(num int64, section wire.Section, doc any) {
	h.Helper()
	h.write(func(tx *sqldb.Tx) error { return h.s.SetDesired(h.Context(), tx, num, section, doc) })
}

func (h *house) epoch(num int64) int64 {
	h.Helper()
	e, err := h.s.Epoch(h.Context(), num)
	if err != nil {
		h.Fatal(err)
	}
	return e
}

// envelope opens what the device gets.
func (h *house) envelope(d device.Device) wire.Desired {
	h.Helper()
	env, epoch, err := h.s.Envelope(h.Context(), d)
	if err != nil {
		h.Fatal(err)
	}
	var desired wire.Desired
	if err := wire.Open(env, wire.DesiredType, []crypto.PublicKey{h.pub}, &desired); err != nil {
		h.Fatal(err)
	}
	if desired.Epoch != epoch || desired.Device != string(d.ID) {
		h.Fatalf("envelope of %s at epoch %d says %+v", d.ID, epoch, desired)
	}
	return desired
}

// agent makes a device's reports.
type agent struct {
	boot, instance string
	sequence       int64
	epoch          int64
}

func (a *agent) next(full bool, docs map[wire.Section]string) wire.Report {
	a.sequence++
	r := wire.Report{Protocol: 1, Boot: a.boot, Instance: a.instance, Sequence: a.sequence, Epoch: a.epoch, Full: full, Sections: map[wire.Section]wire.Hash{}}
	for s, body := range docs {
		r.Sections[s] = wire.HashOf([]byte(body))
	}
	return r
}

func (h *house) report(d device.Device, r wire.Report) wire.ReportAnswer {
	h.Helper()
	a, err := h.s.Report(h.Context(), d, r)
	if err != nil {
		h.Fatal(err)
	}
	return a
}

func (h *house) upload(d device.Device, body string) {
	h.Helper()
	if err := h.s.Upload(h.Context(), d, wire.HashOf([]byte(body)), []byte(body)); err != nil {
		h.Fatal(err)
	}
}

// reported returns the device's document, or "" when there is none.
func (h *house) reported(num int64, section wire.Section) string {
	h.Helper()
	body, _, err := h.s.Reported(h.Context(), h.db, num, section)
	if err != nil && !errors.Is(err, fault.NotFound) {
		h.Fatal(err)
	}
	return string(body)
}

func wantFault(t *testing.T, err, kind error, texts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v, want %v", err, kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func TestEpochGrowsOnlyWhenADesiredDocumentReallyChanges(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		a, b := map[string]int{"x": 1}, map[string]int{"x": 2}
		for _, step := range []struct {
			do   func(tx *sqldb.Tx) error
			want int64
		}{
			{func(tx *sqldb.Tx) error { return h.s.SetDesired(h.Context(), tx, 1, "update", a) }, 1},
			{func(tx *sqldb.Tx) error { return h.s.SetDesired(h.Context(), tx, 1, "update", a) }, 1},
			{func(tx *sqldb.Tx) error { return h.s.SetDesired(h.Context(), tx, 1, "monitoring", a) }, 2},
			{func(tx *sqldb.Tx) error { return h.s.SetDesired(h.Context(), tx, 1, "update", b) }, 3},
			{func(tx *sqldb.Tx) error { return h.s.ClearDesired(h.Context(), tx, 1, "update") }, 4},
			{func(tx *sqldb.Tx) error { return h.s.ClearDesired(h.Context(), tx, 1, "update") }, 4},
			{func(tx *sqldb.Tx) error { return h.s.SetDesired(h.Context(), tx, 2, "update", b) }, 4},
		} {
			h.write(step.do)
			if got := h.epoch(1); got != step.want {
				t.Fatalf("epoch %d, want %d", got, step.want)
			}
		}
		got := h.envelope(unit(1))
		if len(got.Sections) != 1 || got.Sections["monitoring"] != wire.HashOf([]byte(`{"x":1}`)) {
			t.Errorf("sections %v", got.Sections)
		}
		if got := h.envelope(unit(3)); got.Epoch != 0 || len(got.Sections) != 0 {
			t.Errorf("a device without a desired state gets %+v", got)
		}
	})
}

func TestUndoneTransactionLeavesNoDesiredState(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		broken := errors.New("broken")
		err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error {
			return errors.Join(h.s.SetDesired(t.Context(), tx, 1, "update", "x"), broken)
		})
		if !errors.Is(err, broken) || h.epoch(1) != 0 {
			t.Fatalf("%v, epoch %d", err, h.epoch(1))
		}
	})
}

func TestTooLargeOrWronglyNamedDesiredDocumentsAreRefused(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...), twin.Config{})
	for _, tt := range []struct {
		section wire.Section
		doc     any
		want    error
	}{
		{"update", strings.Repeat("x", wire.MaxDocumentBytes), fault.TooLarge},
		{"Not A Section", "x", fault.Unprocessable},
	} {
		err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error { return h.s.SetDesired(t.Context(), tx, 1, tt.section, tt.doc) })
		wantFault(t, err, tt.want)
	}
}

// many fills a table with device numbers, for the sub-SELECT of bulk changes.
func (h *house) many(n int) (numsSQL string, args []any) {
	h.Helper()
	h.write(func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(h.Context(), "CREATE TABLE fleet (num BIGINT PRIMARY KEY)"); err != nil {
			return err
		}
		_, err := tx.Exec(h.Context(), `INSERT INTO fleet WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < $1) SELECT n FROM c`, n)
		return err
	})
	return "SELECT num FROM fleet WHERE num <= ?", []any{n}
}

func TestBulkChangeRaisesExactlyTheEpochsOfDevicesThatChange(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		nums, _ := h.many(10)
		h.set(3, "update", "new") // has it already
		h.set(4, "update", "old")
		h.set(20, "update", "old") // not in the set
		bulk := func(upTo int, fn func(tx *sqldb.Tx, args []any) (int64, error)) (n int64) {
			t.Helper()
			h.write(func(tx *sqldb.Tx) (err error) { n, err = fn(tx, []any{upTo}); return err })
			return n
		}
		set := func(tx *sqldb.Tx, args []any) (int64, error) {
			return h.s.SetDesiredWhere(t.Context(), tx, nums, args, "update", "new")
		}
		if n := bulk(5, set); n != 4 {
			t.Errorf("%d devices changed, want 4", n)
		}
		if n := bulk(5, set); n != 0 {
			t.Errorf("%d devices changed the second time", n)
		}
		for num, want := range map[int64]int64{1: 1, 3: 1, 4: 2, 5: 1, 6: 0, 20: 1} {
			if got := h.epoch(num); got != want {
				t.Errorf("device %d at epoch %d, want %d", num, got, want)
			}
		}
		clear := func(tx *sqldb.Tx, args []any) (int64, error) {
			return h.s.ClearDesiredWhere(t.Context(), tx, nums, args, "update")
		}
		if n := bulk(10, clear); n != 5 {
			t.Errorf("%d devices cleared, want 5", n)
		}
		for num, want := range map[int64]int64{1: 2, 3: 2, 4: 3, 6: 0, 20: 1} {
			if got := h.epoch(num); got != want {
				t.Errorf("after clearing, device %d at epoch %d, want %d", num, got, want)
			}
		}
		if got := h.envelope(unit(1)); len(got.Sections) != 0 {
			t.Errorf("after clearing, device 1 has %v", got.Sections)
		}
	})
}

func TestConcurrentChangesOfOneDeviceGiveEachAnEpoch(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		nums, args := h.many(50)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				section := wire.Section(fmt.Sprintf("s%d", i%4))
				err := h.db.Write(context.Background(), func(tx *sqldb.Tx) (err error) {
					if i < 4 {
						return h.s.SetDesired(context.Background(), tx, 7, section, i)
					}
					_, err = h.s.SetDesiredWhere(context.Background(), tx, nums, args, section, i)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if e := h.epoch(7); e != 8 {
			t.Errorf("epoch %d after 8 changes", e)
		}
		if e := h.epoch(8); e != 4 {
			t.Errorf("other device at epoch %d after 4 changes", e)
		}
	})
}

func TestEnvelopeIsSignedAgainWhenHalfOfItsLifeIsOver(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...), twin.Config{EnvelopeLife: 10 * time.Hour})
	h.set(1, "update", "x")
	first := h.envelope(unit(1))
	if !first.Issued.Equal(start) || !first.Expires.Equal(start.Add(10*time.Hour)) {
		t.Errorf("life %s to %s", first.Issued, first.Expires)
	}
	h.pass(4 * time.Hour)
	if again := h.envelope(unit(1)); !again.Issued.Equal(first.Issued) {
		t.Error("signed again with more than half of its life left")
	}
	h.pass(2 * time.Hour)
	if again := h.envelope(unit(1)); !again.Expires.Equal(start.Add(16 * time.Hour)) {
		t.Errorf("expires %s", again.Expires)
	}
	h.set(1, "update", "y")
	if again := h.envelope(unit(1)); again.Epoch != 2 || again.Sections["update"] == first.Sections["update"] {
		t.Errorf("after a change: %+v", again)
	}
}

func TestQuarantinedDeviceReceivesNothingAndLearnsOfItByItsEpoch(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		h.set(1, "update", "x")
		d := unit(1)
		h.envelope(d)
		hash := wire.HashOf([]byte(`"x"`))
		move := func(to device.Stage) {
			from := d.Stage
			d.Stage = to
			h.write(func(tx *sqldb.Tx) error { return h.s.StageMoved(t.Context(), tx, d, from) })
		}
		move(device.Quarantined)
		if got := h.envelope(d); got.Epoch != 2 || len(got.Sections) != 0 {
			t.Errorf("in quarantine: %+v", got)
		}
		_, err := h.s.Document(t.Context(), d, hash)
		wantFault(t, err, fault.NotFound)
		move(device.Active)
		if got := h.envelope(d); got.Epoch != 3 || got.Sections["update"] != hash {
			t.Errorf("after quarantine: %+v", got)
		}
		move(device.Retired)
		if e := h.epoch(1); e != 3 {
			t.Errorf("a move that changes nothing for the device raised the epoch to %d", e)
		}
	})
}

func TestDeviceSeesOnlyTheDocumentsOfItsOwnDesiredState(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		h.set(1, "update", "mine")
		h.set(2, "update", "other's")
		reported := `{"a":1}`
		r := (&agent{boot: "b", instance: "i"}).next(true, map[wire.Section]string{"inventory": reported})
		h.report(unit(1), r)
		h.upload(unit(1), reported)
		if body, err := h.s.Document(t.Context(), unit(1), wire.HashOf([]byte(`"mine"`))); err != nil || string(body) != `"mine"` {
			t.Errorf("own document: %s, %v", body, err)
		}
		for _, doc := range []string{`"other's"`, reported, "never seen"} {
			_, err := h.s.Document(t.Context(), unit(1), wire.HashOf([]byte(doc)))
			wantFault(t, err, fault.NotFound)
		}
		h.set(1, "update", "newer")
		_, err := h.s.Document(t.Context(), unit(1), wire.HashOf([]byte(`"mine"`)))
		wantFault(t, err, fault.NotFound)
	})
}

func TestWaiterIsWokenByTheCommitAndNotBefore(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		nums, args := h.many(3)
		type result struct {
			epoch int64
			err   error
		}
		wait := func(num, than int64) <-chan result {
			out := make(chan result, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			go func() {
				defer cancel()
				e, err := h.s.WaitEpoch(ctx, num, than)
				out <- result{e, err}
			}()
			return out
		}
		one := wait(1, 0)
		h.set(1, "update", "x")
		if r := <-one; r.err != nil || r.epoch != 1 {
			t.Errorf("woken with %+v", r)
		}
		if r := <-wait(1, 0); r.err != nil || r.epoch != 1 {
			t.Errorf("who comes late gets %+v", r)
		}
		all := []<-chan result{wait(2, 0), wait(3, 0)}
		h.write(func(tx *sqldb.Tx) error {
			_, err := h.s.SetDesiredWhere(t.Context(), tx, nums, args, "update", "y")
			return err
		})
		for _, ch := range all {
			if r := <-ch; r.err != nil || r.epoch != 1 {
				t.Errorf("woken by the bulk change with %+v", r)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if e, err := h.s.WaitEpoch(ctx, 1, 2); e != 2 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("time is up: %d, %v", e, err)
		}
	})
}

func TestSweepKeepsWhatIsInUseOrFresh(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		h.set(1, "update", "old")
		h.set(1, "update", "used")
		body := `{"reported":true}`
		a := &agent{boot: "b", instance: "i"}
		h.report(unit(1), a.next(true, map[wire.Section]string{"inventory": body}))
		h.upload(unit(1), body)
		sweep := func(want int64) {
			t.Helper()
			if n, err := h.s.Sweep(t.Context()); err != nil || n != want {
				t.Fatalf("swept %d, %v; want %d", n, err, want)
			}
		}
		sweep(0)
		h.pass(25 * time.Hour)
		h.set(2, "update", "used") // touches it
		sweep(1)                   // "old"
		h.write(func(tx *sqldb.Tx) error { return h.s.ClearDesired(t.Context(), tx, 1, "update") })
		h.write(func(tx *sqldb.Tx) error { return h.s.ClearDesired(t.Context(), tx, 2, "update") })
		h.pass(13 * time.Hour)
		sweep(0) // unused for 13 hours only
		h.pass(12 * time.Hour)
		sweep(1)
		if got := h.reported(1, "inventory"); got != body {
			t.Errorf("the reported document is gone: %q", got)
		}
		h.set(1, "update", "old") // comes back after it was swept
		if got := h.envelope(unit(1)).Sections["update"]; got != wire.HashOf([]byte(`"old"`)) {
			t.Errorf("desired %s", got)
		}
	})
}

func kinds(t *testing.T, l *ledger.Ledger) []string {
	t.Helper()
	var out []string
	for _, e := range ledgertest.Events(t, l, ledger.Filter{}) {
		out = append(out, e.Kind+" "+e.Subject)
	}
	slices.Sort(out)
	return out
}
