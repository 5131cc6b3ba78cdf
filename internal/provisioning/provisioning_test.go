package provisioning

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is moved by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// heard remembers what was published.
type heard struct {
	mu   sync.Mutex
	msgs []string
}

func (h *heard) Publish(subject string, data []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.msgs = append(h.msgs, subject+" "+string(data))
	return nil
}

// house is the room with the real registry, ledger and key directory.
type house struct {
	testing.TB
	db     *sqldb.DB
	l      *ledger.Ledger
	reg    *registry.Service
	s      *Service
	cfg    Config
	clock  *clock
	bus    *heard
	keys   *keys.Dir
	guard  string // what the guard of moves says is missing
	scope  device.Scope
	person device.Actor
}

func newHouse(t testing.TB, db *sqldb.DB) *house {
	t.Helper()
	h := &house{TB: t, db: db, clock: &clock{at: start}, bus: &heard{}, l: ledgertest.New(t, db),
		scope: device.Scope{Tenant: device.DefaultTenant}, person: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}}
	guard := registry.Guard{Name: "test", Check: func(context.Context, sqldb.Reader, device.Device, device.Stage) (string, error) { return h.guard, nil }}
	h.reg = registry.New(registry.Config{DB: db, Ledger: h.l, Guards: []registry.Guard{guard}, Now: h.clock.now})
	store, err := keys.OpenDir(t.TempDir())
	h.must(err)
	h.keys = store
	h.cfg = Config{
		DB: db, Ledger: h.l, Devices: h.reg, Fleet: h.reg, Keys: store, Bus: h.bus, LedgerKey: "ledger+key",
		LinkURL: func() string { return "https://link.test:8443" }, LinkNames: []string{"link.test", "127.0.0.1"},
		Now: h.clock.now, Log: slog.New(slog.DiscardHandler),
	}
	h.restart()
	return h
}

// restart makes the room anew on the same database and keys, as after a kill.
func (h *house) restart() {
	h.Helper()
	s, err := New(context.Background(), h.cfg)
	h.must(err)
	h.s = s
}

var tables = []sqldb.Migration{ledger.Migration(), registry.Migration(), Migration()}

func each(t *testing.T, test func(t *testing.T, h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(t, newHouse(t, db)) })
}

func lite(t testing.TB) *house {
	t.Helper()
	return newHouse(t, sqldbtest.SQLite(t, tables...))
}

func (h *house) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// code returns the stable word of a refusal.
func code(err error) string {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func (h *house) wantCode(err error, kind error, want string) {
	h.Helper()
	if !errors.Is(err, kind) || code(err) != want {
		h.Fatalf("got %v (code %q), want %v with code %q", err, code(err), kind, want)
	}
}

func (h *house) received(serial string) device.Device {
	h.Helper()
	var d device.Device
	h.must(h.db.Write(context.Background(), func(tx *sqldb.Tx) (err error) {
		d, err = h.reg.Create(context.Background(), tx, h.person, device.New{Tenant: h.scope.Tenant, Serial: serial, Model: "mod-1", Stage: device.Received, Reason: "test"})
		return err
	}))
	return d
}

func (h *house) get(d device.Device) device.Device {
	h.Helper()
	d, err := h.reg.ByNum(context.Background(), h.db, d.Num)
	h.must(err)
	return d
}

func (h *house) move(d device.Device, stages ...device.Stage) device.Device {
	h.Helper()
	for _, to := range stages {
		h.must(h.db.Write(context.Background(), func(tx *sqldb.Tx) (err error) {
			d, err = h.reg.Move(context.Background(), tx, h.person, device.Move{Num: d.Num, To: to, Reason: "test"})
			return err
		}))
	}
	return d
}

func (h *house) token(o NewToken) IssuedToken {
	h.Helper()
	out, err := h.s.IssueTokens(context.Background(), h.person, h.scope, []NewToken{o})
	h.must(err)
	return out[0]
}

func newKeyPair(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrOf(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	if template == nil {
		template = &x509.CertificateRequest{}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(der))
}

func named(cn string) *x509.CertificateRequest {
	return &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
}

func (h *house) enroll(serial, secret string, body []byte) (*x509.Certificate, error) {
	der, err := h.s.enroll(context.Background(), enrollment{serial: serial, secret: secret, address: "192.0.2.7:5000", body: body})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// enrolled takes a device from stock to its first certificate.
func (h *house) enrolled(serial string) (device.Device, *ecdsa.PrivateKey, *x509.Certificate) {
	h.Helper()
	d := h.received(serial)
	key := newKeyPair(h)
	cert, err := h.enroll(serial, h.token(NewToken{Device: d.ID}).Secret, csrOf(h, key, nil))
	h.must(err)
	return h.get(d), key, cert
}

func (h *house) renew(cert *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	der, err := h.s.reenroll(context.Background(), cert, "192.0.2.7:5000", csrOf(h, key, nil))
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (h *house) identify(cert *x509.Certificate) (device.Device, error) {
	return h.s.Identify(context.Background(), cert)
}

// events returns the kinds of this room's events about a device.
func (h *house) events(kind string) []ledger.Event {
	h.Helper()
	return ledgertest.Events(h, h.l, ledger.Filter{Tenant: h.scope.Tenant, Kinds: []string{kind}})
}

// tool returns a program that the test needs as a foreign client, or skips; under CI it must be there.
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
