package provisioning

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

func TestEnrolledCertificateIsMadeOfOurOwnFields(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token := h.token(NewToken{Device: d.ID})
		if got := h.get(d); got.Stage != device.Staged || got.Reason != "enrollment token issued" {
			t.Fatalf("with a token the device is %s (%q)", got.Stage, got.Reason)
		}
		key := newKeyPair(t)
		cert, err := h.enroll("SN-1", token.Secret, csrOf(t, key, named("SN-1")))
		h.must(err)
		if got := h.get(d); got.Stage != device.Enrolled {
			t.Fatalf("after enrollment the device is %s", got.Stage)
		}
		if cert.Subject.String() != "CN="+string(d.ID) || len(cert.URIs) != 1 || cert.URIs[0].String() != "urn:steward:device:default:"+string(d.ID) {
			t.Errorf("named %s, %v", cert.Subject, cert.URIs)
		}
		if !key.PublicKey.Equal(cert.PublicKey) || cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature ||
			len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("wrong key or powers: %+v", cert.KeyUsage)
		}
		if !cert.NotBefore.Equal(start.Add(-backdate)) || !cert.NotAfter.Equal(start.Add(DefaultCertificateLife)) {
			t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
		}
		chain, err := h.s.DeviceChain(context.Background(), h.db, d.Num)
		h.must(err)
		h.must(cert.CheckSignatureFrom(chain[1]))
		h.must(chain[1].CheckSignatureFrom(chain[2]))
		h.must(chain[2].CheckSignatureFrom(chain[2]))
		if !chain[1].MaxPathLenZero || chain[2].MaxPathLen != 1 || !bytes.Equal(cert.AuthorityKeyId, chain[1].SubjectKeyId) || len(cert.SubjectKeyId) == 0 {
			t.Error("path lengths or key identifiers are wrong")
		}
		if got, err := h.identify(cert); err != nil || got.ID != d.ID {
			t.Fatalf("identified as %v, %v", got.ID, err)
		}
		if n := len(h.events("provisioning.enrolled")); n != 1 {
			t.Errorf("%d events", n)
		}
	})
}

func TestLostAnswerIsGivenAgainAfterAKill(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token, key := h.token(NewToken{Device: d.ID}), newKeyPair(t)
		first, err := h.enroll("SN-1", token.Secret, csrOf(t, key, nil))
		h.must(err)
		h.restart() // killed between commit and delivery: all that is left is in the database
		again, err := h.enroll("SN-1", token.Secret, csrOf(t, key, nil))
		h.must(err)
		if !first.Equal(again) {
			t.Error("the second answer is another certificate")
		}
		if n := len(h.events("provisioning.enrolled")); n != 1 {
			t.Errorf("%d enrollments are told", n)
		}
		h.clock.forward(DefaultTokenLife)
		_, err = h.enroll("SN-1", token.Secret, csrOf(t, key, nil))
		h.wantCode(err, fault.Unauthorized, wire.CodeTokenInvalid) // only within the token's life
	})
}

func TestUsedTokenIsRefusedToAnotherKeyAndTold(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token := h.token(NewToken{Device: d.ID})
		_, err := h.enroll("SN-1", token.Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		for range 3 {
			_, err = h.enroll("SN-1", token.Secret, csrOf(t, newKeyPair(t), nil))
			h.wantCode(err, fault.Forbidden, wire.CodeTokenUsed)
		}
		if n := len(h.events("provisioning.token_reused")); n != 1 {
			t.Errorf("told %d times: want once in an hour", n)
		}
		notices, err := h.s.Notices(context.Background(), h.scope)
		h.must(err)
		if len(notices) != 1 || notices[0].Href != "/enrollment?reused=1" {
			t.Errorf("notices %+v", notices)
		}
	})
}

