package update_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/update"
	"steward/internal/wire"
)

// many is how many devices the tests of long changes have: more than one transaction takes.
const many = 450

// fleet makes many devices in service; every third one has the label ring=early.
func (h *house) fleet() []device.Device {
	h.Helper()
	var devices []device.Device
	h.write(func(tx *sqldb.Tx) (err error) {
		ctx := context.Background()
		list := make([]device.New, many)
		for i := range list {
			list[i] = device.New{Tenant: tenant, Serial: fmt.Sprintf("S-%04d", i), Stage: device.Staged, Reason: "test"}
			if i%3 == 0 {
				list[i].Labels = map[string]string{"ring": "early"}
			}
		}
		if devices, err = h.reg.CreateMany(ctx, tx, operator, list); err != nil {
			return err
		}
		moves := make([]device.Move, many)
		for i, d := range devices {
			moves[i] = device.Move{Num: d.Num, To: device.Enrolled, Reason: "test"}
		}
		devices, err = h.reg.MoveMany(ctx, tx, operator, moves)
		return err
	})
	return devices
}

// running runs the room until the test ends.
func (h *house) running() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.Error(err)
		}
	})
}

// pass lets time go by, so that work that nobody was at is taken over.
func (h *house) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = h.clock.Add(d)
}

// until waits for the counters of an assignment.
func (h *house) until(a update.Assignment, want string) {
	h.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); ; <-tick.C {
		now, got := a0(h, a), ""
		for _, s := range update.States {
			if n := now.Counts[s]; n > 0 {
				got += fmt.Sprintf(", %s %d", s, n)
			}
		}
		if got = strings.TrimPrefix(got, ", "); got == want && now.Progress == nil {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("%q, want %q", got, want)
		}
	}
}

// abandoned assigns a release under a context that ends when it is decided, as the process would by a
// crash before the first step.
func (h *house) abandoned(name, version, selector string) update.Assignment {
	h.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h.releases.decided = cancel
	a, err := h.Assign(ctx, operator, all, update.NewAssignment{Release: name, Version: version, Selector: device.MustSelector(selector)})
	h.releases.decided = nil
	if err != nil {
		h.Fatal(err)
	}
	if a.Progress == nil || a.Progress.Done != 0 || a.Progress.Task != update.Assigning {
		h.Fatalf("progress %+v: want one that has not begun", a.Progress)
	}
	return a
}

func (h *house) wantCounted() {
	h.Helper()
	if wrong, err := h.CheckCounts(context.Background(), h.db); err != nil || len(wrong) > 0 {
		h.Errorf("kept counters: %q, %v", wrong, err)
	}
}

func TestAssignmentOfManyDevicesIsResumedAfterACrash(t *testing.T) {
	each(t, func(h *house) {
		devices := h.fleet()
		a := h.abandoned("app", "1.0", "")
		if a.Progress.Total != many {
			h.Errorf("total %d", a.Progress.Total)
		}
		if _, err := h.Retry(context.Background(), operator, all, a.ID, ""); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "of 450 devices") {
			h.Errorf("retry in between: %v", err)
		}
		h.pass(time.Minute)
		h.running()
		h.until(a, fmt.Sprintf("pending %d", many))
		h.wantAll([]device.Device{devices[0], devices[many/2], devices[many-1]}, "app 1.0#1")
		h.wantCounted()
	})
}

func TestNewerAssignmentIsNotTakenBackByTheStepsOfAnOlderOne(t *testing.T) {
	each(t, func(h *house) {
		devices := h.fleet()
		old := h.abandoned("app", "1.0", "")
		early := h.assign("app", "2.0", "ring=early")
		h.pass(time.Minute)
		h.running()
		h.until(early, "pending 150")
		h.until(old, "pending 300")
		h.wantAll([]device.Device{devices[0], devices[many-3]}, "app 2.0#1")
		h.wantAll([]device.Device{devices[1], devices[many-1]}, "app 1.0#1")
		h.wantCounted()
	})
}

