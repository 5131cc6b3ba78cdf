package registry_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

var (
	start    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	operator = device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "ada"}
	tables   = []sqldb.Migration{ledger.Migration(), registry.Migration()}
)

// house is a registry with a ledger on a database of its own.
type house struct {
	*testing.T
	db  *sqldb.DB
	l   *ledger.Ledger
	s   *registry.Service
	cfg registry.Config
}

func newHouse(t *testing.T, db *sqldb.DB) *house {
	h := &house{T: t, db: db, l: ledgertest.New(t, db)}
	h.cfg = registry.Config{DB: db, Ledger: h.l, Now: func() time.Time { return start }}
	h.s = registry.New(h.cfg)
	return h
}

func each(t *testing.T, test func(h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(newHouse(t, db)) })
}

// try runs one change in a transaction of its own.
func (h *house) try(fn func(tx *sqldb.Tx) (device.Device, error)) (d device.Device, err error) {
	h.Helper()
	err = h.db.Write(context.Background(), func(tx *sqldb.Tx) (err error) {
		d, err = fn(tx)
		return err
	})
	return d, err
}

// do is try for what must succeed.
func (h *house) do(fn func(tx *sqldb.Tx) (device.Device, error)) device.Device {
	h.Helper()
	d, err := h.try(fn)
	if err != nil {
		h.Fatal(err)
	}
	return d
}

func (h *house) tryCreate(n device.New) (device.Device, error) {
	h.Helper()
	if n.Tenant == "" {
		n.Tenant = "default"
	}
	if n.Reason == "" {
		n.Reason = "test"
	}
	if n.Stage == "" {
		n.Stage = device.Received
	}
	return h.try(func(tx *sqldb.Tx) (device.Device, error) { return h.s.Create(h.Context(), tx, operator, n) })
}

func (h *house) create(n device.New) device.Device {
	h.Helper()
	d, err := h.tryCreate(n)
	if err != nil {
		h.Fatal(err)
	}
	return d
}

func (h *house) tryMove(num int64, to device.Stage) (device.Device, error) {
	h.Helper()
	return h.try(func(tx *sqldb.Tx) (device.Device, error) {
		return h.s.Move(h.Context(), tx, operator, device.Move{Num: num, To: to, Reason: "because of " + string(to)})
	})
}

func (h *house) move(num int64, path ...device.Stage) (d device.Device) {
	h.Helper()
	var err error
	for _, to := range path {
		if d, err = h.tryMove(num, to); err != nil {
			h.Fatal(err)
		}
	}
	return d
}

