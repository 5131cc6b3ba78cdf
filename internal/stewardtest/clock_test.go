package stewardtest_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

const year = 365 * 24 * time.Hour

// problems are what the agent has told the server of itself.
func problems(h *House, d *Device) string {
	return fmt.Sprint(h.Reported(d.ID, wire.SectionAgent)["problems"])
}

func TestClockAYearBehindIsToldAndDoesNotKeepTheDeviceOut(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true})
	h.Push("", "1.0.0", Good)
	d := h.Prepare(h.API, 0, 1)[0]
	d.Tune(func(c *agent.Config) { c.Now = func() time.Time { return time.Now().Add(-year) } })
	d.Start()
	h.AwaitStage(d.ID, "active")
	h.Until("the server knows of the clock", func() bool { return strings.Contains(problems(h, d), "hours behind") })
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1)

	// Put right while the agent was off, all is well again.
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	d.Tune(func(c *agent.Config) { c.Now = nil })
	d.Start()
	h.Until("the problem is gone", func() bool { return !strings.Contains(problems(h, d), "clock") })
}

// A clock that is ahead makes the server's certificate look expired. The device must not believe an
// expired certificate, so it waits, says what time it takes it to be, and goes on once that is right.
func TestClockAYearAheadIsNamedAndTheDeviceGoesOnOnceItIsRight(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Prepare(h.API, 0, 1)[0]
	var ahead atomic.Int64
	d.Tune(func(c *agent.Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	waits := func(a *agent.Agent) {
		t.Helper()
		says := fmt.Sprintf("current time %d-", time.Now().Add(year).Year())
		h.Until("the agent says what time it takes it to be", func() bool { return strings.Contains(a.Status().Detail, says) })
	}
	ahead.Store(int64(year))
	a := d.Start()
	waits(a)
	if stage := h.Stage(d.ID); stage != "staged" {
		t.Errorf("the device is %s", stage)
	}
	ahead.Store(0)
	h.AwaitStage(d.ID, "active")

	// The same with an identity: nothing of it is thrown away.
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	identity := string(d.Identity())
	ahead.Store(int64(year))
	a = d.Start()
	waits(a)
	ahead.Store(0)
	h.Until("the agent is online again", func() bool { return a.Status().State == agent.StateOnline })
	if string(d.Identity()) != identity {
		t.Error("the agent has another identity")
	}
}
