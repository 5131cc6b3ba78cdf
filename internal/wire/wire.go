// Package wire is what server and agent say to each other: the device contract in Go types. Both
// import it; it imports nothing of ours. The same contract for other languages stands in
// docs/device-contract.md and api/.
//
// All messages are JSON over HTTPS with mutual TLS, below /v1 of the link. Readers ignore fields that
// they don't know, so that either side may be newer; a change that an old reader would misunderstand
// raises Protocol.
package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Protocol is the version of the contract that this build speaks; the server serves all older ones.
const Protocol = 1

// ProtocolHeader carries the speaker's Protocol on every request and answer.
const ProtocolHeader = "Steward-Protocol"

// Bounds of messages, in bytes. Both sides refuse more.
const (
	MaxReportBytes   = 64 << 10
	MaxDocumentBytes = 4 << 20
	MaxEnvelopeBytes = 256 << 10
	MaxMetricsBytes  = 1 << 20
	MaxTrustBytes    = 256 << 10
)

// Hash is the SHA-256 of a document's bytes in lower case hex.
type Hash string

// HashOf returns the hash under which the bytes are stored and fetched.
func HashOf(document []byte) Hash {
	sum := sha256.Sum256(document)
	return Hash(hex.EncodeToString(sum[:]))
}

// ParseHash checks the form of a hash.
func ParseHash(s string) (Hash, error) {
	ok := len(s) == 2*sha256.Size
	for i := 0; ok && i < len(s); i++ { // each report names several: a pattern would cost more than the rest
		ok = '0' <= s[i] && s[i] <= '9' || 'a' <= s[i] && s[i] <= 'f'
	}
	if !ok {
		return "", fmt.Errorf("hash %.80q: want 64 lower case hex digits", s)
	}
	return Hash(s), nil
}

// Canonical encodes v as a document: JSON with sorted keys, no blanks and no HTML escapes, so that
// equal content has equal bytes and one hash. Receivers verify the bytes that they were sent and never
// encode again, so the form matters for sharing only, not for security.
func Canonical(v any) ([]byte, error) {
	first, err := marshalPlain(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(first))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, err
	}
	return marshalPlain(tree) // maps are written in the order of their keys
}

func marshalPlain(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// ErrTrailing says that a JSON text has more behind its value.
var ErrTrailing = errors.New("more data behind the JSON value")

// Decode reads one JSON value and nothing behind it.
func Decode(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.More() {
		return ErrTrailing
	}
	return nil
}

// Problem is the body of every refusal (RFC 9457, application/problem+json). Code is stable and meant
// for programs; agents obey RetryAfterSeconds before they ask again.
type Problem struct {
	Type              string `json:"type,omitempty"`
	Title             string `json:"title"`
	Status            int    `json:"status"`
	Detail            string `json:"detail,omitempty"`
	Code              string `json:"code,omitempty"`
	RetryAfterSeconds int    `json:"retry_after_seconds,omitempty"`
}

// Codes of Problem that an agent acts on.
const (
	CodeTokenInvalid    = "token-invalid" // unknown, expired or for another serial number: stop, tell the operator
	CodeTokenUsed       = "token-used"    // used by another key: stop, tell the operator
	CodeRevoked         = "certificate-revoked"
	CodeDecommissioned  = "device-decommissioned" // retired or disposed: stop for good
	CodeUnknownDevice   = "device-unknown"
	CodePending         = "enrollment-pending"
	CodeDocumentMissing = "document-missing"
	CodeTooMany         = "too-many-requests"

	CodeCertificateRequired = "certificate-required"   // the path needs a client certificate and none was sent
	CodeExpired             = "certificate-expired"    // stop, tell the operator: a new token is needed
	CodeSuperseded          = "certificate-superseded" // a newer certificate of this device has been used since
	CodeQuarantined         = "device-quarantined"     // may report, gets nothing to install
	CodeKeyRefused          = "key-refused"            // weak, or another device's: make a new key
	CodeRequestInvalid      = "request-invalid"        // malformed: sending it again won't help
	CodeProtocol            = "protocol-unknown"       // newer than the server's, which Steward-Protocol names
	CodeRenewEarly          = "renewal-early"          // less than half of the certificate's life has passed
)
