package disposal_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/disposal"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

// disposed returns a disposed device and its certificate.
func (y *yard) disposed(serial string) (device.Device, []byte) {
	y.t.Helper()
	d, id, x := y.ordered(serial)
	y.pass(time.Hour)
	y.must(y.Accept(y.t.Context(), d, y.seal(statementOf(d, id, x), id.key)))
	return d, y.certificate(d)
}

func (y *yard) certificate(d device.Device) []byte {
	y.t.Helper()
	ledgertest.Events(y.t, y.ledger, ledger.Filter{}) // sequences
	document, err := y.CertificateOf(y.t.Context(), y.who.Scope, d.ID)
	y.must(err)
	return document
}

func (y *yard) pins() disposal.VerifyOptions {
	y.t.Helper()
	issuer, err := y.IssuerKey()
	y.must(err)
	key, err := y.ledger.Verifier()
	y.must(err)
	return disposal.VerifyOptions{IssuerKey: issuer, LedgerKey: key}
}

func TestCertificateHoldsOffline(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, document := y.disposed("SN-1")
		report, err := disposal.VerifyCertificate(document, y.pins())
		if err != nil || report.Verdict != disposal.VerdictValid || report.Attested {
			t.Fatalf("%+v, %v", report, err)
		}
		c := report.Certificate
		if c.Device.ID != d.ID || c.Device.Serial != "SN-1" || c.Device.Maker != "Acme" || c.Provenance.Order != "PO-1" ||
			c.Revocation.Certificates != 1 || c.Lifecycle.Enrolled.IsZero() || len(c.Sanitization.Techniques) != 1 {
			t.Errorf("%+v", c)
		}
		want := "[device.created purchase.received device.moved device.moved disposal.ordered provisioning.revoked device.moved disposal.sanitized]"
		if fmt.Sprint(report.Events) != want {
			t.Errorf("events %v, want %s", report.Events, want)
		}
		if fmt.Sprint(report.Pinned, report.FromFile) != "[issuer ledger] [device authority]" {
			t.Errorf("pinned %v, from the file %v", report.Pinned, report.FromFile)
		}
		again, err := y.CertificateOf(t.Context(), y.who.Scope, d.ID)
		if err != nil || !bytes.Equal(again, document) {
			t.Errorf("the second time it is another one (%v)", err)
		}
		if kinds := y.kinds(d); kinds["disposal.certified"] != 1 {
			t.Errorf("events %v", kinds)
		}
	})
}

func TestCertificateOfAnAttestationSaysSo(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, _ := y.device("SN-1", false)
		_, err := y.Retire(t.Context(), y.who, d.ID, "broken")
		y.must(err)
		if _, err := y.CertificateOf(t.Context(), y.who.Scope, d.ID); !errors.Is(err, fault.Conflict) {
			t.Errorf("certificate of a retired device: %v", err)
		}
		x, err := y.Attest(t.Context(), y.who, d.ID, attestation, "broken", "SN-1")
		y.must(err)
		if _, err := y.Certificate(t.Context(), y.who.Scope, x.ID); !errors.Is(err, fault.Unavailable) {
			t.Errorf("certificate before the ledger's tree has it: %v", err)
		}
		report, err := disposal.VerifyCertificate(y.certificate(d), y.pins())
		if err != nil || !report.Attested || report.Certificate.Revocation != nil || report.Certificate.Sanitization.Kind != disposal.KindAttestation {
			t.Errorf("%+v, %v", report, err)
		}
	})
}

func TestCertificateIsMadeByTheLedgersConsumer(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- y.Run(ctx) }()
		d, id, x := y.ordered("SN-1")
		y.must(y.Accept(t.Context(), d, y.seal(statementOf(d, id, x), id.key)))
		for deadline := time.Now().Add(20 * time.Second); ; {
			ledgertest.Events(t, y.ledger, ledger.Filter{})
			if got, err := y.Get(t.Context(), y.who, x.ID); err == nil && got.Certificate != "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no certificate after 20 s")
			}
			waitABit(ctx)
		}
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
}