func TestTokensAreRefusedWithoutSayingWhy(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token := h.token(NewToken{Device: d.ID})
		other := h.token(NewToken{Device: h.received("SN-2").ID})
		h.must(h.s.RevokeToken(context.Background(), h.person, h.scope, other.ID, ""))
		body := csrOf(t, newKeyPair(t), nil)
		try := func(name string, e enrollment) {
			t.Helper()
			e.address, e.body = "192.0.2.9:1", body
			_, err := h.s.enroll(context.Background(), e)
			if name == "good" {
				h.must(err)
				return
			}
			h.wantCode(err, fault.Unauthorized, wire.CodeTokenInvalid)
			if err.Error() != errTokenInvalid().Error() {
				t.Errorf("%s: the refusal says more: %v", name, err)
			}
		}
		parsed, err := wire.ParseEnrollmentToken(token.Secret)
		h.must(err)
		try("unknown", enrollment{serial: "SN-1", secret: "00000000000000000000000000"})
		try("empty", enrollment{serial: "SN-1"})
		try("for another serial number", enrollment{serial: "SN-2", secret: parsed.Secret})
		try("revoked", enrollment{serial: "SN-2", secret: other.Secret})
		try("of another tenant", enrollment{serial: "SN-1", secret: parsed.Secret, label: "acme"})
		h.clock.forward(DefaultTokenLife - time.Second)
		try("good", enrollment{serial: "SN-1", secret: parsed.Secret, label: "default"})
		h.clock.forward(time.Second)
		try("expired", enrollment{serial: "SN-1", secret: parsed.Secret})
	})
}

func TestOnlyAHashOfTheSecretIsStored(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		token := h.token(NewToken{Serial: "SN-9"})
		parsed, err := wire.ParseEnrollmentToken(token.Secret)
		h.must(err)
		var hash []byte
		h.must(h.db.QueryRowContext(context.Background(), "SELECT secret_hash FROM provisioning_token").Scan(&hash))
		if !bytes.Equal(hash, secretHash(parsed.Secret)) {
			t.Error("the stored hash is not the secret's")
		}
		for _, e := range h.events("provisioning.token_issued") {
			if strings.Contains(string(e.Data), parsed.Secret) {
				t.Error("the ledger has the secret")
			}
		}
		body, err := h.s.Trust(context.Background(), parsed.Pin)
		h.must(err)
		if wire.HashOf(body) != parsed.Pin {
			t.Error("the pin is not the hash of the stored trust document")
		}
		var trust wire.Trust
		h.must(wire.Decode(body, &trust))
		if len(trust.LinkRoots) != 1 || len(trust.DeviceRoots) != 1 || len(trust.EnvelopeKeys) != 1 || trust.LedgerKey != "ledger+key" {
			t.Errorf("trust document %+v", trust)
		}
	})
}

func TestNewTokenRevokesTheOlderOfTheSameDevice(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		old := h.token(NewToken{Device: d.ID})
		h.token(NewToken{Device: d.ID})
		_, err := h.enroll("SN-1", old.Secret, csrOf(t, newKeyPair(t), nil))
		h.wantCode(err, fault.Unauthorized, wire.CodeTokenInvalid)
	})
}

func TestBulkTokensAreAllOrNone(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		a, b := h.received("SN-1"), h.received("SN-2")
		_, err := h.s.IssueTokens(context.Background(), h.person, h.scope, []NewToken{{Device: a.ID}, {Device: device.NewID()}})
		if err == nil || !strings.Contains(err.Error(), "token 2 of 2") {
			t.Fatalf("got %v, want the second to be named", err)
		}
		if h.get(a).Stage != device.Received {
			t.Error("half of the order was carried out")
		}
		out, err := h.s.IssueTokens(context.Background(), h.person, h.scope, []NewToken{{Device: a.ID}, {Device: b.ID}})
		h.must(err)
		if len(out) != 2 || out[0].Secret == out[1].Secret {
			t.Errorf("got %+v", out)
		}
	})
}

