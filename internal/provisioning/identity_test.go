package provisioning

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/keys"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

func (h *house) half() { h.clock.forward(DefaultCertificateLife/2 + time.Hour) }

func TestRenewalEndsTheOldCertificateAtTheFirstUseOfTheNew(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d, key, old := h.enrolled("SN-1")
		_, err := h.identify(old)
		h.must(err)
		_, err = h.renew(old, newKeyPair(t))
		h.wantCode(err, fault.Conflict, wire.CodeRenewEarly)
		h.half()
		fresh, err := h.renew(old, newKeyPair(t))
		h.must(err)
		if _, err = h.identify(old); err != nil {
			t.Fatalf("the old certificate died before the new was used: %v", err)
		}
		_, err = h.identify(fresh)
		h.must(err)
		_, err = h.identify(old)
		h.wantCode(err, fault.Forbidden, wire.CodeSuperseded)
		_, err = h.renew(old, key)
		h.wantCode(err, fault.Forbidden, wire.CodeSuperseded)
		if len(h.events("provisioning.renewed")) != 1 || len(h.events("provisioning.superseded")) != 1 {
			t.Error("renewal and succession are not told once each")
		}
		if want := ChangedSubject + " " + strconv.FormatInt(d.Num, 10); len(h.bus.msgs) != 1 || h.bus.msgs[0] != want {
			t.Errorf("published %q, want %q once: other nodes keep what they knew of the old one", h.bus.msgs, want)
		}
	})
}

func TestRenewalWithTheSameKeyIsAllowed(t *testing.T) {
	h := lite(t)
	_, key, old := h.enrolled("SN-1")
	_, err := h.identify(old)
	h.must(err)
	h.half()
	fresh, err := h.renew(old, key)
	h.must(err)
	if fresh.Equal(old) {
		t.Fatal("the old certificate was handed out again")
	}
	_, err = h.identify(fresh)
	h.must(err)
	_, err = h.identify(old)
	h.wantCode(err, fault.Forbidden, wire.CodeSuperseded)
}

func TestLostRenewalIsGivenAgainAndOthersAreBounded(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d, _, old := h.enrolled("SN-1")
		_, err := h.identify(old)
		h.must(err)
		h.half()
		key := newKeyPair(t)
		first, err := h.renew(old, key)
		h.must(err)
		h.restart()
		again, err := h.renew(old, key)
		h.must(err)
		if !first.Equal(again) {
			t.Error("the repeated renewal gave another certificate")
		}
		for range 5 { // a device that loses its new key each time
			h.clock.forward(time.Second)
			_, err = h.renew(old, newKeyPair(t))
			h.must(err)
		}
		certs, err := h.s.Certificates(context.Background(), h.scope, d.ID)
		h.must(err)
		if n := len(living(certs)); n != MaxLiving {
			t.Errorf("%d certificates live, want %d", n, MaxLiving)
		}
		if _, err := h.identify(old); err != nil {
			t.Errorf("the certificate in use was pushed out: %v", err)
		}
	})
}

func TestExpiredCertificateIsRefusedWithItsOwnCode(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d, _, cert := h.enrolled("SN-1")
		_, err := h.identify(cert)
		h.must(err)
		h.clock.forward(DefaultCertificateLife * 4 / 5)
		notices, err := h.s.Notices(context.Background(), h.scope)
		h.must(err)
		if len(notices) != 1 || notices[0].Count != 1 || !strings.Contains(notices[0].Href, "late") {
			t.Errorf("a late renewal is not noticed: %+v", notices)
		}
		list, err := h.s.expiring(context.Background(), h.scope, h.clock.now().Add(30*24*time.Hour), certificatePosition{}, 10)
		h.must(err)
		if len(list) != 1 || list[0].Device != d.ID {
			t.Errorf("expiring: %+v", list)
		}
		h.clock.forward(DefaultCertificateLife / 5)
		_, err = h.identify(cert)
		h.wantCode(err, fault.Forbidden, wire.CodeExpired)
		// A new token brings it back into the stage it was in.
		back, err := h.enroll("SN-1", h.token(NewToken{Device: d.ID}).Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		got, err := h.identify(back)
		h.must(err)
		if got.ID != d.ID || got.Stage != device.Enrolled {
			t.Errorf("came back as %s in %s", got.ID, got.Stage)
		}
	})
}

