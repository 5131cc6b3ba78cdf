package link_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/link"
	"steward/internal/provisioning"
	"steward/internal/wire"
)

func TestDeviceLivesFromItsTokenToItsRenewal(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		d := h.received(device.DefaultTenant, "SN-1")
		token := h.token(device.DefaultTenant, provisioning.NewToken{Device: d.ID})
		m := &machine{h: h, d: d, client: h.client(nil, true)}
		trust := m.get(wire.PathTrust + string(token.Pin))
		if trust.status != http.StatusOK || wire.HashOf(trust.body) != token.Pin {
			t.Fatalf("trust: %d", trust.status)
		}
		m.get(wire.PathDesired).want(t, http.StatusUnauthorized, wire.CodeCertificateRequired)
		key := newKey(t)
		enrolled := h.enroll("SN-1", token.Secret, csr(t, key))
		if enrolled.status != http.StatusOK || !strings.HasPrefix(enrolled.header.Get("Content-Type"), "application/pkcs7-mime") || bytes.ContainsAny(enrolled.body, "\r\n") {
			t.Fatalf("enroll: %d %v %.80s", enrolled.status, enrolled.header, enrolled.body)
		}
		cert := tls.Certificate{Certificate: [][]byte{certOf(t, enrolled.body)}, PrivateKey: key}
		m.client = h.client(&cert, true)
		h.desire(d, 30)
		desired := m.get(wire.PathDesired)
		if desired.status != http.StatusOK || desired.header.Get(wire.ProtocolHeader) != "1" || desired.header.Get("Date") == "" {
			t.Fatalf("desired: %d %v", desired.status, desired.header)
		}
		var doc wire.Trust
		h.must(json.Unmarshal(trust.body, &doc))
		block, _ := pem.Decode([]byte(doc.EnvelopeKeys[0]))
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		h.must(err)
		var state wire.Desired
		h.must(wire.Open(desired.body, wire.DesiredType, []crypto.PublicKey{pub}, &state))
		if state.Device != string(d.ID) {
			t.Fatalf("desired state of %s", state.Device)
		}
		body := m.get(wire.PathDocuments + string(state.Sections[wire.SectionMonitoring]))
		if body.status != http.StatusOK || wire.HashOf(body.body) != state.Sections[wire.SectionMonitoring] {
			t.Fatalf("document: %d", body.status)
		}
		if got := m.get(wire.PathDesired, "If-None-Match", desired.header.Get("ETag")); got.status != http.StatusNotModified {
			t.Fatalf("same epoch: %d", got.status)
		}
		m.reportsInventory(t, state.Epoch)
		h.forward(46 * 24 * time.Hour)
		renewed := m.send(http.MethodPost, wire.PathESTReenroll, csr(t, newKey(t)))
		if renewed.status != http.StatusOK {
			t.Fatalf("renewal: %d %s", renewed.status, renewed.body)
		}
		if ca := m.get(wire.PathESTCACerts); ca.status != http.StatusOK || len(ca.body) < 500 {
			t.Errorf("cacerts: %d", ca.status)
		}
	})
}

// reportsInventory reports a section, uploads the body that the server misses, and reports again.
func (m *machine) reportsInventory(t *testing.T, epoch int64) {
	t.Helper()
	body, err := wire.Canonical(wire.Inventory{Hostname: "gw-1"})
	m.h.must(err)
	report := wire.Report{Protocol: 1, Boot: "b", Instance: "i", Time: m.h.now(), Epoch: epoch, Sections: map[wire.Section]wire.Hash{wire.SectionInventory: wire.HashOf(body)}}
	for i, missing := range []int{1, 0} {
		report.Sequence = int64(i + 1)
		data, err := json.Marshal(report)
		m.h.must(err)
		got := m.send(http.MethodPost, wire.PathReport, data)
		var answer wire.ReportAnswer
		if err := json.Unmarshal(got.body, &answer); err != nil || got.status != http.StatusOK || len(answer.Missing) != missing {
			t.Fatalf("report %d: %d %s", i, got.status, got.body)
		}
		for _, hash := range answer.Missing {
			if got := m.send(http.MethodPut, wire.PathDocuments+string(hash), body); got.status != http.StatusNoContent {
				t.Fatalf("upload: %d %s", got.status, got.body)
			}
		}
	}
}