func TestTokenLifeIsBounded(t *testing.T) {
	h := lite(t)
	for _, life := range []time.Duration{time.Second, MaxTokenLife + time.Second, -time.Hour} {
		if _, err := h.s.IssueTokens(context.Background(), h.person, h.scope, []NewToken{{Serial: "SN-1", Life: life}}); !isInvalid(err, "body.life_seconds") {
			t.Errorf("life %s: %v", life, err)
		}
	}
}

func isInvalid(err error, location string) bool {
	return err != nil && strings.Contains(err.Error(), location)
}

func TestTokenNeedsADeviceThatCanEnroll(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		retired := h.move(h.received("SN-1"), device.Retired)
		if _, err := h.s.IssueTokens(context.Background(), h.person, h.scope, []NewToken{{Device: retired.ID}}); code(err) != "" || !strings.Contains(fmt.Sprint(err), "does not come back") {
			t.Errorf("retired: %v", err)
		}
		// a part of the fleet does not let strangers in
		part := device.Scope{Tenant: h.scope.Tenant, Selector: device.MustSelector("site=berlin")}
		if _, err := h.s.IssueTokens(context.Background(), h.person, part, []NewToken{{Serial: "SN-7"}}); err == nil {
			t.Error("a scoped operator invited an unknown device")
		}
		if _, err := h.s.IssueTokens(context.Background(), h.person, part, []NewToken{{Device: h.received("SN-8").ID}}); err == nil {
			t.Error("a scoped operator made a token for a device outside of the scope")
		}
	})
}

func TestRequestsForMoreThanTheKeyAreRefused(t *testing.T) {
	h := lite(t)
	d := h.received("SN-1")
	foreign, err := url.Parse("urn:steward:device:default:dev-0000000000000000")
	h.must(err)
	caTrue, err := asn1.Marshal(struct{ IsCA bool }{true})
	h.must(err)
	certSign, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x04}, BitLength: 6})
	h.must(err)
	for name, template := range map[string]*x509.CertificateRequest{
		"another's name":          named("dev-0000000000000000"),
		"another's serial number": {Subject: pkix.Name{SerialNumber: "SN-2"}},
		"a DNS name":              {DNSNames: []string{"steward.example"}},
		"another's URI":           {URIs: []*url.URL{foreign}},
		"an IP address":           {IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}},
		"an e-mail address":       {EmailAddresses: []string{"a@example.com"}},
		"to be an authority":      {ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Value: caTrue}}},
		"to sign certificates":    {ExtraExtensions: []pkix.Extension{{Id: oidKeyUsage, Value: certSign}}},
	} {
		t.Run(name, func(t *testing.T) {
			token := h.token(NewToken{Device: d.ID})
			_, err := h.enroll("SN-1", token.Secret, csrOf(t, newKeyPair(t), template))
			h.wantCode(err, fault.Unprocessable, wire.CodeRequestInvalid)
			h.s.failures = newFailures(h.clock.now)
		})
	}
	for name, cn := range map[string]string{"empty": "", "the serial number": "SN-1", "the device ID": string(d.ID)} {
		t.Run("allowed name "+name, func(t *testing.T) {
			token := h.token(NewToken{Device: d.ID})
			cert, err := h.enroll("SN-1", token.Secret, csrOf(t, newKeyPair(t), named(cn)))
			h.must(err)
			if cert.Subject.CommonName != string(d.ID) {
				t.Errorf("named %s", cert.Subject)
			}
		})
	}
}

