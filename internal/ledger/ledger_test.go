package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// house is a ledger on a database of its own.
type house struct {
	*testing.T
	db  *sqldb.DB
	key *ledger.Key
	l   *ledger.Ledger
}

// each runs a test with a ledger on both engines.
func each(t *testing.T, test func(h house)) {
	t.Helper()
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration()}, func(t *testing.T, db *sqldb.DB) {
		key, err := ledger.GenerateKey(ledgertest.Origin)
		if err != nil {
			t.Fatal(err)
		}
		h := house{T: t, db: db, key: key}
		h.l = h.open(ledger.Config{})
		test(h)
	})
}

// open makes one more ledger on the same database, as another node has it.
func (h house) open(cfg ledger.Config) *ledger.Ledger {
	cfg.DB = h.db
	if cfg.Key == nil {
		cfg.Key = h.key
	}
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return start }
	}
	return ledger.New(cfg)
}

func event(kind string, d device.ID) ledger.Event {
	return ledger.Event{Tenant: "default", Kind: kind, Device: d, Actor: device.System("test")}
}

func (h house) append(events ...ledger.Event) {
	h.Helper()
	err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error { return h.l.Append(h.Context(), tx, events...) })
	if err != nil {
		h.Fatalf("append: %v", err)
	}
}

// fill appends n events and sequences them.
func (h house) fill(n int) {
	h.Helper()
	events := make([]ledger.Event, n)
	for i := range events {
		events[i] = event("test.counted", device.ID(fmt.Sprintf("dev-%016d", i%3)))
		events[i].Data = ledger.Facts(map[string]int{"n": i})
		events[i].Subject = fmt.Sprintf("thing-%d", i%2)
	}
	h.append(events...)
	h.sequence()
}

func (h house) sequence() {
	h.Helper()
	for {
		n, err := h.l.Sequence(h.Context())
		if err != nil {
			h.Fatalf("sequence: %v", err)
		}
		if n == 0 {
			return
		}
	}
}

func (h house) events(f ledger.Filter) []ledger.Event {
	h.Helper()
	events, _, err := h.l.Events(h.Context(), f)
	if err != nil {
		h.Fatalf("events: %v", err)
	}
	return events
}

func TestEventIsReadBackAsItWasAppended(t *testing.T) {
	each(t, func(h house) {
		in := ledger.Event{
			Tenant: "acme", Kind: "update.committed", Device: "dev-0123456789abcdef", Subject: "rel-1",
			Actor:  device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada <ada@example.org>"},
			Reason: "größer & besser \u2028", Data: []byte(`{ "b": 12345678901234567890, "a": "<x>\u0000" }`),
		}
		h.append(in)
		h.sequence()
		got := h.events(ledger.Filter{})
		if len(got) != 1 {
			t.Fatalf("%d events", len(got))
		}
		e := got[0]
		if !strings.HasPrefix(e.ID, "evt-") || e.Sequence != 0 || !e.At.Equal(start.Truncate(time.Microsecond)) {
			t.Errorf("ID %q, sequence %d, at %v", e.ID, e.Sequence, e.At)
		}
		if want := `{"a":"<x>\u0000","b":12345678901234567890}`; string(e.Data) != want {
			t.Errorf("data %s, want %s", e.Data, want)
		}
		if e.Reason != in.Reason || e.Actor != in.Actor || e.Tenant != in.Tenant || e.Kind != in.Kind || e.Device != in.Device || e.Subject != in.Subject {
			t.Errorf("got %+v", e)
		}
	})
}

func TestEventGoesWithItsTransaction(t *testing.T) {
	each(t, func(h house) {
		failed := errors.New("the change failed")
		err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error {
			if err := h.l.Append(h.Context(), tx, event("test.lost", "")); err != nil {
				return err
			}
			return failed
		})
		if !errors.Is(err, failed) {
			t.Fatal(err)
		}
		h.append(event("test.kept", ""))
		if kinds := ledgertest.Kinds(t, h.l, ""); !slices.Equal(kinds, []string{"test.kept"}) {
			t.Errorf("kinds %v", kinds)
		}
	})
}

