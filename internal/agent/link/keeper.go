package link

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"steward/internal/mqtt"
)

// doubts is how often in a row a way may fail without a clear cause before HTTPS is asked whether it is
// the way.
const doubts = 2

// keeper keeps the device connected. Only Client.Run's goroutine uses it.
//
//	             ┌────────── lost, refused for now: random wait ─────────┐
//	start ──► MQTT (ALPN) ──unfit──► MQTT in WebSocket ──unfit──► HTTPS ─┘
//	             ▲    a better way is tried again after 15 min to 6 h │
//	             └────────────────────────────────────────────────────┘
//
// A way is given up only when HTTPS has answered, so that an outage moves nobody.
type keeper struct {
	c      *Client
	stream *stream
	retry  Backoff
	slow   Backoff
	doubt  map[string]int // failures without a clear cause in a row, by way
	better time.Time      // when a better way than the present one is tried; zero: at once
	fallen bool           // HTTPS is used because MQTT can't be had
	slot   int            // of the present or the last stream
	window time.Duration  // the server's, for the wait after a loss
}

// Run keeps the device connected until ctx ends; without it, and after it, everything travels by HTTPS. It
// returns nil.
func (c *Client) Run(ctx context.Context) error {
	k := &keeper{c: c, retry: c.cfg.Retry, slow: c.cfg.Better, doubt: map[string]int{}}
	if k.slow.Least == 0 {
		k.slow.Least = 15 * time.Minute
	}
	if k.slow.Most == 0 {
		k.slow.Most = 6 * time.Hour
	}
	if c.cfg.Mode != ModeMQTT && c.cfg.Remembered != "" && c.cfg.Remembered != ViaMQTT {
		k.better = time.Now().Add(k.slow.Next(nil))
		if k.fallen = c.cfg.Remembered == ViaHTTPS; k.fallen {
			c.travel(way{https: true, err: errors.New("MQTT did not work before the last start")})
		}
	}
	for ctx.Err() == nil {
		k.step(ctx)
	}
	k.drop()
	c.travel(way{off: true})
	return nil
}

// step does one thing and waits for what calls for the next.
func (k *keeper) step(ctx context.Context) {
	c := k.c
	if why := c.whyHTTPS(); why != nil {
		c.travel(way{https: true, err: why})
		k.drop()
		c.await(ctx, untilKicked, nil)
		return
	}
	if p, left := c.silent(); left > 0 { // requests by HTTPS are refused with it, without contact
		c.travel(way{https: true, err: p})
		k.drop()
		c.await(ctx, left, nil)
		return
	}
	switch left := time.Until(k.better); {
	case k.stream != nil:
		k.hold(ctx)
	case k.fallen && left > 0:
		c.await(ctx, left, nil)
	default:
		k.connect(ctx)
	}
}

// connect makes one attempt.
func (k *keeper) connect(ctx context.Context) {
	c := k.c
	if !k.fallen {
		c.travel(way{trying: true})
	}
	select {
	case <-c.kicked: // what it was about is seen by this attempt
	default:
	}
	s, err := k.attempt(ctx, k.ways())
	switch {
	case err == nil:
		k.take(s)
	case ctx.Err() != nil:
	case k.fallen:
		k.better = time.Now().Add(k.slow.Next(err))
		c.travel(way{https: true, err: err})
	default:
		k.failed(ctx, err)
	}
}

// ways lists what is tried now, the best first.
func (k *keeper) ways() []string {
	if !k.fallen && time.Now().Before(k.better) { // WebSocket is what worked last
		return []string{ViaWebSocket, ViaMQTT}
	}
	return []string{ViaMQTT, ViaWebSocket}
}

// attempt tries the ways in order. It goes on to the next one only when the way itself is at fault.
func (k *keeper) attempt(ctx context.Context, ways []string) (*stream, error) {
	var why []string
	var last *attemptError
	for _, via := range ways {
		s, failed := k.try(ctx, via)
		if failed == nil {
			return s, nil
		}
		if failed.kind != unfit || ctx.Err() != nil {
			return nil, failed
		}
		why = append(why, failed.Error())
		last = failed
	}
	last.via, last.err = "", errors.New(strings.Join(why, "; "))
	return nil, last
}

