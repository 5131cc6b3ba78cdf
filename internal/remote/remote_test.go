package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steward/internal/bus"
	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/wire"
)

func TestMain(m *testing.M) {
	code := sqldbtest.Main(m)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var (
	morning = time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)
	tables  = []sqldb.Migration{ledger.Migration(), registry.Migration(), httpapi.Migration(), Migration()}
	ada     = httpapi.Principal{Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "ada"}, Role: httpapi.Operator, Scope: device.Scope{Tenant: "default"}}
)

// clock is moved by the tests alone.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// house is the room with a real registry and ledger.
type house struct {
	*testing.T
	db     *sqldb.DB
	ledger *ledger.Ledger
	reg    *registry.Service
	room   *Service
	clock  *clock
	nr     int
}

func newHouse(t *testing.T, db *sqldb.DB) *house {
	h := &house{T: t, db: db, ledger: ledgertest.New(t, db), clock: &clock{t: morning}}
	h.reg = registry.New(registry.Config{DB: db, Ledger: h.ledger, Now: h.clock.now, Moved: []registry.Moved{
		func(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
			return h.room.Moved(ctx, tx, d, from)
		}}})
	h.room = h.node(nil)
	return h
}

// node is the room on another node of the same installation.
func (h *house) node(b Bus) *Service {
	cfg := Config{DB: h.db, Ledger: h.ledger, Devices: h.reg, Bus: b, Log: slog.New(slog.DiscardHandler), Now: h.clock.now,
		Group: func(_ context.Context, tenant device.TenantID, name string) (device.Selector, error) {
			if tenant != "default" || name != "berlin" {
				return device.Selector{}, fault.New(fault.NotFound, "there is no group %q", name)
			}
			return device.ParseSelector("site=berlin")
		}}
	return New(cfg)
}

func each(t *testing.T, test func(h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(newHouse(t, db)) })
}

func (h *house) write(fn func(tx *sqldb.Tx) error) {
	h.Helper()
	if err := h.db.Write(h.Context(), fn); err != nil {
		h.Fatal(err)
	}
}

// device makes one that is active, of the default tenant.
func (h *house) device(labels map[string]string) device.Device { return h.deviceOf("default", labels) }

func (h *house) deviceOf(tenant device.TenantID, labels map[string]string) device.Device {
	h.Helper()
	h.nr++
	var d device.Device
	h.write(func(tx *sqldb.Tx) (err error) {
		d, err = h.reg.Create(h.Context(), tx, ada.Actor, device.New{Tenant: tenant, Serial: fmt.Sprintf("SN-%d", h.nr), Stage: device.Staged, Reason: "test", Labels: labels})
		return err
	})
	return h.move(h.move(d, device.Enrolled), device.Active)
}

func (h *house) move(d device.Device, to device.Stage) device.Device {
	h.Helper()
	h.write(func(tx *sqldb.Tx) (err error) {
		d, err = h.reg.Move(h.Context(), tx, ada.Actor, device.Move{Num: d.Num, To: to, Reason: "test"})
		return err
	})
	return d
}

func (h *house) give(d device.Device, name string) Command {
	h.Helper()
	c, err := h.room.Give(h.Context(), ada, string(d.ID), Wish{Name: name, Params: json.RawMessage(` {"a": 1} `)})
	if err != nil {
		h.Fatal(err)
	}
	return c
}