func TestForgedAndForeignCertificatesAreUnknown(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		d, _, cert := h.enrolled("SN-1")
		// the same serial number and names, signed by somebody else
		forger := newKeyPair(t)
		forged := forge(t, cert, forger)
		_, err := h.identify(forged)
		h.wantCode(err, fault.Forbidden, wire.CodeUnknownDevice)
		// written into the table by somebody who has the database and not the authority's key
		strange := forge(t, &x509.Certificate{SerialNumber: big.NewInt(77), Subject: cert.Subject, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}, forger)
		h.must(h.db.Write(ctx, func(tx *sqldb.Tx) error {
			return insertCertificate(ctx, tx, Certificate{Serial: serialText(strange), Device: d.ID, KeyID: "x", Issued: start, Expires: cert.NotAfter,
				tenant: d.Tenant, num: d.Num, body: strange.Raw, seal: sealer{[]byte("a guess")}.seal(d.Tenant, strange.Raw)}, "ca-x")
		}))
		_, err = h.identify(strange)
		h.wantCode(err, fault.Forbidden, wire.CodeUnknownDevice)
		_, err = h.identify(nil)
		h.wantCode(err, fault.Unauthorized, wire.CodeCertificateRequired)
		_, err = h.identify(cert)
		h.must(err)
	})
}

func TestRowOfACertificateThatWasBentToAnotherDeviceIsRefused(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		other, _, _ := h.enrolled("SN-1")
		_, _, cert := h.enrolled("SN-2")
		h.must(h.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE provisioning_certificate SET num = $1, device = $2 WHERE serial = $3", other.Num, string(other.ID), serialText(cert))
			return err
		}))
		_, err := h.identify(cert)
		h.wantCode(err, fault.Forbidden, wire.CodeUnknownDevice)
	})
}

func TestSealSparesTheChainAndItsLossDoesNot(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		_, _, cert := h.enrolled("SN-1")
		_, err := h.identify(cert)
		h.must(err)
		if h.s.chains.has(cert.Raw) {
			t.Error("the chain of a sealed certificate was verified")
		}
		// as of a version that sealed nothing
		h.must(h.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE provisioning_certificate SET seal = $1", []byte{})
			return err
		}))
		_, err = h.identify(cert)
		h.must(err)
		if !h.s.chains.has(cert.Raw) {
			t.Error("the chain of a certificate without a seal was not verified")
		}
	})
}

func forge(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	like := &x509.Certificate{SerialNumber: template.SerialNumber, Subject: template.Subject, NotBefore: template.NotBefore, NotAfter: template.NotAfter, URIs: template.URIs}
	der, err := x509.CreateCertificate(rand.Reader, like, like, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (h *house) revoke(d device.Device) {
	h.Helper()
	h.must(h.s.RevokeDevice(context.Background(), h.person, h.scope, d.ID, "stolen"))
}

func TestRevokedDeviceIsRefusedListedAndAnnounced(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d, key, cert := h.enrolled("SN-1")
		_, err := h.identify(cert)
		h.must(err)
		open := h.token(NewToken{Device: d.ID})
		h.revoke(d)
		h.revoke(d) // twice is once
		_, err = h.identify(cert)
		h.wantCode(err, fault.Forbidden, wire.CodeRevoked)
		if want := RevokedSubject + " " + strconv.FormatInt(d.Num, 10); len(h.bus.msgs) != 1 || h.bus.msgs[0] != want {
			t.Errorf("published %q, want %q", h.bus.msgs, want)
		}
		if n := len(h.events("provisioning.revoked")); n != 1 {
			t.Errorf("told %d times", n)
		}
		_, err = h.enroll("SN-1", open.Secret, csrOf(t, newKeyPair(t), nil))
		h.wantCode(err, fault.Unauthorized, wire.CodeTokenInvalid)
		_, err = h.s.DeviceKey(context.Background(), h.db, d.Num)
		if !errors.Is(err, fault.NotFound) {
			t.Errorf("a revoked device has the key %v", err)
		}
		// The way back: a new token and a new key, not the revoked one.
		token := h.token(NewToken{Device: d.ID})
		_, err = h.enroll("SN-1", token.Secret, csrOf(t, key, nil))
		h.wantCode(err, fault.Conflict, wire.CodeKeyRefused)
		fresh, err := h.enroll("SN-1", token.Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		_, err = h.identify(fresh)
		h.must(err)
	})
}

func TestRenewalAndRevocationAtOnceLeaveNothingValid(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		for i := range 12 {
			d, _, cert := h.enrolled(fmt.Sprintf("SN-%d", i))
			_, err := h.identify(cert)
			h.must(err)
			h.clock.forward(DefaultCertificateLife/2 + time.Hour)
			key := newKeyPair(t)
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = h.renew(cert, key) })
			wg.Go(func() { h.revoke(d) })
			wg.Wait()
			certs, err := h.s.Certificates(context.Background(), h.scope, d.ID)
			h.must(err)
			if n := len(living(certs)); n != 0 {
				t.Fatalf("%d certificates of a revoked device live", n)
			}
		}
	})
}