func TestWrongEventIsRefusedWithItsWholeTransaction(t *testing.T) {
	each(t, func(h house) {
		for name, spoil := range map[string]func(*ledger.Event){
			"kind":          func(e *ledger.Event) { e.Kind = "Nonsense" },
			"kind too long": func(e *ledger.Event) { e.Kind = "a." + strings.Repeat("b", 100) },
			"tenant":        func(e *ledger.Event) { e.Tenant = "" },
			"actor":         func(e *ledger.Event) { e.Actor = device.Actor{} },
			"data no JSON":  func(e *ledger.Event) { e.Data = []byte("{") },
			"data a list":   func(e *ledger.Event) { e.Data = []byte("[1]") },
			"data twice":    func(e *ledger.Event) { e.Data = []byte("{}{}") },
			"data too long": func(e *ledger.Event) {
				e.Data = ledger.Facts(map[string]string{"x": strings.Repeat("y", ledger.MaxDataBytes)})
			},
			"subject": func(e *ledger.Event) { e.Subject = strings.Repeat("s", 1000) },
		} {
			bad := event("test.bad", "")
			spoil(&bad)
			err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error {
				return h.l.Append(h.Context(), tx, event("test.good", ""), bad)
			})
			if err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		if kinds := ledgertest.Kinds(t, h.l, ""); len(kinds) != 0 {
			t.Errorf("left behind: %v", kinds)
		}
	})
}