func TestLongPollAnswersWhenTheDesiredStateChanges(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		m := h.enrolled(device.DefaultTenant, "SN-1")
		h.desire(m.d, 30)
		tag := m.get(wire.PathDesired).header.Get("ETag")
		done := make(chan *answer, 1)
		go func() {
			a, err := try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=15", nil, "If-None-Match", tag))
			if err != nil {
				t.Error(err)
			}
			done <- a
		}()
		m.waitForPoll(t)
		h.desire(m.d, 40)
		got, err := within(5*time.Second, done)
		if err != nil || got == nil || got.status != http.StatusOK || got.header.Get("ETag") == tag {
			t.Errorf("the poll ended with %+v, %v", got, err)
		}
		tag = m.get(wire.PathDesired).header.Get("ETag")
		began := time.Now()
		if got := m.get(wire.PathDesired+"?wait=1", "If-None-Match", tag); got.status != http.StatusNotModified || time.Since(began) < 800*time.Millisecond {
			t.Errorf("without news: %d after %s", got.status, time.Since(began))
		}
		m.get(wire.PathDesired+"?wait=soon").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	})
}

// waitForPoll returns once a request of the device is within the server.
func (m *machine) waitForPoll(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { return m.h.link.Running(m.d.Num) > 0 })
}

func TestRevocationClosesARunningLongPollAtOnce(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		for _, h2 := range []bool{true, false} {
			m := h.enrolled(device.DefaultTenant, fmt.Sprintf("SN-%t", h2))
			m.client = h.client(&m.cert, h2)
			h.desire(m.d, 30)
			tag := m.get(wire.PathDesired).header.Get("ETag")
			done := make(chan error, 1)
			go func() {
				a, err := try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=60", nil, "If-None-Match", tag))
				if err == nil && a.status < 400 {
					err = nil
				} else if err == nil {
					err = fmt.Errorf("refused with %d", a.status)
				}
				done <- err
			}()
			m.waitForPoll(t)
			h.revoke(m.d)
			ended, err := within(time.Second, done)
			if err != nil || ended == nil {
				t.Fatalf("HTTP/2 %t: the poll of a revoked device ended with %v, %v", h2, ended, err)
			}
			p := m.get(wire.PathDesired).want(t, http.StatusForbidden, wire.CodeRevoked)
			if p.RetryAfterSeconds < 60 {
				t.Errorf("a revoked device may ask again after %d s", p.RetryAfterSeconds)
			}
		}
	})
}

func TestDisposalIsAnsweredThoughItRevokesTheDevice(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		for _, h2 := range []bool{true, false} {
			m := h.enrolled(device.DefaultTenant, fmt.Sprintf("SN-%t", h2))
			m.client = h.client(&m.cert, h2)
			h.desire(m.d, 30)
			tag := m.get(wire.PathDesired).header.Get("ETag")
			poll := make(chan struct{})
			go func() {
				defer close(poll)
				_, _ = try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=60", nil, "If-None-Match", tag))
			}()
			m.waitForPoll(t)
			if got := m.send(http.MethodPost, wire.PathDisposal, []byte(`{"sealed":true}`)); got.status != http.StatusNoContent {
				t.Fatalf("HTTP/2 %t: the answer to the statement was %d %s", h2, got.status, got.body)
			}
			if _, err := within(3*time.Second, poll); err != nil {
				t.Errorf("HTTP/2 %t: the long poll of a disposed device goes on", h2)
			}
			m.get(wire.PathDesired).want(t, http.StatusForbidden, wire.CodeRevoked)
		}
	})
}

func TestRenewedDeviceIsSentAwayFromItsOldLongPollWithoutARefusal(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	tag := m.get(wire.PathDesired).header.Get("ETag")
	h.forward(46 * 24 * time.Hour)
	key := newKey(t)
	renewed := m.send(http.MethodPost, wire.PathESTReenroll, csr(t, key))
	cert := tls.Certificate{Certificate: [][]byte{certOf(t, renewed.body)}, PrivateKey: key}
	fresh := &machine{h: h, d: m.d, client: h.client(&cert, true)}
	done := make(chan *answer, 1)
	go func() {
		a, _ := try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=2", nil, "If-None-Match", tag))
		done <- a
	}()
	m.waitForPoll(t)
	if got := fresh.get(wire.PathDesired); got.status != http.StatusOK {
		t.Fatalf("with the new certificate: %d %s", got.status, got.body)
	}
	if got, err := within(5*time.Second, done); err != nil || got == nil || got.status != http.StatusNotModified {
		t.Errorf("the old poll ended with %+v, %v", got, err)
	}
	m.get(wire.PathDesired).want(t, http.StatusForbidden, wire.CodeSuperseded)
}

