package agent_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/agenttest"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/agent/provisioning"
	"steward/internal/wire"
)

// errKilled plays a kill: from the n-th point on nothing reaches the disk any more.
var errKilled = errors.New("killed")

// killer is an agent's Crash hook that kills at the n-th passage of a point after it was armed. The
// loops of an agent run side by side, so points are told by name and not by their place in one order.
type killer struct {
	at string // the point
	n  int    // its passage, from 1

	mu     sync.Mutex
	armed  bool
	dead   bool
	passed map[string]int
	kill   context.CancelFunc
}

func (k *killer) crash(point string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return errKilled
	}
	if !k.armed {
		return nil
	}
	if k.passed == nil {
		k.passed = map[string]int{}
	}
	k.passed[point]++
	if point != k.at || k.passed[point] != k.n {
		return nil
	}
	k.dead = true
	k.kill()
	return errKilled
}

// targets lists every passage of every point of a run that nobody killed.
func (k *killer) targets() []*killer {
	var out []*killer
	for _, point := range slices.Sorted(maps.Keys(k.passed)) {
		for n := range k.passed[point] {
			out = append(out, &killer{at: point, n: n + 1})
		}
	}
	return out
}

func (k *killer) arm() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.armed = true
}

// runKilled runs an agent until it is killed or ends, and calls during while it runs.
func (s *setup) runKilled(k *killer, during func(ctx context.Context)) (err error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	k.kill = cancel
	cfg := s.cfg
	cfg.Crash = k.crash
	a, err := agent.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	var wg sync.WaitGroup
	if during != nil {
		wg.Go(func() { during(ctx) })
	}
	err = a.Run(ctx)
	cancel()
	wg.Wait()
	return err
}

func TestKillAtEveryStepOfTheFirstStartLosesNothing(t *testing.T) {
	for _, via := range []string{link.ViaMQTT, link.ViaHTTPS} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			killFirstStart(t, via)
		})
	}
}

