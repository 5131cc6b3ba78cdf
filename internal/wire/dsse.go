package wire

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Envelope is a DSSE envelope v1.0.2 (https://github.com/secure-systems-lab/dsse): bytes of a named
// type with signatures over both.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // base64 in JSON
	Signatures  []Signature `json:"signatures"`
}

// Signature is one signature of an Envelope. KeyID is a hint, never trusted: KeyIDOf of the public key.
type Signature struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   []byte `json:"sig"`
}

// Payload types of our envelopes.
const (
	DesiredType      = "application/vnd.steward.desired+json"
	SanitizationType = "application/vnd.steward.sanitization+json"
	DisposalType     = "application/vnd.steward.disposal-certificate+json"
)

// Errors of Open.
var (
	ErrSignature   = errors.New("no valid signature by a trusted key")
	ErrPayloadType = errors.New("wrong payload type")
)

// KeyIDOf returns the SHA-256 of the key's SubjectPublicKeyInfo in lower case hex.
func KeyIDOf(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// Seal encodes v canonically and signs it. The signer holds an Ed25519 or an ECDSA P-256 key; ECDSA
// signatures are over SHA-256 in ASN.1 form.
func Seal(payloadType string, v any, signer crypto.Signer) ([]byte, error) {
	payload, err := Canonical(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", payloadType, err)
	}
	keyID, err := KeyIDOf(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("name the signing key: %w", err)
	}
	message := preAuthEncoding(payloadType, payload)
	var opts crypto.SignerOpts = crypto.Hash(0)
	if _, isEd := signer.Public().(ed25519.PublicKey); !isEd {
		sum := sha256.Sum256(message)
		message, opts = sum[:], crypto.SHA256
	}
	sig, err := signer.Sign(rand.Reader, message, opts)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", payloadType, err)
	}
	return json.Marshal(Envelope{PayloadType: payloadType, Payload: payload, Signatures: []Signature{{KeyID: keyID, Sig: sig}}})
}

// Open verifies that one of the keys (Ed25519 or ECDSA) signed the envelope and decodes its payload
// into v. It returns ErrPayloadType, ErrSignature or an error of decoding.
func Open(envelope []byte, payloadType string, keys []crypto.PublicKey, v any) error {
	var e Envelope
	if err := Decode(envelope, &e); err != nil {
		return fmt.Errorf("read envelope: %w", err)
	}
	if e.PayloadType != payloadType {
		return fmt.Errorf("%w: %q, want %q", ErrPayloadType, e.PayloadType, payloadType)
	}
	message := preAuthEncoding(e.PayloadType, e.Payload)
	for _, s := range e.Signatures {
		for _, key := range keys {
			if verify(key, message, s.Sig) {
				return Decode(e.Payload, v)
			}
		}
	}
	return ErrSignature
}

func verify(key crypto.PublicKey, message, sig []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return len(k) == ed25519.PublicKeySize && ed25519.Verify(k, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(k, sum[:], sig)
	}
	return false
}

// preAuthEncoding is PAE of the DSSE protocol.
func preAuthEncoding(payloadType string, payload []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload))
	b.Write(payload)
	return b.Bytes()
}