func TestCertificatesAreRefusedWithReadableProblems(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		m := h.enrolled(device.DefaultTenant, "SN-1")
		// somebody else's authority, the same names
		key := newKey(t)
		own, err := x509.ParseCertificate(m.cert.Certificate[0])
		h.must(err)
		der, err := x509.CreateCertificate(zero{}, &x509.Certificate{SerialNumber: own.SerialNumber, Subject: own.Subject, NotAfter: own.NotAfter}, &x509.Certificate{Subject: own.Issuer}, key.Public(), key)
		h.must(err)
		forger := &machine{h: h, client: h.client(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, true)}
		forger.get(wire.PathDesired).want(t, http.StatusForbidden, wire.CodeUnknownDevice)
		// another tenant's device is itself, and sees nothing of the first
		h.desire(m.d, 30)
		var state struct{ Payload []byte }
		var desired wire.Desired
		h.must(json.Unmarshal(m.get(wire.PathDesired).body, &state))
		h.must(json.Unmarshal(state.Payload, &desired))
		hash := desired.Sections[wire.SectionMonitoring]
		other := h.enrolled("acme", "SN-1")
		other.get(wire.PathDocuments+string(hash)).want(t, http.StatusNotFound, wire.CodeDocumentMissing)
		h.forward(91 * 24 * time.Hour)
		m.client = h.client(&m.cert, true)
		m.get(wire.PathDesired).want(t, http.StatusForbidden, wire.CodeExpired)
	})
}

// zero is a source of "randomness" for a certificate that nobody believes.
type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestArtifactDownloadResumesByRange(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	body := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	hash := string(wire.HashOf(body))
	h.artifacts["default "+hash] = body
	path := wire.PathArtifacts + hash
	// The connection breaks in the middle.
	ctx, cancel := context.WithCancel(context.Background())
	res, err := m.client.Do(m.request(http.MethodGet, path, nil).WithContext(ctx))
	h.must(err)
	first := make([]byte, 300_001)
	_, err = io.ReadFull(res.Body, first)
	h.must(err)
	cancel()
	_ = res.Body.Close()
	rest := m.get(path, "Range", "bytes="+strconv.Itoa(len(first))+"-", "If-Range", `"`+hash+`"`)
	if rest.status != http.StatusPartialContent || rest.header.Get("ETag") != `"`+hash+`"` {
		t.Fatalf("resume: %d %v", rest.status, rest.header)
	}
	if wire.HashOf(append(first, rest.body...)) != wire.Hash(hash) {
		t.Error("the parts don't make the whole")
	}
	whole := m.get(path, "Range", "bytes=10-", "If-Range", `"another"`)
	if whole.status != http.StatusOK || len(whole.body) != len(body) {
		t.Errorf("another version's range: %d, %d bytes", whole.status, len(whole.body))
	}
	past := m.get(path, "Range", "bytes=99999999-")
	past.want(t, http.StatusRequestedRangeNotSatisfiable, wire.CodeRequestInvalid)
	if past.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", len(body)) {
		t.Errorf("Content-Range %q", past.header.Get("Content-Range"))
	}
	h.enrolled("acme", "SN-2").get(path).want(t, http.StatusNotFound, "")
	m.get(wire.PathArtifacts + "../../etc/passwd").problem(t)
	m.get(wire.PathArtifacts+"xyz").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
}

func TestQuarantinedDeviceTalksAndGetsNothing(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.artifacts["default "+string(wire.HashOf([]byte("x")))] = []byte("x")
	h.move(m.d, device.Quarantined)
	m.get(wire.PathArtifacts+string(wire.HashOf([]byte("x")))).want(t, http.StatusForbidden, wire.CodeQuarantined)
	if got := m.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("desired: %d", got.status)
	}
	if got := m.send(http.MethodPost, wire.PathReport, []byte(`{"protocol":1,"boot":"b","sequence":1,"instance":"i","time":"2026-01-01T00:00:00Z"}`)); got.status != http.StatusOK {
		t.Errorf("report: %d %s", got.status, got.body)
	}
	h.move(m.d, device.Retired)
	if got := m.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("retired: %d", got.status)
	}
	h.move(m.d, device.Disposed)
	m.get(wire.PathDesired).want(t, http.StatusForbidden, wire.CodeDecommissioned)
}

