// Package monitoring reports what the machine is (inventory, packages, services) and measures what
// changes by the minute. Measurements that can't be sent are kept for up to a day in a bounded ring in
// memory: flash is not worn by them, and a restart loses them.
package monitoring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"steward/internal/agent/host"
	"steward/internal/agent/journal"
	"steward/internal/wire"
)

// Defaults and bounds of the desired section's intervals.
const (
	defaultInterval = time.Minute
	leastInterval   = time.Second
	mostInterval    = 24 * time.Hour
	// factsInterval is how often inventory, services and packages are read again: they change
	// seldom, and packages only when a database's file has changed.
	factsInterval = 5 * time.Minute
)

// Sender sends to the server; nil means that it has been stored there.
type Sender interface {
	PostMetrics(ctx context.Context, body []byte) error // an OTLP/JSON request
	PostEvent(ctx context.Context, e wire.DeviceEvent) error
}

// Recorder is a host that has measured before the agent ran, oldest first. Simulated ones do, so that
// their charts are not empty.
type Recorder interface {
	Recorded() []host.Measurement
}

// Config of a Room.
type Config struct {
	Host   host.Host
	Sender Sender
	// Journal keeps events over restarts; nil keeps them in memory.
	Journal *journal.Journal
	Device  string // the device's ID, an attribute of the metrics' resource
	// Now is the agent's clock, which the server has set right: metrics carry it.
	Now     func() time.Time
	Log     *slog.Logger
	Changed func()
	// FactsInterval replaces five minutes between two readings of the facts; 0 keeps it.
	FactsInterval time.Duration
}

// Room is safe for use by several goroutines.
type Room struct {
	cfg Config

	mu       sync.Mutex
	desired  wire.MonitoringDesired
	changed  chan struct{} // closed and made anew when desired changes
	reported map[wire.Section]any
	problem  string
	ring     ring
	events   eventQueue
	eventful chan struct{} // capacity 1: there is an event to send
}

// New returns the room; of the machine nothing is read before Run.
func New(cfg Config) *Room {
	if cfg.FactsInterval == 0 {
		cfg.FactsInterval = factsInterval
	}
	r := &Room{cfg: cfg, changed: make(chan struct{}), reported: map[wire.Section]any{}, ring: newRing(), eventful: make(chan struct{}, 1)}
	if cfg.Journal != nil {
		if _, err := cfg.Journal.Get(keyEvents, &r.events); err != nil {
			cfg.Log.Warn("stored events are lost", "error", err)
		}
	}
	return r
}

// Name of the room.
func (r *Room) Name() string { return "monitoring" }

// Section that the room takes.
func (r *Room) Section() wire.Section { return wire.SectionMonitoring }

