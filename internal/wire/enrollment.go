package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Trust is what a device needs to believe its server and its releases, fetched at GET /v1/trust/{pin}
// before the first verified connection and believed because its hash is in the enrollment token.
type Trust struct {
	Protocol     int             `json:"protocol"`
	LinkRoots    []string        `json:"link_roots"`             // PEM certificates that the link's TLS certificate chains to
	DeviceRoots  []string        `json:"device_roots"`           // PEM certificates of the tenant's device authority
	EnvelopeKeys []string        `json:"envelope_keys"`          // PEM public keys that sign desired state
	ReleaseRoot  json.RawMessage `json:"release_root,omitempty"` // TUF root.json of the tenant; absent while it has none
	LedgerKey    string          `json:"ledger_key,omitempty"`   // verifier key of the ledger's tree head (C2SP signed-note)
}

// EnrollmentToken is the one string that an operator hands to a device:
//
//	stw1.<secret>.<pin>
//
// The secret (130 bits, base 32) authenticates the device once, in HTTP Basic authentication of EST
// (RFC 7030, section 3.2.3) with the serial number as the user name. The pin (SHA-256 of the Trust
// document's bytes, hex) authenticates the server.
type EnrollmentToken struct {
	Secret string
	Pin    Hash
}

// ErrToken says that a string is no enrollment token.
var ErrToken = errors.New("not an enrollment token: want stw1.<secret>.<pin>")

var secretPattern = regexp.MustCompile(`^[0-9a-z]{16,64}$`)

// ParseEnrollmentToken reads the form that String writes.
func ParseEnrollmentToken(s string) (EnrollmentToken, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 || parts[0] != "stw1" || !secretPattern.MatchString(parts[1]) {
		return EnrollmentToken{}, ErrToken
	}
	pin, err := ParseHash(parts[2])
	if err != nil {
		return EnrollmentToken{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return EnrollmentToken{Secret: parts[1], Pin: pin}, nil
}

func (t EnrollmentToken) String() string { return "stw1." + t.Secret + "." + string(t.Pin) }

// Paths of the link.
const (
	PathTrust       = "/v1/trust/"     // GET + hash, no client certificate
	PathDesired     = "/v1/desired"    // GET
	PathReport      = "/v1/report"     // POST
	PathDocuments   = "/v1/documents/" // GET, PUT + hash
	PathMetrics     = "/v1/metrics"    // POST OTLP (also at /otlp/v1/metrics)
	PathArtifacts   = "/v1/artifacts/" // GET + sha256, range requests
	PathTUF         = "/v1/tuf/"       // GET + N.root.json, N.targets.json, N.snapshot.json, timestamp.json
	PathDisposal    = "/v1/disposal"   // POST: envelope of SanitizationType
	PathESTCACerts  = "/.well-known/est/cacerts"
	PathESTEnroll   = "/.well-known/est/simpleenroll"
	PathESTReenroll = "/.well-known/est/simplereenroll"
)