func TestReasonFromADeviceNeverBlocksItsEvent(t *testing.T) {
	each(t, func(h house) {
		e := event("test.failed", "")
		e.Reason = "\xff\x00" + strings.Repeat("ä", ledger.MaxReasonBytes)
		h.append(e)
		h.sequence()
		got := h.events(ledger.Filter{})[0].Reason
		if len(got) > ledger.MaxReasonBytes || !strings.HasPrefix(got, "\ufffd\ufffdää") || !strings.HasSuffix(got, "(cut)") {
			t.Errorf("%d bytes: %.20q … %q", len(got), got, got[len(got)-20:])
		}
		if _, err := h.l.Verify(h.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestFiltersPickTheirEvents(t *testing.T) {
	each(t, func(h house) {
		a, b := device.ID("dev-aaaaaaaaaaaaaaaa"), device.ID("dev-bbbbbbbbbbbbbbbb")
		events := []ledger.Event{event("update.started", a), event("update.committed", a), event("updates.other", b), event("device.moved", b), event("release.signed", "")}
		events[3].Actor = device.Actor{Kind: device.ActorAccount, ID: "acc-7"}
		events[4].Tenant, events[4].Subject = "other", "rel-1"
		h.append(events...)
		h.sequence()
		for _, c := range []struct {
			name string
			f    ledger.Filter
			want []int64
		}{
			{"all", ledger.Filter{}, []int64{0, 1, 2, 3, 4}},
			{"newest first", ledger.Filter{Newest: true}, []int64{4, 3, 2, 1, 0}},
			{"tenant", ledger.Filter{Tenant: "other"}, []int64{4}},
			{"device", ledger.Filter{Device: a}, []int64{0, 1}},
			{"kind", ledger.Filter{Kinds: []string{"update.committed"}}, []int64{1}},
			{"room", ledger.Filter{Kinds: []string{"update"}}, []int64{0, 1}},
			{"kinds of a tenant", ledger.Filter{Tenant: "default", Kinds: []string{"update", "device.moved"}}, []int64{0, 1, 3}},
			{"subject", ledger.Filter{Subject: "rel-1"}, []int64{4}},
			{"actor", ledger.Filter{Actor: "acc-7"}, []int64{3}},
			{"after", ledger.Filter{After: 3}, []int64{3, 4}},
			{"before", ledger.Filter{Before: 2, Newest: true}, []int64{1, 0}},
			{"nothing", ledger.Filter{Device: a, Kinds: []string{"release"}}, []int64{}},
		} {
			got := []int64{}
			for _, e := range h.events(c.f) {
				got = append(got, e.Sequence)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
	})
}

func TestPagesMeetWithoutGapOrOverlapInBothDirections(t *testing.T) {
	each(t, func(h house) {
		h.fill(23)
		for _, newest := range []bool{false, true} {
			var got []int64
			f := ledger.Filter{Limit: 5, Newest: newest}
			for {
				events, next, err := h.l.Events(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					got = append(got, e.Sequence)
				}
				if len(got) == 10 {
					h.append(event("test.late", "")) // what comes meanwhile must not shift pages
					h.sequence()
				}
				if next == "" {
					break
				}
				f.Cursor = next
			}
			if newest {
				slices.Reverse(got)
			}
			for i, seq := range got[:23] {
				if seq != int64(i) {
					t.Fatalf("newest %v: place %d holds %d: %v", newest, i, seq, got)
				}
			}
		}
	})
}

func TestForeignCursorIsRefused(t *testing.T) {
	each(t, func(h house) {
		h.fill(3)
		_, up, err := h.l.Events(t.Context(), ledger.Filter{Limit: 1})
		if err != nil || up == "" {
			t.Fatalf("cursor %q, error %v", up, err)
		}
		for _, f := range []ledger.Filter{{Cursor: "?"}, {Cursor: "AAAA"}, {Cursor: up, Newest: true}} {
			if _, _, err := h.l.Events(t.Context(), f); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("cursor %q: error %v", f.Cursor, err)
			}
		}
	})
}

func TestScopeHidesOtherDevicesEvents(t *testing.T) {
	each(t, func(h house) {
		l := h.open(ledger.Config{Devices: func(scope device.Scope) (string, []any) {
			return "SELECT CAST(? AS TEXT)", []any{"dev-" + strings.TrimPrefix(scope.Selector.String(), "only=")}
		}})
		h.append(event("test.mine", "dev-a"), event("test.theirs", "dev-b"), event("test.noones", ""))
		h.sequence()
		scope := device.Scope{Tenant: "default", Selector: device.MustSelector("only=a")}
		got, _, err := l.Events(t.Context(), l.Within(scope, ledger.Filter{}))
		if err != nil || len(got) != 1 || got[0].Kind != "test.mine" {
			t.Fatalf("got %v, error %v", got, err)
		}
		all, _, err := l.Events(t.Context(), l.Within(device.Scope{Tenant: "default"}, ledger.Filter{}))
		if err != nil || len(all) != 3 {
			t.Fatalf("got %v, error %v", all, err)
		}
		if _, err := l.ByID(t.Context(), scope, all[1].ID); !errors.Is(err, fault.NotFound) {
			t.Errorf("another's event by ID: %v", err)
		}
		if e, err := l.ByID(t.Context(), scope, all[0].ID); err != nil || e.Kind != "test.mine" {
			t.Errorf("own event by ID: %v, %v", e, err)
		}
		// Without the join nothing is shown rather than everything.
		if got, _, err := h.l.Events(t.Context(), h.l.Within(scope, ledger.Filter{})); err != nil || len(got) != 0 {
			t.Errorf("unjoined: %v, %v", got, err)
		}
	})
}

func TestWaitingPagesAreToldTogether(t *testing.T) {
	each(t, func(h house) {
		h.fill(1)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		done := make(chan error, 1)
		runCtx, stop := context.WithCancel(ctx)
		go func() { done <- h.l.Run(runCtx) }()
		heads := make(chan int64, 50)
		for range cap(heads) {
			go func() {
				head, err := h.l.Wait(ctx, 1)
				if err != nil {
					t.Errorf("wait: %v", err)
				}
				heads <- head
			}()
		}
		h.append(event("test.news", ""))
		for range cap(heads) {
			if head := <-heads; head != 2 {
				t.Errorf("head %d", head)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if _, err := h.l.Wait(runCtx, 2); !errors.Is(err, context.Canceled) {
			t.Errorf("wait after the end: %v", err)
		}
	})
}
