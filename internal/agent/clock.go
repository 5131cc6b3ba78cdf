package agent

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"steward/internal/agent/journal"
)

// keyClock is the journal's key of the latest server time that was seen.
const keyClock = "agent/clock"

// persistClock is how far the server's time runs on before it is stored again: storage wears out.
const persistClock = time.Hour

// clock is what certificates and envelopes are judged by. After the first verified answer of this
// start it follows the server's clock; before, it is the local one, but never earlier than the latest
// server time of any earlier start. So a device without a battery works at its first contact, and one
// whose clock was turned back believes no expired envelope.
type clock struct {
	local   func() time.Time
	journal *journal.Journal

	mu     sync.Mutex
	base   time.Time // the server's time at the moment since
	since  time.Time // local
	synced bool      // base comes from a verified answer of this start
	hinted bool      // base is an unverified hint: the next one, or a verified answer, replaces it
	stored time.Time

	looked  time.Time     // local, without its monotonic part: when Step was last called
	running time.Duration // the machine's then; see upTime
	upTime  func() (time.Duration, bool)
}

func newClock(local func() time.Time, j *journal.Journal) *clock {
	c := &clock{local: local, journal: j, upTime: upTime}
	if found, err := j.Get(keyClock, &c.stored); err == nil && found {
		c.base, c.since = c.stored, local()
	}
	return c
}

// Now is the corrected time.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *clock) now() time.Time {
	local := c.local()
	if c.base.IsZero() {
		return local
	}
	// The difference of two local readings is monotonic: setting the wall clock doesn't change it.
	server := c.base.Add(max(0, local.Sub(c.since)))
	if c.synced || local.Before(server) {
		return server
	}
	return local
}

// Seen takes the server's time from a verified answer. A time before the base is not taken: the clock
// never goes back.
func (c *clock) Seen(server time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	local := c.local()
	floor := c.base
	if c.hinted {
		floor = c.stored // anybody on the way could have given the hint
	}
	if server.Before(floor) {
		return
	}
	c.base, c.since, c.synced, c.hinted = server, local, true, false
	if server.Sub(c.stored) >= persistClock {
		c.store()
	}
}

// store writes the base; without it an old time counts after the next start, no more.
func (c *clock) store() {
	if err := c.journal.Put(keyClock, c.base.UTC()); err == nil {
		c.stored = c.base
	}
}

// Hint takes an unverified time when the local clock can't be right; it is not stored. A later hint
// replaces it in either direction, so that one wrong answer does not keep the device out until its next
// start.
func (c *clock) Hint(server time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.synced || server.Before(c.stored) || !c.hinted && !server.After(c.now()) {
		return
	}
	c.base, c.since, c.hinted = server, c.local(), true
}

// Offset is how far the device's own clock is ahead of the server's; 0 while there was no contact.
func (c *clock) Offset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.synced {
		return 0
	}
	return c.local().Sub(c.now())
}

// leastStep is the least setting of the local clock that Step tells.
const leastStep = time.Minute

// Step returns by how much the local clock was set since the call before, 0 for less than leastStep.
func (c *clock) Step() time.Duration {
	up, ok := c.upTime()
	if !ok {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.local().Round(0) // as the wall shows it
	before, ran := c.looked, up-c.running
	c.looked, c.running = now, up
	if before.IsZero() {
		return 0
	}
	if step := now.Sub(before) - ran; step.Abs() >= leastStep {
		return step
	}
	return 0
}

// upTime is how long the machine has run. It counts the time that the machine was suspended, which Go's
// monotonic clock does not.
func upTime() (time.Duration, bool) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}