func (h *house) waiting(d device.Device) []string {
	h.Helper()
	list, err := h.room.Waiting(h.Context(), d)
	if err != nil {
		h.Fatal(err)
	}
	if n, err := h.room.Pending(h.Context(), d); err != nil || n != len(list) {
		h.Errorf("pending %d (%v), waiting %d", n, err, len(list))
	}
	ids := []string{}
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

func (h *house) answer(d device.Device, id, state string) {
	h.Helper()
	if err := h.room.Result(h.Context(), d, id, wire.RemoteResult{State: state, Cause: "because", Output: json.RawMessage(`{"up": 12}`), At: h.clock.now()}); err != nil {
		h.Fatal(err)
	}
}

func (h *house) get(id string) Command {
	h.Helper()
	c, err := h.room.Get(h.Context(), ada, id)
	if err != nil {
		h.Fatal(err)
	}
	return c
}

// told are the room's events of a device: kind and state.
func (h *house) told(d device.Device) []string {
	h.Helper()
	out := []string{}
	for _, e := range ledgertest.Events(h, h.ledger, ledger.Filter{Device: d.ID}) {
		if strings.HasPrefix(e.Kind, "remote.") {
			var facts struct{ State string }
			if err := json.Unmarshal(e.Data, &facts); err != nil {
				h.Fatal(err)
			}
			out = append(out, strings.TrimSpace(e.Kind+" "+facts.State))
		}
	}
	return out
}

func (h *house) same(got, want []string, what string) {
	h.Helper()
	if !slices.Equal(got, want) {
		h.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestCommandIsDeliveredUntilItHasItsResult(t *testing.T) {
	each(t, func(h *house) {
		d, other := h.device(nil), h.device(nil)
		first := h.give(d, "ping")
		h.clock.pass(time.Second)
		second := h.give(d, "reboot")
		h.same(h.waiting(d), []string{first.ID, second.ID}, "waiting")
		h.same(h.waiting(other), []string{}, "waiting for another device")
		if err := h.room.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c := h.get(first.ID); c.State != Delivered || c.Delivered.IsZero() || string(c.Params) != `{"a":1}` {
			t.Errorf("after it was handed out: %s %v %s", c.State, c.Delivered, c.Params)
		}
		h.same(h.waiting(d), []string{first.ID, second.ID}, "delivered and unanswered")
		h.answer(d, first.ID, wire.CommandDone)
		h.answer(d, first.ID, wire.CommandFailed) // repeated, even with another content
		h.same(h.waiting(d), []string{second.ID}, "after the answer")
		c := h.get(first.ID)
		if c.State != Done || string(c.Output) != `{"up":12}` || c.OutputSHA256 != sum([]byte(`{"up":12}`)) || !c.DeviceTime.Equal(h.clock.now()) || c.Late {
			t.Errorf("result %+v", c)
		}
		h.same(h.told(d), []string{"remote.given", "remote.given", "remote.finished done"}, "ledger")
	})
}

func TestLedgerHoldsNoParametersAndNoOutput(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		c, err := h.room.Give(t.Context(), ada, string(d.ID), Wish{Name: "set", Params: json.RawMessage(`"secret-in"`)})
		if err != nil {
			t.Fatal(err)
		}
		err = h.room.Result(t.Context(), d, c.ID, wire.RemoteResult{State: wire.CommandDone, Output: json.RawMessage(`"secret-out"`)})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range ledgertest.Events(t, h.ledger, ledger.Filter{Device: d.ID}) {
			if strings.Contains(string(e.Data), "secret") {
				t.Errorf("%s tells %s", e.Kind, e.Data)
			}
			if e.Kind == "remote.finished" && (e.Actor.ID != string(d.ID) || !strings.Contains(string(e.Data), sum([]byte(`"secret-out"`)))) {
				t.Errorf("finished by %s: %s", e.Actor.ID, e.Data)
			}
			if e.Kind == "remote.given" && e.Actor.Name != "ada" {
				t.Errorf("given by %s", e.Actor.Name)
			}
		}
	})
}

func TestResultsOfOtherDevicesAndUnknownCommandsAreRefused(t *testing.T) {
	each(t, func(h *house) {
		d, other, foreign := h.device(nil), h.device(nil), h.deviceOf("other", nil)
		c := h.give(d, "ping")
		for _, try := range []struct {
			by device.Device
			id string
		}{{other, c.ID}, {foreign, c.ID}, {d, "cmd-0000000000000000"}, {d, "nonsense"}, {d, ""}} {
			err := h.room.Result(t.Context(), try.by, try.id, wire.RemoteResult{State: wire.CommandDone})
			if !errors.Is(err, fault.NotFound) {
				t.Errorf("%q: %v", try.id, err)
			}
		}
		long := json.RawMessage(`"` + strings.Repeat("x", wire.MaxCommandBytes) + `"`)
		for name, r := range map[string]wire.RemoteResult{
			"no state": {}, "unknown state": {State: "expired"}, "no JSON": {State: "done", Output: json.RawMessage("{")}, "too long": {State: "done", Output: long},
		} {
			if err := h.room.Result(t.Context(), d, c.ID, r); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := h.get(c.ID); got.State != Waiting {
			t.Errorf("state %s", got.State)
		}
		odd := wire.RemoteResult{State: wire.CommandFailed, Cause: "a\x00b\xff" + strings.Repeat("y", 5000), Output: json.RawMessage("\"\xff\""), At: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)}
		if err := h.room.Result(t.Context(), d, c.ID, odd); err != nil {
			t.Fatal(err)
		}
		if got := h.get(c.ID); got.State != Failed || len(got.Cause) > maxCauseBytes || !got.DeviceTime.IsZero() {
			t.Errorf("kept %s, cause of %d bytes, %v", got.State, len(got.Cause), got.DeviceTime)
		}
	})
}

func TestOfTwoResultsAtOnceOneIsKept(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		for range 5 {
			c := h.give(d, "ping")
			var both sync.WaitGroup
			for _, state := range []string{wire.CommandDone, wire.CommandFailed, wire.CommandRefused, wire.CommandDone} {
				both.Go(func() {
					if err := h.room.Result(t.Context(), d, c.ID, wire.RemoteResult{State: state}); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			h.clock.pass(time.Second)
		}
		given, finished := 0, 0
		for _, kind := range h.told(d) {
			if kind == "remote.given" {
				given++
			} else {
				finished++
			}
		}
		if given != 5 || finished != 5 {
			t.Errorf("%d given, %d finished", given, finished)
		}
	})
}

func TestCommandExpiresAndALateAnswerIsStillKept(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		unseen, seen, refused := h.give(d, "ping"), h.give(d, "reboot"), h.give(d, "blink")
		expire := func() {
			t.Helper()
			if err := h.room.Expire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		expire()
		h.same(h.told(d), []string{"remote.given", "remote.given", "remote.given"}, "before the deadline")
		h.clock.pass(DefaultDeadline)
		h.same(h.waiting(d), []string{}, "past the deadline")
		expire()
		expire()
		for _, c := range []Command{unseen, seen, refused} {
			if got := h.get(c.ID); got.State != Expired || got.Cause == "" || got.Finished.IsZero() {
				t.Errorf("%s: %s %q", c.Name, got.State, got.Cause)
			}
		}
		h.answer(d, seen.ID, wire.CommandDone)
		h.answer(d, seen.ID, wire.CommandFailed)
		h.answer(d, refused.ID, wire.CommandRefused) // as it must, after the deadline
		if got := h.get(seen.ID); got.State != Done || !got.Late {
			t.Errorf("late answer: %s, late %v", got.State, got.Late)
		}
		if got := h.get(refused.ID); got.State != Expired {
			t.Errorf("refused after the deadline: %s", got.State)
		}
		want := []string{"remote.given", "remote.given", "remote.given", "remote.finished expired", "remote.finished expired", "remote.finished expired", "remote.finished done"}
		h.same(h.told(d), want, "ledger")
	})
}

func TestCancelledCommandIsNotDelivered(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		var woken []int64
		defer h.room.Watch(func(num int64) { woken = append(woken, num) })()
		c := h.give(d, "reboot")
		got, err := h.room.Cancel(t.Context(), ada, c.ID)
		if err != nil || got.State != Cancelled {
			t.Fatalf("%s, %v", got.State, err)
		}
		h.same(h.waiting(d), []string{}, "waiting")
		if _, err := h.room.Cancel(t.Context(), ada, c.ID); !errors.Is(err, fault.Conflict) {
			t.Errorf("again: %v", err)
		}
		if !slices.Equal(woken, []int64{d.Num, d.Num}) {
			t.Errorf("woken %v", woken)
		}
		h.answer(d, c.ID, wire.CommandDone) // it had been on its way
		if got := h.get(c.ID); got.State != Done || !got.Late {
			t.Errorf("%s, late %v", got.State, got.Late)
		}
	})
}

