package wire

import "time"

// Section names one part of a device's documents: a room's own.
type Section string

// The sections of this protocol. A desired and a reported section of one name belong to the room of
// the same name on both sides.
const (
	SectionUpdate     Section = "update"     // desired: UpdateDesired, reported: UpdateReported
	SectionMonitoring Section = "monitoring" // desired: MonitoringDesired
	SectionDisposal   Section = "disposal"   // desired: DisposalDesired, reported: DisposalReported
	SectionInventory  Section = "inventory"  // reported: Inventory
	SectionPackages   Section = "packages"   // reported: Packages
	SectionServices   Section = "services"   // reported: Services
	SectionAgent      Section = "agent"      // reported: AgentReported
)

// Desired is what a device should be, signed by the server in an envelope of DesiredType and served at
// GET /v1/desired. The agent refuses an envelope for another device, one with a lower Epoch than it
// has accepted before, one that has expired, and one without a valid signature. Bodies are fetched by
// hash at GET /v1/documents/{hash}.
type Desired struct {
	Protocol int              `json:"protocol"`
	Device   string           `json:"device"`
	Epoch    int64            `json:"epoch"` // grows with each change of a section
	Sections map[Section]Hash `json:"sections"`
	Issued   time.Time        `json:"issued"`
	Expires  time.Time        `json:"expires"`
}

// GET /v1/desired answers with ETag: "<epoch>". With If-None-Match and ?wait=<seconds> the server holds
// the request until the epoch changes, at most MaxWaitSeconds, then answers 304.
const MaxWaitSeconds = 300

// Report is what a device is: POST /v1/report. Only changed sections need to be sent; a full report
// (Full) names all sections, and the server forgets those that it does not name.
type Report struct {
	Protocol int              `json:"protocol"`
	Boot     string           `json:"boot"`     // random, made at each start of the agent
	Sequence int64            `json:"sequence"` // grows by one with each report of a boot
	Instance string           `json:"instance"` // random, made once with the state directory: tells clones apart
	Time     time.Time        `json:"time"`     // the device's clock
	Epoch    int64            `json:"epoch"`    // the desired state it has last accepted
	Full     bool             `json:"full,omitempty"`
	Sections map[Section]Hash `json:"sections,omitempty"`
}

// ReportAnswer is sent after the commit. The agent uploads the Missing documents by
// PUT /v1/documents/{hash} and reports again; a section counts as reported only once its body is known.
type ReportAnswer struct {
	Missing         []Hash    `json:"missing,omitempty"`
	Epoch           int64     `json:"epoch"`            // current desired epoch: fetch when it is higher than yours
	Time            time.Time `json:"time"`             // the server's clock
	IntervalSeconds int       `json:"interval_seconds"` // when to report next at the latest
}

// Sealed is one device's signed Desired as the server hands it to its doors: the envelope, whose it is by
// the server's own number, and its epoch.
type Sealed struct {
	Num      int64
	Epoch    int64
	Envelope []byte // shared by all who were given it: not to be changed
}
