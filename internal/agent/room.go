// Package agent is the device side of Steward: agent.go wires the rooms, each of which carries the
// name of the server's room that it answers to.
//
//	           ┌────────────── Agent ──────────────┐
//	desired →  │ verify envelope → fetch → Apply   │ → rooms: update, monitoring, disposal, provisioning
//	report  ←  │ hash, upload, retry ← Reported    │ ←
//	           └───────────────────────────────────┘
//
// The loop is level-triggered: a room is told what should be, never what to do next, and applying the
// same section twice is the same as once. Everything that must survive a power cut goes through package
// journal.
package agent

import (
	"context"

	"steward/internal/wire"
)

// Room is one part of the agent's work. The agent calls Apply from one goroutine at a time, Reported
// from another; a room guards its own state.
type Room interface {
	// Name is the room's name, as the server's.
	Name() string
	// Section is the desired section that the room takes, or empty.
	Section() wire.Section
	// Apply takes the section's newest body and returns soon: the work happens in Run. A nil body
	// says that the section is desired no more. The same body may come again at any time (after a
	// start it always does). An error is reported as a problem of the agent and Apply is tried again.
	Apply(ctx context.Context, body []byte) error
	// Reported returns the room's reported sections. A room that returns the same pointer as before
	// says that the section has not changed; values are never changed after they were returned. The
	// room calls its Config.Changed when there is something new.
	Reported(ctx context.Context) (map[wire.Section]any, error)
	// Run does the room's work until ctx ends, then returns nil or ctx.Err(). Any other error ends
	// the agent.
	Run(ctx context.Context) error
}

// Sanitizer is a room that holds data: it destroys all of it when the device is disposed of. Run has
// ended before. One item for each thing that was destroyed or could not be. After a kill it is called
// again, and items that are gone already are reported as destroyed by the first call's record.
type Sanitizer interface {
	Sanitize(ctx context.Context) []wire.SanitizedItem
}