// try tries one way. Failures without a clear cause make it unfit when there were some in a row, HTTPS is
// answered, and it still fails then: at the end of an outage any order of failures can be seen.
func (k *keeper) try(ctx context.Context, via string) (*stream, *attemptError) {
	s, failed := k.once(ctx, via)
	if failed == nil || failed.kind != doubtful {
		k.doubt[via] = 0
		return s, failed
	}
	if k.doubt[via]++; k.doubt[via] < doubts || k.c.askWhy(ctx) != nil {
		failed.kind = unreachable
		return nil, failed
	}
	k.doubt[via] = 0
	s, failed = k.once(ctx, via)
	if failed != nil && failed.kind == doubtful {
		failed.kind = unfit
	}
	return s, failed
}

func (k *keeper) once(ctx context.Context, via string) (*stream, *attemptError) {
	s, err := k.c.connectBy(ctx, via, k.freeSlot())
	if err == nil {
		return s, nil
	}
	k.c.cfg.Log.Debug("not connected", "via", via, "error", err)
	return nil, &attemptError{kindOf(err), via, err}
}

// freeSlot is a client ID that no living connection of ours has.
func (k *keeper) freeSlot() int {
	if k.stream != nil {
		return 1 - k.stream.slot
	}
	return k.slot // the server may not know yet that the lost one is lost
}

// connectBy opens one connection up to its subscription.
func (c *Client) connectBy(ctx context.Context, via string, slot int) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c.mu.Lock()
	generation, ready := c.generation, c.tls != nil
	c.mu.Unlock()
	if !ready {
		return nil, &unreachableError{ErrNoTrust}
	}
	conn, err := c.open(ctx, via)
	if err != nil {
		return nil, err
	}
	return c.begin(ctx, conn, via, slot, generation)
}

// Try connects by the best way that works, ends that connection, and returns the way. A connection of the
// device's agent is not touched.
func (c *Client) Try(ctx context.Context) (via string, err error) {
	var why []error
	for _, via := range []string{ViaMQTT, ViaWebSocket} {
		s, err := c.connectBy(ctx, via, trySlot)
		if err == nil {
			s.finish()
			return via, nil
		}
		why = append(why, &attemptError{kindOf(err), via, err})
	}
	return "", errors.Join(why...)
}

// failed decides what to do after an attempt when nothing works just now.
func (k *keeper) failed(ctx context.Context, err error) {
	c := k.c
	var failed *attemptError
	if errors.As(err, &failed) && (failed.kind == unfit || failed.kind == unwanted) {
		var asked error
		if p := problemIn(err); Stopped(p) {
			c.stop(p, c.currentGeneration())
		} else {
			asked = c.askWhy(ctx)
		}
		if _, left := c.silent(); left > 0 || ctx.Err() != nil {
			return // the next step obeys
		}
		if asked == nil && c.cfg.Mode != ModeMQTT {
			k.settle(err)
			return
		}
		if asked != nil {
			err = errors.Join(err, asked)
		}
	}
	k.pause(ctx, err)
}

// settle goes over to HTTPS, until a better way is tried again.
func (k *keeper) settle(err error) {
	k.fallen, k.better = true, time.Now().Add(k.slow.Next(nil))
	k.c.cfg.Log.Info("messages travel by HTTPS", "because", err, "again_in", time.Until(k.better).Round(time.Second))
	k.c.travel(way{https: true, err: err})
	k.c.remember(ViaHTTPS)
	k.retry.Reset()
}

// pause waits a random time before the next attempt: up to what the server has asked for, or growing with
// each failure, over the whole range, since a fleet that was cut off together must not come together.
func (k *keeper) pause(ctx context.Context, err error) {
	window := k.window
	if told := windowIn(err); told > 0 {
		window = told
	}
	wait := max(k.retry.jitter(window), RetryAfter(err))
	k.c.cfg.Log.Debug("connecting again", "because", err, "in", wait.Round(time.Millisecond))
	k.c.travel(way{err: err, next: time.Now().Add(wait)})
	k.c.await(ctx, wait, nil)
}

