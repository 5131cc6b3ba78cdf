package agent

import (
	"encoding/json"
	"fmt"
	"time"

	"steward/internal/wire"
)

// Names of the events that the agent itself sends; package monitoring has one more.
const (
	eventUnclean    = "agent.unclean_stop"
	eventClock      = "clock.set"
	eventRolledBack = "update.rolled_back"
	eventFailed     = "update.failed"
)

// beginRun notes that an agent runs, and finds out whether the one before ended in good order. A full disk
// costs the next start this knowledge, no more.
func (a *Agent) beginRun() {
	_, _ = a.journal.Get(keyRunning, &a.unclean) // an unreadable value counts as a good end
	if err := a.journal.Put(keyRunning, a.cfg.Now().UTC().Format(time.RFC3339)); err != nil {
		a.cfg.Log.Debug("start not noted", "error", err)
	}
}

// endClean notes a good end.
func (a *Agent) endClean() {
	if err := a.journal.Delete(keyRunning); err != nil {
		a.cfg.Log.Debug("good end not noted", "error", err)
	}
}

// tellUnclean sends the event of an end without notice: a kill, a crash, a loss of power.
func (a *Agent) tellUnclean() {
	if a.unclean == "" {
		return
	}
	a.event(wire.DeviceEvent{
		Name: eventUnclean, Severity: "warning", Data: facts(map[string]any{"started": a.unclean}),
		Text: "the agent or the machine was stopped without notice; it had run since " + a.unclean,
	}, "")
	a.unclean = ""
}

// tellClock sends the event of a clock that was set while the agent ran.
func (a *Agent) tellClock() {
	step := a.clock.Step()
	if step == 0 {
		return
	}
	a.event(wire.DeviceEvent{
		Name: eventClock, Data: facts(map[string]any{"step_seconds": int64(step.Round(time.Second) / time.Second)}),
		Text: "the device's clock was set by " + step.Round(time.Second).String(),
	}, "")
}

// tellUpdates sends the events of updates that did not come to a good end, each once.
func (a *Agent) tellUpdates(section any) {
	reported, ok := section.(*wire.UpdateReported)
	if !ok {
		return
	}
	for _, u := range reported.Updates {
		e := wire.DeviceEvent{Severity: "error", Data: facts(map[string]any{
			"release": u.Name, "version": u.Version, "assignment": u.Assignment, "attempt": u.Attempt, "step": u.Step,
		})}
		switch u.State {
		case wire.UpdateRolledBack:
			e.Name, e.Text = eventRolledBack, fmt.Sprintf("%s %s was rolled back: %s", u.Name, u.Version, u.Cause)
		case wire.UpdateFailed:
			e.Name, e.Text = eventFailed, fmt.Sprintf("%s %s failed before anything was changed: %s", u.Name, u.Version, u.Cause)
		default:
			continue
		}
		a.event(e, fmt.Sprintf("update/%s/%s/%s/%d", u.Name, u.Version, u.Assignment, u.Attempt))
	}
}

func (a *Agent) event(e wire.DeviceEvent, once string) {
	e.Time = a.clock.Now().UTC()
	a.monitoring.Event(e, once)
}

// facts encodes an event's data.
func facts(v map[string]any) json.RawMessage {
	body, err := json.Marshal(v)
	if err != nil {
		return nil // numbers and texts always can be encoded
	}
	return body
}
