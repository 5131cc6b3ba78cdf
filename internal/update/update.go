package update

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

//go:embed page/*.html
var pageFiles embed.FS

// Migration returns the room's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // the embedded tree is part of the program
	}
	return sqldb.Migration{Room: "update", Files: files}
}

// Kinds of ledger events. What devices report is "update." and the state, with the device set.
const (
	EventAssigned  = "update.assigned"  // subject: the assignment; with a device when it came to match later
	EventWithdrawn = "update.withdrawn" // a device is asked for an assignment no more
	EventCancelled = "update.cancelled"
	EventRetried   = "update.retried"
	EventComplete  = "update.complete" // a change of many devices has come to all of them
	eventReached   = "update."
)

// State is how far a device is with an assignment: one of wire's states or of those below.
type State = wire.UpdateState

// States that the server gives by itself. They end an assignment for a device without a result.
const (
	Superseded State = "superseded" // a newer assignment of the same release took the device
	Cancelled  State = "cancelled"  // an operator took the assignment back
	Withdrawn  State = "withdrawn"  // the device left the selector or the service
)

// States lists all states in the order in which people want to see them.
var States = []State{
	wire.UpdatePending, wire.UpdateDownloading, wire.UpdateDownloaded, wire.UpdateInstalled, wire.UpdateHealthy, wire.UpdateCommitted,
	wire.UpdateRolledBack, wire.UpdateFailed, Superseded, Cancelled, Withdrawn,
}

// rank orders the states of an attempt; only higher ones are reached.
var rank = map[State]int{
	wire.UpdatePending: 0, wire.UpdateDownloading: 1, wire.UpdateDownloaded: 2, wire.UpdateInstalled: 3, wire.UpdateHealthy: 4,
	wire.UpdateCommitted: 5, wire.UpdateRolledBack: 6, wire.UpdateFailed: 6,
}

// Open tells whether a result is still to come.
func Open(s State) bool {
	r, known := rank[s]
	return known && r < rank[wire.UpdateCommitted]
}

// failed tells whether an operator may ask to try again.
func failed(s State) bool { return s == wire.UpdateRolledBack || s == wire.UpdateFailed }

// advances tells whether a report of a state changes what is known. See the package's comment.
func advances(from, to State) bool {
	if _, known := rank[to]; !known {
		return false
	}
	switch {
	case failed(from):
		return false
	case from == Superseded, from == Cancelled, from == Withdrawn:
		return rank[to] >= rank[wire.UpdateCommitted] // it was done before the device heard of it
	}
	return rank[to] > rank[from]
}

// told tells whether reaching the state is an event in the device's ledger.
func told(s State) bool {
	return s == wire.UpdateDownloaded || rank[s] >= rank[wire.UpdateInstalled]
}

// AssignmentState is whether an assignment still decides anything.
type AssignmentState string

// The states of an assignment.
const (
	Active      AssignmentState = "active"
	Overtaken   AssignmentState = "superseded" // a newer one of the same release covers all that it could match
	CalledBack  AssignmentState = "cancelled"
	maxNote                     = 500
	assignments                 = "asg-"
)

// Assignment of a release to the devices that a selector matches, now and later.
type Assignment struct {
	ID           string          `json:"id"`
	Tenant       device.TenantID `json:"tenant"`
	Release      string          `json:"name" doc:"Name of the release"`
	Version      string          `json:"version"`
	Selector     device.Selector `json:"selector" doc:"Empty means all devices"`
	Note         string          `json:"note,omitempty"`
	State        AssignmentState `json:"state" enum:"active,superseded,cancelled"`
	SupersededBy string          `json:"superseded_by,omitempty"`
	Created      time.Time       `json:"created"`
	CreatedBy    device.Actor    `json:"created_by"`
	Ended        time.Time       `json:"ended,omitzero"`
	Counts       map[State]int64 `json:"states" doc:"Devices by state"`
	Progress     *Progress       `json:"progress,omitempty" doc:"A change that is on its way to the devices"`

	num         int64
	target      string
	authorScope string
}

// Total is the number of devices that the assignment ever reached.
func (a Assignment) Total() (n int64) {
	for _, c := range a.Counts {
		n += c
	}
	return n
}

// In is how many devices are in a state; for templates, whose words are strings.
func (a Assignment) In(state string) int64 { return a.Counts[State(state)] }

// Percent is the share of committed devices among those that are still asked for it, rounded down so
// that 100 means all.
func (a Assignment) Percent() int {
	var asked int64
	for s, c := range a.Counts {
		if _, own := rank[s]; own {
			asked += c
		}
	}
	if asked == 0 {
		return 0
	}
	return int(a.Counts[wire.UpdateCommitted] * 100 / asked)
}

