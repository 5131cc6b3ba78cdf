package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"

	"steward/internal/agent/host"
	"steward/internal/wire"
)

// Bounds of what is kept of events.
const (
	maxEvents  = 32  // that wait; then the oldest goes
	maxOnce    = 128 // names of events that are told once
	maxText    = 1 << 10
	keyEvents  = "monitoring/events"
	eventDisk  = "disk.nearly_full"
	diskFull   = 0.95 // share in use from which a file system is nearly full
	diskRelief = 0.90 // share below which that may be told again
)

// eventQueue is what must survive of events: one record, so that an event and the knowledge that it was
// told are one write.
type eventQueue struct {
	Waiting []wire.DeviceEvent `json:"waiting,omitempty"` // oldest first
	Once    []string           `json:"once,omitempty"`    // what was told and is not to be told again, oldest first
	Lost    int                `json:"lost,omitempty"`    // events that had no room
}

// Event queues an event for the server; it is sent until it is acknowledged, also after a restart. One with
// a name in once is queued only the first time.
func (r *Room) Event(e wire.DeviceEvent, once string) {
	e.Text = shorten(e.Text, maxText)
	r.mu.Lock()
	if once != "" && slices.Contains(r.events.Once, once) {
		r.mu.Unlock()
		return
	}
	r.change(func(q *eventQueue) {
		if once != "" {
			q.Once = append(q.Once, once)
			q.Once = q.Once[max(0, len(q.Once)-maxOnce):]
		}
		q.Waiting = append(q.Waiting, e)
		if n := len(q.Waiting) - maxEvents; n > 0 {
			q.Waiting = q.Waiting[n:]
			q.Lost += n
		}
	})
	r.mu.Unlock()
	r.cfg.Log.Info("event", "name", e.Name, "text", e.Text)
	select {
	case r.eventful <- struct{}{}:
	default: // Run will look anyway
	}
}

// forget lets an event of that name be told again. The lock is held.
func (r *Room) forget(once string) {
	if i := slices.Index(r.events.Once, once); i >= 0 {
		r.change(func(q *eventQueue) { q.Once = slices.Delete(q.Once, i, i+1) })
	}
}

// change changes the queue and stores it; a full disk lets it live in memory only. The lock is held.
func (r *Room) change(f func(q *eventQueue)) {
	next := eventQueue{Waiting: slices.Clone(r.events.Waiting), Once: slices.Clone(r.events.Once), Lost: r.events.Lost}
	f(&next)
	r.events = next
	if r.cfg.Journal == nil {
		return
	}
	if err := r.cfg.Journal.Put(keyEvents, next); err != nil {
		r.cfg.Log.Debug("events not stored", "error", err)
	}
}

// sendEvents sends what waits, oldest first. What fails waits for the next interval.
func (r *Room) sendEvents(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		if len(r.events.Waiting) == 0 {
			r.mu.Unlock()
			return
		}
		e, lost := r.events.Waiting[0], r.events.Lost
		r.mu.Unlock()
		sent := e
		if lost > 0 {
			sent.Text = shorten(fmt.Sprintf("%s (%d earlier events had no room)", e.Text, lost), maxText)
		}
		if err := r.cfg.Sender.PostEvent(ctx, sent); err != nil && !permanent(err) {
			return
		} else if err != nil {
			r.cfg.Log.Warn("event dropped", "name", e.Name, "error", err) // it will not be taken however often it is sent
		}
		r.mu.Lock()
		// More may have come meanwhile, and pushed this one out.
		if len(r.events.Waiting) > 0 && same(r.events.Waiting[0], e) {
			r.change(func(q *eventQueue) { q.Waiting, q.Lost = q.Waiting[1:], max(0, q.Lost-lost) })
		}
		r.mu.Unlock()
	}
}

func same(a, b wire.DeviceEvent) bool {
	return a.Name == b.Name && a.Time.Equal(b.Time) && a.Text == b.Text && string(a.Data) == string(b.Data)
}

// watchDisks tells once when a file system is nearly full, and again after it had space. The lock is held by
// nobody.
func (r *Room) watchDisks(metrics []host.Metric) {
	limits := map[string]float64{}
	for _, m := range metrics {
		if m.Name == host.MetricDiskLimit {
			limits[m.Attributes[host.AttrMount]] = m.Value
		}
	}
	for _, m := range metrics {
		mount := m.Attributes[host.AttrMount]
		if m.Name != host.MetricDiskUsage || limits[mount] <= 0 {
			continue
		}
		share, once := m.Value/limits[mount], "disk "+mount
		switch {
		case share >= diskFull:
			data, err := json.Marshal(map[string]any{"mountpoint": mount, "used_ratio": float64(int(share*1000)) / 1000})
			if err != nil {
				continue // a text and a number always can be encoded
			}
			r.Event(wire.DeviceEvent{
				Name: eventDisk, Severity: "warning", Text: fmt.Sprintf("%s is %.0f %% full", mount, share*100), Data: data, Time: r.cfg.Now().UTC(),
			}, once)
		case share < diskRelief:
			r.mu.Lock()
			r.forget(once)
			r.mu.Unlock()
		}
	}
}

// shorten cuts a text to so many bytes, between two letters.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}