// take makes the stream the one that messages travel by, and ends the former one in good order.
func (k *keeper) take(s *stream) {
	old := k.stream
	k.stream, k.slot, k.fallen = s, s.slot, false
	k.window = time.Duration(s.window) * time.Second
	if s.via == ViaMQTT {
		k.slow.Reset()
		k.better = time.Time{}
	} else if !time.Now().Before(k.better) {
		k.better = time.Now().Add(k.slow.Next(nil))
	}
	k.c.cfg.Log.Info("connected", "via", s.via, "keep_alive", s.client.Connack().KeepAlive)
	k.c.travel(way{stream: s})
	k.c.remember(s.via)
	if k.c.cfg.Connected != nil {
		k.c.cfg.Connected()
	}
	k.c.rest()
	if old != nil {
		old.finish()
	}
}

// drop ends the stream.
func (k *keeper) drop() {
	if k.stream != nil {
		k.stream.finish()
		k.stream = nil
	}
}

// hold waits while the stream lives: for its end, another identity, another mode, the time to try a better
// way.
func (k *keeper) hold(ctx context.Context) {
	s := k.stream
	left := time.Until(k.better)
	renewed := s.generation != k.c.currentGeneration()
	switch {
	case s.client.Err() != nil:
	case renewed:
		k.replace(ctx, []string{s.via})
		return
	case s.via != ViaMQTT && left <= 0:
		k.replace(ctx, []string{ViaMQTT})
		return
	default:
		if s.via == ViaMQTT {
			left = untilKicked
		}
		k.c.await(ctx, left, s.client.Done())
	}
	select {
	case <-s.client.Done():
		k.lost(ctx, s.client.Err())
	default:
	}
}

// replace connects anew before it ends the present connection, which stays when that fails.
func (k *keeper) replace(ctx context.Context, ways []string) {
	s, err := k.attempt(ctx, ways)
	switch {
	case err == nil:
		k.take(s)
	case ctx.Err() != nil:
	case k.stream.generation != k.c.currentGeneration(): // after a renewal it does not wait for long
		k.c.await(ctx, max(k.retry.jitter(0), RetryAfter(err)), k.stream.client.Done())
	default:
		k.better = time.Now().Add(k.slow.Next(nil))
	}
}

// steady is how long a connection must have lived for its loss not to count as a failure.
const steady = time.Minute

// lost decides what to do after the stream has ended.
func (k *keeper) lost(ctx context.Context, err error) {
	s := k.stream
	k.stream = nil
	if time.Since(s.began) > steady {
		k.retry.Reset()
	}
	k.c.cfg.Log.Info("connection lost", "via", s.via, "error", err)
	if s.generation != k.c.currentGeneration() {
		return // the one of the new identity is due anyway
	}
	var reason *mqtt.ReasonError
	if errors.As(err, &reason) {
		switch reason.Reason {
		case mqtt.SessionTakenOver:
			// Another agent has this identity. Two that take each other's place would do so for ever.
			if k.c.cfg.Mode != ModeMQTT {
				k.settle(fmt.Errorf("another agent connects with this device's identity: %w", err))
				return
			}
		case mqtt.NotAuthorized, mqtt.Banned, mqtt.AdministrativeAction:
			// A renewal that is under way says so by itself; else the server is asked why.
			moment := k.retry
			k.c.travel(way{err: err, next: time.Now()})
			if k.c.await(ctx, moment.jitter(0), nil) {
				return
			}
			_ = k.c.askWhy(ctx) // a refusal for good is obeyed by the next step, anything else by the next attempt
			if _, left := k.c.silent(); left > 0 {
				return
			}
		}
	}
	k.pause(ctx, err)
}

// askWhy asks by HTTPS what the server thinks of this device. nil means that HTTPS works, be the answer a
// refusal or not; a refusal for good is remembered (see stop).
func (c *Client) askWhy(ctx context.Context) error {
	_, err := c.desired(ctx, 0, 0)
	if StatusOf(err) != 0 && StatusOf(err) < 500 || errors.Is(err, ErrNotModified) {
		return nil
	}
	return err
}
