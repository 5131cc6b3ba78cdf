package wire

import "time"

// UpdateDesired is the desired section "update": which releases the device should run. A name of the
// device's TUF repository is all that it says; what is installed and with which commands stands in the
// release manifest, which the release keys have signed.
type UpdateDesired struct {
	Releases []ReleaseRef `json:"releases"` // at most one per component set name
}

// ReleaseRef names a release manifest among the TUF targets: "releases/<name>/<version>.json".
type ReleaseRef struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	Target     string `json:"target"`
	Assignment string `json:"assignment"` // ID of the assignment that asks for it, returned in the report
	Attempt    int    `json:"attempt"`    // grows when an operator asks to try again
}

// ReleaseManifest is the content of a release's TUF target.
type ReleaseManifest struct {
	Name       string      `json:"name"`
	Version    string      `json:"version"`
	Notes      string      `json:"notes,omitempty"`
	Components []Component `json:"components"` // installed in this order
}

// Component is one thing to install. Artifact is a TUF target too, so its length and hash are signed.
type Component struct {
	Name          string            `json:"name"`
	Version       string            `json:"version"`
	Type          string            `json:"type"` // "files"
	Artifact      string            `json:"artifact"`
	Architectures []string          `json:"architectures,omitempty"` // GOARCH values; empty fits all
	Models        []string          `json:"models,omitempty"`        // Machine.Product of the inventory, case ignored; empty fits all
	Commands      ComponentCommands `json:"commands"`
}

// ComponentCommands are run by the installer with the new version's directory as their working
// directory; each is a program with arguments, no shell. An exit code other than 0 or a time-out fails
// the step.
type ComponentCommands struct {
	Pre    []Command `json:"pre,omitempty"`    // before the switch
	Post   []Command `json:"post,omitempty"`   // after the switch
	Health []Command `json:"health,omitempty"` // after post, until all pass or the deadline
	// HealthSeconds is how long the health commands may take to pass; 0 means 60.
	HealthSeconds int `json:"health_seconds,omitempty"`
}

// Command is one program with its arguments.
type Command struct {
	Argv           []string `json:"argv"`
	TimeoutSeconds int      `json:"timeout_seconds,omitempty"` // 0 means 30
}

// UpdateState is how far a device is with a release. Only Committed counts as success.
type UpdateState string

// The states of an update, in order; the last three are ends.
const (
	UpdatePending     UpdateState = "pending"     // assigned, the device has not answered
	UpdateDownloading UpdateState = "downloading" //
	UpdateDownloaded  UpdateState = "downloaded"  // all artifacts present and verified
	UpdateInstalled   UpdateState = "installed"   // switched, post commands passed
	UpdateHealthy     UpdateState = "healthy"     // health commands passed
	UpdateCommitted   UpdateState = "committed"   // can no longer go back by itself
	UpdateRolledBack  UpdateState = "rolled_back" // what ran before runs again
	UpdateFailed      UpdateState = "failed"      // refused or failed before anything was changed
)

// UpdateReported is the reported section "update".
type UpdateReported struct {
	Installed []InstalledRelease `json:"installed"` // what runs now
	Updates   []UpdateProgress   `json:"updates"`   // one per desired release, the last attempt
}

// InstalledRelease is a release that is committed on the device.
type InstalledRelease struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Since   time.Time `json:"since"`
}

// UpdateProgress is the state of one update.
type UpdateProgress struct {
	Name       string      `json:"name"`
	Version    string      `json:"version"`
	Assignment string      `json:"assignment"`
	Attempt    int         `json:"attempt"`
	State      UpdateState `json:"state"`
	Cause      string      `json:"cause,omitempty"`  // the first cause of a failure, kept for ever
	Step       string      `json:"step,omitempty"`   // the step in which it failed: download, verify, pre, switch, post, health
	Output     string      `json:"output,omitempty"` // end of the failed command's output, at most 2 KiB
	Changed    time.Time   `json:"changed"`
	// Reached tells when each state of this attempt was reached, by the device's clock, in order: a
	// report may be sent only after several.
	Reached []UpdateReached `json:"reached,omitempty"`
}

// UpdateReached is one state of an update and when it was reached.
type UpdateReached struct {
	State UpdateState `json:"state"`
	At    time.Time   `json:"at"`
}

// MonitoringDesired is the desired section "monitoring": how often the device measures and reports.
type MonitoringDesired struct {
	ReportSeconds  int `json:"report_seconds"`  // full contact at least this often; 0 means 60
	MetricsSeconds int `json:"metrics_seconds"` // 0 means 60
}

// DisposalDesired is the desired section "disposal": the order to sanitize.
type DisposalDesired struct {
	Order  string    `json:"order"`  // ID of the order, repeated in the statement
	Device string    `json:"device"` // must be the device's own ID
	Method string    `json:"method"` // "clear" as in NIST SP 800-88r1: what the agent manages
	Issued time.Time `json:"issued"`
}

// DisposalReported is the reported section "disposal".
type DisposalReported struct {
	Order string `json:"order"`
	State string `json:"state"` // accepted, sanitized, failed
	Cause string `json:"cause,omitempty"`
}

// SanitizationStatement is signed by the device's operational key in an envelope of SanitizationType
// after the data is gone and before the key goes: POST /v1/disposal. The device destroys its key on the
// 2xx answer, which the server gives after it has stored the statement and revoked the certificate.
type SanitizationStatement struct {
	Order    string          `json:"order"`
	Device   string          `json:"device"`
	Serial   string          `json:"serial"`
	Method   string          `json:"method"`
	Items    []SanitizedItem `json:"items"`
	KeyID    string          `json:"key_id"` // KeyIDOf the operational key that is destroyed next
	Started  time.Time       `json:"started"`
	Finished time.Time       `json:"finished"`
}

// SanitizedItem is one thing that was destroyed, or could not be.
type SanitizedItem struct {
	What      string `json:"what"`      // e.g. "release files of app 1.2"
	Technique string `json:"technique"` // e.g. "overwrite and unlink"
	SizeBytes int64  `json:"size_bytes,omitempty"`
	Result    string `json:"result"` // "destroyed" or the error
}
