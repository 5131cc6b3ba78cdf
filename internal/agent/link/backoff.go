package link

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"steward/internal/wire"
)

// stopCodes say that asking again changes nothing until somebody has acted.
var stopCodes = []string{
	wire.CodeTokenInvalid, wire.CodeTokenUsed, wire.CodeRevoked, wire.CodeDecommissioned,
	wire.CodeExpired, wire.CodeSuperseded, wire.CodeUnknownDevice, wire.CodeProtocol,
}

// Stopped tells whether the server has said that asking again is pointless until somebody acts. The
// client itself keeps silent for Config.SlowRetry then.
func Stopped(err error) bool { return slices.Contains(stopCodes, CodeOf(err)) }

// Backoff computes waits between attempts: doubling from Least to Most with full jitter over the upper
// half, never less than what the server asks for. The zero value waits 1 s to 5 min.
type Backoff struct {
	Least, Most time.Duration
	failures    int
}

// Next returns the wait after a failure.
func (b *Backoff) Next(err error) time.Duration {
	wait := b.bound()
	wait = wait/2 + rand.N(wait/2+1)
	return max(wait, RetryAfter(err))
}

// bound is the longest wait after a failure, which doubles with each.
func (b *Backoff) bound() time.Duration {
	least, most := b.Least, b.Most
	if least == 0 {
		least = time.Second
	}
	if most == 0 {
		most = 5 * time.Minute
	}
	wait := most
	if b.failures < 30 && least<<b.failures < most {
		wait = least << b.failures
		b.failures++
	}
	return wait
}

// Reset is for a success.
func (b *Backoff) Reset() { b.failures = 0 }

// stop remembers a refusal that makes asking again pointless; later requests get it without contact. What
// was said to a former identity does not count.
func (c *Client) stop(err error, generation int) {
	var p *Problem
	if !errors.As(err, &p) || !Stopped(p) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if generation != c.generation {
		return
	}
	slow := c.cfg.SlowRetry
	if slow == 0 {
		slow = time.Hour
	}
	// A tenth more, at random: a fleet that was refused together does not come back together.
	c.stoppedUntil = time.Now().Add(max(slow, p.RetryAfter) + rand.N(slow/10+1))
	c.stopped = p
	c.kick()
}

// silence returns the refusal that is still to be obeyed, with the time that is left.
func (c *Client) silence() error {
	if p, left := c.silent(); left > 0 {
		return p
	}
	return nil
}

// silent returns the refusal that is still to be obeyed and the time that is left, 0 when there is none.
func (c *Client) silent() (*Problem, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := time.Until(c.stoppedUntil)
	if c.stopped == nil || left <= 0 {
		c.stopped = nil
		return nil, 0
	}
	p := *c.stopped
	p.RetryAfter = left
	return &p, left
}