func killFirstStart(t *testing.T, via string) {
	firstStart := func(k *killer) *setup {
		s := newSetupBy(t, via)
		k.armed = true
		err := s.runKilled(k, func(ctx context.Context) {
			for ctx.Err() == nil && len(s.server.Reports()) == 0 {
				pause(ctx)
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.kill()
		})
		if err != nil && !k.dead {
			t.Fatal(err)
		}
		return s
	}
	var free killer
	firstStart(&free)
	for _, want := range []string{"write trust.json", "write next.pem", "rename identity.pem", "journal append sync"} {
		if free.passed[want] == 0 {
			t.Errorf("no point %q; got %v", want, free.passed)
		}
	}
	for _, k := range free.targets() {
		s := firstStart(k)
		if !k.dead {
			continue // this run had fewer passages of the point
		}
		a := s.start()
		agenttest.Eventually(t, fmt.Sprintf("report after a kill at %s (%d)", k.at, k.n), func() bool { return len(s.server.Reports()) > 0 })
		if err := a.stop(); err != nil {
			t.Errorf("after a kill at %s (%d): %v", k.at, k.n, err)
		}
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(2 * time.Millisecond):
	}
}

// order is a disposal order for the test's device.
func order() wire.DisposalDesired {
	return wire.DisposalDesired{Order: "dsp-1", Device: agenttest.DeviceID, Method: "clear", Issued: time.Now()}
}

// deviceKey reads the operational key's public part, which the server keeps with the certificate.
func deviceKey(t *testing.T, dir string) crypto.PublicKey {
	t.Helper()
	rest, err := os.ReadFile(filepath.Join(dir, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			t.Fatal("no certificate")
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			return cert.PublicKey.(*ecdsa.PublicKey)
		}
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// checkDisposed checks the end: a statement by the device's key on the server, a tombstone and no more.
func (s *setup) checkDisposed(key crypto.PublicKey) {
	s.t.Helper()
	var statement wire.SanitizationStatement
	if err := wire.Open(s.server.Disposal(), wire.SanitizationType, []crypto.PublicKey{key}, &statement); err != nil {
		s.t.Fatalf("statement: %v", err)
	}
	if statement.Order != "dsp-1" || statement.Device != agenttest.DeviceID || statement.Serial != agenttest.Serial || len(statement.Items) < 3 {
		s.t.Errorf("%+v", statement)
	}
	for _, item := range statement.Items {
		if item.Result != "destroyed" {
			s.t.Errorf("%+v", item)
		}
	}
	if got := names(s.t, s.cfg.StateDir); got != "decommissioned.json lock" {
		s.t.Errorf("left in the state directory: %s", got)
	}
	st, err := agent.ReadStatus(s.cfg.StateDir)
	if err != nil || st.State != agent.StateDecommissioned || st.Running {
		s.t.Errorf("%+v %v", st, err)
	}
}

func TestDisposalDestroysEverythingAndTheDeviceNeverComesBack(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		a := s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
		key := deviceKey(t, s.cfg.StateDir)
		if err := os.WriteFile(filepath.Join(s.cfg.StateDir, "left-by-somebody"), []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.server.SetDesired(wire.SectionDisposal, order())
		agenttest.Eventually(t, "decommissioned", func() bool { return a.Status().State == agent.StateDecommissioned })
		if err := a.stop(); !errors.Is(err, agent.ErrDecommissioned) {
			t.Errorf("%v", err)
		}
		s.checkDisposed(key)
		n := s.server.Calls("POST " + wire.PathESTEnroll)
		if err := s.run(); !errors.Is(err, agent.ErrDecommissioned) || !strings.Contains(err.Error(), "dsp-1") {
			t.Errorf("second start: %v", err)
		}
		if s.server.Calls("POST "+wire.PathESTEnroll) != n {
			t.Error("the device tried to enroll again")
		}
		for _, f := range agent.Diagnose(t.Context(), s.cfg) {
			if f.Check == "state" && (f.OK || !strings.Contains(f.Detail, "dsp-1")) {
				t.Errorf("%+v", f)
			}
		}
	})
}

// The statement is signed by the key that the server knows at that time, not by the one of the start.
func TestDisposalAfterARenewalIsSignedByTheNewKey(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		s.server.Do(func() { s.server.Life = 3 * time.Second })
		a := s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
		first := deviceKey(t, s.cfg.StateDir)
		agenttest.Eventually(t, "renewal", func() bool { return s.server.Certificates("superseded") > 0 })
		s.server.SetDesired(wire.SectionDisposal, order())
		agenttest.Eventually(t, "decommissioned", func() bool { return a.Status().State == agent.StateDecommissioned })
		if err := wire.Open(s.server.Disposal(), wire.SanitizationType, []crypto.PublicKey{first}, &wire.SanitizationStatement{}); !errors.Is(err, wire.ErrSignature) {
			t.Errorf("signed by the key of the start: %v", err)
		}
		var key crypto.PublicKey
		s.server.Do(func() { key = s.server.LastKey })
		_ = a.stop()
		s.checkDisposed(key)
	})
}

// A renewal that is cut off between the first use of the new certificate and the switch leaves a
// certificate that the server takes no more; the disposal goes on with the new one.
func TestDisposalFinishesARenewalThatWasCutOff(t *testing.T) {
	s := newSetup(t)
	k := &killer{}
	err := s.runKilled(k, func(ctx context.Context) {
		for len(s.server.Reports()) == 0 && ctx.Err() == nil {
			pause(ctx)
		}
		k.kill()
	})
	if err != nil {
		t.Fatal(err)
	}
	s.cutRenewal()
	s.server.SetDesired(wire.SectionDisposal, order())
	if err := s.run(); !errors.Is(err, agent.ErrDecommissioned) {
		t.Fatal(err)
	}
	var key crypto.PublicKey
	s.server.Do(func() { key = s.server.LastKey })
	s.checkDisposed(key)
}