func TestAssignmentThatIsOvertakenOrCancelledOnItsWayStops(t *testing.T) {
	each(t, func(h *house) {
		devices := h.fleet()
		old := h.abandoned("app", "1.0", "")
		newer := h.abandoned("app", "2.0", "")
		if now := a0(h, old); now.State != update.Overtaken || now.Progress != nil {
			h.Errorf("the older one is %s with %+v", now.State, now.Progress)
		}
		h.pass(time.Minute)
		h.running()
		h.until(newer, fmt.Sprintf("pending %d", many))
		h.report(progress(newer, 1, wire.UpdateCommitted, ""), devices[:10]...)
		gone, err := h.Cancel(context.Background(), operator, all, newer.ID, "wrong one")
		if err != nil || gone.State != update.CalledBack {
			h.Fatalf("%s, %v", gone.State, err)
		}
		h.until(newer, fmt.Sprintf("committed 10, cancelled %d", many-10))
		h.wantAll(devices[:10], "app 2.0#1")
		h.wantAll([]device.Device{devices[10], devices[many-1]}, "")
		h.wantCounted()
	})
}

func TestManyFailedDevicesTryAgainInSteps(t *testing.T) {
	each(t, func(h *house) {
		devices := h.fleet()
		a := h.assign("app", "1.0", "")
		h.running()
		h.until(a, fmt.Sprintf("pending %d", many))
		h.report(progress(a, 1, wire.UpdateFailed, "disk full"), devices[:300]...)
		h.report(progress(a, 1, wire.UpdateRolledBack, "no health"), devices[300:310]...)
		if n, err := h.Retry(context.Background(), operator, all, a.ID, "disk full"); err != nil || n != 300 {
			h.Fatalf("%d try again, %v", n, err)
		}
		h.until(a, fmt.Sprintf("pending %d, rolled_back 10", many-10))
		h.wantAll([]device.Device{devices[0], devices[299]}, "app 1.0#2")
		h.wantAll([]device.Device{devices[300], devices[many-1]}, "app 1.0#1")
		h.wantCounted()
	})
}

func TestDevicesBehindANumberArePagedByAssignmentAndState(t *testing.T) {
	each(t, func(h *house) {
		devices := h.fleet()
		a, tools := h.assign("app", "1.0", ""), h.assign("tools", "3", "ring=early")
		h.running()
		h.until(a, fmt.Sprintf("pending %d", many))
		h.until(tools, "pending 150")
		h.report(progress(a, 1, wire.UpdateCommitted, ""), devices[:40]...)
		for _, tt := range []struct {
			f    update.DeviceFilter
			want int
		}{
			{update.DeviceFilter{}, many + 150},
			{update.DeviceFilter{Release: "app"}, many},
			{update.DeviceFilter{Release: "tools", Version: "3"}, 150},
			{update.DeviceFilter{State: wire.UpdateCommitted}, 40},
			{update.DeviceFilter{Assignment: a.ID, State: wire.UpdatePending}, many - 40},
			{update.DeviceFilter{Assignment: a.ID, State: wire.UpdateFailed}, 0},
		} {
			seen, pages := map[string]bool{}, 0
			for tt.f.Limit = 70; ; pages++ {
				list, next, err := h.DeviceStates(context.Background(), all, tt.f)
				if err != nil || len(list) > 70 {
					h.Fatalf("%+v: %d devices, %v", tt.f, len(list), err)
				}
				for _, d := range list {
					seen[string(d.Device)+d.Release] = true
				}
				if tt.f.Cursor = next; next == "" {
					break
				}
			}
			if len(seen) != tt.want {
				h.Errorf("%+v: %d devices, want %d", tt.f, len(seen), tt.want)
			}
		}
	})
}

// untilIdle waits until an assignment has reached its devices.
func (h *house) untilIdle(a update.Assignment) {
	h.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); ; <-tick.C {
		now := a0(h, a)
		if now.Progress == nil {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("progress %+v", now.Progress)
		}
	}
}

// first returns the first devices that were made.
func (h *house) first(n int) (devices []device.Device) {
	h.Helper()
	for num := range n {
		d, err := h.reg.ByNum(context.Background(), h.db, int64(num+1))
		if err != nil {
			h.Fatal(err)
		}
		devices = append(devices, d)
	}
	return devices
}
