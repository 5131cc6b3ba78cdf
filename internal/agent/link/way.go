package link

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// way is how messages travel now.
type way struct {
	off    bool    // Run is not running: HTTPS
	https  bool    // HTTPS, err says why
	stream *stream // MQTT
	trying bool    // an attempt is under way
	err    error   // why not, or not better
	next   time.Time
}

// travel changes the way and wakes who waits for that.
func (c *Client) travel(w way) {
	c.mu.Lock()
	defer c.mu.Unlock()
	same := w.https && c.way.https || w.stream != nil && w.stream == c.way.stream
	c.way = w
	if same {
		return
	}
	close(c.moved)
	c.moved = make(chan struct{})
	if c.cutPoll != nil && w.stream != nil {
		c.cutPoll(errMoved)
	}
}

func (c *Client) current() way {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.way
}

func (c *Client) currentGeneration() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation
}

// Expect says that Run is about to be called: messages wait for its first attempt.
func (c *Client) Expect() {
	if c.whyHTTPS() == nil && (c.cfg.Mode == ModeMQTT || c.cfg.Remembered != ViaHTTPS) {
		c.travel(way{trying: true})
	}
}

// Way tells how messages travel now, for people.
func (c *Client) Way() Way {
	w := c.current()
	out := Way{}
	switch {
	case w.stream != nil:
		out.Via = w.stream.via
	case w.https, w.off:
		out.Via = ViaHTTPS
	}
	if w.err != nil {
		out.Why = w.err.Error()
	}
	if out.Via == ViaWebSocket {
		out.Why = "the network or the server does not carry MQTT without WebSocket"
	}
	return out
}

// route returns the stream to use, or nil for HTTPS, and a channel that is closed when that changes. It
// waits for an attempt that is under way, and returns an error when there is no way just now.
func (c *Client) route(ctx context.Context) (*stream, <-chan struct{}, error) {
	for {
		c.mu.Lock()
		w, moved := c.way, c.moved
		former := w.stream != nil && w.stream.generation != c.generation
		c.mu.Unlock()
		switch {
		case w.https, w.off, former: // what a former identity says may not count any more
			return nil, moved, nil
		case w.stream != nil:
			if err := c.silence(); err != nil {
				return nil, moved, err
			}
			return w.stream, moved, nil
		case !w.trying:
			return nil, moved, &lostError{w.err, w.next}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, moved, ctx.Err()
		}
	}
}

// Rest waits after an error, at most until there is another connection, and tells whether ctx still lives.
// When there is one already after a loss it does not wait.
func (c *Client) Rest(ctx context.Context, wait time.Duration, err error) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var lost *lostError
	began := c.current().stream
	if errors.As(err, &lost) {
		began = nil
	}
	for {
		c.mu.Lock()
		w, moved := c.way, c.moved
		c.mu.Unlock()
		if w.stream != nil && w.stream != began && w.stream.client.Err() == nil {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-moved:
		}
	}
}

// Pace tells the client how often the device reports; it decides about the way (see LongPace).
func (c *Client) Pace(interval time.Duration) {
	c.mu.Lock()
	changed := (c.pace >= LongPace) != (interval >= LongPace)
	c.pace = interval
	c.mu.Unlock()
	if changed {
		c.kick()
	}
}

// sparse tells whether the device is connected only now and then.
func (c *Client) sparse() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Mode != ModeMQTT && c.pace >= LongPace
}

// whyHTTPS is the reason for which MQTT is not even tried, or nil.
func (c *Client) whyHTTPS() error {
	switch {
	case c.cfg.Mode == ModeHTTPS:
		return errChosen
	case c.sparse():
		return errSparse
	}
	return nil
}

var (
	errChosen = errors.New("HTTPS was chosen (--link https)")
	errSparse = fmt.Errorf("the device reports so seldom (every %s or more seldom) that it does not stay connected", LongPace)
)

// kick makes Run look again.
func (c *Client) kick() {
	select {
	case c.kicked <- struct{}{}:
	default: // it will look anyway
	}
}

// untilKicked is await's wait without an end.
const untilKicked time.Duration = -1

// await waits for the time, for done, a kick or the end of ctx; it tells whether it was kicked.
func (c *Client) await(ctx context.Context, wait time.Duration, done <-chan struct{}) (kicked bool) {
	var over <-chan time.Time
	if wait != untilKicked {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-done:
	case <-ctx.Done():
	case <-c.kicked:
		return true
	}
	return false
}

// remember keeps what worked for the next start.
func (c *Client) remember(via string) {
	if c.cfg.Remember != nil && via != c.remembered {
		c.remembered = via
		c.cfg.Remember(via)
	}
}

// idleHTTPS is how long an idle HTTPS connection is kept beside MQTT: the server's memory counts.
const idleHTTPS = 5 * time.Second

// rest closes idle HTTPS connections soon, when messages don't travel by them.
func (c *Client) rest() {
	sparse := c.sparse()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.way.stream == nil && !sparse {
		return
	}
	if c.resting != nil {
		c.resting.Reset(idleHTTPS)
		return
	}
	c.resting = time.AfterFunc(idleHTTPS, func() {
		c.mu.Lock()
		transport := c.transport
		c.mu.Unlock()
		if transport != nil {
			transport.CloseIdleConnections()
		}
	})
}