// ref is what the assignment puts into a device's desired state.
func (a Assignment) ref(attempt int) wire.ReleaseRef {
	return wire.ReleaseRef{Name: a.Release, Version: a.Version, Target: a.target, Assignment: a.ID, Attempt: attempt}
}

// DeviceState is one device's progress with an assignment.
type DeviceState struct {
	Device     device.ID `json:"device"`
	Name       string    `json:"name"`
	Assignment string    `json:"assignment"`
	Release    string    `json:"release"`
	Version    string    `json:"version"`
	Attempt    int       `json:"attempt"`
	Current    bool      `json:"current" doc:"The device is asked for it now"`
	State      State     `json:"state"`
	Step       string    `json:"step,omitempty"`
	Cause      string    `json:"cause,omitempty" doc:"The first cause of the failure"`
	Changed    time.Time `json:"changed"`

	num int64
}

// Failure is one group of failures with the same cause.
type Failure struct {
	State State  `json:"state"`
	Step  string `json:"step"`
	Cause string `json:"cause"`
	Count int64  `json:"count"`
}

// HistoryEntry is one state that a device reached.
type HistoryEntry struct {
	Assignment string    `json:"assignment"`
	Attempt    int       `json:"attempt"`
	Release    string    `json:"release"`
	Version    string    `json:"version"`
	State      State     `json:"state"`
	Step       string    `json:"step,omitempty"`
	Cause      string    `json:"cause,omitempty"`
	Output     string    `json:"output,omitempty"`
	Reached    time.Time `json:"reached" doc:"By the device's clock"`
	Received   time.Time `json:"received"`
}

// Preview is what an assignment would do.
type Preview struct {
	Release      string     `json:"name"`
	Version      string     `json:"version"`
	Devices      int64      `json:"devices" doc:"How many match now"`
	Unknown      int64      `json:"unknown" doc:"How many of them have not reported an inventory yet"`
	Incompatible int64      `json:"incompatible" doc:"How many of them no component fits: they would report failed"`
	Misfits      []Misfit   `json:"misfits,omitempty"`
	Bytes        int64      `json:"bytes" doc:"To be downloaded by all of them together; devices of unknown architecture count with all components"`
	Replaces     []Replaced `json:"replaces,omitempty" doc:"What the matching devices are asked for now"`
}

// Misfit is a group of devices that no component of the release fits.
type Misfit struct {
	Architecture string `json:"architecture"`
	Product      string `json:"product"`
	Devices      int64  `json:"devices"`
	Reason       string `json:"reason"`
}

// Replaced is a version that matching devices are asked for now.
type Replaced struct {
	Version string `json:"version"`
	Devices int64  `json:"devices"`
}

// fitting sums the artifacts that a machine would download; 0 components fitting gives ok = false.
func fitting(m wire.ReleaseManifest, sizes map[string]int64, architecture, product string) (bytes int64, ok bool) {
	for _, c := range m.Components {
		if c.Fits(architecture, product) {
			bytes, ok = bytes+sizes[c.Artifact], true
		}
	}
	return bytes, ok
}

// misfitReason says why no component fits.
func misfitReason(m wire.ReleaseManifest, architecture, product string) string {
	var architectures, models []string
	for _, c := range m.Components {
		architectures = append(architectures, c.Architectures...)
		models = append(models, c.Models...)
	}
	slices.Sort(architectures)
	slices.Sort(models)
	if len(architectures) > 0 && !slices.Contains(architectures, architecture) {
		return fmt.Sprintf("architecture %s: the release has components for %v", architecture, slices.Compact(architectures))
	}
	return fmt.Sprintf("product %q: the release has components for %q", product, slices.Compact(models))
}

// replaceRef returns the document with the release of that name replaced, or removed when ref is nil,
// in the order of names so that equal wishes give equal documents.
func replaceRef(doc wire.UpdateDesired, name string, ref *wire.ReleaseRef) wire.UpdateDesired {
	out := wire.UpdateDesired{}
	for _, r := range doc.Releases {
		if r.Name != name {
			out.Releases = append(out.Releases, r)
		}
	}
	if ref != nil {
		out.Releases = append(out.Releases, *ref)
	}
	slices.SortFunc(out.Releases, func(a, b wire.ReleaseRef) int {
		if a.Name < b.Name {
			return -1
		}
		return 1 // names differ
	})
	return out
}
