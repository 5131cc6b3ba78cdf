package disposal

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// State is how far a disposal is.
type State string

// The states of a disposal.
const (
	Ordered    State = "ordered"    // the device will find the order in its desired state
	Accepted   State = "accepted"   // the device has begun
	Sanitized  State = "sanitized"  // its signed statement says that everything is destroyed: the end
	Failed     State = "failed"     // something could not be destroyed; the device stays retired
	Attested   State = "attested"   // people have attested it: the end
	Superseded State = "superseded" // another disposal took its place
)

// States lists all states.
var States = []State{Ordered, Accepted, Sanitized, Failed, Attested, Superseded}

// Open tells whether the device still has to answer.
func (s State) Open() bool { return s == Ordered || s == Accepted }

// Done tells whether the device is disposed of by it.
func (s State) Done() bool { return s == Sanitized || s == Attested }

// ParseState checks the name of a state.
func ParseState(s string) (State, error) {
	if st := State(s); slices.Contains(States, st) {
		return st, nil
	}
	return "", fmt.Errorf("state %q: want ordered, accepted, sanitized, failed, attested or superseded", s)
}

// Methods of sanitization, as NIST SP 800-88r1 names them (section 2.5).
const (
	MethodClear   = "clear"   // logical techniques on all user-addressable storage; what an agent does
	MethodPurge   = "purge"   // infeasible to recover with laboratory techniques; e.g. cryptographic erase
	MethodDestroy = "destroy" // the medium can't be used again
)

// Methods lists all methods.
var Methods = []string{MethodClear, MethodPurge, MethodDestroy}

// Disposal is one attempt to end a device's life. A device may have several, of which at most one is
// open and at most one done.
type Disposal struct {
	ID          string          `json:"id"`
	Device      device.ID       `json:"device"`
	Serial      string          `json:"serial,omitempty"`
	Model       string          `json:"model,omitempty"`
	State       State           `json:"state"`
	Method      string          `json:"method" enum:"clear,purge,destroy" doc:"As NIST SP 800-88r1 names it"`
	Reason      string          `json:"reason"`
	Actor       device.Actor    `json:"actor" doc:"Who ordered or attested it"`
	Created     time.Time       `json:"created"`
	AcceptedAt  time.Time       `json:"accepted_at,omitzero"`
	Ended       time.Time       `json:"ended,omitzero"`
	Cause       string          `json:"cause,omitempty" doc:"Why it failed"`
	Attestation *Attestation    `json:"attestation,omitempty"`
	Certificate string          `json:"certificate,omitempty" doc:"ID of the disposal certificate once it is made"`
	tenant      device.TenantID // whose device it is
	num         int64
	statement   []byte   // DSSE envelope of wire.SanitizationType
	chain       [][]byte // DER: the device's certificate first, the root last
}

// Attestation is what people say about a device that can't say it itself: it never enrolled, is lost,
// or is broken.
type Attestation struct {
	Method    string `json:"method" enum:"clear,purge,destroy" doc:"As NIST SP 800-88r1 names it"`
	Technique string `json:"technique" maxLength:"500" doc:"How, e.g. shredded to 2 mm particles"`
	Performer string `json:"performer" maxLength:"200" doc:"Who did it, name and organization"`
	Witness   string `json:"witness" maxLength:"200" doc:"Who saw it; another person"`
	Performed string `json:"performed" maxLength:"10" doc:"Day on which it was done, YYYY-MM-DD"`
	Media     string `json:"media,omitempty" maxLength:"500" doc:"Serial numbers of the storage media"`
	Evidence  string `json:"evidence" maxLength:"4000" doc:"What proves it: number of the shredder's protocol, photographs and where they are kept"`
}

// Check names each wrong field; now bounds the day on which it was done.
func (a Attestation) Check(now time.Time) error {
	bad := &fault.Invalid{}
	if !slices.Contains(Methods, a.Method) {
		bad.Add("body.attestation.method", "%q: want clear, purge or destroy", a.Method)
	}
	text(bad, "body.attestation.technique", a.Technique, 500, true)
	text(bad, "body.attestation.performer", a.Performer, 200, true)
	text(bad, "body.attestation.witness", a.Witness, 200, true)
	text(bad, "body.attestation.media", a.Media, 500, false)
	text(bad, "body.attestation.evidence", a.Evidence, 4000, true)
	if a.Witness != "" && strings.EqualFold(strings.TrimSpace(a.Witness), strings.TrimSpace(a.Performer)) {
		bad.Add("body.attestation.witness", "the witness is another person than the performer")
	}
	day, err := time.Parse(time.DateOnly, a.Performed)
	switch {
	case err != nil:
		bad.Add("body.attestation.performed", "%q is no date: use YYYY-MM-DD", a.Performed)
	case day.After(now.Add(24 * time.Hour)): // a day of slack for time zones
		bad.Add("body.attestation.performed", "%s is in the future", a.Performed)
	}
	return bad.OrNil()
}

// text checks a field for people.
func text(bad *fault.Invalid, location, s string, limit int, required bool) {
	switch {
	case required && strings.TrimSpace(s) == "":
		bad.Add(location, "is missing")
	case len(s) > limit:
		bad.Add(location, "has %d bytes: at most %d", len(s), limit)
	case !utf8.ValidString(s):
		bad.Add(location, "is not valid UTF-8")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7f }):
		bad.Add(location, "has control characters")
	}
}

// Bounds of a statement.
const (
	maxItems     = 10_000
	maxItemBytes = 1000
	destroyed    = "destroyed" // SanitizedItem.Result of what is gone
)

// checkStatement refuses a statement that is not about this disposal of this device, or by another key
// than the one that signed it. The device's clock is not judged: it may be wrong.
func checkStatement(s wire.SanitizationStatement, d device.Device, x Disposal, keyID string) error {
	bad := &fault.Invalid{}
	same := func(location, got, want string) {
		if got != want {
			bad.Add(location, "is %.80q, want %q", got, want)
		}
	}
	same("body.order", s.Order, x.ID)
	same("body.device", s.Device, string(d.ID))
	same("body.serial", s.Serial, d.Serial)
	same("body.method", s.Method, x.Method)
	same("body.key_id", s.KeyID, keyID)
	if len(s.Items) == 0 || len(s.Items) > maxItems {
		bad.Add("body.items", "a statement names 1 to %d things, this names %d", maxItems, len(s.Items))
	}
	for i, item := range s.Items {
		if item.What == "" || item.Technique == "" || item.Result == "" || item.SizeBytes < 0 ||
			len(item.What)+len(item.Technique)+len(item.Result) > maxItemBytes {
			bad.Add(fmt.Sprintf("body.items[%d]", i), "needs what, technique and result, of %d bytes in all at most", maxItemBytes)
			break
		}
	}
	return bad.OrNil()
}

// leftovers lists what a statement says could not be destroyed, for people; "" when nothing is left.
func leftovers(s wire.SanitizationStatement) string {
	var left []string
	n := 0
	for _, item := range s.Items {
		if item.Result == destroyed {
			continue
		}
		if n++; n <= 5 {
			left = append(left, item.What+": "+item.Result)
		}
	}
	if n > 5 {
		left = append(left, fmt.Sprintf("and %d more", n-5))
	}
	return strings.Join(left, "; ")
}

// techniques lists each technique of a statement once, in their order.
func techniques(s wire.SanitizationStatement) []string {
	list := []string{}
	for _, item := range s.Items {
		if !slices.Contains(list, item.Technique) {
			list = append(list, item.Technique)
		}
	}
	return list
}