func TestDeviceHasABoundOfOpenCommands(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		var first Command
		for i := range MaxOpen {
			c := h.give(d, "ping")
			if i == 0 {
				first = c
			}
			h.clock.pass(time.Millisecond)
		}
		if _, err := h.room.Give(t.Context(), ada, string(d.ID), Wish{Name: "ping"}); !errors.Is(err, fault.Conflict) {
			t.Fatalf("one more: %v", err)
		}
		h.answer(d, first.ID, wire.CommandDone)
		h.give(d, "ping")
	})
}

func TestStageDecidesWhichCommandsADeviceGets(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		reboot := h.give(d, "reboot")
		d = h.move(d, device.Quarantined)
		ping := h.give(d, "ping")
		if _, err := h.room.Give(t.Context(), ada, string(d.ID), Wish{Name: "reboot"}); !errors.Is(err, fault.Conflict) {
			t.Errorf("reboot in quarantine: %v", err)
		}
		h.same(h.waiting(d), []string{ping.ID}, "in quarantine")
		d = h.move(d, device.Active)
		if got := h.waiting(d); len(got) != 2 {
			t.Errorf("back in service: %q", got)
		}
		d = h.move(d, device.Retired)
		h.same(h.waiting(d), []string{}, "retired")
		if got := h.get(reboot.ID); got.State != Cancelled || got.Cause != "the device is retired" {
			t.Errorf("after retirement: %s %q", got.State, got.Cause)
		}
		if _, err := h.room.Give(t.Context(), ada, string(d.ID), Wish{Name: "ping"}); !errors.Is(err, fault.Conflict) {
			t.Errorf("ping to a retired one: %v", err)
		}
		h.move(d, device.Disposed)
		if _, err := h.room.Get(t.Context(), ada, ping.ID); !errors.Is(err, fault.NotFound) {
			t.Errorf("history of a disposed device: %v", err)
		}
	})
}