func waitABit(ctx context.Context) {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func TestPinnedKeysDecide(t *testing.T) {
	y := newYard(t, sqlite(t))
	_, document := y.disposed("SN-1")
	other := newYard(t, sqlite(t))
	pins, others := y.pins(), other.pins()
	for _, tt := range []struct {
		name    string
		opts    disposal.VerifyOptions
		verdict string
	}{
		{"nothing pinned", disposal.VerifyOptions{}, disposal.VerdictConsistent},
		{"only the ledger", disposal.VerifyOptions{LedgerKey: pins.LedgerKey}, disposal.VerdictConsistent},
		{"only the issuer", disposal.VerifyOptions{IssuerKey: pins.IssuerKey}, disposal.VerdictIssuerOnly},
		{"both", pins, disposal.VerdictValid},
		{"another issuer", disposal.VerifyOptions{IssuerKey: others.IssuerKey}, ""},
		{"another ledger", disposal.VerifyOptions{LedgerKey: others.LedgerKey}, ""},
		{"no key at all", disposal.VerifyOptions{IssuerKey: "hello"}, ""},
		{"no roots at all", disposal.VerifyOptions{DeviceRoots: "hello"}, ""},
	} {
		report, err := disposal.VerifyCertificate(document, tt.opts)
		if tt.verdict == "" {
			if !errors.Is(err, disposal.ErrCertificate) || report.Verdict != disposal.VerdictWrong {
				t.Errorf("%s: %s, %v", tt.name, report.Verdict, err)
			}
		} else if err != nil || report.Verdict != tt.verdict {
			t.Errorf("%s: %s, %v, want %s", tt.name, report.Verdict, err, tt.verdict)
		}
	}
}

func sqlite(t testing.TB) *sqldb.DB {
	return sqldbtest.SQLite(t, ledger.Migration(), registry.Migration(), twin.Migration(), disposal.Migration())
}

func pemOf(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// payload opens an envelope into a tree of JSON without checking anything.
func payload(t testing.TB, document []byte) map[string]any {
	t.Helper()
	var e wire.Envelope
	if err := wire.Decode(document, &e); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(e.Payload))
	dec.UseNumber()
	var tree map[string]any
	if err := dec.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// mutations calls each with every leaf of the tree changed, one after the other.
func mutations(node any, path string, set func(any), each func(path string)) {
	switch v := node.(type) {
	case map[string]any:
		for k, child := range v {
			mutations(child, path+"."+k, func(changed any) { v[k] = changed }, each)
			delete(v, k)
			each(path + "." + k + " removed")
			v[k] = child
		}
		v["unknown"] = "field"
		each(path + " with an unknown field")
		delete(v, "unknown")
	case []any:
		for i, child := range v {
			mutations(child, fmt.Sprintf("%s[%d]", path, i), func(changed any) { v[i] = changed }, each)
		}
		set(append(v[:len(v):len(v)], v...))
		each(path + " doubled")
		if len(v) > 0 {
			set(v[:len(v)-1])
			each(path + " without its last")
		}
		set(v)
	case string:
		changed := "x" + v
		if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
			changed = at.Add(time.Second).Format(time.RFC3339Nano)
		} else if len(v) > 4 {
			middle := len(v) / 2
			changed = v[:middle] + string(v[middle]^1) + v[middle+1:]
		}
		set(changed)
		each(path)
		set(v)
	case json.Number:
		set(json.Number("1" + v.String()))
		each(path)
		set(v)
	}
}

// unbound are the fields that only the issuer vouches for: nothing in the ledger or the statement
// repeats them, so that whoever has the issuer's key can write them.
var unbound = []string{
	".issued", ".issuer.name", ".device.name", ".device.maker", ".device.model_name",
	".provenance.supplier", ".provenance.ordered",
}

func vouchedByIssuerOnly(path string) bool {
	for _, p := range unbound {
		if path == p || path == p+" removed" {
			return true
		}
	}
	return false
}

func TestEveryChangedFieldIsNoticed(t *testing.T) {
	y := newYard(t, sqlite(t))
	_, signed := y.disposed("SN-1")
	d, _ := y.device("SN-2", false)
	_, err := y.Retire(t.Context(), y.who, d.ID, "broken")
	y.must(err)
	_, err = y.Attest(t.Context(), y.who, d.ID, attestation, "broken", "SN-2")
	y.must(err)
	attested := y.certificate(d)
	for name, document := range map[string][]byte{"statement": signed, "attestation": attested} {
		tree := payload(t, document)
		n := 0
		mutations(tree, "", func(any) {}, func(path string) {
			n++
			body, err := wire.Canonical(tree)
			if err != nil {
				t.Fatal(err)
			}
			// Changed under the old signature: noticed whatever it is.
			var e wire.Envelope
			y.must(wire.Decode(document, &e))
			e.Payload = body
			forged, err := json.Marshal(e)
			y.must(err)
			if _, err := disposal.VerifyCertificate(forged, disposal.VerifyOptions{}); !errors.Is(err, disposal.ErrCertificate) {
				t.Errorf("%s: %s changed under the old signature: %v", name, path, err)
			}
			// Signed anew by the issuer's own key: the parts contradict each other.
			if vouchedByIssuerOnly(path) {
				return
			}
			resealed, err := wire.Seal(wire.DisposalType, json.RawMessage(body), y.cfg.Key)
			y.must(err)
			if _, err := disposal.VerifyCertificate(resealed, disposal.VerifyOptions{}); !errors.Is(err, disposal.ErrCertificate) {
				t.Errorf("%s: %s changed and signed anew: %v", name, path, err)
			}
		})
		if n < 60 {
			t.Errorf("%s: only %d mutations", name, n)
		}
	}
}

func TestEveryChangedByteIsNoticed(t *testing.T) {
	y := newYard(t, sqlite(t))
	_, document := y.disposed("SN-1")
	for i := range document {
		// The envelope around the payload byte by byte, the payload (in base64) in strides.
		if i > 200 && i < len(document)-300 && i%7 != 0 {
			continue
		}
		forged := bytes.Clone(document)
		forged[i] ^= 1
		if _, err := disposal.VerifyCertificate(forged, disposal.VerifyOptions{}); !errors.Is(err, disposal.ErrCertificate) {
			t.Fatalf("byte %d, %q to %q: %v", i, document[i], forged[i], err)
		}
	}
	for name, forged := range map[string][]byte{
		"nothing": nil, "cut": document[:len(document)-2], "more behind": append(bytes.Clone(document), "{}"...),
		"too large": bytes.Repeat([]byte(" "), disposal.MaxCertificateBytes+1),
	} {
		if _, err := disposal.VerifyCertificate(forged, disposal.VerifyOptions{}); !errors.Is(err, disposal.ErrCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForgedIssuerIsReportedAsNotPinned(t *testing.T) {
	y := newYard(t, sqlite(t))
	_, document := y.disposed("SN-1")
	_, key, err := ed25519.GenerateKey(rand.Reader)
	y.must(err)
	cfg := y.cfg
	cfg.Key = key
	forger, err := disposal.New(cfg)
	y.must(err)
	public, err := forger.IssuerKey()
	y.must(err)
	keyID, err := wire.KeyIDOf(key.Public())
	y.must(err)
	tree := payload(t, document)
	tree["issuer"].(map[string]any)["public_key"], tree["issuer"].(map[string]any)["key_id"] = public, keyID
	tree["device"].(map[string]any)["maker"] = "Somebody Else"
	forged, err := wire.Seal(wire.DisposalType, tree, key)
	y.must(err)
	report, err := disposal.VerifyCertificate(forged, disposal.VerifyOptions{})
	if err != nil || report.Verdict != disposal.VerdictConsistent || !strings.Contains(fmt.Sprint(report.FromFile), "issuer") {
		t.Errorf("%+v, %v", report, err)
	}
	if _, err := disposal.VerifyCertificate(forged, y.pins()); !errors.Is(err, disposal.ErrCertificate) {
		t.Errorf("with pinned keys: %v", err)
	}
}

func TestCertificateWithoutTheDevicesSignatureIsNoticed(t *testing.T) {
	y := newYard(t, sqlite(t))
	d, document := y.disposed("SN-1")
	// The operator writes a statement by another key, with a certificate by another authority.
	tree := payload(t, document)
	fake := newAuthority(t, y)
	id := fake.enroll(t, d)
	var c disposal.Certificate
	body, err := wire.Canonical(tree)
	y.must(err)
	y.must(json.Unmarshal(body, &c))
	c.Sanitization.Statement = y.seal(statementOf(d, id, disposal.Disposal{ID: c.Sanitization.Order, Method: "clear"}), crypto.Signer(id.key))
	c.Sanitization.Chain = []string{pemOf(id.leaf), pemOf(fake.root)}
	forged, err := wire.Seal(wire.DisposalType, c, y.cfg.Key)
	y.must(err)
	if _, err := disposal.VerifyCertificate(forged, disposal.VerifyOptions{}); !errors.Is(err, disposal.ErrCertificate) || !strings.Contains(err.Error(), "hash") {
		t.Errorf("statement that the ledger does not know: %v", err)
	}
	if _, err := disposal.VerifyCertificate(document, disposal.VerifyOptions{DeviceRoots: pemOf(fake.root)}); !errors.Is(err, disposal.ErrCertificate) {
		t.Errorf("another device authority is pinned: %v", err)
	}
	if _, err := disposal.VerifyCertificate(document, disposal.VerifyOptions{DeviceRoots: pemOf(y.authority.root)}); err != nil {
		t.Errorf("the right device authority is pinned: %v", err)
	}
}

func FuzzVerifyCertificate(f *testing.F) {
	y := newYard(f, sqlite(f))
	_, made := y.disposed("SN-1")
	// A seed of the whole form without its signature: nothing that is made from it may hold.
	var e wire.Envelope
	y.must(wire.Decode(made, &e))
	e.Signatures[0].Sig = make([]byte, ed25519.SignatureSize)
	unsigned, err := json.Marshal(e)
	y.must(err)
	f.Add(unsigned)
	f.Add([]byte(`{"payloadType":"application/vnd.steward.disposal-certificate+json","payload":"e30=","signatures":[{"sig":""}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := disposal.VerifyCertificate(data, disposal.VerifyOptions{}); !errors.Is(err, disposal.ErrCertificate) {
			t.Errorf("made up, and it holds: %v", err)
		}
	})
}

// FuzzCertificateParts changes what is inside of a certificate under a valid signature, so that proofs,
// chain and statement are read too.
func FuzzCertificateParts(f *testing.F) {
	y := newYard(f, sqlite(f))
	_, made := y.disposed("SN-1")
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // the same in each of the fuzzer's processes
	cfg := y.cfg
	cfg.Key = key
	forger, err := disposal.New(cfg)
	y.must(err)
	tree := payload(f, made)
	issuer := tree["issuer"].(map[string]any)
	issuer["public_key"], err = forger.IssuerKey()
	y.must(err)
	issuer["key_id"], err = wire.KeyIDOf(key.Public())
	y.must(err)
	seed, err := wire.Canonical(tree)
	y.must(err)
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		forged, err := wire.Seal(wire.DisposalType, json.RawMessage(data), key)
		if err != nil {
			return // no JSON
		}
		report, err := disposal.VerifyCertificate(forged, disposal.VerifyOptions{})
		if (err == nil) != (report.Verdict == disposal.VerdictConsistent) || (err == nil) != (report.Failed() == "") {
			t.Errorf("verdict %s, failed %q, error %v", report.Verdict, report.Failed(), err)
		}
	})
}
