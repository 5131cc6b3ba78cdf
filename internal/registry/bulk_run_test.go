package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
)

// crowd is more devices than a bulk change makes its caller wait for.
const crowd = 1200

// crowd makes many devices of the batch a; every hundredth has a serial number that ends in 7.
func (h *house) crowd() []device.Device {
	h.Helper()
	list := make([]device.New, crowd)
	for i := range list {
		serial := fmt.Sprintf("S%05d0", i)
		if i%100 == 99 {
			serial = fmt.Sprintf("S%05d7", i)
		}
		list[i] = device.New{Tenant: "default", Serial: serial, Stage: device.Received, Reason: "test", Labels: map[string]string{"batch": "a"}}
	}
	var devices []device.Device
	if err := h.db.Write(h.Context(), func(tx *sqldb.Tx) (err error) {
		devices, err = h.s.CreateMany(h.Context(), tx, operator, list)
		return err
	}); err != nil {
		h.Fatal(err)
	}
	return devices
}

// running goes on with long work until the test ends.
func (h *house) running() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.s.Run(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.Error(err)
		}
	})
}

func (h *house) untilEnded(dk *registry.Desk, id string) registry.BulkRun {
	h.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); ; <-tick.C {
		run, err := dk.BulkRunOf(context.Background(), everything, id)
		if err != nil || time.Now().After(deadline) {
			h.Fatalf("run %+v, %v", run, err)
		}
		if !run.Ended.IsZero() {
			return run
		}
	}
}

func (h *house) wantCounted() {
	h.Helper()
	if wrong, err := h.s.CheckCounts(context.Background(), h.db); err != nil || len(wrong) > 0 {
		h.Errorf("kept counts: %q, %v", wrong, err)
	}
}

func TestMoveOfManyDevicesIsResumedAfterACrashAndListsWhoRefused(t *testing.T) {
	each(t, func(h *house) {
		ctx, crash := context.WithCancel(context.Background())
		defer crash()
		steps, late := 0, time.Duration(0)
		h.cfg.Now = func() time.Time { return start.Add(late) }
		h.cfg.Guards = []registry.Guard{{Name: "test", Check: func(_ context.Context, _ sqldb.Reader, d device.Device, _ device.Stage) (string, error) {
			if strings.HasSuffix(d.Serial, "7") {
				return "a licence is not assigned", nil
			}
			return "", nil
		}}}
		h.cfg.MovedMany = []registry.MovedMany{func(context.Context, *sqldb.Tx, []device.Moved) error {
			if steps++; steps == 2 {
				crash()
			}
			return nil
		}}
		h.s = registry.New(h.cfg)
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		devices := h.crowd()
		wish := registry.Bulk{Action: registry.MoveAction, To: device.Staged, Reason: "first batch", Filter: registry.Filter{Selector: device.MustSelector("batch=a")}}
		p := h.preview(dk, wish)
		if p.Total != crowd || p.Willing != crowd-crowd/100 {
			t.Fatalf("preview %d of %d", p.Willing, p.Total)
		}
		res, err := dk.Apply(ctx, boss, wish, p.Token)
		if err != nil || res.Run == nil || res.Run.Total != crowd || !res.Run.Ended.IsZero() || res.Run.Handled() == crowd {
			t.Fatalf("%+v, %v", res.Run, err)
		}
		if res.Run.Handled() == 0 {
			t.Error("nothing was done before the crash")
		}
		h.wantCounted()

		late = time.Minute // another node may take it over
		h.running()
		run := h.untilEnded(dk, res.Run.ID)
		if run.Done != crowd-crowd/100 || run.Refused != crowd/100 || len(run.Refusals) != crowd/100 || !strings.Contains(run.Refusals[0].Detail, "licence") {
			t.Errorf("%d done, %d refused, %+v", run.Done, run.Refused, run.Refusals)
		}
		if c := h.counts(everything); c[device.Staged] != run.Done || c[device.Received] != run.Refused {
			t.Errorf("counts %v", c)
		}
		h.wantCounted()
		if got := strings.Join(ledgertest.Kinds(t, h.l, devices[0].ID), " "); got != "device.created device.moved" {
			t.Errorf("events of a device: %s", got)
		}
		events := ledgertest.Events(t, h.l, ledger.Filter{Tenant: "default", Subject: run.ID})
		if len(events) != 2 || events[0].Kind != "device.bulk_begun" || events[1].Kind != "device.bulk_ended" {
			t.Errorf("events of the run: %+v", events)
		}
	})
}

