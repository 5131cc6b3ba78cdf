package disposal

import (
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
)

// CertificateFormat is the version of the document's form. A later form gets the next number; readers
// refuse numbers that they don't know.
const CertificateFormat = "steward-disposal-certificate/1"

// Certificate is the payload of a disposal certificate: JSON in canonical form (sorted keys, no
// blanks) inside a DSSE envelope of wire.DisposalType that the issuer signed. It carries all that is
// needed to check it offline; which keys to trust is the reader's business.
type Certificate struct {
	Format       string            `json:"format"`
	ID           string            `json:"id"`
	Tenant       device.TenantID   `json:"tenant"`
	Issued       time.Time         `json:"issued"`
	Issuer       Issuer            `json:"issuer"`
	Device       CertifiedDevice   `json:"device"`
	Provenance   *CertifiedOrigin  `json:"provenance,omitempty"` // absent when it was not bought through Steward
	Lifecycle    Lifecycle         `json:"lifecycle"`
	Sanitization Sanitization      `json:"sanitization"`
	Revocation   *Revocation       `json:"revocation,omitempty"` // absent when it never had a certificate or token
	Ledger       CertificateLedger `json:"ledger"`
}

// Issuer is who signed the certificate.
type Issuer struct {
	Name      string `json:"name"`
	KeyID     string `json:"key_id"`     // wire.KeyIDOf the key
	PublicKey string `json:"public_key"` // PEM, SubjectPublicKeyInfo
}

// CertifiedDevice is the device that is gone.
type CertifiedDevice struct {
	ID        device.ID `json:"id"`
	Serial    string    `json:"serial"`
	Name      string    `json:"name,omitempty"`
	Model     string    `json:"model,omitempty"` // ID
	Maker     string    `json:"maker,omitempty"`
	ModelName string    `json:"model_name,omitempty"`
}

// CertifiedOrigin is where the device came from. The price is nobody else's business.
type CertifiedOrigin struct {
	Order     string    `json:"order"` // number of the purchase order
	OrderID   string    `json:"order_id"`
	Line      int       `json:"line"`
	Supplier  string    `json:"supplier"`
	Ordered   time.Time `json:"ordered"`
	Delivery  string    `json:"delivery"`
	Delivered time.Time `json:"delivered"` // time of the event purchase.received
}

// Lifecycle holds the times of the ledger's events. Enrolled is zero for a device that never was.
type Lifecycle struct {
	Created       time.Time `json:"created"`
	Enrolled      time.Time `json:"enrolled,omitzero"`
	Retired       time.Time `json:"retired"`
	RetiredReason string    `json:"retired_reason,omitempty"`
	Disposed      time.Time `json:"disposed"`
}

// Kinds of Sanitization.
const (
	KindStatement   = "device-statement"     // signed by the device's own key
	KindAttestation = "operator-attestation" // written by people: the device said nothing
)

// Sanitization is how the data was destroyed and who says so.
type Sanitization struct {
	Order       string       `json:"order"` // ID of the disposal
	Kind        string       `json:"kind"`
	Method      string       `json:"method"` // as NIST SP 800-88r1 names it
	Techniques  []string     `json:"techniques"`
	Reason      string       `json:"reason"`
	Ordered     time.Time    `json:"ordered"`
	Statement   []byte       `json:"statement,omitempty"` // base64 of the DSSE envelope of wire.SanitizationType, byte by byte as the device sent it
	Chain       []string     `json:"chain,omitempty"`     // PEM: the device's certificate, then the authorities, the root last
	Attestation *Attestation `json:"attestation,omitempty"`
}

// Revocation is how the device's certificates and open tokens ended.
type Revocation struct {
	At           time.Time `json:"at"`
	Reason       string    `json:"reason"`
	Certificates int64     `json:"certificates"`
	Tokens       int64     `json:"tokens"`
}

// CertificateLedger proves the events of the device's life that the certificate speaks of.
type CertificateLedger struct {
	Verifier string         `json:"verifier"` // C2SP signed-note verifier key of the tree head
	Events   []ledger.Proof `json:"events"`   // in the order of the tree
}

// certificateID derives the certificate's ID from the disposal's: there is one for each.
func certificateID(disposal string) string { return "cert-" + disposal[len("dsp-"):] }
