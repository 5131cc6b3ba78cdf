package link_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"steward/internal/bus"
	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/link"
	"steward/internal/provisioning"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

// house is a running link with the real rooms behind it, on loopback.
type house struct {
	testing.TB
	db    *sqldb.DB
	reg   *registry.Service
	prov  *provisioning.Service
	twin  *twin.Service
	bus   *bus.Bus
	cfg   link.Config
	link  *link.Server
	addr  string
	mqtt  string // address of the listener for MQTT
	roots *x509.CertPool
	stop  func() error // ends the link and returns what Run returned

	orders    *orders
	mu        sync.Mutex
	ahead     time.Duration     // of the rooms' clock before the machine's
	artifacts map[string][]byte // by tenant and hash
	disposed  [][]byte
	measured  []string
}

var who = device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}

var tables = []sqldb.Migration{ledger.Migration(), registry.Migration(), provisioning.Migration(), twin.Migration()}

func each(t *testing.T, test func(t *testing.T, h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(t, newHouse(t, db, nil)) })
}

// lite starts a link on SQLite; change, when not nil, adapts its configuration.
func lite(t testing.TB, change func(*link.Config)) *house {
	t.Helper()
	return newHouse(t, sqldbtest.SQLite(t, tables...), change)
}

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.ahead)
}

func (h *house) forward(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ahead += d
}

func newHouse(t testing.TB, db *sqldb.DB, change func(*link.Config)) *house {
	t.Helper()
	h := &house{TB: t, db: db, artifacts: map[string][]byte{}, orders: &orders{now: time.Now}}
	ctx := context.Background()
	b, err := bus.Start(bus.Config{Name: "test"})
	h.must(err)
	t.Cleanup(b.Close)
	h.bus = b
	l := ledgertest.New(t, db)
	h.reg = registry.New(registry.Config{DB: db, Ledger: l, Now: h.now})
	store, err := keys.OpenDir(t.TempDir())
	h.must(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	h.addr = listener.Addr().String()
	mqttListener, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	h.mqtt = mqttListener.Addr().String()
	log := slog.New(slog.DiscardHandler)
	h.prov, err = provisioning.New(ctx, provisioning.Config{
		DB: db, Ledger: l, Devices: h.reg, Fleet: h.reg, Keys: store, Bus: b, Now: h.now, Log: log,
		LinkURL: func() string { return "https://" + h.addr }, LinkNames: []string{"localhost", "127.0.0.1"},
	})
	h.must(err)
	envelope, err := provisioning.EnvelopeSigner(ctx, store)
	h.must(err)
	h.twin = twin.New(twin.Config{DB: db, Key: envelope, Bus: b, Now: h.now, Log: log, Clone: h.prov.Clone})
	root, err := h.prov.LinkRoot(ctx)
	h.must(err)
	h.roots = x509.NewCertPool()
	h.roots.AppendCertsFromPEM([]byte(root))
	cfg := link.Config{
		Listener: listener, MQTTListener: mqttListener, Commands: h.orders, Events: h.orders, Presence: h.orders, Certificate: h.prov.LinkCertificate, Identify: h.prov.Identify, Trust: h.prov.Trust, EST: h.prov.EST, PKI: h.prov.PKI,
		Desired: h.twin, Changes: h.twin, Reports: h.twin, Metrics: h.metrics, Artifact: h.artifact, Metadata: h.metadata, Disposal: h.disposal, Bus: b, Log: log, Now: h.now,
	}
	if change != nil {
		change(&cfg)
	}
	h.cfg = cfg
	h.start()
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Errorf("the link ended with %v", err)
		}
	})
	return h
}

func (h *house) start() {
	h.Helper()
	var err error
	h.link, err = link.New(h.cfg)
	h.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.link.Run(ctx) }()
	h.stop = sync.OnceValue(func() error { cancel(); return <-ended })
}

// restart ends the link and starts another one at the same addresses.
func (h *house) restart() {
	h.Helper()
	h.must(h.stop())
	var err error
	h.cfg.Listener, err = net.Listen("tcp", h.addr)
	h.must(err)
	h.cfg.MQTTListener, err = net.Listen("tcp", h.mqtt)
	h.must(err)
	h.start()
}