func TestLabelsOfManyDevicesChangeInSteps(t *testing.T) {
	each(t, func(h *house) {
		h.s = registry.New(h.cfg)
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		devices := h.crowd()
		h.running()
		label := registry.Bulk{Action: registry.LabelAction, Labels: map[string]string{"ring": "late", "batch": "b"}, Filter: registry.Filter{Selector: device.MustSelector("batch=a")}}
		res, err := dk.Apply(t.Context(), boss, label, h.preview(dk, label).Token)
		if err != nil || res.Run == nil {
			t.Fatal(err)
		}
		if run := h.untilEnded(dk, res.Run.ID); run.Done != crowd || run.Refused != 0 {
			t.Errorf("%+v", run)
		}
		for _, sel := range []string{"batch=b", "ring=late", "batch=b,ring=late"} {
			if c := h.counts(device.Scope{Tenant: "default", Selector: device.MustSelector(sel)}); c[device.Received] != crowd {
				t.Errorf("%s has %v", sel, c)
			}
		}
		h.wantCounted()
		d, err := h.s.ByNum(t.Context(), h.db, devices[crowd/2].Num)
		if err != nil || d.Labels["batch"] != "b" || d.Revision != 2 {
			t.Errorf("%+v, %v", d, err)
		}
		unlabel := registry.Bulk{Action: registry.UnlabelAction, Keys: []string{"ring", "batch"}, Filter: registry.Filter{Selector: device.MustSelector("ring=late")}}
		if res, err = dk.Apply(t.Context(), boss, unlabel, h.preview(dk, unlabel).Token); err != nil || res.Run == nil {
			t.Fatal(err)
		}
		h.untilEnded(dk, res.Run.ID)
		if keys, err := h.s.LabelKeys(t.Context(), h.db, "default"); err != nil || len(keys) != 0 {
			t.Errorf("keys %q, %v", keys, err)
		}
		h.wantCounted()
	})
}

func TestDeviceThatARoomRefusesDoesNotStopTheOthers(t *testing.T) {
	each(t, func(h *house) {
		stubborn := int64(0)
		h.cfg.Moved = []registry.Moved{func(_ context.Context, _ *sqldb.Tx, d device.Device, _ device.Stage) error {
			if d.Num == stubborn {
				return fault.New(fault.Conflict, "a rehearsal is under way")
			}
			return nil
		}}
		h.s = registry.New(h.cfg)
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		stubborn = h.crowd()[50].Num
		h.running()
		wish := registry.Bulk{Action: registry.MoveAction, To: device.Staged, Reason: "x", Filter: registry.Filter{Stages: []device.Stage{device.Received}}}
		res, err := dk.Apply(t.Context(), boss, wish, h.preview(dk, wish).Token)
		if err != nil || res.Run == nil {
			t.Fatal(err)
		}
		run := h.untilEnded(dk, res.Run.ID)
		if run.Done != crowd-1 || run.Refused != 1 || !strings.Contains(run.Refusals[0].Detail, "a rehearsal is under way") {
			t.Errorf("%d done, %d refused, %+v", run.Done, run.Refused, run.Refusals)
		}
		h.wantCounted()
	})
}

func TestBulkRunOfAnotherScopeIsNotFound(t *testing.T) {
	each(t, func(h *house) {
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		h.crowd()
		h.running()
		wish := registry.Bulk{Action: registry.LabelAction, Labels: map[string]string{"x": "1"}, Filter: registry.Filter{Selector: device.MustSelector("batch=a")}}
		res, err := dk.Apply(t.Context(), boss, wish, h.preview(dk, wish).Token)
		if err != nil {
			t.Fatal(err)
		}
		for _, scope := range []device.Scope{{Tenant: "other"}, {Tenant: "default", Selector: device.MustSelector("site=berlin")}} {
			if _, err := dk.BulkRunOf(t.Context(), scope, res.Run.ID); !errors.Is(err, fault.NotFound) {
				t.Errorf("%v reads it: %v", scope, err)
			}
		}
		h.untilEnded(dk, res.Run.ID)
	})
}

func TestCountsThatComeToNothingAreRemoved(t *testing.T) {
	each(t, func(h *house) {
		var devices []device.Device
		for i := range 5 {
			devices = append(devices, h.create(device.New{Serial: fmt.Sprint(i), Labels: map[string]string{"address": fmt.Sprint("a", i)}}))
		}
		// Connections of their own, so that PostgreSQL counts in several shards.
		done := make(chan error)
		for _, d := range devices {
			go func() {
				done <- h.db.Write(context.Background(), func(tx *sqldb.Tx) error {
					_, err := h.s.SetLabels(context.Background(), tx, operator, d.Num, map[string]string{"site": "x"})
					return err
				})
			}()
		}
		for range devices {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if err := h.s.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		var rows int
		if err := h.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM registry_label_stage WHERE key = 'address'").Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows of counts of no device, %v", rows, err)
		}
		h.wantCounted()
	})
}
