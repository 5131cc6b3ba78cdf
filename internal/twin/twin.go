package twin

import (
	"context"
	"crypto"
	"embed"
	"io/fs"
	"log/slog"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration returns the package's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the embedded tree is part of the program
	}
	return sqldb.Migration{Room: "twin", Files: files}
}

// Reaction is what a room does when a section that a device reports has changed and its body is known.
// It runs in the transaction of the report. An error that wraps fault.Unprocessable says that the
// document makes no sense: it is kept and shown with the problem, and what the reaction has written is
// undone; every other error undoes the whole report, which the device then repeats.
type Reaction func(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error

// Ledger takes the events of a change in its transaction.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Bus carries wake-ups between nodes.
type Bus interface {
	Publish(subject string, data []byte) error
	Subscribe(subject string, fn func(subject string, data []byte)) (cancel func(), err error)
}

// Config of a Service.
type Config struct {
	DB  *sqldb.DB     // required
	Key crypto.Signer // required; signs envelopes: Ed25519 or ECDSA P-256

	// Bus wakes other nodes' waiters; nil for a single node.
	Bus Bus
	// Ledger gets an event "twin.reported" when one of the Recorded sections of a device changes; nil
	// records nothing.
	Ledger Ledger
	// Recorded are those sections; nil means inventory and packages.
	Recorded []wire.Section
	// EnvelopeLife is how long a signed desired state is good for; 0 means 24 hours.
	EnvelopeLife time.Duration
	// Reactions of the rooms by the section they read.
	Reactions map[wire.Section]Reaction
	// Contact is told, before the reactions and in the same transaction, of a report that changes
	// something when the device is not in service yet (stage Enrolled) or when it is taken by itself: the
	// first after an enrollment, and those to which a room reacts. d is the device as the link has
	// authenticated it. Replays are not told. Nil tells nobody.
	Contact func(ctx context.Context, tx *sqldb.Tx, d device.Device, r wire.Report) error
	// ContactUnchanged is told of all other reports, those that change nothing and those that are taken
	// together with others, after they have been taken. When it is nil, Contact is called for them too,
	// each in a transaction.
	ContactUnchanged func(d device.Device, r wire.Report)
	// Clone is told, in the report's transaction, that two agents speak for one device: they alternate
	// with these two instances (the same one twice when the whole state directory was copied). It is
	// told again at most once an hour while that goes on. Nil only logs.
	Clone func(ctx context.Context, tx *sqldb.Tx, d device.Device, old, new string) error
	// Once runs do while this node holds the named lease, so that one of several nodes sweeps; nil runs
	// do directly.
	Once func(ctx context.Context, name string, do func(ctx context.Context) error) error
	// Interval is when a device should report next at the latest; nil means a minute.
	Interval func(ctx context.Context, d device.Device) time.Duration
	// Devices finds devices for the API and the pages; needed for Routes and Pages only.
	Devices Devices

	Now func() time.Time // nil means time.Now
	Log *slog.Logger     // nil means slog.Default
}

// Devices finds a device by its public name; the room registry does.
type Devices interface {
	ByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error)
}

// Bounds of what a device may report.
const (
	MaxSections  = 32 // sections of one device, in each direction
	maxNameBytes = 64 // of boot and instance
	maxEpoch     = 1 << 52
)

// isSection tells whether it is a section's name: a lower case letter, then up to 31 of those, digits, _ and -.
func isSection(s string) bool {
	if len(s) == 0 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// isNonce tells whether it is 1 to maxNameBytes letters, digits or . _ : -.
func isNonce(s string) bool {
	if len(s) == 0 || len(s) > maxNameBytes {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == ':' || c == '-') {
			return false
		}
	}
	return true
}

// checkReport refuses what is no report of this protocol, field by field.
func checkReport(r wire.Report) error {
	var wrong fault.Invalid
	switch {
	case r.Protocol < 1:
		wrong.Add("protocol", "want a number from 1 to %d", wire.Protocol)
	case r.Protocol > wire.Protocol:
		wrong.Add("protocol", "this server speaks protocol %d and older, not %d: update it first", wire.Protocol, r.Protocol)
	}
	if !isNonce(r.Boot) {
		wrong.Add("boot", "want 1 to %d letters, digits or . _ : -", maxNameBytes)
	}
	if !isNonce(r.Instance) {
		wrong.Add("instance", "want 1 to %d letters, digits or . _ : -", maxNameBytes)
	}
	if r.Sequence < 0 {
		wrong.Add("sequence", "want a number from 0")
	}
	if r.Epoch < 0 {
		wrong.Add("epoch", "want a number from 0")
	}
	if len(r.Sections) > MaxSections {
		wrong.Add("sections", "%d sections: at most %d", len(r.Sections), MaxSections)
		return &wrong
	}
	for s, h := range r.Sections {
		if !isSection(string(s)) {
			wrong.Add("sections", "name %.40q: want lower case letters, digits, _ or -, at most 32", s)
		}
		if _, err := wire.ParseHash(string(h)); err != nil {
			wrong.Add("sections."+string(s), "%s", err)
		}
	}
	return wrong.OrNil()
}

// checkSection refuses a section's name of the wrong form; rooms use constants, so it is their mistake.
func checkSection(s wire.Section) error {
	if !isSection(string(s)) {
		return fault.Bad("section", "name %.40q: want lower case letters, digits, _ or -, at most 32", s)
	}
	return nil
}

var errWithheld = fault.New(fault.NotFound, "a quarantined device receives no documents")

// Describe turns this package's events into sentences for people, by kind.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"twin.reported": func(e ledger.Event) string { return "Reported its " + e.Subject },
	}
}
