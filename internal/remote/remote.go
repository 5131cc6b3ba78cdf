// Package remote is the room of what a device is asked to do once, now: commands with a deadline and
// exactly one result. It changes nothing that a device runs; that takes a signed release.
//
// The database is the truth: Waiting lists what a device still has to answer, level-triggered, and a
// message on the bus only says "look again". So a command survives lost messages, reconnects and the death
// of a node, and a device that gets it twice does it once, by its ID.
//
//	          handed to the device         the device's answer
//	waiting ──────────────────→ delivered ──────────────────→ done, failed, refused
//	   │                            │
//	   ├────────────────────────────┴── deadline ───────────→ expired    ──┐ a late answer "done" or "failed"
//	   └────────────────────────────┴── an operator ────────→ cancelled  ──┴─→ done, failed (late)
//
// Exactly one result is kept: the first. A device that was cut off may have done the command in time and
// tell it late; what really happened then stands in the place of "expired".
package remote

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

//go:embed migrations
var migrations embed.FS

// Migration of the room's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the embedded tree is part of the program
	}
	return sqldb.Migration{Room: "remote", Files: files}
}

// State of a command.
type State int

// The states, kept in the database by number; those before Done are open.
const (
	Waiting State = iota
	Delivered
	Done
	Failed
	Refused
	Expired
	Cancelled
)

var stateNames = [...]string{"waiting", "delivered", wire.CommandDone, wire.CommandFailed, wire.CommandRefused, "expired", "cancelled"}

// States are the names of all states, in their order.
func States() []string { return stateNames[:] }

func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "unknown"
	}
	return stateNames[s]
}

// MarshalText writes the state by its name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the form that MarshalText writes; with it the API describes a state as text.
func (s *State) UnmarshalText(text []byte) (err error) {
	*s, err = ParseState(string(text))
	return err
}

// ParseState reads the name of a state.
func ParseState(name string) (State, error) {
	if i := slices.Index(stateNames[:], name); i >= 0 {
		return State(i), nil
	}
	return Waiting, fault.Bad("query.state", "want one of %s", strings.Join(stateNames[:], ", "))
}

// Open tells whether a result is still to come.
func (s State) Open() bool { return s < Done }

// Command is one that was given to one device.
type Command struct {
	ID       string          `json:"id" doc:"cmd-…"`
	Device   device.ID       `json:"device"`
	Batch    string          `json:"batch,omitempty" doc:"When it was given to a selection: that batch"`
	Name     string          `json:"name"`
	Params   json.RawMessage `json:"params,omitempty" doc:"Left out in lists"`
	State    State           `json:"state" enum:"waiting,delivered,done,failed,refused,expired,cancelled"`
	By       device.Actor    `json:"by"`
	Issued   time.Time       `json:"issued"`
	Deadline time.Time       `json:"deadline"`

	Delivered    time.Time       `json:"delivered,omitzero" doc:"When it was first handed to the device's connection"`
	Finished     time.Time       `json:"finished,omitzero"`
	Late         bool            `json:"late,omitempty" doc:"The result came after the command had expired or was cancelled"`
	DeviceTime   time.Time       `json:"device_time,omitzero" doc:"The device's clock when it was done"`
	Cause        string          `json:"cause,omitempty" doc:"Why it failed or was refused"`
	Output       json.RawMessage `json:"output,omitempty" doc:"Left out in lists"`
	OutputSHA256 string          `json:"output_sha256,omitempty"`

	num    int64
	tenant device.TenantID
}

// Wish is a command as somebody wishes it.
type Wish struct {
	Name     string
	Params   json.RawMessage // a JSON value; none is fine
	Deadline time.Duration   // from now; 0 means DefaultDeadline
}