func (h *house) counts(scope device.Scope) map[device.Stage]int64 {
	h.Helper()
	c, err := h.s.Counts(h.Context(), h.db, scope)
	if err != nil {
		h.Fatal(err)
	}
	return c
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

func TestCreatedDeviceIsReadBackAndInTheLedger(t *testing.T) {
	each(t, func(h *house) {
		made := h.create(device.New{Serial: " SN-1 ", Model: "mod-1", Name: "Pump", Labels: map[string]string{"site": "berlin"}})
		for name, read := range map[string]func() (device.Device, error){
			"ID":     func() (device.Device, error) { return h.s.ByID(h.Context(), h.db, "default", made.ID) },
			"number": func() (device.Device, error) { return h.s.ByNum(h.Context(), h.db, made.Num) },
			"serial": func() (device.Device, error) { return h.s.BySerial(h.Context(), h.db, "default", "SN-1") },
		} {
			d, err := read()
			if err != nil || fmt.Sprint(d) != fmt.Sprint(made) {
				t.Errorf("by %s: %+v, %v; want %+v", name, d, err, made)
			}
		}
		if made.Serial != "SN-1" || made.Stage != device.Received || made.Revision != 1 || !made.Created.Equal(start) {
			t.Errorf("created %+v", made)
		}
		events := ledgertest.Events(t, h.l, ledger.Filter{Device: made.ID})
		if len(events) != 1 || events[0].Kind != "device.created" || events[0].Actor != operator || !strings.Contains(string(events[0].Data), `"SN-1"`) {
			t.Errorf("events %+v", events)
		}
	})
}

func TestWrongNewDevicesAreRefusedFieldByField(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	tests := []struct {
		name  string
		n     device.New
		field string
	}{
		{"stage", device.New{Stage: device.Active, Serial: "x"}, "body.stage"},
		{"serial", device.New{Serial: "a b"}, "body.serial"},
		{"no serial", device.New{Stage: device.Received}, "body.serial"},
		{"name", device.New{Serial: "x", Name: "two\nlines"}, "body.name"},
		{"long name", device.New{Serial: "x", Name: strings.Repeat("n", 121)}, "body.name"},
		{"labels", device.New{Serial: "x", Labels: map[string]string{"a b": "c"}}, "body.labels"},
		{"tenant", device.New{Serial: "x", Tenant: "Not A Tenant"}, "body.tenant"},
		{"reason", device.New{Serial: "x", Reason: " "}, "body.reason"},
	}
	for _, tt := range tests {
		_, err := h.tryCreate(tt.n)
		var wrong *fault.Invalid
		if !errors.As(err, &wrong) || wrong.Fields[0].Location != tt.field {
			t.Errorf("%s: %v, want a refusal of %s", tt.name, err, tt.field)
		}
	}
	if c := h.counts(device.Scope{Tenant: "default"}); len(c) != 0 {
		t.Errorf("refused devices are counted: %v", c)
	}
}

func TestSerialNumberIsUniquePerModelAndTenant(t *testing.T) {
	each(t, func(h *house) {
		first := h.create(device.New{Serial: "1", Model: "mod-a"})
		second := h.create(device.New{Serial: "1", Model: "mod-b"})
		other := h.create(device.New{Serial: "1", Model: "mod-a", Tenant: "other"})
		h.create(device.New{Stage: device.Ordered, Model: "mod-a"})
		h.create(device.New{Stage: device.Ordered, Model: "mod-a"}) // no serial number yet: no conflict

		_, err := h.tryCreate(device.New{Serial: "1", Model: "mod-a"})
		wantFault(t, err, fault.Conflict, string(first.ID), "mod-a", "received")
		_, err = h.s.BySerial(h.Context(), h.db, "default", "1")
		wantFault(t, err, fault.Conflict, string(first.ID), string(second.ID))
		if d, err := h.s.BySerial(h.Context(), h.db, "other", "1"); err != nil || d.ID != other.ID {
			t.Errorf("other tenant: %s, %v", d.ID, err)
		}
		_, err = h.s.BySerial(h.Context(), h.db, "default", "2")
		wantFault(t, err, fault.NotFound)
		_, err = h.s.ByID(h.Context(), h.db, "other", first.ID)
		wantFault(t, err, fault.NotFound, string(first.ID))
	})
}

func TestConflictInsideOfATransactionLeavesItUsable(t *testing.T) {
	each(t, func(h *house) {
		h.create(device.New{Serial: "1"})
		err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error {
			n := device.New{Tenant: "default", Serial: "1", Stage: device.Received, Reason: "twice"}
			if _, err := h.s.Create(h.Context(), tx, operator, n); !errors.Is(err, fault.Conflict) {
				return fmt.Errorf("second device: %w", err)
			}
			n.Serial = "2"
			_, err := h.s.Create(h.Context(), tx, operator, n)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestDeviceWalksThroughItsWholeLife(t *testing.T) {
	each(t, func(h *house) {
		d := h.create(device.New{Stage: device.Ordered, Model: "mod-a"})
		_, err := h.tryMove(d.Num, device.Received)
		wantFault(t, err, fault.Conflict, "serial number is not known")
		d = h.do(func(tx *sqldb.Tx) (device.Device, error) {
			return h.s.AssignSerial(h.Context(), tx, operator, d.Num, "SN-9")
		})
		if d.Serial != "SN-9" || d.Revision != 2 {
			t.Fatalf("after the serial number: %+v", d)
		}
		d = h.move(d.Num, device.Received, device.Staged, device.Enrolled, device.Active, device.Quarantined,
			device.Active, device.Retired, device.Disposed)
		if d.Revision != 10 || d.Reason != "because of disposed" {
			t.Errorf("at the end: %+v", d)
		}
		kinds := strings.Join(ledgertest.Kinds(t, h.l, d.ID), " ")
		if want := "device.created device.identified" + strings.Repeat(" device.moved", 8); kinds != want {
			t.Errorf("ledger has %s, want %s", kinds, want)
		}
		if c := h.counts(device.Scope{Tenant: "default"}); !maps.Equal(c, map[device.Stage]int64{device.Disposed: 1}) {
			t.Errorf("counts %v", c)
		}
	})
}

func TestAssigningASerialNumberTwiceChangesNothing(t *testing.T) {
	each(t, func(h *house) {
		h.create(device.New{Serial: "taken", Model: "mod-a"})
		d := h.create(device.New{Stage: device.Ordered, Model: "mod-a"})
		assign := func(serial string) (device.Device, error) {
			return h.try(func(tx *sqldb.Tx) (device.Device, error) {
				return h.s.AssignSerial(h.Context(), tx, operator, d.Num, serial)
			})
		}
		_, err := assign("taken")
		wantFault(t, err, fault.Conflict, "taken")
		_, err = assign("no good")
		wantFault(t, err, fault.Unprocessable)
		for range 2 {
			if got, err := assign("SN-1"); err != nil || got.Revision != 2 {
				t.Fatalf("%+v, %v", got, err)
			}
		}
		_, err = assign("SN-2")
		wantFault(t, err, fault.Conflict, "SN-1")
	})
}

func TestRefusedMoveListsEverythingThatIsMissingAndChangesNothing(t *testing.T) {
	each(t, func(h *house) {
		guard := func(name, missing string) registry.Guard {
			return registry.Guard{Name: name, Check: func(_ context.Context, _ sqldb.Reader, _ device.Device, to device.Stage) (string, error) {
				if to == device.Staged {
					return missing, nil
				}
				return "", nil
			}}
		}
		h.cfg.Guards = []registry.Guard{guard("licence", "a licence is not assigned"), guard("ok", ""), guard("hardening", "two tests failed")}
		h.s = registry.New(h.cfg)
		d := h.create(device.New{Serial: "1"})
		_, err := h.tryMove(d.Num, device.Staged)
		wantFault(t, err, fault.Conflict, "a licence is not assigned; two tests failed")
		wantFault(t, err, device.ErrMove)
		_, err = h.tryMove(d.Num, device.Active)
		wantFault(t, err, fault.Conflict, "received → active")
		_, err = h.tryMove(d.Num, device.Received)
		wantFault(t, err, fault.Conflict, "is received already")
		_, err = h.tryMove(4711, device.Received)
		wantFault(t, err, fault.NotFound)
		if now, _ := h.s.ByNum(h.Context(), h.db, d.Num); now.Revision != 1 || now.Stage != device.Received {
			t.Errorf("refused moves left %+v", now)
		}
		if kinds := ledgertest.Kinds(t, h.l, d.ID); len(kinds) != 1 {
			t.Errorf("refused moves are in the ledger: %v", kinds)
		}
		if d = h.move(d.Num, device.Retired); d.Stage != device.Retired {
			t.Errorf("a move that the guards have nothing against: %+v", d)
		}
	})
}

func TestFailingGuardOrListenerUndoesTheMove(t *testing.T) {
	broken := errors.New("broken")
	for name, cfg := range map[string]registry.Config{
		"guard": {Guards: []registry.Guard{{Name: "g", Check: func(context.Context, sqldb.Reader, device.Device, device.Stage) (string, error) {
			return "", broken
		}}}},
		"listener": {Moved: []registry.Moved{func(context.Context, *sqldb.Tx, device.Device, device.Stage) error { return broken }}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, sqldbtest.SQLite(t, tables...))
			cfg.DB, cfg.Ledger = h.db, h.l
			h.s = registry.New(cfg)
			d := h.create(device.New{Serial: "1"})
			if _, err := h.tryMove(d.Num, device.Staged); !errors.Is(err, broken) || errors.Is(err, fault.Conflict) {
				t.Errorf("error %v, want an internal one", err)
			}
			if now, _ := h.s.ByNum(h.Context(), h.db, d.Num); now.Stage != device.Received {
				t.Errorf("device is %s", now.Stage)
			}
		})
	}
}

func TestListenersSeeTheMoveInItsTransaction(t *testing.T) {
	each(t, func(h *house) {
		var seen []string
		h.cfg.Moved = []registry.Moved{func(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
			now, err := h.s.ByNum(ctx, tx, d.Num)
			seen = append(seen, fmt.Sprintf("%s→%s", from, now.Stage))
			return err
		}}
		h.s = registry.New(h.cfg)
		h.move(h.create(device.New{Serial: "1"}).Num, device.Staged)
		if got := strings.Join(seen, " "); got != "received→staged" {
			t.Errorf("seen %s", got)
		}
	})
}

func TestOfConcurrentMovesOneWins(t *testing.T) {
	each(t, func(h *house) {
		d := h.create(device.New{Serial: "1"})
		const n = 8
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { _, errs[i] = h.tryMove(d.Num, device.Staged) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, fault.Conflict) {
				t.Errorf("loser got %v", err)
			}
		}
		if won != 1 {
			t.Errorf("%d moves won", won)
		}
		if c := h.counts(device.Scope{Tenant: "default"}); c[device.Staged] != 1 || len(c) != 1 {
			t.Errorf("counts %v", c)
		}
	})
}

func TestConcurrentCreationsOfOneSerialNumberGiveOneDevice(t *testing.T) {
	each(t, func(h *house) {
		const n = 8
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { _, errs[i] = h.tryCreate(device.New{Serial: "same", Labels: map[string]string{"a": "b"}}) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, fault.Conflict) {
				t.Errorf("loser got %v", err)
			}
		}
		if c := h.counts(device.Scope{Tenant: "default"}); won != 1 || c[device.Received] != 1 {
			t.Errorf("%d creations won, counts %v", won, c)
		}
	})
}

func TestLabelsAndNameChangeWithOneRevisionAndOnlyWhenTheyDiffer(t *testing.T) {
	each(t, func(h *house) {
		d := h.create(device.New{Serial: "1", Labels: map[string]string{"site": "berlin", "old": "x"}})
		name := " Pump 7 "
		change := registry.Change{Name: &name, Set: map[string]string{"ring": "canary", "site": "berlin"}, Remove: []string{"old", "never-there"}}
		for range 2 {
			got := h.do(func(tx *sqldb.Tx) (device.Device, error) {
				return h.s.Describe(h.Context(), tx, operator, d.Num, change)
			})
			if got.Name != "Pump 7" || got.Revision != 2 || device.FormatLabels(got.Labels) != "ring=canary,site=berlin" {
				t.Fatalf("described %+v", got)
			}
		}
		got := h.do(func(tx *sqldb.Tx) (device.Device, error) {
			return h.s.SetLabels(h.Context(), tx, operator, d.Num, map[string]string{"a": "1"})
		})
		if got.Revision != 3 || device.FormatLabels(got.Labels) != "a=1" {
			t.Fatalf("labels set: %+v", got)
		}
		kinds := strings.Join(ledgertest.Kinds(t, h.l, d.ID), " ")
		if want := "device.created device.renamed device.labeled device.labeled"; kinds != want {
			t.Errorf("ledger has %s, want %s", kinds, want)
		}
		_, err := h.try(func(tx *sqldb.Tx) (device.Device, error) {
			return h.s.SetLabels(h.Context(), tx, operator, d.Num, map[string]string{"a": "not a value"})
		})
		wantFault(t, err, fault.Unprocessable, "a=")
	})
}

func TestLabelsInUseAreListedWithTheirCounts(t *testing.T) {
	each(t, func(h *house) {
		for i, site := range []string{"berlin", "berlin", "paris"} {
			h.create(device.New{Serial: fmt.Sprint(i), Labels: map[string]string{"site": site, "tier": "edge"}})
		}
		gone := h.create(device.New{Serial: "gone", Labels: map[string]string{"site": "rome", "zz": ""}})
		h.do(func(tx *sqldb.Tx) (device.Device, error) {
			return h.s.SetLabels(h.Context(), tx, operator, gone.Num, nil)
		})
		h.create(device.New{Serial: "1", Tenant: "other", Labels: map[string]string{"secret": "x"}})

		keys, err := h.s.LabelKeys(h.Context(), h.db, "default")
		if err != nil || strings.Join(keys, " ") != "site tier" {
			t.Errorf("keys %v, %v", keys, err)
		}
		values, err := h.s.LabelValues(h.Context(), h.db, "default", "site", nil, 10)
		if err != nil || fmt.Sprint(values) != "[{berlin 2} {paris 1}]" {
			t.Errorf("values %v, %v", values, err)
		}
		after := "berlin"
		if values, err = h.s.LabelValues(h.Context(), h.db, "default", "site", &after, 10); err != nil || fmt.Sprint(values) != "[{paris 1}]" {
			t.Errorf("values behind berlin %v, %v", values, err)
		}
		// Who sees a part of the fleet learns nothing of the rest.
		h.create(device.New{Serial: "c", Labels: map[string]string{"site": "paris", "customer": "secret"}})
		part := device.Scope{Tenant: "default", Selector: device.MustSelector("site=berlin")}
		if keys, err = h.s.LabelKeysWithin(h.Context(), h.db, part); err != nil || strings.Join(keys, " ") != "site tier" {
			t.Errorf("keys of a part %v, %v", keys, err)
		}
		if values, err = h.s.LabelValuesWithin(h.Context(), h.db, part, registry.LabelPage{Key: "site", Limit: 10}); err != nil || fmt.Sprint(values) != "[{berlin 2}]" {
			t.Errorf("values of a part %v, %v", values, err)
		}
		if values, err = h.s.LabelValuesWithin(h.Context(), h.db, part, registry.LabelPage{Key: "customer", Limit: 10}); err != nil || len(values) != 0 {
			t.Errorf("values of others %v, %v", values, err)
		}
	})
}
