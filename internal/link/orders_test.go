package link_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// orders plays the rooms remote and monitoring: commands, events, telemetry and presence in memory, with
// faults that a test can set.
type orders struct {
	now func() time.Time

	mu       sync.Mutex
	open     map[int64][]wire.RemoteCommand
	results  []string
	events   []string
	presence []string
	alive    int
	watchers []func(int64)
	fails    error         // of Event
	held     chan struct{} // when not nil, Event waits until it is closed
	entered  chan struct{} // closed by Event when it waits
}

func (o *orders) Waiting(_ context.Context, d device.Device) ([]wire.RemoteCommand, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]wire.RemoteCommand(nil), o.open[d.Num]...), nil
}

func (o *orders) Pending(ctx context.Context, d device.Device) (int, error) {
	list, err := o.Waiting(ctx, d)
	return len(list), err
}

func (o *orders) Result(_ context.Context, d device.Device, id string, r wire.RemoteResult) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, c := range o.open[d.Num] {
		if c.ID == id {
			o.open[d.Num] = append(o.open[d.Num][:i:i], o.open[d.Num][i+1:]...)
			o.results = append(o.results, id+" "+r.State)
			return nil
		}
	}
	return fault.New(fault.NotFound, "there is no command %q for this device", id)
}

func (o *orders) Watch(fn func(int64)) (cancel func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watchers = append(o.watchers, fn)
	return func() {}
}

// give gives the device a command.
func (o *orders) give(d device.Device, id string) {
	o.mu.Lock()
	if o.open == nil {
		o.open = map[int64][]wire.RemoteCommand{}
	}
	o.open[d.Num] = append(o.open[d.Num], wire.RemoteCommand{ID: id, Name: wire.CommandPing, Issued: o.now(), Deadline: o.now().Add(time.Hour)})
	watchers := o.watchers
	o.mu.Unlock()
	for _, fn := range watchers {
		fn(d.Num)
	}
}

// take takes the device's commands away.
func (o *orders) take(d device.Device) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.open, d.Num)
}

func (o *orders) Event(ctx context.Context, d device.Device, e wire.DeviceEvent) error {
	o.mu.Lock()
	held, err := o.held, o.fails
	o.mu.Unlock()
	if errors.Is(err, errPanic) {
		panic("boom")
	}
	if held != nil {
		close(o.entered)
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, d.Serial+" "+e.Name)
	return nil
}

func (o *orders) Telemetry(_ context.Context, d device.Device, t wire.Telemetry) error {
	if len(t.Metrics) == 0 {
		return fault.Bad("body.metrics", "is empty")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, fmt.Sprintf("%s %d metrics", d.Serial, len(t.Metrics)))
	return nil
}

func (o *orders) Connected(d device.Device, via, _ string) { o.note("+ " + string(d.ID) + " " + via) }

func (o *orders) Disconnected(d device.Device, why string) { o.note("- " + string(d.ID) + " " + why) }

func (o *orders) Alive(device.Device) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.alive++
}

func (o *orders) note(line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.presence = append(o.presence, line)
}

// seen returns a copy of what was noted.
func (o *orders) seen(list *[]string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), *list...)
}

func (o *orders) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fails = err
}

// hold makes Event wait until held is closed; it closes entered when it waits.
func (o *orders) hold(held, entered chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held, o.entered = held, entered
}

var errPanic = errors.New("panic")

var errDatabaseAway = errors.New("the database is away")
