package disposal

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"steward/internal/wire"
)

// MaxCertificateBytes bounds a certificate that is read.
const MaxCertificateBytes = 4 << 20

// ErrCertificate is wrapped by every refusal of a certificate.
var ErrCertificate = errors.New("the disposal certificate does not hold")

// VerifyOptions name the keys that the reader trusts from elsewhere. What is left empty is taken from
// the file itself, which then proves only that the file is consistent.
type VerifyOptions struct {
	IssuerKey   string // PEM public key of the issuer
	LedgerKey   string // verifier key of the ledger, "origin+hash+key"
	DeviceRoots string // PEM certificates of the device authority's root
}

// Verdicts of a Report.
const (
	VerdictValid      = "valid: issuer and ledger pinned"
	VerdictConsistent = "consistent, issuer not pinned"
	VerdictIssuerOnly = "consistent, ledger not pinned"
	VerdictWrong      = "not valid"
)

// Report is what a check has found.
type Report struct {
	Verdict     string       `json:"verdict"`
	Pinned      []string     `json:"pinned"`       // keys that the reader has named
	FromFile    []string     `json:"from_file"`    // keys that were taken from the file itself
	Checks      []Checked    `json:"checks"`       // in the order in which they were made
	Certificate *Certificate `json:"certificate"`  // nil when it could not be read
	Events      []string     `json:"events"`       // kinds of the proven events, in the order of the tree
	Attested    bool         `json:"attested"`     // people say it, the device did not
	KeyID       string       `json:"issuer_keyid"` // of the key that has signed
}

// Checked is one part of the check.
type Checked struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // what was found, or what is wrong
}

// Failed joins what is wrong; "" when nothing is.
func (r Report) Failed() string {
	var wrong []string
	for _, c := range r.Checks {
		if !c.OK {
			wrong = append(wrong, c.Name+": "+c.Detail)
		}
	}
	return strings.Join(wrong, "; ")
}

// VerifyCertificate checks every part of a disposal certificate without the server: the form, the
// issuer's signature, the device's statement by the key of its certificate and that certificate's
// chain, the inclusion of each event in the ledger's signed tree, and that all parts say the same. The
// error, if any, wraps ErrCertificate and names what is wrong; the report has all the checks.
func VerifyCertificate(data []byte, opts VerifyOptions) (Report, error) {
	v := &verifier{opts: opts, report: Report{Verdict: VerdictWrong, Pinned: []string{}, FromFile: []string{}, Checks: []Checked{}, Events: []string{}}}
	v.run(data)
	if wrong := v.report.Failed(); wrong != "" {
		return v.report, fmt.Errorf("%w: %s", ErrCertificate, wrong)
	}
	v.report.Verdict = v.verdict()
	return v.report, nil
}

type verifier struct {
	opts   VerifyOptions
	report Report
	doc    Certificate
	proven proven
}

func (v *verifier) verdict() string {
	switch {
	case v.opts.IssuerKey != "" && v.opts.LedgerKey != "":
		return VerdictValid
	case v.opts.IssuerKey != "":
		return VerdictIssuerOnly
	}
	return VerdictConsistent
}

// check notes the result of one part and tells whether it holds.
func (v *verifier) check(name, found string, err error) bool {
	c := Checked{Name: name, OK: err == nil, Detail: found}
	if err != nil {
		c.Detail = err.Error()
	}
	v.report.Checks = append(v.report.Checks, c)
	return err == nil
}

// key notes whether a key is the reader's or the file's own.
func (v *verifier) key(name string, pinned bool) {
	if pinned {
		v.report.Pinned = append(v.report.Pinned, name)
	} else {
		v.report.FromFile = append(v.report.FromFile, name)
	}
}

