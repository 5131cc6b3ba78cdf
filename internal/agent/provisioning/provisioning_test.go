package provisioning_test

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"steward/internal/agent/agenttest"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/agent/provisioning"
	"steward/internal/wire"
)

var errKilled = errors.New("killed")

// place is a state directory and its server.
type place struct {
	t      *testing.T
	server *agenttest.Server
	dir    string
	client *link.Client
}

func newPlace(t *testing.T) *place {
	return &place{t: t, server: agenttest.Start(t), dir: t.TempDir()}
}

// open is a start of the agent, as far as the room goes.
func (p *place) open(crash func(string) error) *provisioning.Room {
	p.t.Helper()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(p.dir, "journal"), Crash: crash})
	if err != nil {
		p.t.Fatal(err)
	}
	p.client, err = link.New(link.Config{Server: p.server.URL, SlowRetry: time.Millisecond})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(p.client.Close)
	r, err := provisioning.New(provisioning.Config{
		Dir: p.dir, Journal: j, Client: p.client, Serial: agenttest.Serial, Token: p.server.Token, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// talks tells whether the server answers the device's present certificate.
func (p *place) talks() error {
	_, err := p.client.Desired(p.t.Context(), 0, 0)
	return err
}

func TestKeyIsPrivateAndOnDiskBeforeItsRequestIsSent(t *testing.T) {
	p := newPlace(t)
	checked := false
	p.server.Do(func() {
		p.server.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path != wire.PathESTEnroll {
				return nil
			}
			checked = true
			info, err := os.Stat(filepath.Join(p.dir, "next.pem"))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info, err)
			}
			return nil
		}
	})
	r := p.open(nil)
	if !r.NeedsToken(nil) {
		t.Error("needs no token")
	}
	if err := r.Enroll(t.Context()); err != nil || !checked {
		t.Fatal(err, checked)
	}
	info, err := os.Stat(filepath.Join(p.dir, "identity.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := p.talks(); err != nil || r.Identity().Device != agenttest.DeviceID {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "next.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the prepared key is still there")
	}
}

// After a kill at any step of a renewal, and with any answer lost, the device still speaks with the
// server after at most one recovery, and the next renewal works.
func TestRenewalSurvivesAKillAtEveryStep(t *testing.T) {
	seen := map[string]bool{}
	for n := 1; ; n++ {
		p := newPlace(t)
		if err := p.open(nil).Enroll(t.Context()); err != nil {
			t.Fatal(err)
		}
		left, point := n, ""
		r := p.open(func(at string) error {
			if left--; left <= 0 {
				if point == "" {
					point = at
				}
				return errKilled
			}
			return nil
		})
		if err := p.talks(); err != nil {
			t.Fatal(err)
		}
		err := r.Renew(t.Context())
		if point == "" {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, errKilled) {
			t.Errorf("killed at %s: %v", point, err)
		}
		seen[point] = true
		p.recoverAndRenew(point)
	}
	for _, want := range []string{"write next.pem", "rename next.pem", "rename identity.pem", "sync directory of identity.pem"} {
		if !seen[want] {
			t.Errorf("no kill at %q; got %v", want, seen)
		}
	}
}

func (p *place) recoverAndRenew(after string) {
	p.t.Helper()
	r := p.open(nil)
	if err := p.talks(); err != nil {
		if link.CodeOf(err) != wire.CodeSuperseded {
			p.t.Errorf("after %s: %v", after, err)
		}
		if switched, err := r.Recover(p.t.Context()); err != nil || !switched {
			p.t.Errorf("after %s: not recovered: %v", after, err)
		}
		if err := p.talks(); err != nil {
			p.t.Errorf("after %s and a recovery: %v", after, err)
		}
	}
	before := r.Identity().Certificate.SerialNumber
	if err := r.Renew(p.t.Context()); err != nil {
		p.t.Errorf("next renewal after %s: %v", after, err)
	}
	if err := p.talks(); err != nil || r.Identity().Certificate.SerialNumber.Cmp(before) == 0 {
		p.t.Errorf("after %s and a renewal: %v", after, err)
	}
}

func TestLostAnswersOfARenewal(t *testing.T) {
	for _, path := range []string{wire.PathESTReenroll, wire.PathDesired} {
		p := newPlace(t)
		if err := p.open(nil).Enroll(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := p.open(nil)
		if err := p.talks(); err != nil {
			t.Fatal(err)
		}
		p.server.Do(func() { p.server.Cut = func(r *http.Request) bool { return r.URL.Path == path } })
		if err := r.Renew(t.Context()); err == nil {
			t.Errorf("%s: renewed without the answer", path)
		}
		p.server.Do(func() { p.server.Cut = nil })
		p.recoverAndRenew("a lost answer of " + path)
	}
}

func TestNewCertificateThatIsRefusedIsThrownAwayAndTheOldOneStays(t *testing.T) {
	p := newPlace(t)
	if err := p.open(nil).Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := p.open(nil)
	if err := p.talks(); err != nil {
		t.Fatal(err)
	}
	old := r.Identity().Certificate.SerialNumber.String()
	p.server.Do(func() {
		p.server.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path == wire.PathDesired && r.TLS.PeerCertificates[0].SerialNumber.String() != old {
				return &wire.Problem{Status: 403, Title: "Forbidden", Code: wire.CodeUnknownDevice}
			}
			return nil
		}
	})
	if err := r.Renew(t.Context()); link.CodeOf(err) != wire.CodeUnknownDevice {
		t.Errorf("%v", err)
	}
	if err := p.talks(); err != nil || r.Identity().Certificate.SerialNumber.String() != old {
		t.Errorf("the old certificate is gone: %v", err)
	}
	p.server.Do(func() { p.server.Refuse = nil })
	if err := r.Renew(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCertificateIsRenewedByItselfAtTwoThirdsOfItsLife(t *testing.T) {
	p := newPlace(t)
	p.server.Do(func() { p.server.Life = 3 * time.Second })
	r := p.open(nil)
	if err := r.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := r.Identity().Certificate
	started := time.Now()
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- r.Run(ctx) }()
	agenttest.Eventually(t, "renewal", func() bool { return r.Identity().Certificate.SerialNumber.Cmp(first.SerialNumber) != 0 })
	if life := first.NotAfter.Sub(first.NotBefore); time.Since(started) > life {
		t.Error("renewed after the end")
	}
	if err := p.talks(); err != nil {
		t.Error(err)
	}
}

func TestTokenOfAnotherServerIsRefused(t *testing.T) {
	p, other := newPlace(t), agenttest.Start(t)
	p.server.Token = other.Token
	if err := p.open(nil).Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "trust document") {
		t.Errorf("%v", err)
	}
	if entries, _ := filepath.Glob(filepath.Join(p.dir, "*.pem")); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestDamagedIdentityIsAClearError(t *testing.T) {
	for _, content := range []string{"", "no pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "identity.pem"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(journal.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		c, err := link.New(link.Config{Server: "https://localhost:1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := provisioning.New(provisioning.Config{Dir: dir, Journal: j, Client: c, Now: time.Now}); err == nil || !strings.Contains(err.Error(), "identity.pem") {
			t.Errorf("%q: %v", content, err)
		}
	}
}