// Bounds of commands.
const (
	DefaultDeadline = time.Hour
	MinDeadline     = 10 * time.Second
	MaxDeadline     = 7 * 24 * time.Hour

	MaxOpen       = 32   // commands that a device has still to answer
	MaxBatch      = 2000 // devices of one selection: they are given their commands in one transaction
	maxNameBytes  = 64   // of a command's name
	maxCauseBytes = 1024 // of why it failed; longer ones are cut
	keepPerDevice = 200  // finished commands of one device

	// KeepFinished is how long a finished command can be looked up; the ledger keeps that it was given and
	// how it ended for ever.
	KeepFinished = 30 * 24 * time.Hour
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// harmless are the commands that only look: a quarantined device still gets them.
var harmless = []string{wire.CommandPing, wire.CommandReport, wire.CommandDiagnose}

// Harmless tells whether a command of this name only looks at the device.
func Harmless(name string) bool { return slices.Contains(harmless, name) }

// settle checks what was wished and brings it into the form in which it is kept.
func (n Wish) settle() (Wish, error) {
	bad := &fault.Invalid{}
	if !namePattern.MatchString(n.Name) {
		bad.Add("body.name", "want 1 to %d letters, digits or . _ -, beginning with a letter or digit", maxNameBytes)
	}
	if n.Deadline == 0 {
		n.Deadline = DefaultDeadline
	}
	if n.Deadline < MinDeadline || n.Deadline > MaxDeadline {
		bad.Add("body.deadline_seconds", "want %d to %d seconds (7 days)", int(MinDeadline.Seconds()), int(MaxDeadline.Seconds()))
	}
	params, err := compact(n.Params)
	switch {
	case err != nil:
		bad.Add("body.params", "want a JSON value: %s", err)
	case len(params) > wire.MaxCommandBytes:
		bad.Add("body.params", "%d bytes: at most %d", len(params), wire.MaxCommandBytes)
	}
	n.Params = params
	return n, bad.OrNil()
}

// compact takes the blanks out of a JSON value; none and null are the same. Bytes that are no UTF-8,
// which encoding/json lets pass and PostgreSQL does not, become U+FFFD.
func compact(raw json.RawMessage) (json.RawMessage, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, nil
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return nil, err
	}
	if out.String() == "null" {
		return nil, nil
	}
	return bytes.ToValidUTF8(out.Bytes(), []byte("\uFFFD")), nil
}

// result checks what a device answers and brings it into the form in which it is kept.
func result(r wire.RemoteResult) (wire.RemoteResult, State, error) {
	bad := &fault.Invalid{}
	var state State
	switch r.State {
	case wire.CommandDone:
		state = Done
	case wire.CommandFailed:
		state = Failed
	case wire.CommandRefused:
		state = Refused
	default:
		bad.Add("state", "want done, failed or refused, not %.40q", r.State)
	}
	if len(r.Output) > 2*wire.MaxCommandBytes { // with its blanks
		bad.Add("output", "%d bytes: at most %d", len(r.Output), wire.MaxCommandBytes)
		return r, state, bad
	}
	output, err := compact(r.Output)
	switch {
	case err != nil:
		bad.Add("output", "want a JSON value: %s", err)
	case len(output) > wire.MaxCommandBytes:
		bad.Add("output", "%d bytes: at most %d", len(output), wire.MaxCommandBytes)
	}
	r.Output, r.Cause = output, cut(clean(r.Cause), maxCauseBytes)
	if r.At.Before(time.Unix(0, 0)) || r.At.Year() > 9999 {
		r.At = time.Time{} // no clock worth keeping
	}
	return r, state, bad.OrNil()
}

// clean replaces what PostgreSQL refuses in a text: NUL and bytes that are not UTF-8.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}

func sum(raw []byte) string {
	if len(raw) == 0 {
		return ""
	}
	h := sha256.Sum256(raw)
	return hex.EncodeToString(h[:])
}

// mayGet says why a device in this stage gets no command of this name, or "". A device out of service gets
// none; a quarantined one gets what only looks at it, so that its trouble can be found.
func mayGet(stage device.Stage, name string) string {
	switch stage {
	case device.Enrolled, device.Active:
		return ""
	case device.Quarantined:
		if Harmless(name) {
			return ""
		}
		return "it is quarantined, and gets only " + strings.Join(harmless, ", ")
	}
	return "it is " + strings.ReplaceAll(string(stage), "_", " ") + ", not in service"
}