// run makes the checks in the order in which they lean on each other.
func (v *verifier) run(data []byte) {
	envelope, err := readDocument(data, &v.doc)
	if !v.check("form", CertificateFormat, err) {
		return
	}
	v.report.Certificate = &v.doc
	v.report.Attested = v.doc.Sanitization.Kind == KindAttestation
	keyID, err := v.issuer(envelope, data)
	if !v.check("issuer's signature", "by key "+keyID, err) {
		return
	}
	v.report.KeyID = keyID
	if !v.check("ledger", fmt.Sprintf("%d events in the signed tree", len(v.doc.Ledger.Events)), v.ledger()) {
		return
	}
	v.check("lifecycle", "the times are those of the ledger's events", v.lifecycle())
	v.check("provenance", "as the ledger has it", v.provenance())
	v.check("revocation", "as the ledger has it", v.revocation())
	if v.report.Attested {
		v.check("attestation", "as the ledger has its hash", v.attestation())
		return
	}
	leaf, err := v.chain()
	if v.check("device's certificate", "chains to the device authority", err) {
		v.check("device's statement", "signed by the device's own key; everything is destroyed", v.statement(leaf))
	}
}

// readDocument reads envelope and payload strictly: what has more than one way to be written could be
// changed without the signature noticing.
func readDocument(data []byte, doc *Certificate) (wire.Envelope, error) {
	var e wire.Envelope
	if len(data) > MaxCertificateBytes {
		return e, fmt.Errorf("%d bytes: a certificate has at most %d", len(data), MaxCertificateBytes)
	}
	data = bytes.TrimSpace(data)
	if err := strict(data, &e); err != nil {
		return e, fmt.Errorf("no DSSE envelope: %w", err)
	}
	if again, err := json.Marshal(e); err != nil || !bytes.Equal(again, data) {
		return e, errors.New("the envelope is not in the form in which certificates are written")
	}
	if e.PayloadType != wire.DisposalType {
		return e, fmt.Errorf("holds %.80q, no disposal certificate", e.PayloadType)
	}
	if len(e.Signatures) != 1 {
		return e, fmt.Errorf("has %d signatures, want one", len(e.Signatures))
	}
	if err := strict(e.Payload, doc); err != nil {
		return e, fmt.Errorf("read the certificate: %w", err)
	}
	if again, err := wire.Canonical(*doc); err != nil || !bytes.Equal(again, e.Payload) {
		return e, errors.New("the certificate is not in canonical form")
	}
	if doc.Format != CertificateFormat {
		return e, fmt.Errorf("format %.60q: this program knows %s", doc.Format, CertificateFormat)
	}
	return e, nil
}

// strict decodes one JSON value without unknown fields and nothing behind it.
func strict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.InputOffset() != int64(len(data)) {
		return wire.ErrTrailing
	}
	return nil
}

// issuer verifies the signature by the pinned key, else by the file's own.
func (v *verifier) issuer(e wire.Envelope, data []byte) (keyID string, err error) {
	own, err := parsePublicKey(v.doc.Issuer.PublicKey)
	if err != nil {
		return "", fmt.Errorf("the issuer's key in the file: %w", err)
	}
	key := own
	if v.opts.IssuerKey != "" {
		if key, err = parsePublicKey(v.opts.IssuerKey); err != nil {
			return "", fmt.Errorf("the pinned key: %w", err)
		}
	}
	v.key("issuer", v.opts.IssuerKey != "")
	if keyID, err = wire.KeyIDOf(key); err != nil {
		return "", err
	}
	var doc Certificate
	if err := wire.Open(bytes.TrimSpace(data), wire.DisposalType, []crypto.PublicKey{key}, &doc); err != nil {
		return keyID, err
	}
	if v.doc.Issuer.KeyID != keyID || e.Signatures[0].KeyID != keyID {
		return keyID, fmt.Errorf("the file names another key, %.80q", v.doc.Issuer.KeyID)
	}
	if v.doc.Issuer.Name == "" {
		return keyID, errors.New("the issuer has no name")
	}
	return keyID, nil
}

func parsePublicKey(text string) (crypto.PublicKey, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one PEM block PUBLIC KEY")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key, nil
}
