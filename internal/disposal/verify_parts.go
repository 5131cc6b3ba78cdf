package disposal

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/wire"
)

// proven are the events whose inclusion has been checked.
type proven struct {
	life
	all []ledger.Event
}

// ledger verifies the proofs and sorts the events. Each belongs to this device, and none is there that
// the certificate does not speak of.
func (v *verifier) ledger() error {
	key := v.doc.Ledger.Verifier
	v.key("ledger", v.opts.LedgerKey != "")
	if v.opts.LedgerKey != "" {
		if key = v.opts.LedgerKey; v.doc.Ledger.Verifier != key {
			return fmt.Errorf("the file names another ledger, %.80q", v.doc.Ledger.Verifier)
		}
	}
	last := int64(-1)
	for i, proof := range v.doc.Ledger.Events {
		e, _, err := ledger.VerifyProof(proof, key)
		if err != nil {
			return fmt.Errorf("event %d: %w", i+1, err)
		}
		if e.Sequence <= last {
			return fmt.Errorf("event %d is not in the order of the tree", i+1)
		}
		last = e.Sequence
		if e.Tenant != v.doc.Tenant || e.Device != v.doc.Device.ID {
			return fmt.Errorf("event %s is about another device", e.ID)
		}
		v.proven.take(e, v.doc.Sanitization.Order)
		v.proven.all = append(v.proven.all, e)
		v.report.Events = append(v.report.Events, e.Kind)
	}
	return v.complete()
}

// complete checks that the events are those of an ended life, each once and in their order.
func (v *verifier) complete() error {
	p := &v.proven
	for _, need := range []struct {
		event *ledger.Event
		what  string
	}{{p.created, "creation"}, {p.retired, "move to retired"}, {p.disposed, "move to disposed"}, {p.end, "sanitization or attestation"}} {
		if need.event == nil {
			return fmt.Errorf("the event of its %s is missing", need.what)
		}
	}
	used := 0
	order := int64(-1)
	for _, e := range []*ledger.Event{p.created, p.received, p.enrolled, p.retired, p.ordered, p.revoked, p.disposed, p.end} {
		if e == nil {
			continue
		}
		used++
		if e.Sequence <= order && e != p.received && e != p.enrolled { // goods-in may be booked after an early enrollment
			return fmt.Errorf("event %s comes too early", e.Kind)
		}
		order = max(order, e.Sequence)
	}
	if used != len(p.all) {
		return errors.New("there are events that the certificate does not speak of")
	}
	return nil
}

func same(what string, got, want any) error {
	if a, ok := got.(time.Time); ok {
		if b, ok := want.(time.Time); ok && a.Equal(b) {
			return nil
		}
	} else if got == want {
		return nil
	}
	return fmt.Errorf("%s is %v, the ledger has %v", what, got, want)
}

func timeOf(e *ledger.Event) time.Time {
	if e == nil {
		return time.Time{}
	}
	return e.At
}

func (v *verifier) lifecycle() error {
	p, life, z := &v.proven, v.doc.Lifecycle, v.doc.Sanitization
	ordered := p.ordered
	if ordered == nil {
		ordered = p.end // an attestation is its own order
	}
	var facts struct {
		Serial string `json:"serial"`
		Model  string `json:"model"`
		Method string `json:"method"`
	}
	if err := json.Unmarshal(p.end.Data, &facts); err != nil {
		return fmt.Errorf("facts of %s: %w", p.end.Kind, err)
	}
	wantKind := map[string]string{"disposal.sanitized": KindStatement, "disposal.attested": KindAttestation}[p.end.Kind]
	return errors.Join(
		same("created", life.Created, p.created.At), same("enrolled", life.Enrolled, timeOf(p.enrolled)),
		same("retired", life.Retired, p.retired.At), same("the reason of retiring", life.RetiredReason, p.retired.Reason),
		same("disposed", life.Disposed, p.disposed.At), same("ordered", z.Ordered, ordered.At),
		same("the serial number", v.doc.Device.Serial, facts.Serial), same("the model", v.doc.Device.Model, facts.Model),
		same("the method", z.Method, facts.Method), same("the reason", z.Reason, p.end.Reason),
		same("the kind of sanitization", z.Kind, wantKind), same("the certificate's ID", v.doc.ID, "cert-"+trimID(z.Order)),
		v.issuedLater(),
	)
}

func trimID(disposal string) string {
	if len(disposal) < len("dsp-") {
		return ""
	}
	return disposal[len("dsp-"):]
}

func (v *verifier) issuedLater() error {
	if v.doc.Issued.Before(v.doc.Lifecycle.Disposed) {
		return errors.New("it was issued before the device was disposed of")
	}
	return nil
}

func (v *verifier) provenance() error {
	origin, e := v.doc.Provenance, v.proven.received
	if origin == nil || e == nil {
		if origin != nil || e != nil {
			return errors.New("the purchase is told by the certificate or the ledger only")
		}
		return nil
	}
	var facts receivedFacts
	if err := json.Unmarshal(e.Data, &facts); err != nil {
		return fmt.Errorf("facts of purchase.received: %w", err)
	}
	return errors.Join(
		same("the order", origin.Order, facts.Order), same("the order's ID", origin.OrderID, facts.OrderID),
		same("the order's line", origin.Line, facts.Line), same("the delivery", origin.Delivery, facts.Delivery),
		same("the serial number", v.doc.Device.Serial, facts.Serial), same("delivered", origin.Delivered, e.At),
	)
}