func TestWrongWishesAreRefusedByField(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(nil)
	long := json.RawMessage(`"` + strings.Repeat("x", wire.MaxCommandBytes) + `"`)
	for field, w := range map[string]Wish{
		"body.name":             {Name: "rm -rf /"},
		"body.params":           {Name: "ping", Params: json.RawMessage(`{"a":`)},
		"body.deadline_seconds": {Name: "ping", Deadline: 8 * 24 * time.Hour},
	} {
		_, err := h.room.Give(t.Context(), ada, string(d.ID), w)
		var bad *fault.Invalid
		if !errors.As(err, &bad) || len(bad.Fields) != 1 || bad.Fields[0].Location != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := h.room.Give(t.Context(), ada, string(d.ID), Wish{Name: "ping", Params: long}); !errors.Is(err, fault.Unprocessable) {
		t.Errorf("too long: %v", err)
	}
}

func TestScopeAndTenantHideCommands(t *testing.T) {
	each(t, func(h *house) {
		berlin, paris := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "paris"})
		h.give(berlin, "ping")
		c := h.give(paris, "ping")
		narrow, stranger := ada, ada
		narrow.Scope.Selector = device.MustSelector("site=berlin")
		stranger.Scope.Tenant = "other"
		for name, who := range map[string]httpapi.Principal{"narrow": narrow, "stranger": stranger} {
			for what, try := range map[string]func() error{
				"give": func() error {
					_, err := h.room.Give(t.Context(), who, string(paris.ID), Wish{Name: "ping"})
					return err
				},
				"get":    func() error { _, err := h.room.Get(t.Context(), who, c.ID); return err },
				"wait":   func() error { _, err := h.room.Wait(t.Context(), who, c.ID, time.Minute); return err },
				"cancel": func() error { _, err := h.room.Cancel(t.Context(), who, c.ID); return err },
				"list":   func() error { _, _, err := h.room.List(t.Context(), who, Filter{Device: string(paris.ID)}); return err },
			} {
				if err := try(); !errors.Is(err, fault.NotFound) {
					t.Errorf("%s may %s: %v", name, what, err)
				}
			}
		}
		list, _, err := h.room.List(t.Context(), narrow, Filter{Limit: 10})
		if err != nil || len(list) != 1 || list[0].Device != berlin.ID {
			t.Errorf("narrow list %v, %v", list, err)
		}
		if list, _, err := h.room.List(t.Context(), stranger, Filter{Limit: 10}); err != nil || len(list) != 0 {
			t.Errorf("stranger's list %v, %v", list, err)
		}
	})
}

