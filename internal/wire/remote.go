package wire

import (
	"encoding/json"
	"time"
)

// RemoteCommand asks a device to do something once, now. It carries no authority to install or change what the
// device runs: that takes a signed release. A device answers a name that it doesn't know with the state
// CommandRefused. The same ID may come several times; it is done once.
type RemoteCommand struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`             // "ping", "report", "diagnose", or what the device's maker has defined
	Params   json.RawMessage `json:"params,omitempty"` // a JSON value of at most MaxCommandBytes
	Issued   time.Time       `json:"issued"`
	Deadline time.Time       `json:"deadline"` // after it the device refuses
}

// RemoteCommands is the answer to GET /v1/commands: what waits for this device, oldest first.
type RemoteCommands struct {
	Commands []RemoteCommand `json:"commands"`
}

// RemoteResult is what became of a command: POST /v1/commands/{id} or up/result/<id>.
type RemoteResult struct {
	State  string          `json:"state"`            // CommandDone, CommandFailed or CommandRefused
	Cause  string          `json:"cause,omitempty"`  // why not, for people
	Output json.RawMessage `json:"output,omitempty"` // a JSON value of at most MaxCommandBytes
	At     time.Time       `json:"at"`               // the device's clock
}

// The states that a device reports of a command.
const (
	CommandDone    = "done"
	CommandFailed  = "failed"
	CommandRefused = "refused"
)

// The commands that the agent knows.
const (
	CommandPing     = "ping"     // answers with its boot and uptime
	CommandReport   = "report"   // sends a full report now
	CommandDiagnose = "diagnose" // answers with what steward-agent diagnose says
)

// MaxCommandBytes bounds the parameters and the output of a command.
const MaxCommandBytes = 64 << 10

// DeviceEvent is something that happened on the device and that people may want to know: POST /v1/events
// or up/event.
type DeviceEvent struct {
	Name     string          `json:"name"`               // "door.opened": letters, digits and . _ -, at most 64
	Severity string          `json:"severity,omitempty"` // info (default), warning, error
	Text     string          `json:"text,omitempty"`     // at most 1 KiB
	Data     json.RawMessage `json:"data,omitempty"`     // a JSON value of at most 8 KiB
	Time     time.Time       `json:"time,omitzero"`      // the device's clock; none means when it arrived
}

// Paths of the above on the HTTPS link.
const (
	PathCommands  = "/v1/commands"  // GET; POST + /{id}
	PathEvents    = "/v1/events"    // POST DeviceEvent
	PathTelemetry = "/v1/telemetry" // POST Telemetry
)

// CommandsHeader is set on answers to GET /v1/desired when commands wait for the device: their number.
const CommandsHeader = "Steward-Commands"