func TestBadRequestsLeaveTheTokenOpen(t *testing.T) {
	h := lite(t)
	d := h.received("SN-1")
	token := h.token(NewToken{Device: d.ID})
	good := csrOf(t, newKeyPair(t), nil)
	der, err := base64.StdEncoding.DecodeString(string(good))
	h.must(err)
	der[len(der)-1] ^= 1
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	h.must(err)
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	h.must(err)
	for name, c := range map[string]struct {
		body []byte
		code string
	}{
		"empty":                 {nil, wire.CodeRequestInvalid},
		"not base64":            {[]byte("%%%"), wire.CodeRequestInvalid},
		"not a request":         {[]byte("AAAA"), wire.CodeRequestInvalid},
		"a broken signature":    {[]byte(base64.StdEncoding.EncodeToString(der)), wire.CodeRequestInvalid},
		"PEM of something":      {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), wire.CodeRequestInvalid},
		"an RSA key":            {csrOf(t, weak, nil), wire.CodeKeyRefused},
		"a key on P-521":        {csrOf(t, p521, nil), wire.CodeKeyRefused},
		"larger than it may be": {bytes.Repeat([]byte("A"), MaxCSRBytes+4), wire.CodeRequestInvalid},
	} {
		if _, err := h.enroll("SN-1", token.Secret, c.body); code(err) != c.code {
			t.Errorf("%s: %v (code %q), want %q", name, err, code(err), c.code)
		}
	}
	_, err = h.enroll("SN-1", token.Secret, good)
	h.must(err)
}

func TestForeignFormsOfARequestAreRead(t *testing.T) {
	h := lite(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	h.must(err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	h.must(err)
	for name, c := range map[string]struct {
		key   crypto.Signer
		shape func([]byte) []byte
	}{
		"lines of 64":    {newKeyPair(t), wrapped},
		"PEM":            {p384, asPEM},
		"Ed25519, plain": {ed, func(b []byte) []byte { return b }},
	} {
		serial := "SN-" + fmt.Sprint(len(name))
		d := h.received(serial)
		cert, err := h.enroll(serial, h.token(NewToken{Device: d.ID}).Secret, c.shape(csrOf(t, c.key, nil)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := h.identify(cert); err != nil || got.ID != d.ID {
			t.Errorf("%s: identified as %v, %v", name, got.ID, err)
		}
	}
}

func wrapped(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		n := min(64, len(b))
		out = append(append(out, b[:n]...), '\r', '\n')
		b = b[n:]
	}
	return out
}

func asPEM(b []byte) []byte {
	return []byte("-----BEGIN CERTIFICATE REQUEST-----\n" + string(wrapped(b)) + "-----END CERTIFICATE REQUEST-----\n")
}

func TestUnpurchasedDeviceFollowsThePolicy(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		early := h.token(NewToken{Serial: "SN-0"})
		cert, err := h.enroll("SN-1", h.token(NewToken{Serial: "SN-1"}).Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		d, err := h.identify(cert)
		h.must(err)
		if d.Stage != device.Quarantined || d.Serial != "SN-1" || d.Reason != "enrolled without having been bought" {
			t.Errorf("by default it is %s (%q)", d.Stage, d.Reason)
		}
		notices, err := h.s.Notices(ctx, h.scope)
		h.must(err)
		if len(notices) != 1 || notices[0].Count != 1 || notices[0].Href != "/devices?stage=quarantined" {
			t.Errorf("notices %+v", notices)
		}
		_, err = h.s.SetPolicy(ctx, h.person, h.scope.Tenant, AcceptUnpurchased)
		h.must(err)
		cert, err = h.enroll("SN-2", h.token(NewToken{Serial: "SN-2"}).Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		if d, err = h.identify(cert); err != nil || d.Stage != device.Enrolled {
			t.Errorf("accepted: %s, %v", d.Stage, err)
		}
		_, err = h.s.SetPolicy(ctx, h.person, h.scope.Tenant, RefuseUnpurchased)
		h.must(err)
		_, err = h.enroll("SN-0", early.Secret, csrOf(t, newKeyPair(t), nil))
		h.wantCode(err, fault.Forbidden, wire.CodeUnknownDevice)
		if _, err := h.s.IssueTokens(ctx, h.person, h.scope, []NewToken{{Serial: "SN-3"}}); err == nil {
			t.Error("a token was made that the policy lets nobody use")
		}
		// The refusal left the token open: goods-in, then the same token works.
		h.received("SN-0")
		_, err = h.enroll("SN-0", early.Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		if n := len(h.events("provisioning.policy_changed")); n != 2 {
			t.Errorf("%d changes of the policy are told", n)
		}
	})
}

func TestDecommissionedDeviceStaysOut(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token := h.token(NewToken{Device: d.ID})
		h.move(d, device.Retired)
		_, err := h.enroll("SN-1", token.Secret, csrOf(t, newKeyPair(t), nil))
		h.wantCode(err, fault.Forbidden, wire.CodeDecommissioned)

		used, key, cert := h.enrolled("SN-2")
		var secret string
		h.must(h.db.QueryRowContext(context.Background(), "SELECT id FROM provisioning_token WHERE serial = 'SN-2'").Scan(&secret))
		h.move(used, device.Retired)
		if _, err := h.identify(cert); err != nil {
			t.Errorf("a retired device must talk until it is sanitized: %v", err)
		}
		h.move(used, device.Disposed)
		_, err = h.identify(cert)
		h.wantCode(err, fault.Forbidden, wire.CodeDecommissioned)
		h.clock.forward(DefaultCertificateLife * 2 / 3)
		_, err = h.renew(cert, key)
		h.wantCode(err, fault.Forbidden, wire.CodeDecommissioned)
	})
}

func TestGuardMakesADeviceWaitAndKeepsItsToken(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token, key := h.token(NewToken{Device: d.ID}), newKeyPair(t)
		h.guard = "its licence is not assigned"
		_, err := h.enroll("SN-1", token.Secret, csrOf(t, key, nil))
		h.wantCode(err, fault.Conflict, wire.CodePending)
		if !strings.Contains(err.Error(), h.guard) {
			t.Errorf("the device does not learn what is missing: %v", err)
		}
		h.guard = ""
		_, err = h.enroll("SN-1", token.Secret, csrOf(t, key, nil))
		h.must(err)
	})
}

