// Package release is the room of what can be installed: artifacts, releases and the TUF repository
// that vouches for them, one per tenant.
//
//	operator's machine                         server                          device
//	root, targets keys  ──root.json──▶  checks the chain          ──N.root.json──▶  walks from its pin
//	sign targets        ──targets────▶  checks signature, version,
//	                                    content of every new target ──N.targets──▶  verifies
//	                                    signs snapshot, timestamp   ──…──────────▶  verifies, notices a freeze
//
// The server never makes a device trust anything: its two online keys say only what is newest. In
// managed mode it also holds the offline keys, in a key directory of its own, and signs with them by
// the same code as an operator's machine would; that mode is reported as a warning everywhere.
package release

import (
	"embed"
	"io/fs"
	"time"

	"steward/internal/device"
	"steward/internal/release/signing"
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
	return sqldb.Migration{Room: "release", Files: files}
}

// Kinds of ledger events.
const (
	EventManaged   = "release.managed"   // the server has made the offline keys itself
	EventRooted    = "release.rooted"    // a root was accepted
	EventPublished = "release.published" // a release was added; subject "name@version"
	EventRemoved   = "release.removed"   // subject "name@version"
)

// Release is one thing that can be installed.
type Release struct {
	Name       string       `json:"name"`
	Version    string       `json:"version"`
	Target     string       `json:"target" doc:"Name of the manifest among the TUF targets"`
	SHA256     wire.Hash    `json:"sha256" doc:"Of the manifest"`
	Notes      string       `json:"notes,omitempty"`
	SizeBytes  int64        `json:"size_bytes" doc:"Of all artifacts together"`
	Created    time.Time    `json:"created"`
	CreatedBy  device.Actor `json:"created_by"`
	Components []Component  `json:"components"`
}

// Subject is how the ledger names the release.
func (r Release) Subject() string { return Subject(r.Name, r.Version) }

// Subject is how the ledger names a release.
func Subject(name, version string) string { return name + "@" + version }

// Component of a release with its artifact's size and hash.
type Component struct {
	wire.Component
	SHA256    wire.Hash `json:"sha256"`
	SizeBytes int64     `json:"size_bytes"`
}

// Manifest returns the release as it was signed.
func (r Release) Manifest() wire.ReleaseManifest {
	m := wire.ReleaseManifest{Name: r.Name, Version: r.Version, Notes: r.Notes}
	for _, c := range r.Components {
		m.Components = append(m.Components, c.Component)
	}
	return m
}

// RoleStatus is one role of the repository.
type RoleStatus struct {
	Version   int64     `json:"version"`
	Expires   time.Time `json:"expires"`
	Threshold int       `json:"threshold,omitempty" doc:"How many keys must sign; for root and targets"`
	Online    bool      `json:"online" doc:"The server holds the key and signs anew by itself"`
}

// Repository is the state of a tenant's TUF repository.
type Repository struct {
	Tenant     device.TenantID    `json:"tenant"`
	Managed    bool               `json:"managed" doc:"The server holds root and targets keys too: who steals it owns the fleet"`
	Warning    string             `json:"warning,omitempty"`
	Rooted     bool               `json:"rooted" doc:"A root was accepted: releases can be published"`
	OnlineKeys signing.OnlineKeys `json:"online_keys" doc:"Public keys that root.json must name for snapshot and timestamp"`
	Root       RoleStatus         `json:"root"`
	Targets    RoleStatus         `json:"targets"`
	Snapshot   RoleStatus         `json:"snapshot"`
	Timestamp  RoleStatus         `json:"timestamp"`
	Created    time.Time          `json:"created"`
}

// ManagedWarning is shown wherever the repository's state is.
const ManagedWarning = "This server holds the root and targets keys itself: whoever steals it can install anything on every device. " +
	"Use it for demonstrations only; for a real fleet make the keys offline with \"steward release init-keys DIR\" before the first device enrolls."

// When expiring metadata becomes a notice. Root and targets need people, who need time.
const (
	offlineNotice   = 60 * 24 * time.Hour
	timestampNotice = 6 * time.Hour
)

// When the server signs anew what it signs by itself.
const (
	timestampAhead = signing.TimestampLife / 2
	snapshotAhead  = signing.SnapshotLife / 2
)

// keptVersions is how many old versions of snapshot and targets are kept for devices that are in the
// middle of reading. Roots are kept for ever, since devices walk them one by one.
const keptVersions = 20