func TestMetricsAndMetadataReachTheirRooms(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(`{"resourceMetrics":[]}`))
	h.must(z.Close())
	if got := m.send(http.MethodPost, "/otlp/v1/metrics", packed.Bytes(), "Content-Encoding", "gzip", "Content-Type", "application/json; charset=utf-8"); got.status != http.StatusOK || string(got.body) != "{}" {
		t.Fatalf("metrics: %d %s", got.status, got.body)
	}
	if want := string(m.d.ID) + ` application/json {"resourceMetrics":[]}`; len(h.measured) != 1 || h.measured[0] != want {
		t.Errorf("arrived: %q", h.measured)
	}
	m.send(http.MethodPost, wire.PathMetrics, nil, "Content-Type", "text/plain").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	m.send(http.MethodPost, wire.PathMetrics, []byte("no gzip"), "Content-Encoding", "gzip").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	m.send(http.MethodPost, wire.PathMetrics, []byte("x"), "Content-Encoding", "br").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	if got := m.get(wire.PathTUF + "timestamp.json"); got.status != http.StatusOK || string(got.body) != `{"tenant":"default"}` {
		t.Errorf("metadata: %d %s", got.status, got.body)
	}
	m.get(wire.PathTUF+"7.root.json").want(t, http.StatusNotFound, "")
	m.get(wire.PathTUF+".hidden").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
}

func TestRoomsRefusalsKeepTheirCodeAndTime(t *testing.T) {
	h := lite(t, func(cfg *link.Config) {
		cfg.Metrics = func(context.Context, device.Device, string, []byte) ([]byte, error) {
			return nil, fault.Later(fault.Unavailable, "store-full", 90*time.Second, "the metrics store is full")
		}
		cfg.Metadata = func(context.Context, device.TenantID, string) ([]byte, error) {
			return nil, fmt.Errorf("read the secret path: %w", os.ErrPermission)
		}
	})
	m := h.enrolled(device.DefaultTenant, "SN-1")
	got := m.send(http.MethodPost, wire.PathMetrics, []byte("{}"))
	if p := got.want(t, http.StatusServiceUnavailable, "store-full"); p.RetryAfterSeconds < 90 || p.RetryAfterSeconds > 180 || got.header.Get("Retry-After") != strconv.Itoa(p.RetryAfterSeconds) {
		t.Errorf("retry after %d, %q", p.RetryAfterSeconds, got.header.Get("Retry-After"))
	}
	if p := m.get(wire.PathTUF+"timestamp.json").want(t, http.StatusInternalServerError, ""); strings.Contains(p.Detail, "secret") {
		t.Errorf("internals are told: %s", p.Detail)
	}
}

// TestForeignClientEnrollsByShell is a device in a few lines of shell: openssl makes the key and reads
// the answer, curl speaks EST.
func TestForeignClientEnrollsByShell(t *testing.T) {
	curl, openssl := tool(t, "curl"), tool(t, "openssl")
	h := lite(t, nil)
	d := h.received(device.DefaultTenant, "SN:1") // a colon, which HTTP Basic gives a meaning
	token := h.token(device.DefaultTenant, provisioning.NewToken{Device: d.ID})
	dir := t.TempDir()
	root, err := h.prov.LinkRoot(context.Background())
	h.must(err)
	h.must(os.WriteFile(filepath.Join(dir, "link.pem"), []byte(root), 0o600))
	script := `set -e
"$OPENSSL" ecparam -name prime256v1 -genkey -noout -out key.pem
"$OPENSSL" req -new -key key.pem -subj "/CN=SN:1" -outform DER | "$OPENSSL" base64 > req.b64
"$CURL" -sS --fail-with-body --cacert link.pem -u "SN:1:$SECRET" -H 'Content-Type: application/pkcs10' --data-binary @req.b64 "https://$ADDR/.well-known/est/simpleenroll" -o cert.b64
"$OPENSSL" base64 -d -A -in cert.b64 -out cert.p7
"$OPENSSL" pkcs7 -inform DER -in cert.p7 -print_certs -out cert.pem
"$CURL" -sS --fail-with-body --cacert link.pem "https://$ADDR/.well-known/est/cacerts" | "$OPENSSL" base64 -d -A | "$OPENSSL" pkcs7 -inform DER -print_certs -out ca.pem
"$OPENSSL" verify -purpose sslclient -CAfile ca.pem cert.pem
"$CURL" -sS --fail-with-body --cacert link.pem --cert cert.pem --key key.pem "https://$ADDR/v1/desired" -o desired.json
`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CURL="+curl, "OPENSSL="+openssl, "SECRET="+token.Secret, "ADDR="+h.addr)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cert.pem: OK") {
		t.Fatalf("%v\n%s", err, out)
	}
	desired, err := os.ReadFile(filepath.Join(dir, "desired.json"))
	h.must(err)
	if !strings.Contains(string(desired), "payloadType") {
		t.Errorf("desired state: %s", desired)
	}
}