// cutRenewal renews up to the switch: next.pem is used, identity.pem is superseded.
func (s *setup) cutRenewal() {
	s.t.Helper()
	dir := s.cfg.StateDir
	j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal"), Crash: func(point string) error {
		if point == "rename identity.pem" {
			return errKilled
		}
		return nil
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	client, err := link.New(link.Config{Server: s.server.URL})
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	room, err := provisioning.New(provisioning.Config{Dir: dir, Journal: j, Client: client, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := room.Renew(s.t.Context()); !errors.Is(err, errKilled) {
		s.t.Fatal(err)
	}
}

func TestDisposalOrdersThatAreNotOursTouchNothing(t *testing.T) {
	for name, change := range map[string]func(*wire.DisposalDesired){
		"is for device":    func(d *wire.DisposalDesired) { d.Device = "dev-ffffffffffffffff" },
		"without an ID":    func(d *wire.DisposalDesired) { d.Order = "" },
		"wants the method": func(d *wire.DisposalDesired) { d.Method = "destroy" },
	} {
		s := newSetup(t)
		o := order()
		change(&o)
		s.server.SetDesired(wire.SectionDisposal, o)
		a := s.start()
		s.waitForProblem(name)
		if st := a.Status(); st.State != agent.StateOnline || s.server.Disposal() != nil {
			t.Errorf("%s: %+v", name, st)
		}
		if err := a.stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestDisposalSurvivesAKillAtEveryStep(t *testing.T) {
	for _, via := range []string{link.ViaMQTT, link.ViaHTTPS} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			killDisposal(t, via)
		})
	}
}

func killDisposal(t *testing.T, via string) {
	dispose := func(k *killer) (s *setup, key crypto.PublicKey, err error) {
		s = newSetupBy(t, via)
		err = s.runKilled(k, func(ctx context.Context) {
			for len(s.server.Reports()) < 2 && ctx.Err() == nil {
				pause(ctx)
			}
			key = deviceKey(t, s.cfg.StateDir)
			k.arm()
			s.server.SetDesired(wire.SectionDisposal, order())
		})
		return s, key, err
	}
	var free killer
	s, key, err := dispose(&free)
	if !errors.Is(err, agent.ErrDecommissioned) {
		t.Fatal(err)
	}
	s.checkDisposed(key)
	for _, want := range []string{"journal append sync", "write decommissioned.json", "wipe identity.pem", "unlink identity.pem", "wipe journal.log"} {
		if free.passed[want] == 0 {
			t.Errorf("no point %q; got %v", want, free.passed)
		}
	}
	for _, k := range free.targets() {
		s, key, err := dispose(k)
		if k.dead {
			// The second life has nothing but the state directory.
			s.cfg.Server, s.cfg.Token, s.cfg.Serial = "", "", ""
			err = s.run()
		}
		if !errors.Is(err, agent.ErrDecommissioned) {
			t.Fatalf("after a kill at %s (%d): %v", k.at, k.n, err)
		}
		s.checkDisposed(key)
	}
}

func TestStatementIsSentAgainWhenTheAnswerIsLost(t *testing.T) {
	s := newSetup(t)
	a := s.start()
	agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
	key := deviceKey(t, s.cfg.StateDir)
	lost := 0
	s.server.Do(func() {
		s.server.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path == wire.PathDisposal {
				if lost++; lost == 1 {
					return &wire.Problem{Status: 503, Title: "away"}
				}
			}
			return nil
		}
	})
	s.server.SetDesired(wire.SectionDisposal, order())
	agenttest.Eventually(t, "decommissioned", func() bool { return a.Status().State == agent.StateDecommissioned })
	_ = a.stop()
	s.checkDisposed(key)
	if n := s.server.Calls("POST " + wire.PathDisposal); n != 2 {
		t.Errorf("sent %d times", n)
	}
}