func TestListPagesAndFilters(t *testing.T) {
	each(t, func(h *house) {
		d, other := h.device(nil), h.device(nil)
		var want []string
		for i := range 7 {
			c := h.give(d, []string{"ping", "report"}[i%2])
			want = append(want, c.ID)
			if i%3 == 0 {
				h.give(other, "ping")
			}
			if i%2 == 0 {
				h.answer(d, c.ID, wire.CommandDone)
			}
			h.clock.pass(time.Second)
		}
		slices.Reverse(want)
		var got []string
		f := Filter{Device: string(d.ID), Limit: 3}
		for {
			list, next, err := h.room.List(t.Context(), ada, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range list {
				got = append(got, c.ID)
				if c.Params != nil || c.Output != nil {
					t.Error("a list has bodies")
				}
			}
			if f.Cursor = next; next == "" {
				break
			}
		}
		h.same(got, want, "pages")
		for _, f := range []struct {
			Filter
			n int
		}{{Filter{}, 10}, {Filter{State: "done"}, 4}, {Filter{State: "waiting", Name: "ping"}, 3}, {Filter{Name: "report"}, 3}, {Filter{Device: string(d.ID), State: "done"}, 4}} {
			f.Limit = 100
			if list, _, err := h.room.List(t.Context(), ada, f.Filter); err != nil || len(list) != f.n {
				t.Errorf("%+v: %d, %v; want %d", f.Filter, len(list), err, f.n)
			}
		}
		if _, _, err := h.room.List(t.Context(), ada, Filter{State: "lost"}); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("unknown state: %v", err)
		}
	})
}

func TestOldCommandsAreForgotten(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		old := h.give(d, "ping")
		h.answer(d, old.ID, wire.CommandDone)
		h.clock.pass(KeepFinished + time.Hour)
		young := h.give(d, "ping")
		if err := h.room.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := h.room.Get(t.Context(), ada, old.ID); !errors.Is(err, fault.NotFound) {
			t.Errorf("old one: %v", err)
		}
		h.get(young.ID)
		for range keepPerDevice + MaxOpen + 20 {
			h.clock.pass(time.Millisecond)
			h.answer(d, h.give(d, "ping").ID, wire.CommandDone)
		}
		list, _, err := h.room.List(t.Context(), ada, Filter{Limit: 1000})
		if err != nil || len(list) > keepPerDevice+MaxOpen+1 {
			t.Errorf("%d commands are kept, %v", len(list), err)
		}
		h.get(young.ID) // open ones are never forgotten
	})
}

func TestTenantMayGiveOnlySoManyCommands(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	h.room.cfg.Rate, h.room.rate.rate = Rate{PerSecond: 1, Burst: 2}, Rate{PerSecond: 1, Burst: 2}
	d := h.device(nil)
	h.give(d, "ping")
	h.give(d, "ping")
	_, err := h.room.Give(t.Context(), ada, string(d.ID), Wish{Name: "ping"})
	var later *httpapi.Later
	if !errors.As(err, &later) || !errors.Is(err, fault.TooMany) || later.After != time.Second {
		t.Fatalf("third: %v", err)
	}
	h.clock.pass(time.Second)
	h.give(d, "ping")
}

func TestSelectionIsPreviewedAndConfirmed(t *testing.T) {
	each(t, func(h *house) {
		var berlin []device.Device
		for range 5 {
			berlin = append(berlin, h.device(map[string]string{"site": "berlin"}))
		}
		paris := h.device(map[string]string{"site": "paris"})
		h.move(berlin[4], device.Quarantined)
		sel, w := Selection{Group: "berlin"}, Wish{Name: "reboot"}
		p, err := h.room.PreviewGive(t.Context(), ada, sel, w)
		if err != nil || p.Devices != 4 || p.Skips != 1 || len(p.Examples) != 4 || p.Skipped[0].Device != berlin[4].ID || p.Looks || p.Selector != "site=berlin" {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := h.room.GiveMany(t.Context(), ada, sel, w, 5); !errors.Is(err, fault.Conflict) {
			t.Errorf("wrong number: %v", err)
		}
		var woken []int64
		defer h.room.Watch(func(num int64) { woken = append(woken, num) })()
		b, err := h.room.GiveMany(t.Context(), ada, sel, w, 4)
		if err != nil || b.Devices != 4 || len(woken) != 4 {
			t.Fatalf("%+v, %v; woken %v", b, err, woken)
		}
		h.same(h.waiting(paris), []string{}, "not selected")
		ids := h.waiting(berlin[0])
		h.answer(berlin[0], ids[0], wire.CommandFailed)
		b, err = h.room.Batch(t.Context(), ada, b.ID)
		if err != nil || b.States["failed"] != 1 || b.States["waiting"] != 3 {
			t.Errorf("%+v, %v", b, err)
		}
		elsewhere := ada
		elsewhere.Scope.Selector = device.MustSelector("site=paris")
		if _, err := h.room.Batch(t.Context(), elsewhere, b.ID); !errors.Is(err, fault.NotFound) {
			t.Errorf("batch from another scope: %v", err)
		}
		if p, err := h.room.PreviewGive(t.Context(), elsewhere, sel, w); err != nil || p.Devices != 0 {
			t.Errorf("preview from another scope: %+v, %v", p, err)
		}
		if n, err := h.room.CancelBatch(t.Context(), ada, b.ID); err != nil || n != 3 {
			t.Errorf("cancelled %d, %v", n, err)
		}
		if _, err := h.room.PreviewGive(t.Context(), ada, Selection{Group: "rome"}, w); !errors.Is(err, fault.NotFound) {
			t.Errorf("unknown group: %v", err)
		}
		if _, err := h.room.PreviewGive(t.Context(), ada, Selection{Group: "berlin", Selector: "a=b"}, w); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("both: %v", err)
		}
	})
}

