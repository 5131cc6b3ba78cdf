package agent

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/agent/agenttest"
	"steward/internal/agent/host/sim"
	"steward/internal/agent/journal"
	"steward/internal/agent/monitoring"
	"steward/internal/wire"
)

// inbox takes events.
type inbox struct {
	mu     sync.Mutex
	events []wire.DeviceEvent
}

func (i *inbox) PostMetrics(context.Context, []byte) error { return nil }

func (i *inbox) PostEvent(_ context.Context, e wire.DeviceEvent) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events = append(i.events, e)
	return nil
}

func (i *inbox) names() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []string
	for _, e := range i.events {
		out = append(out, e.Name+" "+e.Text)
	}
	return out
}

func TestUpdateThatWasRolledBackIsOneEventPerAttempt(t *testing.T) {
	j, err := journal.Open(journal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	in := &inbox{}
	a := &Agent{cfg: Config{Now: time.Now}, journal: j, clock: newClock(time.Now, j)}
	a.monitoring = monitoring.New(monitoring.Config{
		Host: sim.NewFleet(sim.Config{}).Device(0), Sender: in, Journal: j, Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.monitoring.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	progress := func(state wire.UpdateState, attempt int) *wire.UpdateReported {
		return &wire.UpdateReported{Updates: []wire.UpdateProgress{
			{Name: "app", Version: "2.0.0", Assignment: "asg-1", Attempt: attempt, State: state, Cause: "exit code 7"},
			{Name: "other", Version: "1.0.0", Assignment: "asg-2", Attempt: 1, State: wire.UpdateCommitted},
		}}
	}
	for _, r := range []*wire.UpdateReported{
		progress(wire.UpdateDownloading, 1), progress(wire.UpdateRolledBack, 1), progress(wire.UpdateRolledBack, 1),
		progress(wire.UpdateDownloading, 2), progress(wire.UpdateFailed, 2),
	} {
		a.tellUpdates(r)
	}
	a.tellUpdates("no such section")
	agenttest.Eventually(t, "two events", func() bool { return len(in.names()) >= 2 })
	got := in.names()
	if len(got) != 2 || !slices.ContainsFunc(got, func(s string) bool {
		return strings.HasPrefix(s, "update.rolled_back app 2.0.0") && strings.Contains(s, "exit code 7")
	}) ||
		!strings.HasPrefix(got[1], "update.failed") {
		t.Errorf("%q", got)
	}
}

func TestSmallAndSlowSettingsOfTheClockAreNotTold(t *testing.T) {
	local, up := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Hour
	j, err := journal.Open(journal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c := newClock(func() time.Time { return local }, j)
	c.upTime = func() (time.Duration, bool) { return up, true }
	steps := []struct {
		wall, ran, want time.Duration
		what            string
	}{
		{0, 0, 0, "the first look"},
		{time.Minute, time.Minute, 0, "time passes"},
		{10 * time.Hour, 10 * time.Hour, 0, "the machine was suspended"},
		{time.Minute + 2*time.Second, time.Minute, 0, "a small step"},
		{time.Hour, time.Minute, 59 * time.Minute, "set ahead"},
		{-time.Hour, time.Minute, -61 * time.Minute, "set back"},
		{time.Minute, time.Minute, 0, "and on"},
	}
	for _, s := range steps {
		local, up = local.Add(s.wall), up+s.ran
		if got := c.Step(); got != s.want {
			t.Errorf("%s: %s, want %s", s.what, got, s.want)
		}
	}
}
