package update_test

import (
	"context"
	"testing"

	"steward/internal/sqldb/sqldbtest"
	"steward/internal/update"
	"steward/internal/wire"
)

func TestReadsDoNotGrowWithTheDevicesOfAnAssignment(t *testing.T) {
	work := map[int]map[string]sqldbtest.Work{}
	const few, lots = 1000, 8000
	for _, n := range []int{few, lots} {
		h := newHouse(t, sqldbtest.SQLite(t, tables...))
		for made := 0; made < n; made += 1000 {
			h.made(made, 1000)
		}
		h.running()
		old := h.assign("app", "1", "")
		h.untilIdle(old)
		a := h.assign("app", "2", "site notin (s0)")
		h.untilIdle(a)
		devices := h.first(5)
		h.report(progress(a, 1, wire.UpdateFailed, "disk full"), devices[1:3]...)
		h.report(progress(a, 1, wire.UpdateDownloading, ""), devices[3:]...)
		work[n] = map[string]sqldbtest.Work{}
		listed := func(f update.DeviceFilter) func(ctx context.Context) error {
			return func(ctx context.Context) error { _, _, err := h.DeviceStates(ctx, all, f); return err }
		}
		for name, read := range map[string]func(ctx context.Context) error{
			"assignments":              func(ctx context.Context) error { _, _, err := h.Assignments(ctx, all, update.Filter{}); return err },
			"one assignment":           func(ctx context.Context) error { _, err := h.Assignment(ctx, all, a.ID); return err },
			"failures":                 func(ctx context.Context) error { _, err := h.Failures(ctx, all, a0(h, a)); return err },
			"notices":                  func(ctx context.Context) error { _, err := h.Notices(ctx, all); return err },
			"states of a release":      func(ctx context.Context) error { _, err := h.ReleaseStates(ctx, all, "app", "2"); return err },
			"what devices want":        listed(update.DeviceFilter{}),
			"devices of an assignment": listed(update.DeviceFilter{Assignment: a.ID}),
			"devices that failed":      listed(update.DeviceFilter{State: wire.UpdateFailed}),
			"devices by cause":         listed(update.DeviceFilter{Assignment: a.ID, Cause: "disk full"}),
			"devices of a version":     listed(update.DeviceFilter{Release: "app", Version: "1"}),
			"busy devices":             listed(update.DeviceFilter{Busy: true}),
			"one device":               func(ctx context.Context) error { _, err := h.OfDevice(ctx, devices[0]); return err },
		} {
			work[n][name] = sqldbtest.Count(t, h.db, read)
		}
	}
	for name, small := range work[few] {
		big := work[lots][name]
		t.Logf("%-25s %2d queries, %4d pages; eight times the devices: %2d queries, %4d pages", name, small.Queries, small.Pages, big.Queries, big.Pages)
		if big.Queries > small.Queries || big.Pages > small.Pages*3/2+60 {
			t.Errorf("%s grows with the devices: %+v, then %+v", name, small, big)
		}
	}
}
