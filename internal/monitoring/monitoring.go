// Package monitoring is the room that watches: when each device was last in contact, what it measures,
// and how groups of devices are doing. It tells the ledger when a device goes offline and comes back.
package monitoring

import (
	"embed"
	"io/fs"
	"regexp"
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
	return sqldb.Migration{Room: "monitoring", Files: files}
}

// State is what a device's silence means.
type State int

// The states. They are kept in the database by number.
//
//	          contact                silence > 2.5 intervals        silence > 5 intervals
//	Never ──────────────→ Online ─────────────────────────→ Late ─────────────────────→ Offline
//	                        ↑                                │                             │
//	                        └────────────────────────────────┴──────────── contact ────────┘
//
// Into and out of Offline is told in the ledger.
const (
	Never State = iota
	Online
	Late
	Offline
)

var stateNames = [...]string{"never", "online", "late", "offline"}

func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "never"
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
	for s, n := range stateNames {
		if n == name {
			return State(s), nil
		}
	}
	return Never, fault.Bad("query.presence", "want online, late, offline or never, not %.40q", name)
}

// Presence is what is known about a device's contact.
type Presence struct {
	State       State     `json:"state" enum:"online,late,offline,never"`
	LastContact time.Time `json:"last_contact,omitzero"`
	Since       time.Time `json:"since,omitzero" doc:"Since when it is in this state"`
}

// DefaultInterval is how often a device reports when no policy says otherwise.
const DefaultInterval = 60 * time.Second

// A device is late after two and a half of its intervals, so that one lost report is no news, and
// offline after five.
func lateAfter(interval time.Duration) time.Duration    { return interval * 5 / 2 }
func offlineAfter(interval time.Duration) time.Duration { return interval * 5 }

// judge returns the state after a silence, and when to look again; the zero duration means never.
func judge(silence, interval time.Duration) (State, time.Duration) {
	switch {
	case silence <= lateAfter(interval):
		return Online, lateAfter(interval)
	case silence <= offlineAfter(interval):
		return Late, offlineAfter(interval)
	}
	return Offline, 0
}

// Policy is how often a tenant's devices report and measure.
type Policy struct {
	ReportSeconds  int       `json:"report_seconds" minimum:"10" maximum:"86400" doc:"A device reports at least this often"`
	MetricsSeconds int       `json:"metrics_seconds" minimum:"10" maximum:"86400" doc:"A device measures this often"`
	Revision       int64     `json:"revision" readOnly:"true"`
	Changed        time.Time `json:"changed,omitzero" readOnly:"true"`
}

func defaultPolicy() Policy { return Policy{ReportSeconds: 60, MetricsSeconds: 60} }

func (p Policy) interval() time.Duration { return time.Duration(p.ReportSeconds) * time.Second }

func (p Policy) desired() wire.MonitoringDesired {
	return wire.MonitoringDesired{ReportSeconds: p.ReportSeconds, MetricsSeconds: p.MetricsSeconds}
}

// Bounds of a policy, in seconds.
const (
	minPolicySeconds = 10
	maxPolicySeconds = 24 * 3600
)

func (p Policy) check() error {
	bad := &fault.Invalid{}
	for _, f := range []struct {
		name    string
		seconds int
	}{{"report_seconds", p.ReportSeconds}, {"metrics_seconds", p.MetricsSeconds}} {
		if f.seconds < minPolicySeconds || f.seconds > maxPolicySeconds {
			bad.Add("body."+f.name, "want %d to %d seconds", minPolicySeconds, maxPolicySeconds)
		}
	}
	return bad.OrNil()
}

// Group is a named selector: the devices that it matches now, not a list.
type Group struct {
	Name     string          `json:"name" doc:"1 to 40 lower case letters, digits and inner dashes"`
	Selector device.Selector `json:"selector" doc:"Label selector, e.g. site=berlin,ring in (canary,early)"`
	Note     string          `json:"note,omitempty" maxLength:"500"`
	Revision int64           `json:"revision" readOnly:"true"`
	Created  time.Time       `json:"created,omitzero" readOnly:"true"`
}

var groupNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// CheckGroupName refuses what can't be a group's name.
func CheckGroupName(name string) error {
	if !groupNamePattern.MatchString(name) || name == "new" { // /groups/new is the form
		return fault.Bad("body.name", "want 1 to 40 lower case letters, digits and inner dashes, and not new")
	}
	return nil
}

// maxNoteBytes bounds a group's note.
const maxNoteBytes = 500

func (g Group) check() error {
	bad := &fault.Invalid{}
	if err := CheckGroupName(g.Name); err != nil {
		bad.Add("body.name", "want 1 to 40 lower case letters, digits and inner dashes, and not new")
	}
	if len(g.Note) > maxNoteBytes {
		bad.Add("body.note", "at most %d bytes", maxNoteBytes)
	}
	return bad.OrNil()
}

// Kinds of trouble with what a device sends.
const (
	TroubleClock   = "clock"   // its clock is wrong by more than ten minutes
	TroubleSeries  = "series"  // it measures more than is kept
	TroubleMetrics = "metrics" // it sends what is no valid metrics request
)

// Trouble is something wrong with what a device sends.
type Trouble struct {
	Kind   string    `json:"kind" enum:"clock,series,metrics"`
	Count  int64     `json:"count"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Detail string    `json:"detail"`
}

// troubleFresh is how long after its last sign a trouble counts as present.
const troubleFresh = time.Hour

// maxClockError is how wrong a device's clock may be; beyond, its samples would stand in the wrong place.
const maxClockError = 10 * time.Minute