func TestRevocationListIsSignedAnewOnChangeOnly(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		d, _, cert := h.enrolled("SN-1")
		chain, err := h.s.DeviceChain(ctx, h.db, d.Num)
		h.must(err)
		read := func() *x509.RevocationList {
			t.Helper()
			der, err := h.s.CRL(ctx, h.scope.Tenant, "")
			h.must(err)
			list, err := x509.ParseRevocationList(der)
			h.must(err)
			h.must(list.CheckSignatureFrom(chain[1]))
			return list
		}
		if first, same := read(), read(); len(first.RevokedCertificateEntries) != 0 || first.Number.Cmp(same.Number) != 0 {
			t.Fatal("the list is not empty or was signed twice")
		}
		h.revoke(d)
		list := read()
		if len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 || list.Number.Int64() != 2 {
			t.Errorf("after the revocation: %+v", list.RevokedCertificateEntries)
		}
		h.clock.forward(crlLife * 2 / 3)
		if again := read(); again.Number.Int64() != 3 || !again.NextUpdate.Equal(h.clock.now().Add(crlLife)) {
			t.Errorf("an old list was served: number %s", again.Number)
		}
		rec := httptest.NewRecorder()
		h.must(h.s.PKI(rec, httptest.NewRequest(http.MethodGet, "/pki/default/crl", nil)))
		if rec.Header().Get("Content-Type") != "application/pkix-crl" || rec.Body.Len() == 0 {
			t.Errorf("served as %s", rec.Header())
		}
		for _, path := range []string{"/pki/nobody/crl", "/pki/default/ca-x.crl", "/pki/default/other", "/pki/..", "/pki/"} {
			if err := h.s.PKI(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)); !errors.Is(err, fault.NotFound) {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
}

func TestOpenSSLVerifiesADeviceAgainstTheRevocationList(t *testing.T) {
	openssl := tool(t, "openssl")
	h := lite(t)
	h.cfg.Now = time.Now // openssl has its own clock
	h.cfg.CRLBase = "http://steward.example"
	h.restart()
	d, _, cert := h.enrolled("SN-1")
	if len(cert.CRLDistributionPoints) != 1 {
		t.Fatal("the certificate names no revocation list")
	}
	dir := t.TempDir()
	verify := func() string {
		ca, err := h.s.caFile(context.Background(), h.scope.Tenant)
		h.must(err)
		rec := httptest.NewRecorder()
		h.must(h.s.PKI(rec, httptest.NewRequest(http.MethodGet, strings.TrimPrefix(cert.CRLDistributionPoints[0], h.cfg.CRLBase), nil)))
		for name, data := range map[string][]byte{"ca.pem": ca, "crl.der": rec.Body.Bytes(), "dev.pem": []byte(pemOf(cert))} {
			h.must(os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
		out, _ := exec.Command(openssl, "verify", "-x509_strict", "-purpose", "sslclient", "-crl_check", "-CRLfile", filepath.Join(dir, "crl.der"),
			"-CAfile", filepath.Join(dir, "ca.pem"), filepath.Join(dir, "dev.pem")).CombinedOutput()
		return string(out)
	}
	if out := verify(); !strings.Contains(out, "dev.pem: OK") {
		t.Errorf("a valid device: %s", out)
	}
	h.revoke(d)
	if out := verify(); !strings.Contains(out, "revoked") {
		t.Errorf("a revoked device: %s", out)
	}
}

func TestTwoNodesMakeOneAuthority(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		other, err := New(context.Background(), h.cfg)
		h.must(err)
		var wg sync.WaitGroup
		fingers := make([]*x509.Certificate, 2)
		for i, s := range []*Service{h.s, other} {
			wg.Go(func() {
				a, err := s.authorities.get(context.Background(), "acme")
				if err != nil {
					t.Error(err)
					return
				}
				fingers[i] = a.root.cert
			})
		}
		wg.Wait()
		if fingers[0] == nil || fingers[1] == nil || !fingers[0].Equal(fingers[1]) {
			t.Fatal("two roots for one tenant")
		}
		list, err := h.s.Authorities(context.Background(), "acme")
		h.must(err)
		names, err := h.keys.Names(context.Background())
		h.must(err)
		if len(list) != 2 || len(names) != 4 {
			t.Errorf("%d certificates, %d keys: want 2 and, with the keys of envelopes and seals, 4", len(list), len(names))
		}
	})
}

func TestTenantsHaveSeparateAuthorities(t *testing.T) {
	h := lite(t)
	a, err := h.s.authorities.get(context.Background(), "acme")
	h.must(err)
	_, _, cert := h.enrolled("SN-1")
	if a.verify(cert, h.clock.now()) == nil {
		t.Error("one tenant's authority vouches for another's device")
	}
}

func TestIssuingAuthorityIsFollowedByTheNextInTime(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d, _, old := h.enrolled("SN-1")
		_, err := h.identify(old)
		h.must(err)
		node, err := New(context.Background(), h.cfg) // another node, which has the first generation in memory
		h.must(err)
		_, err = node.Identify(context.Background(), old)
		h.must(err)
		h.clock.forward(issuingLife - issuingSpare + time.Hour)
		fresh, err := h.enroll("SN-1", h.token(NewToken{Device: d.ID}).Secret, csrOf(t, newKeyPair(t), nil))
		h.must(err)
		if bytes.Equal(fresh.AuthorityKeyId, old.AuthorityKeyId) {
			t.Fatal("the first generation still signs")
		}
		if _, err := node.Identify(context.Background(), fresh); err != nil {
			t.Errorf("a node that knows the first generation only: %v", err)
		}
		list, err := h.s.Authorities(context.Background(), h.scope.Tenant)
		h.must(err)
		for _, a := range list {
			if a.Kind == "issuing" && a.Expires.After(list[0].Expires) {
				t.Error("an issuing authority outlives its root")
			}
		}
	})
}