func (v *verifier) revocation() error {
	r, e := v.doc.Revocation, v.proven.revoked
	if r == nil || e == nil {
		if r != nil || e != nil {
			return errors.New("it is told by the certificate or the ledger only")
		}
		if v.doc.Sanitization.Kind == KindStatement {
			return errors.New("the key that signed the statement was not revoked")
		}
		return nil
	}
	var facts revokedFacts
	if err := json.Unmarshal(e.Data, &facts); err != nil {
		return fmt.Errorf("facts of provisioning.revoked: %w", err)
	}
	return errors.Join(
		same("revoked", r.At, e.At), same("the reason", r.Reason, e.Reason),
		same("certificates", r.Certificates, facts.Certificates), same("tokens", r.Tokens, facts.Tokens),
	)
}

func (v *verifier) attestation() error {
	z := v.doc.Sanitization
	if z.Attestation == nil || z.Statement != nil || z.Chain != nil {
		return errors.New("want an attestation and no statement of the device")
	}
	var facts attestedFacts
	if err := json.Unmarshal(v.proven.end.Data, &facts); err != nil {
		return fmt.Errorf("facts of disposal.attested: %w", err)
	}
	canonical, err := wire.Canonical(*z.Attestation)
	if err != nil {
		return err
	}
	return errors.Join(
		same("the attestation's hash", wire.HashOf(canonical), facts.Attestation), same("the order", z.Order, facts.Order),
		same("the method", z.Attestation.Method, z.Method), same("the techniques", fmt.Sprint(z.Techniques), fmt.Sprint([]string{z.Attestation.Technique})),
		z.Attestation.Check(v.proven.end.At),
	)
}

// chain verifies the device's certificate up to the pinned root, else to the file's own.
func (v *verifier) chain() (*x509.Certificate, error) {
	z := v.doc.Sanitization
	if z.Attestation != nil || z.Kind != KindStatement {
		return nil, fmt.Errorf("kind %.40q with a device's statement", z.Kind)
	}
	certs, err := parseChain(z.Chain)
	if err != nil {
		return nil, err
	}
	roots, middle := x509.NewCertPool(), x509.NewCertPool()
	v.key("device authority", v.opts.DeviceRoots != "")
	if v.opts.DeviceRoots != "" {
		if !roots.AppendCertsFromPEM([]byte(v.opts.DeviceRoots)) {
			return nil, errors.New("the pinned roots are no PEM certificates")
		}
	} else {
		roots.AddCert(certs[len(certs)-1])
	}
	for _, c := range certs[1:] {
		middle.AddCert(c)
	}
	// The time of the statement, so that the certificate may be checked for ever. A device that signs
	// late, with a certificate that ended meanwhile, still proves that it has the key.
	leaf := certs[0]
	at := v.proven.end.At
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, err
	}
	if device.ID(leaf.Subject.CommonName) != v.doc.Device.ID {
		return nil, fmt.Errorf("it is for %.80q", leaf.Subject.CommonName)
	}
	return leaf, nil
}

// maxChain bounds the certificates of a chain.
const maxChain = 16

func parseChain(chain []string) ([]*x509.Certificate, error) {
	if len(chain) < 2 || len(chain) > maxChain {
		return nil, fmt.Errorf("a chain of %d certificates", len(chain))
	}
	certs := make([]*x509.Certificate, len(chain))
	for i, text := range chain {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 || string(pem.EncodeToMemory(block)) != text {
			return nil, fmt.Errorf("certificate %d of the chain is no PEM certificate", i+1)
		}
		var err error
		if certs[i], err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i+1, err)
		}
	}
	// Exactly one path: each is signed by the next, the last by itself.
	for i, c := range certs {
		if err := c.CheckSignatureFrom(certs[min(i+1, len(certs)-1)]); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain is not signed by the next: %w", i+1, err)
		}
	}
	return certs, nil
}

// statement verifies what the device signed and that it is what the ledger has and the certificate says.
func (v *verifier) statement(leaf *x509.Certificate) error {
	z := v.doc.Sanitization
	var facts sanitizedFacts
	if err := json.Unmarshal(v.proven.end.Data, &facts); err != nil {
		return fmt.Errorf("facts of disposal.sanitized: %w", err)
	}
	var s wire.SanitizationStatement
	if err := wire.Open(z.Statement, wire.SanitizationType, []crypto.PublicKey{leaf.PublicKey}, &s); err != nil {
		return err
	}
	keyID, err := wire.KeyIDOf(leaf.PublicKey)
	if err != nil {
		return err
	}
	about := device.Device{ID: v.doc.Device.ID, Serial: v.doc.Device.Serial}
	if err := checkStatement(s, about, Disposal{ID: z.Order, Method: z.Method}, keyID); err != nil {
		return err
	}
	if left := leftovers(s); left != "" {
		return fmt.Errorf("not everything is destroyed: %s", left)
	}
	if !slices.Equal(techniques(s), z.Techniques) {
		return errors.New("the techniques are not those of the statement")
	}
	return errors.Join(
		same("the statement's hash", wire.HashOf(z.Statement), facts.Statement), same("the key", keyID, facts.KeyID),
		same("the certificate", leaf.SerialNumber.Text(16), facts.Certificate), same("the order", z.Order, facts.Order),
		same("the number of things", len(s.Items), facts.Items),
	)
}