func TestCopiedDiskCannotEnrollWithTheSameKey(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		_, key, _ := h.enrolled("SN-1")
		d := h.received("SN-2")
		_, err := h.enroll("SN-2", h.token(NewToken{Device: d.ID}).Secret, csrOf(t, key, nil))
		h.wantCode(err, fault.Conflict, wire.CodeKeyRefused)
	})
}

func TestManyKeysWithOneTokenGetOneCertificate(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received("SN-1")
		token := h.token(NewToken{Device: d.ID})
		const tries = 8
		bodies := make([][]byte, tries)
		for i := range bodies {
			bodies[i] = csrOf(t, newKeyPair(t), nil)
		}
		errs := make([]error, tries)
		var wg sync.WaitGroup
		for i, body := range bodies {
			wg.Go(func() { _, errs[i] = h.enroll("SN-1", token.Secret, body) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if code(err) != wire.CodeTokenUsed {
				t.Errorf("lost with %v", err)
			}
		}
		certs, err := h.s.Certificates(context.Background(), h.scope, d.ID)
		h.must(err)
		if won != 1 || len(certs) != 1 {
			t.Errorf("%d won, %d certificates", won, len(certs))
		}
	})
}

func TestFailedEnrollmentsAreLimitedPerAddress(t *testing.T) {
	h := lite(t)
	try := func(address string) error {
		_, err := h.s.enroll(context.Background(), enrollment{serial: "SN-1", secret: "wrong", address: address})
		return err
	}
	for range int(failureBurst) {
		h.wantCode(try("192.0.2.1:99"), fault.Unauthorized, wire.CodeTokenInvalid)
	}
	h.wantCode(try("192.0.2.1:100"), fault.TooMany, wire.CodeTooMany)
	h.wantCode(try("192.0.2.2:99"), fault.Unauthorized, wire.CodeTokenInvalid)
	h.clock.forward(time.Minute)
	h.wantCode(try("192.0.2.1:100"), fault.Unauthorized, wire.CodeTokenInvalid)
	for i := range 3 * failureAddresses {
		h.s.failures.add(fmt.Sprintf("[2001:db8:%x:%x::1]:1", i>>16, i&0xffff))
	}
	if n := len(h.s.failures.by); n > failureAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
}