func TestMissingAuthorityKeyIsNamed(t *testing.T) {
	h := lite(t)
	h.enrolled("SN-1")
	store, err := keys.OpenDir(t.TempDir())
	h.must(err)
	h.cfg.Keys = store
	h.restart()
	_, err = h.s.IssueTokens(context.Background(), h.person, h.scope, []NewToken{{Serial: "SN-2"}})
	if !errors.Is(err, keys.ErrNoKey) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("got %v", err)
	}
}

func TestLinkCertificateRenewsItself(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		root, err := h.s.LinkRoot(context.Background())
		h.must(err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(root))
		get := func() *tls.Certificate {
			t.Helper()
			cert, err := h.s.LinkCertificate(nil)
			h.must(err)
			middle := x509.NewCertPool()
			issuer, err := x509.ParseCertificate(cert.Certificate[1])
			h.must(err)
			middle.AddCert(issuer)
			for _, name := range []string{"link.test", "127.0.0.1"} {
				_, err = cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, Intermediates: middle, CurrentTime: h.clock.now()})
				h.must(err)
			}
			return cert
		}
		first := get()
		if get() != first {
			t.Error("made anew for each handshake")
		}
		h.clock.forward(linkCertificateLife*2/3 + time.Hour)
		if get() == first {
			t.Error("not renewed at two thirds of its life")
		}
		dev, _, _ := h.enrolled("SN-1")
		chain, err := h.s.DeviceChain(context.Background(), h.db, dev.Num)
		h.must(err)
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, CurrentTime: h.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			t.Error("a device certificate chains to the link's root")
		}
	})
}