func (h *house) metrics(_ context.Context, d device.Device, kind string, body []byte) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.measured = append(h.measured, string(d.ID)+" "+kind+" "+string(body))
	return []byte("{}"), nil
}

type opened struct{ *bytes.Reader }

func (opened) Close() error { return nil }

func (h *house) artifact(_ context.Context, d device.Device, sha256 string) (io.ReadSeekCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, ok := h.artifacts[string(d.Tenant)+" "+sha256]
	if !ok {
		return nil, fault.New(fault.NotFound, "this tenant has no artifact %s", sha256)
	}
	return opened{bytes.NewReader(body)}, nil
}

func (h *house) metadata(_ context.Context, tenant device.TenantID, name string) ([]byte, error) {
	if name != "timestamp.json" {
		return nil, fault.New(fault.NotFound, "no metadata %s", name)
	}
	return []byte(`{"tenant":"` + string(tenant) + `"}`), nil
}

// disposal stores the statement and revokes the device, as the room disposal does.
func (h *house) disposal(ctx context.Context, d device.Device, envelope []byte) error {
	err := h.db.Write(ctx, func(tx *sqldb.Tx) error { return h.prov.Revoke(ctx, tx, device.System("disposal"), d.Num, "disposed") })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disposed = append(h.disposed, envelope)
	return err
}

func (h *house) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// machine is a device of the test.
type machine struct {
	h      *house
	d      device.Device
	cert   tls.Certificate
	client *http.Client
}

func (h *house) received(tenant device.TenantID, serial string) device.Device {
	h.Helper()
	var d device.Device
	h.must(h.db.Write(context.Background(), func(tx *sqldb.Tx) (err error) {
		d, err = h.reg.Create(context.Background(), tx, who, device.New{Tenant: tenant, Serial: serial, Model: "m", Stage: device.Received, Reason: "test"})
		return err
	}))
	return d
}

func (h *house) token(tenant device.TenantID, o provisioning.NewToken) wire.EnrollmentToken {
	h.Helper()
	out, err := h.prov.IssueTokens(context.Background(), who, device.Scope{Tenant: tenant}, []provisioning.NewToken{o})
	h.must(err)
	token, err := wire.ParseEnrollmentToken(out[0].Secret)
	h.must(err)
	return token
}

// client trusts the link; h2 asks for HTTP/2.
func (h *house) client(cert *tls.Certificate, h2 bool) *http.Client {
	cfg := &tls.Config{RootCAs: h.roots, Time: h.now}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	t := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: h2}
	h.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// selfSigned makes a certificate that nobody has issued.
func selfSigned(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dev"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func csr(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(der))
}

// enroll speaks EST.
func (h *house) enroll(serial string, secret string, body []byte) *answer {
	h.Helper()
	req, err := http.NewRequest(http.MethodPost, "https://"+h.addr+wire.PathESTEnroll, bytes.NewReader(body))
	h.must(err)
	req.SetBasicAuth(serial, secret)
	req.Header.Set("Content-Type", "application/pkcs10")
	return h.do(h.client(nil, true), req)
}

// enrolled takes a device from stock to a client with its certificate.
func (h *house) enrolled(tenant device.TenantID, serial string) *machine {
	h.Helper()
	d := h.received(tenant, serial)
	key := newKey(h)
	got := h.enroll(serial, h.token(tenant, provisioning.NewToken{Device: d.ID}).Secret, csr(h, key))
	if got.status != http.StatusOK {
		h.Fatalf("enroll: %d %s", got.status, got.body)
	}
	cert := tls.Certificate{Certificate: [][]byte{certOf(h, got.body)}, PrivateKey: key}
	return &machine{h: h, d: d, cert: cert, client: h.client(&cert, true)}
}

