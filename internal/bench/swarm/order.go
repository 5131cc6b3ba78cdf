package swarm

import (
	"time"

	"steward/internal/wire"
)

// The orders that a worker process obeys, one after the other.
const (
	doEnroll    = "enroll"    // get certificates for the tickets
	doConnect   = "connect"   // begin to live; ends when all are served
	doHello     = "hello"     // report everything, as after the first start
	doMark      = "mark"      // forget what was measured of convergence and service
	doConverged = "converged" // wait until all have reported a desired state that is newer than at the mark
	doServed    = "served"    // wait until all have been served again since the mark
	doReports   = "reports"   // report as fast as the server acknowledges
	doMixed     = "mixed"     // reports, telemetry and events at a pace, and some reconnects
	doLeave     = "leave"     // disconnect
)

// order is one line to a worker process.
type order struct {
	Do     string        `json:"do"`
	Within time.Duration `json:"within,omitempty"` // after it, what has not ended counts as failed

	Door string `json:"door,omitempty"` // of served: only devices that were connected there at the mark

	Enroll  *Enroll  `json:"enroll,omitempty"`
	Connect *Connect `json:"connect,omitempty"`
	Reports *Reports `json:"reports,omitempty"`
	Mixed   *Mixed   `json:"mixed,omitempty"`
}

// answer is one line from a worker process.
type answer struct {
	Error   string            `json:"error,omitempty"`
	Tallies map[string]*Tally `json:"tallies,omitempty"`
}

// Ticket is what a device needs to enroll.
type Ticket struct {
	Device string `json:"device"`
	Serial string `json:"serial"`
	Token  string `json:"token"`
}

// Enroll is how devices get their certificates.
type Enroll struct {
	Link    string   `json:"link"` // URL
	Tickets []Ticket `json:"tickets"`
	First   int      `json:"first"` // index in the fleet of the first ticket: gives it its address
	AtOnce  int      `json:"at_once"`
	// Shared sends many enrollments through one connection, to prepare a fleet quickly: the server issues the
	// same certificates and writes the same rows, and is spared the handshakes. Without it, each
	// device has a connection of its own, as in the field.
	Shared bool `json:"shared,omitempty"`
}

// Connect is how devices come.
type Connect struct {
	Doors  []string `json:"doors"`             // host:port of each node; the devices spread over them
	AtOnce int      `json:"at_once,omitempty"` // how many handshakes at a time; 0: all, a storm
	// Hybrid agrees on keys by X25519MLKEM768, Go's default, and else by X25519, as small TLS libraries do.
	Hybrid bool `json:"hybrid,omitempty"`
	// Quiet devices don't subscribe to the answers of their reports: the acknowledgement is enough for them.
	Quiet bool `json:"quiet,omitempty"`
}

// filters are what a device subscribes to.
func (c Connect) filters() []string {
	if !c.Quiet {
		return []string{wire.Topic(wire.Me, wire.TopicDown, "#")}
	}
	var out []string
	for _, name := range []string{wire.TopicDesired, wire.TopicDocument + "/#", wire.TopicCommand, wire.TopicProblem} {
		out = append(out, wire.Topic(wire.Me, wire.TopicDown, name))
	}
	return out
}

// Reports is a closed loop: each device sends the next report when its last was acknowledged.
type Reports struct {
	For      time.Duration `json:"for"`
	InFlight int           `json:"in_flight"`         // of one device; at least 1
	Changed  bool          `json:"changed,omitempty"` // each names other documents than the one before
}

// Mixed is a day in short.
type Mixed struct {
	For       time.Duration `json:"for"`
	Every     time.Duration `json:"every"`     // a message of each device
	Reconnect int           `json:"reconnect"` // devices that drop their connection, spread over the time
}