func TestSuspectedCloneIsFlaggedUntilSomebodyClearsIt(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		d, _, _ := h.enrolled("SN-1")
		clone := func(old, new string) {
			t.Helper()
			h.must(h.db.Write(ctx, func(tx *sqldb.Tx) error { return h.s.Clone(ctx, tx, d, old, new) }))
		}
		clone("a", "b")
		clone("b", "a")
		h.clock.forward(time.Hour)
		clone("b", "a")
		flag, err := h.s.CloneFlagOf(ctx, d.Num)
		h.must(err)
		if flag == nil || len(flag.Instances) != 2 || !flag.Since.Equal(start) || !flag.Last.Equal(h.clock.now()) {
			t.Fatalf("flag %+v", flag)
		}
		if n := len(h.events("provisioning.clone_suspected")); n != 1 {
			t.Errorf("told %d times", n)
		}
		notices, err := h.s.Notices(ctx, h.scope)
		h.must(err)
		if len(notices) != 1 || notices[0].Href != "/enrollment/clones" {
			t.Errorf("notices %+v", notices)
		}
		h.must(h.s.ClearClone(ctx, h.person, h.scope, d.ID, "looked at it"))
		if flag, err = h.s.CloneFlagOf(ctx, d.Num); err != nil || flag != nil {
			t.Errorf("after clearing: %+v, %v", flag, err)
		}
		clone("b", "c")
		if flag, err = h.s.CloneFlagOf(ctx, d.Num); err != nil || flag == nil || strings.Join(flag.Instances, "") != "bc" {
			t.Errorf("flagged again: %+v, %v", flag, err)
		}
	})
}

func TestOperatorSeesTheirPartOfTheFleetOnly(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		d, _, _ := h.enrolled("SN-1")
		h.clock.forward(time.Second)
		h.token(NewToken{Serial: "SN-9"})
		for _, scope := range []device.Scope{{Tenant: "acme"}, {Tenant: h.scope.Tenant, Selector: device.MustSelector("site=berlin")}} {
			if _, err := h.s.Certificates(ctx, scope, d.ID); !errors.Is(err, fault.NotFound) {
				t.Errorf("certificates: %v", err)
			}
			if err := h.s.RevokeDevice(ctx, h.person, scope, d.ID, "x"); !errors.Is(err, fault.NotFound) {
				t.Errorf("revoke: %v", err)
			}
			if page, _, err := h.s.Tokens(ctx, tokenQuery{scope: scope, limit: 10}); err != nil || len(page) != 0 {
				t.Errorf("tokens: %v, %v", page, err)
			}
		}
		page, next, err := h.s.Tokens(ctx, tokenQuery{scope: h.scope, limit: 1})
		h.must(err)
		if len(page) != 1 || next == nil || page[0].Serial != "SN-9" {
			t.Fatalf("first page %+v", page)
		}
		page, next, err = h.s.Tokens(ctx, tokenQuery{scope: h.scope, limit: 1, after: *next})
		h.must(err)
		if len(page) != 1 || next != nil || page[0].State != TokenUsed {
			t.Errorf("second page %+v", page)
		}
	})
}

func TestSmallCurveIsRefused(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkKey(key.Public()); code(err) != wire.CodeKeyRefused {
		t.Errorf("P-224: %v", err)
	}
}
