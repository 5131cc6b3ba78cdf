package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// lastAnswers is how long answers are waited for after a load has ended.
const lastAnswers = 30 * time.Second

// board is a tally that many devices write to, and knows what is still on its way.
type board struct {
	mu    sync.Mutex
	tally Tally
	open  int
	none  chan struct{} // closed when nothing is open and no more comes
	last  bool
}

func newBoard() *board { return &board{none: make(chan struct{})} }

func (b *board) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open++
}

func (b *board) end(began time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	b.tally.Done(began, time.Now(), err)
	b.check()
}

func (b *board) check() {
	if b.last && b.open == 0 {
		close(b.none)
		b.last = false
	}
}

// finish waits for what is on its way; what does not come by the end of ctx has failed.
func (b *board) finish(ctx context.Context) *Tally {
	b.mu.Lock()
	b.last = true
	b.check()
	b.mu.Unlock()
	select {
	case <-b.none:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.tally
	out.Missed(b.open, "no answer")
	return &out
}

// hello has all devices report everything, some hundred at a time.
func (s *squad) hello(ctx context.Context) *Tally {
	b := newBoard()
	forEach(ctx, 256, len(s.devices), func(i int) {
		done := make(chan struct{})
		b.begin()
		s.devices[i].hello(func(began time.Time, err error) {
			b.end(began, err)
			close(done)
		})
		select {
		case <-done:
		case <-ctx.Done():
		}
	})
	t := b.finish(ctx)
	t.Missed(len(s.devices)-t.Count, "not tried in time")
	return s.take(t)
}

// reports runs the closed loop.
func (s *squad) reports(ctx context.Context, r Reports) *Tally {
	b := newBoard()
	over := time.Now().Add(r.For)
	for _, d := range s.devices {
		for range max(1, r.InFlight) {
			s.nextReport(d, b, r, over)
		}
	}
	_ = pause(ctx, time.Until(over))
	return s.take(b.finish(ctx))
}

// nextReport sends one, whose acknowledgement sends the next.
func (s *squad) nextReport(d *device, b *board, r Reports, over time.Time) {
	if !time.Now().Before(over) {
		return
	}
	var what reportOf
	if r.Changed {
		what.sections = s.docs.sets[d.flip()]
	}
	began := time.Now()
	b.begin()
	done := func(err error) {
		if err == nil {
			s.nextReport(d, b, r, over) // before end: the board must not be seen empty between two
		}
		b.end(began, err)
	}
	if err := d.report(what, done); err != nil {
		b.end(began, err)
	}
}

// flip gives 0 and 1 in turn, beginning with what was not reported last.
func (d *device) flip() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.side = 1 - d.side
	return d.side
}

// mixed sends messages at a pace, device by device, and has some lose their connection.
func (s *squad) mixed(ctx context.Context, m Mixed) map[string]*Tally {
	boards := map[string]*board{}
	for _, kind := range []string{"heartbeats", "changed reports", "telemetry", "events"} {
		boards[kind] = newBoard()
	}
	began := time.Now()
	step := m.Every / time.Duration(max(1, len(s.devices)))
	dropped := 0
	for n := 0; ctx.Err() == nil; n++ {
		due := began.Add(time.Duration(n) * step)
		if due.Sub(began) >= m.For || len(s.devices) == 0 {
			break
		}
		if wait := time.Until(due); wait > 0 && pause(ctx, wait) != nil {
			break
		}
		s.devices[n%len(s.devices)].day(boards, n/len(s.devices))
		for ; dropped < m.Reconnect && time.Since(began) > time.Duration(dropped)*m.For/time.Duration(m.Reconnect); dropped++ {
			s.devices[rand.IntN(len(s.devices))].drop()
		}
	}
	out := map[string]*Tally{}
	for kind, b := range boards {
		out[kind] = b.finish(ctx)
	}
	out[""] = s.take(&Tally{})
	return out
}

// day sends a device's message of the given round. One that is away at the moment sends nothing: a real one would
// send it later.
func (d *device) day(boards map[string]*board, round int) {
	kind, send := d.message(round)
	b := boards[kind]
	began := time.Now()
	b.begin()
	finish := func(err error) {
		if err != nil && !isRefusal(err) {
			b.forget()
			d.squad.fact("while away")
			return
		}
		b.end(began, err)
	}
	if err := send(finish); err != nil {
		finish(err)
	}
}

// isRefusal tells what the server has refused from what was lost with the connection.
func isRefusal(err error) bool {
	var r *mqtt.ReasonError
	return errors.As(err, &r) && strings.HasPrefix(r.What, "publish")
}

// forget takes back a begin.
func (b *board) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
	b.check()
}

// message chooses what a device sends: of ten messages five measurements, three heartbeats, one
// changed report and one event.
func (d *device) message(round int) (kind string, send func(done func(error)) error) {
	switch (d.index + round) % 10 {
	case 0:
		return "changed reports", func(done func(error)) error {
			return d.report(reportOf{sections: d.squad.docs.sets[d.flip()]}, done)
		}
	case 1:
		return "events", func(done func(error)) error {
			return d.publishJSON(wire.TopicEvent, wire.DeviceEvent{Name: "door.opened", Text: fmt.Sprintf("round %d", round)}, done)
		}
	case 2, 3, 4:
		return "heartbeats", func(done func(error)) error { return d.report(reportOf{}, done) }
	}
	return "telemetry", func(done func(error)) error {
		values := map[string]float64{"temperature": 20 + rand.Float64(), "humidity": 50 + rand.Float64(), "voltage": 12 + rand.Float64()}
		return d.publishJSON(wire.TopicTelemetry, wire.Telemetry{Metrics: values}, done)
	}
}