// certOf cuts the certificate out of EST's PKCS#7, by openssl's rules of no interest here: it is the
// only certificate within.
func certOf(t testing.TB, body []byte) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(string(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := range der {
		if cert, err := x509.ParseCertificate(prefix(der[i:])); err == nil {
			return cert.Raw
		}
	}
	t.Fatal("no certificate in the answer")
	return nil
}

// prefix is the ASN.1 SEQUENCE with a two-byte length that begins here.
func prefix(b []byte) []byte {
	if len(b) < 4 || b[0] != 0x30 || b[1] != 0x82 {
		return nil
	}
	if n := 4 + int(b[2])<<8 + int(b[3]); n <= len(b) {
		return b[:n]
	}
	return nil
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a *answer) problem(t testing.TB) wire.Problem {
	t.Helper()
	var p wire.Problem
	if err := json.Unmarshal(a.body, &p); err != nil || a.header.Get("Content-Type") != "application/problem+json" || p.Status != a.status {
		t.Fatalf("%d is no problem document: %s %q (%v)", a.status, a.header.Get("Content-Type"), a.body, err)
	}
	return p
}

func (a *answer) want(t testing.TB, status int, code string) wire.Problem {
	t.Helper()
	p := a.problem(t)
	if a.status != status || p.Code != code {
		t.Fatalf("got %d %q (%s), want %d %q", a.status, p.Code, p.Detail, status, code)
	}
	return p
}

func (h *house) do(c *http.Client, req *http.Request) *answer {
	h.Helper()
	a, err := try(c, req)
	h.must(err)
	return a
}

func try(c *http.Client, req *http.Request) (*answer, error) {
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return &answer{res.StatusCode, res.Header, body}, nil
}

func (m *machine) request(method, path string, body []byte, header ...string) *http.Request {
	m.h.Helper()
	req, err := http.NewRequest(method, "https://"+m.h.addr+path, bytes.NewReader(body))
	m.h.must(err)
	req.Header.Set(wire.ProtocolHeader, "1")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func (m *machine) get(path string, header ...string) *answer {
	m.h.Helper()
	return m.h.do(m.client, m.request(http.MethodGet, path, nil, header...))
}

func (m *machine) send(method, path string, body []byte, header ...string) *answer {
	m.h.Helper()
	return m.h.do(m.client, m.request(method, path, body, header...))
}

func (h *house) revoke(d device.Device) {
	h.Helper()
	h.must(h.prov.RevokeDevice(context.Background(), who, device.Scope{Tenant: d.Tenant}, d.ID, "stolen"))
}

func (h *house) desire(d device.Device, seconds int) {
	h.Helper()
	h.must(h.db.Write(context.Background(), func(tx *sqldb.Tx) error {
		return h.twin.SetDesired(context.Background(), tx, d.Num, wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: seconds})
	}))
}

func (h *house) move(d device.Device, to device.Stage) {
	h.Helper()
	h.must(h.db.Write(context.Background(), func(tx *sqldb.Tx) error {
		before, err := h.reg.ByNum(context.Background(), tx, d.Num)
		if err != nil {
			return err
		}
		after, err := h.reg.Move(context.Background(), tx, who, device.Move{Num: d.Num, To: to, Reason: "test"})
		if err != nil {
			return err
		}
		return h.twin.StageMoved(context.Background(), tx, after, before.Stage)
	}))
	h.changed(d)
}

// changed says on the bus, as the server does after a move, that the device has changed, and waits until
// the link has heard it.
func (h *house) changed(d device.Device) {
	h.Helper()
	before := h.link.Drops()
	h.must(h.bus.Publish(link.ChangedSubject, strconv.AppendInt(nil, d.Num, 10)))
	if !comes(func() bool { return h.link.Drops() > before }) {
		h.Fatal("the link has not heard that the device has changed")
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed: install Debian's package %s", name, name)
	return ""
}

var errTimeout = errors.New("it took too long")

// within waits for a value with a deadline.
func within[T any](d time.Duration, c <-chan T) (v T, err error) {
	select {
	case v = <-c:
		return v, nil
	case <-time.After(d):
		return v, errTimeout
	}
}
