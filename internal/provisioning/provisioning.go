package provisioning

import (
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// Bounds and defaults.
const (
	DefaultTokenLife       = 24 * time.Hour
	MaxTokenLife           = 30 * 24 * time.Hour
	MinTokenLife           = time.Minute
	DefaultCertificateLife = 90 * 24 * time.Hour
	// MaxLiving bounds how many certificates of one device are valid at a time: the one in use and
	// renewals whose answer was lost. One more supersedes the oldest that was never used.
	MaxLiving = 3
	// MaxBulk bounds how many tokens one request makes.
	MaxBulk = 1000
	// backdate is how far before its issue a certificate begins, so that a device whose clock is a
	// little slow can use it at once. Short-lived certificates begin at most a tenth of their life
	// earlier: whoever computes "two thirds of its life" from the certificate alone stays right.
	backdate = 10 * time.Minute
)

// TokenState is what has become of a token.
type TokenState string

// The states of a token.
const (
	TokenOpen    TokenState = "open"
	TokenUsed    TokenState = "used"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// Token is an enrollment token as an operator sees it: without its secret.
type Token struct {
	ID          string          `json:"id"`
	Tenant      device.TenantID `json:"tenant"`
	Serial      string          `json:"serial" doc:"The only serial number that may use it"`
	Device      device.ID       `json:"device,omitempty" doc:"Empty when the serial number was not in stock and has not enrolled"`
	Note        string          `json:"note,omitempty"`
	State       TokenState      `json:"state" enum:"open,used,expired,revoked"`
	Created     time.Time       `json:"created"`
	CreatedBy   string          `json:"created_by"`
	Expires     time.Time       `json:"expires"`
	Used        time.Time       `json:"used,omitzero"`
	Certificate string          `json:"certificate,omitempty" doc:"Serial number of the certificate that it gave"`
	Revoked     time.Time       `json:"revoked,omitzero"`
	Reused      time.Time       `json:"reused,omitzero" doc:"When another key last tried a used token: it may have leaked"`

	num     int64
	usedKey string
}

// stateAt derives the state; what happened first counts.
func (t Token) stateAt(now time.Time) TokenState {
	switch {
	case !t.Used.IsZero():
		return TokenUsed
	case !t.Revoked.IsZero():
		return TokenRevoked
	case !now.Before(t.Expires):
		return TokenExpired
	}
	return TokenOpen
}

// NewToken is the order for one token: for a device in stock, or for a serial number that is not.
type NewToken struct {
	Device device.ID
	Serial string
	Life   time.Duration // 0 means DefaultTokenLife
	Note   string
}

const maxNoteBytes = 200

func (n *NewToken) check() error {
	bad := &fault.Invalid{}
	switch {
	case n.Device == "" && n.Serial == "":
		bad.Add("body.device", "name a device, or a serial number that is not in stock")
	case n.Device != "" && n.Serial != "":
		bad.Add("body.serial", "give either the device or the serial number, not both")
	case n.Device != "":
		if _, err := device.ParseID(string(n.Device)); err != nil {
			bad.Add("body.device", "%s", err)
		}
	default:
		serial, err := device.ParseSerial(n.Serial)
		if err != nil {
			bad.Add("body.serial", "%s", err)
		}
		n.Serial = serial
	}
	if n.Life == 0 {
		n.Life = DefaultTokenLife
	}
	if n.Life < MinTokenLife || n.Life > MaxTokenLife {
		bad.Add("body.life_seconds", "a token lives between %s and %d days", MinTokenLife, MaxTokenLife/(24*time.Hour))
	}
	if len(n.Note) > maxNoteBytes {
		bad.Add("body.note", "at most %d bytes", maxNoteBytes)
	}
	return bad.OrNil()
}

// IssuedToken is a token with its secret, shown this once.
type IssuedToken struct {
	Token
	Secret string `json:"token" doc:"stw1.<secret>.<pin>: hand it to the device; it is not shown again"`
}

// Unpurchased is what happens when a device enrolls that nobody bought.
type Unpurchased string

// The choices of a tenant's policy.
const (
	QuarantineUnpurchased Unpurchased = "quarantine" // it may talk and gets nothing until somebody looks
	AcceptUnpurchased     Unpurchased = "accept"     // like a device from stock
	RefuseUnpurchased     Unpurchased = "refuse"     // it gets no certificate
)

func (u Unpurchased) check() error {
	switch u {
	case QuarantineUnpurchased, AcceptUnpurchased, RefuseUnpurchased:
		return nil
	}
	return fault.Bad("body.unpurchased", "%q: want quarantine, accept or refuse", string(u))
}

// Policy of one tenant.
type Policy struct {
	Unpurchased Unpurchased `json:"unpurchased" enum:"quarantine,accept,refuse" doc:"What to do when a device enrolls that nobody bought"`
	Revision    int64       `json:"revision"`
	Changed     time.Time   `json:"changed,omitzero"`
	ChangedBy   string      `json:"changed_by,omitempty"`
}

// CertificateState is what a certificate is good for.
type CertificateState string

// The states of a certificate.
const (
	CertificateIssued     CertificateState = "issued" // not used yet
	CertificateInUse      CertificateState = "in use"
	CertificateSuperseded CertificateState = "superseded"
	CertificateRevoked    CertificateState = "revoked"
	CertificateExpired    CertificateState = "expired"
)

// Certificate is one that was issued to a device.
type Certificate struct {
	Serial     string           `json:"serial" doc:"Serial number of the certificate in hex"`
	Device     device.ID        `json:"device"`
	KeyID      string           `json:"key_id" doc:"SHA-256 of the public key in hex"`
	KeyKind    string           `json:"key_kind"`
	State      CertificateState `json:"state" enum:"issued,in use,superseded,revoked,expired"`
	Issued     time.Time        `json:"issued"`
	Expires    time.Time        `json:"expires"`
	Address    string           `json:"address,omitempty" doc:"Network address that asked for it"`
	FirstUsed  time.Time        `json:"first_used,omitzero"`
	Superseded time.Time        `json:"superseded,omitzero"`
	Revoked    time.Time        `json:"revoked,omitzero"`
	Reason     string           `json:"reason,omitempty"`

	tenant device.TenantID
	num    int64
	body   []byte
	seal   []byte // see sealer
}

func (c Certificate) stateAt(now time.Time) CertificateState {
	switch {
	case !c.Revoked.IsZero():
		return CertificateRevoked
	case !c.Superseded.IsZero():
		return CertificateSuperseded
	case !now.Before(c.Expires):
		return CertificateExpired
	case c.FirstUsed.IsZero():
		return CertificateIssued
	}
	return CertificateInUse
}

// renewable is from when on a certificate may be renewed: half of its life. Agents ask at two thirds.
func (c Certificate) renewable() time.Time {
	return c.Issued.Add(c.Expires.Sub(c.Issued) / 2)
}

// CloneFlag says that two machines were seen with one device's identity.
type CloneFlag struct {
	Device    device.ID `json:"device"`
	Instances []string  `json:"instances" doc:"Instance IDs of the machines' state directories"`
	Since     time.Time `json:"since"`
	Last      time.Time `json:"last"`
}

// maxInstances bounds how many machines one flag names.
const maxInstances = 8

// Authority is one certificate of an authority.
type Authority struct {
	ID          string    `json:"id"`
	Kind        string    `json:"kind" enum:"root,issuing,link root,link issuing"`
	Subject     string    `json:"subject"`
	KeyID       string    `json:"key_id" doc:"SHA-256 of the public key in hex"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256 of the certificate in hex"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires"`
	PEM         string    `json:"pem"`
}

// The refusals that devices meet. Their texts say what to do; none tells whether a secret exists.
func errTokenInvalid() error {
	return fault.Coded(fault.Unauthorized, wire.CodeTokenInvalid,
		"this enrollment token is unknown, has expired or belongs to another serial number; ask the operator for a new one")
}

func errTokenUsed() error {
	return fault.Coded(fault.Forbidden, wire.CodeTokenUsed,
		"this enrollment token was used by another key; ask the operator for a new one")
}

func errDecommissioned(d device.Device) error {
	return fault.Coded(fault.Forbidden, wire.CodeDecommissioned,
		"device %s is %s and does not come back", d.ID, d.Stage)
}

func errUnknownDevice() error {
	return fault.Coded(fault.Forbidden, wire.CodeUnknownDevice, "this certificate was not issued by this server for a device that it knows")
}

// KeyPrefix shortens a key ID for people.
func KeyPrefix(id string) string { return strings.ToUpper(id[:min(len(id), 12)]) }