// Apply takes the intervals.
func (r *Room) Apply(_ context.Context, body []byte) error {
	var d wire.MonitoringDesired
	if body != nil {
		if err := wire.Decode(body, &d); err != nil {
			return fmt.Errorf("desired section monitoring: %w", err)
		}
		if d.ReportSeconds < 0 || d.MetricsSeconds < 0 {
			return errors.New("desired section monitoring: intervals can't be negative")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d != r.desired {
		r.desired = d
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return nil
}

// Interval is how often the device should report, 0 when the server leaves it to the answers of the
// reports.
func (r *Room) Interval() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.desired.ReportSeconds == 0 {
		return 0
	}
	return bounded(r.desired.ReportSeconds)
}

func bounded(seconds int) time.Duration {
	if seconds == 0 {
		return defaultInterval
	}
	if seconds > int(mostInterval/time.Second) {
		return mostInterval
	}
	return max(leastInterval, time.Duration(seconds)*time.Second)
}

// Reported returns the last reading of the facts.
func (r *Room) Reported(ctx context.Context) (map[wire.Section]any, error) {
	r.mu.Lock()
	empty := len(r.reported) == 0
	r.mu.Unlock()
	if empty {
		r.readFacts(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[wire.Section]any, len(r.reported))
	for k, v := range r.reported {
		out[k] = v
	}
	return out, nil
}

// Problem is what last went wrong, or empty.
func (r *Room) Problem() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

// readFacts reads everything; a part that can't be read keeps its last value.
func (r *Room) readFacts(ctx context.Context) {
	packages, packagesErr := r.cfg.Host.Packages(ctx)
	services, servicesErr := r.cfg.Host.Services(ctx)
	inventory, inventoryErr := r.cfg.Host.Inventory(ctx) // last: its Unavailable covers the others
	err := errors.Join(inventoryErr, packagesErr, servicesErr)
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	changed := false
	if inventoryErr == nil {
		changed = r.keep(wire.SectionInventory, &inventory) || changed
	}
	if packagesErr == nil {
		changed = r.keep(wire.SectionPackages, packages) || changed
	}
	if servicesErr == nil {
		changed = r.keep(wire.SectionServices, services) || changed
	}
	r.problem = ""
	if err != nil {
		r.problem = "facts of the machine: " + err.Error()
	}
	r.mu.Unlock()
	if changed {
		r.cfg.Changed()
	}
}

// keep stores a section when it differs; the pointer of an equal one stays, which tells the agent that
// nothing has changed. The lock is held.
func (r *Room) keep(section wire.Section, v any) bool {
	if old, has := r.reported[section]; has && (old == v || reflect.DeepEqual(old, v)) {
		return false
	}
	r.reported[section] = v
	return true
}

// Run reads, measures and sends until ctx ends.
func (r *Room) Run(ctx context.Context) error {
	r.readFacts(ctx)
	r.recall()
	r.measure(ctx) // rates need a first sample; what needs none is shown soon after the start
	r.send(ctx)
	r.sendEvents(ctx)
	nextFacts := r.cfg.Now().Add(r.cfg.FactsInterval)
	for {
		r.mu.Lock()
		changed, interval := r.changed, bounded(r.desired.MetricsSeconds)
		r.mu.Unlock()
		// A tenth of jitter spreads a fleet that was switched on at once.
		timer := time.NewTimer(interval - rand.N(interval/10+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
			continue
		case <-r.eventful:
			timer.Stop()
			r.sendEvents(ctx)
			continue
		case <-timer.C:
		}
		if now := r.cfg.Now(); !now.Before(nextFacts) {
			r.readFacts(ctx)
			nextFacts = now.Add(r.cfg.FactsInterval)
		}
		r.measure(ctx)
		r.send(ctx)
		r.sendEvents(ctx)
	}
}

// recall buffers what the host has measured before, as if the device had been offline.
func (r *Room) recall() {
	recorder, records := r.cfg.Host.(Recorder)
	if !records {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range recorder.Recorded() {
		r.ring.add(m.At, m.Metrics)
	}
}

func (r *Room) measure(ctx context.Context) {
	metrics, err := r.cfg.Host.Metrics(ctx)
	if err != nil {
		if ctx.Err() == nil {
			r.cfg.Log.Warn("metrics not measured", "error", err)
		}
		return
	}
	r.mu.Lock()
	r.ring.add(r.cfg.Now(), metrics)
	r.mu.Unlock()
	r.watchDisks(metrics)
}

// send sends what is buffered, oldest first. What was acknowledged leaves the buffer; on an error the
// rest waits for the next interval.
func (r *Room) send(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		batch, count := r.ring.batch(r.cfg.Device)
		r.mu.Unlock()
		if count == 0 {
			return
		}
		body, err := json.Marshal(batch)
		if err != nil {
			r.cfg.Log.Error("metrics not encoded", "error", err)
			r.drop(count)
			return
		}
		if err := r.cfg.Sender.PostMetrics(ctx, body); err != nil {
			if ctx.Err() == nil {
				r.cfg.Log.Debug("metrics not sent", "error", err)
			}
			if permanent(err) {
				// The server will not take them however often they are sent.
				r.cfg.Log.Warn("metrics dropped", "error", err, "samples", count)
				r.drop(count)
			}
			return
		}
		r.drop(count)
	}
}

func (r *Room) drop(count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring.drop(count)
}

// statusError is an error with the HTTP status of the refusal.
type statusError interface{ HTTPStatus() int }

// permanent tells whether the server has refused the content (400, 413, 422).
func permanent(err error) bool {
	var s statusError
	if !errors.As(err, &s) {
		return false
	}
	switch s.HTTPStatus() {
	case 400, 413, 422:
		return true
	}
	return false
}

// Buffered is the number of measurements that wait to be sent.
func (r *Room) Buffered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ring.len()
}

// Sanitize forgets the buffered measurements and the facts.
func (r *Room) Sanitize(context.Context) []wire.SanitizedItem {
	r.mu.Lock()
	defer r.mu.Unlock()
	samples := r.ring.len()
	r.ring, r.events = newRing(), eventQueue{} // the journal goes as a whole
	r.reported = map[wire.Section]any{}
	return []wire.SanitizedItem{{
		What: fmt.Sprintf("metrics buffer (%d measurements) and inventory caches in memory", samples), Technique: "release of memory", Result: "destroyed",
	}}
}
