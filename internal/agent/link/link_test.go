package link_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent/agenttest"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

func client(t *testing.T, s *agenttest.Server, cfg link.Config) *link.Client {
	t.Helper()
	cfg.Server = s.URL
	c, err := link.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// enrolled returns a client with an identity of the server.
func enrolled(t *testing.T, s *agenttest.Server, cfg link.Config) *link.Client {
	t.Helper()
	c := client(t, s, cfg)
	if err := c.UseTrust(s.Trust); err != nil {
		t.Fatal(err)
	}
	c.UseIdentity(newIdentity(t, func(csr []byte) ([][]byte, error) {
		certs, err := c.Enroll(t.Context(), agenttest.Serial, agenttest.Secret, csr)
		if err != nil {
			return nil, err
		}
		return [][]byte{certs[0].Raw}, nil
	}))
	return c
}

// newIdentity makes a key and asks for its certificate.
func newIdentity(t *testing.T, ask func(csr []byte) ([][]byte, error)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ask(csr)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Subject.CommonName != agenttest.DeviceID {
		t.Fatalf("certificate of %s", leaf.Subject.CommonName)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	for _, server := range []string{"http://x:1", "x:1", "https://", "https://x/path", ""} {
		if _, err := link.New(link.Config{Server: server}); err == nil {
			t.Errorf("%q was taken", server)
		}
	}
}

func TestTrustIsBelievedForItsHashOnly(t *testing.T) {
	s := agenttest.Start(t)
	token, err := wire.ParseEnrollmentToken(s.Token)
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, s, link.Config{})
	trust, _, at, err := c.Trust(t.Context(), token.Pin)
	if err != nil || len(trust.LinkRoots) != 1 || at.IsZero() {
		t.Fatal(err, trust, at)
	}
	// A server in between that answers every pin with its own document.
	forged := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"protocol":1}`)) }))
	t.Cleanup(forged.Close)
	c, err = link.New(link.Config{Server: forged.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := c.Trust(t.Context(), token.Pin); !errors.Is(err, link.ErrPin) {
		t.Errorf("%v", err)
	}
}

func TestNothingIsAskedBeforeTrust(t *testing.T) {
	s := agenttest.Start(t)
	if _, err := client(t, s, link.Config{}).Desired(t.Context(), 0, 0); !errors.Is(err, link.ErrNoTrust) {
		t.Errorf("%v", err)
	}
}

func TestServerOfOtherRootsIsRefused(t *testing.T) {
	s, other := agenttest.Start(t), agenttest.Start(t)
	c := client(t, s, link.Config{})
	if err := c.UseTrust(other.Trust); err != nil {
		t.Fatal(err)
	}
	var unknown x509.UnknownAuthorityError
	if _, err := c.Desired(t.Context(), 0, 0); !errors.As(err, &unknown) {
		t.Errorf("want an unknown authority, got %v", err)
	}
}

func TestCertificatesAreJudgedByThePassedClock(t *testing.T) {
	s := agenttest.Start(t)
	c := client(t, s, link.Config{Now: func() time.Time { return time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC) }})
	if err := c.UseTrust(s.Trust); err != nil {
		t.Fatal(err)
	}
	var invalid x509.CertificateInvalidError
	if _, err := c.Desired(t.Context(), 0, 0); !errors.As(err, &invalid) {
		t.Errorf("want an invalid certificate, got %v", err)
	}
}

func TestLongPollReturnsAtTheChangeOrUnchanged(t *testing.T) {
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{})
	if _, err := c.Desired(t.Context(), 1, 0); !errors.Is(err, link.ErrNotModified) {
		t.Errorf("%v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Desired(t.Context(), 1, time.Minute)
		done <- err
	}()
	agenttest.Eventually(t, "the poll arrives", func() bool { return s.Calls("GET "+wire.PathDesired) == 2 })
	s.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDocumentsAreVerified(t *testing.T) {
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{})
	body := []byte(`{"a":1}`)
	if err := c.PutDocument(t.Context(), wire.HashOf(body), body); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Document(t.Context(), wire.HashOf(body)); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%q %v", got, err)
	}
	if _, err := c.Document(t.Context(), wire.HashOf([]byte("x"))); link.CodeOf(err) != wire.CodeDocumentMissing {
		t.Errorf("%v", err)
	}
	if err := c.PutDocument(t.Context(), wire.HashOf(body), make([]byte, wire.MaxDocumentBytes+1)); err == nil {
		t.Error("a document beyond the bound was sent")
	}
}

func TestAnswersBeyondTheBoundAreRefused(t *testing.T) {
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{})
	s.Do(func() {
		s.Envelope = func(wire.Desired) []byte { return make([]byte, wire.MaxEnvelopeBytes+1) }
		s.Metadata["timestamp.json"] = make([]byte, link.MaxMetadataBytes+1)
	})
	if _, err := c.Desired(t.Context(), 0, 0); !errors.Is(err, link.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := c.Metadata(t.Context(), "timestamp.json"); !errors.Is(err, link.ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

func TestArtifactGoesOnWhereItWasCut(t *testing.T) {
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{})
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	sum := sha256.Sum256(content)
	name := hex.EncodeToString(sum[:])
	s.Do(func() { s.Artifacts[name] = content })
	var got bytes.Buffer
	cut := &limited{w: &got, left: 123_456}
	n, err := c.Artifact(t.Context(), name, 0, cut)
	if err == nil || n != 123_456 {
		t.Fatal(n, err)
	}
	if _, err := c.Artifact(t.Context(), name, n, &got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), content) {
		t.Errorf("%d bytes differ", got.Len())
	}
	if _, err := c.Artifact(t.Context(), strings.Repeat("0", 64), 0, &got); !link.NotFound(err) {
		t.Errorf("%v", err)
	}
	if _, err := c.Artifact(t.Context(), "../etc/passwd", 0, &got); err == nil {
		t.Error("a path was taken for a hash")
	}
}

// limited fails after some bytes, like a full disk.
type limited struct {
	w    *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) <= l.left {
		l.left -= len(p)
		return l.w.Write(p)
	}
	n, _ := l.w.Write(p[:l.left])
	l.left = 0
	return n, errors.New("no space left")
}

func TestRefusalsCarryCodeAndWait(t *testing.T) {
	cases := []struct {
		name    string
		problem wire.Problem
		wait    time.Duration
	}{
		{"seconds in the body", wire.Problem{Status: 429, Title: "slow", Code: wire.CodeTooMany, RetryAfterSeconds: 7}, 7 * time.Second},
		{"none", wire.Problem{Status: 503, Title: "away"}, 0},
		{"absurd", wire.Problem{Status: 503, Title: "away", RetryAfterSeconds: 1 << 30}, 24 * time.Hour},
	}
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{})
	for _, tc := range cases {
		s.Do(func() { s.Refuse = func(*http.Request) *wire.Problem { return &tc.problem } })
		_, err := c.Report(t.Context(), wire.Report{})
		if link.CodeOf(err) != tc.problem.Code || link.StatusOf(err) != tc.problem.Status || link.RetryAfter(err) != tc.wait {
			t.Errorf("%s: %v, wait %s", tc.name, err, link.RetryAfter(err))
		}
	}
}

func TestClientKeepsSilentAfterARefusalForGood(t *testing.T) {
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{SlowRetry: 300 * time.Millisecond})
	var asked atomic.Int32
	s.Do(func() {
		s.Refuse = func(*http.Request) *wire.Problem {
			asked.Add(1)
			return &wire.Problem{Status: 403, Title: "Forbidden", Code: wire.CodeRevoked}
		}
	})
	for range 20 {
		if err := c.PostMetrics(t.Context(), []byte("{}")); link.CodeOf(err) != wire.CodeRevoked || link.RetryAfter(err) > time.Second {
			t.Fatalf("%v, wait %s", err, link.RetryAfter(err))
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	s.Do(func() { s.Refuse = nil })
	agenttest.Eventually(t, "asking again after the silence", func() bool { return c.PostMetrics(t.Context(), []byte("{}")) == nil })
}

func TestPendingEnrollmentIsARefusalWithAWait(t *testing.T) {
	s := agenttest.Start(t)
	c := client(t, s, link.Config{})
	if err := c.UseTrust(s.Trust); err != nil {
		t.Fatal(err)
	}
	s.Do(func() {
		s.Refuse = func(*http.Request) *wire.Problem {
			return &wire.Problem{Status: 202, Title: "Accepted", RetryAfterSeconds: 60}
		}
	})
	_, err := c.Enroll(t.Context(), agenttest.Serial, agenttest.Secret, nil)
	if link.CodeOf(err) != wire.CodePending || link.RetryAfter(err) != time.Minute {
		t.Errorf("%v", err)
	}
}

func TestCancellingEndsALongPollAtOnce(t *testing.T) {
	s := agenttest.Start(t)
	c := enrolled(t, s, link.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Desired(ctx, 1, time.Minute)
		done <- err
	}()
	agenttest.Eventually(t, "the poll arrives", func() bool { return s.Calls("GET "+wire.PathDesired) == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestBackoffGrowsWithJitterAndObeysTheServer(t *testing.T) {
	b := link.Backoff{Least: 100 * time.Millisecond, Most: time.Second}
	for i, most := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		most *= time.Millisecond
		if got := b.Next(errors.New("x")); got < most/2 || got > most {
			t.Errorf("wait %d is %s, want %s to %s", i, got, most/2, most)
		}
	}
	b.Reset()
	if got := b.Next(&link.Problem{RetryAfter: time.Minute}); got != time.Minute {
		t.Errorf("%s", got)
	}
}

// openssl makes certs-only messages in another way (line breaks, other optional parts).
func TestCertificatesFromOpenSSLAreRead(t *testing.T) {
	dir := t.TempDir()
	crt, p7 := filepath.Join(dir, "c.pem"), filepath.Join(dir, "c.p7")
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", filepath.Join(dir, "k.pem"), "-subj", "/CN=x", "-out", crt)
	run(t, "openssl", "crl2pkcs7", "-nocrl", "-certfile", crt, "-outform", "DER", "-out", p7)
	der := run(t, "openssl", "base64", "-in", p7)
	certs, err := link.ParseCertsOnly(der)
	if err != nil || len(certs) != 1 || certs[0].Subject.CommonName != "x" {
		t.Errorf("%v %v", certs, err)
	}
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v (install openssl)", name, err)
	}
	return out
}

func FuzzCertsOnly(f *testing.F) {
	f.Add([]byte(base64.StdEncoding.EncodeToString(agenttest.CertsOnly([]byte{0x30, 0}))))
	f.Add([]byte("MAA="))
	f.Fuzz(func(t *testing.T, data []byte) {
		if certs, err := link.ParseCertsOnly(data); err == nil && len(certs) == 0 {
			t.Error("neither certificates nor an error")
		}
	})
}