func TestPKCS7IsReadByOpenSSL(t *testing.T) {
	openssl := tool(t, "openssl")
	h := lite(t)
	_, _, cert := h.enrolled("SN-1")
	a, err := h.s.authorities.find(context.Background(), h.scope.Tenant)
	h.must(err)
	der, err := certsOnly(append(a.chain(), cert)...)
	h.must(err)
	file := filepath.Join(t.TempDir(), "certs.p7b")
	h.must(os.WriteFile(file, der, 0o600))
	out, err := exec.Command(openssl, "pkcs7", "-inform", "DER", "-in", file, "-print_certs", "-noout").CombinedOutput()
	if err != nil || strings.Count(string(out), "subject=") != 3 || !strings.Contains(string(out), cert.Subject.CommonName) {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

func TestShortLivedCertificateBeginsAtMostATenthEarlier(t *testing.T) {
	h := lite(t)
	h.cfg.CertificateLife = time.Minute
	h.restart()
	_, _, cert := h.enrolled("SN-1")
	if got := start.Sub(cert.NotBefore); got != 6*time.Second {
		t.Errorf("begins %s before its issue", got)
	}
	twoThirds := cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
	if !twoThirds.After(start.Add(30 * time.Second)) {
		t.Errorf("an agent would renew at %s, before the server allows it", twoThirds)
	}
}

func TestSerialNumberMayHoldColons(t *testing.T) {
	h := lite(t)
	d := h.received("AA:BB:CC")
	_, err := h.enroll("AA:BB:CC", h.token(NewToken{Device: d.ID}).Secret, csrOf(t, newKeyPair(t), nil))
	h.must(err)
}

func BenchmarkEnroll(b *testing.B) {
	h := lite(b)
	ctx := context.Background()
	type job struct {
		serial, secret string
		body           []byte
	}
	jobs := make([]job, b.N)
	orders := make([]NewToken, 0, MaxBulk)
	for i := 0; i < b.N; i += len(orders) {
		orders = orders[:0]
		for j := i; j < b.N && len(orders) < MaxBulk; j++ {
			orders = append(orders, NewToken{Device: h.received(fmt.Sprintf("SN-%d", j)).ID})
		}
		out, err := h.s.IssueTokens(ctx, h.person, h.scope, orders)
		h.must(err)
		for j, o := range out {
			jobs[i+j] = job{o.Serial, o.Secret, csrOf(b, newKeyPair(b), nil)}
		}
	}
	b.ResetTimer()
	before := cpuTime(b)
	for i := range b.N {
		if _, err := h.enroll(jobs[i].serial, jobs[i].secret, jobs[i].body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// cpuTime is what this process has used, user and system.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func FuzzRequestBody(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good := csrOf(f, key, named("SN-1"))
	f.Add(good)
	f.Add(wrapped(good))
	f.Add(asPEM(good))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n"))
	d := device.Device{ID: "dev-0000000000000000", Tenant: "default", Serial: "SN-1"}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseRequest(body)
		if err != nil {
			if code(err) == "" {
				t.Fatalf("a refusal without a code: %v", err)
			}
			return
		}
		if r.keyID == "" || r.csr.CheckSignature() != nil {
			t.Fatal("a request passed that its key did not sign")
		}
		_ = r.checkNames(d)
	})
}

func FuzzEnrollmentToken(f *testing.F) {
	f.Add("stw1.0123456789abcdefghjkmnpqrst." + strings.Repeat("0", 64))
	f.Add("stw1..")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := wire.ParseEnrollmentToken(s)
		if err != nil {
			return
		}
		if again, err := wire.ParseEnrollmentToken(token.String()); err != nil || again != token {
			t.Fatalf("%q reads as %v and then %v, %v", s, token, again, err)
		}
	})
}