// run runs the room until the test ends.
func (h *house) run(room *Service) {
	h.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- room.Run(ctx) }()
	h.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			h.Error(err)
		}
	})
}

func (h *house) until(what string, ok func() bool) {
	h.Helper()
	look, end := time.NewTicker(5*time.Millisecond), time.NewTimer(20*time.Second)
	defer look.Stop()
	defer end.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-end.C:
			h.Fatalf("not in time: %s", what)
		}
	}
}

func TestOtherNodesAreWoken(t *testing.T) {
	each(t, func(h *house) {
		b, err := bus.Start(bus.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		here, there := h.node(b), h.node(b)
		h.run(here)
		h.run(there)
		d := h.device(nil)
		var mu sync.Mutex
		woken := 0
		t.Cleanup(there.Watch(func(num int64) {
			mu.Lock()
			defer mu.Unlock()
			if num == d.Num {
				woken++
			}
		}))
		var c Command
		h.until("the other node is woken", func() bool { // it may not have subscribed yet
			if c, err = here.Give(t.Context(), ada, string(d.ID), Wish{Name: "ping"}); err != nil {
				t.Fatal(err)
			}
			h.answer(d, h.waiting(d)[0], wire.CommandDone)
			mu.Lock()
			defer mu.Unlock()
			return woken > 0
		})
		if c, err = here.Give(t.Context(), ada, string(d.ID), Wish{Name: "ping"}); err != nil {
			t.Fatal(err)
		}
		got := make(chan Command, 1)
		go func() {
			c, err := here.Wait(t.Context(), ada, c.ID, time.Minute)
			if err != nil {
				t.Error(err)
			}
			got <- c
		}()
		h.until("somebody waits", func() bool { here.results.mu.Lock(); defer here.results.mu.Unlock(); return here.results.n == 1 })
		if err := there.Result(t.Context(), d, c.ID, wire.RemoteResult{State: wire.CommandDone}); err != nil {
			t.Fatal(err)
		}
		if c := <-got; c.State != Done {
			t.Errorf("waited for %s", c.State)
		}
	})
}

func TestWaitingEndsWithItsTimeAndWithTheServer(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	c := h.give(h.device(nil), "ping")
	got, err := h.room.Wait(t.Context(), ada, c.ID, time.Millisecond)
	if err != nil || got.State != Waiting {
		t.Errorf("after its time: %s, %v", got.State, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran, waited := make(chan error, 1), make(chan error, 1)
	go func() { ran <- h.room.Run(ctx) }()
	go func() { _, err := h.room.Wait(t.Context(), ada, c.ID, time.Hour); waited <- err }()
	h.until("somebody waits", func() bool { h.room.results.mu.Lock(); defer h.room.results.mu.Unlock(); return h.room.results.n == 1 })
	stop()
	if err := errors.Join(<-ran, <-waited); err != nil {
		t.Error(err)
	}
}

func TestRunExpiresAndNotesDelivery(t *testing.T) {
	each(t, func(h *house) {
		h.room.now = time.Now
		h.run(h.room)
		d := h.device(nil)
		c := h.give(d, "ping")
		h.waiting(d)
		h.until("delivered", func() bool { return h.get(c.ID).State == Delivered })
		h.write(func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "UPDATE remote_command SET deadline = $1", sqldb.Micros(time.Now()))
			return err
		})
		h.until("expired", func() bool { return h.get(c.ID).State == Expired })
	})
}
