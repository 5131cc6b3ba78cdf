package stewardtest_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
)

// mortal is a real agent that is killed at random moments.
type mortal struct {
	*Process
	t      *testing.T
	random *rand.Rand
}

// dies starts the agent and kills it a random time later, n times, then leaves it running.
func (m *mortal) dies(n int, within time.Duration) {
	m.t.Helper()
	for range n {
		m.Start()
		<-time.After(time.Duration(m.random.Int64N(int64(within)))) // the moment is what varies
		m.Kill()
	}
	m.Start()
}

func TestAgentKilledAtAnyMomentEndsRight(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true, CertificateLife: 30 * time.Second})
	id := h.Buy("REAL-0001")[0]
	m := &mortal{Process: h.Process("REAL-0001", h.EnrollmentToken(id)), t: t, random: rand.New(rand.NewPCG(3, 4))}

	m.dies(6, 400*time.Millisecond)
	h.AwaitStage(id, "active")
	h.Settle()
	if n := len(h.Events(id, "provisioning.enrolled")); n != 1 {
		t.Errorf("the device has enrolled %d times", n)
	}

	h.Push("", "1.0.0", Good)
	m.Kill()
	good := h.Assign("1.0.0", "")
	m.dies(5, 700*time.Millisecond)
	h.AwaitState(good, "committed", 1)
	if got := Runs(m.State, "app"); got != "1.0.0" {
		t.Errorf("committed, and %q runs", got)
	}

	h.Push("", "2.0.0", Bad)
	m.Kill()
	bad := h.Assign("2.0.0", "")
	for range 5 {
		m.dies(1, 900*time.Millisecond)
		if counts := h.Counts(bad); counts["committed"] != 0 || counts["healthy"] != 0 {
			t.Fatalf("a release that never was healthy counts as %v", counts)
		}
		m.Kill()
	}
	m.Start()
	h.AwaitState(bad, "rolled_back", 1)
	if got := Runs(m.State, "app"); got != "1.0.0" {
		t.Errorf("rolled back, and %q runs", got)
	}

	// Renewal comes at 20 s of the certificate's life; the agent dies all around it.
	Until(t, "the certificate is renewed", func() bool {
		m.Kill()
		m.Start()
		<-time.After(time.Duration(m.random.Int64N(int64(600 * time.Millisecond))))
		return len(h.Events(id, "provisioning.renewed")) > 0
	})
	m.Kill()
	m.dies(3, 300*time.Millisecond)

	h.Retire(id)
	h.OrderDisposal(id, "REAL-0001")
	m.Kill()
	for range 5 {
		m.Start()
		<-time.After(time.Duration(m.random.Int64N(int64(400 * time.Millisecond))))
		m.Kill()
	}
	m.Start()
	h.AwaitStage(id, "disposed")
	h.VerifyCertificate(id)
	Until(t, "the agent has ended", func() bool { _, ended := m.Exited(); return ended })
	if code, _ := m.Exited(); code != 0 {
		t.Errorf("the agent ended with code %d", code)
	}
	for _, file := range []string{"identity.pem", "next.pem", filepath.Join("components", "app")} {
		if _, err := os.Lstat(filepath.Join(m.State, file)); err == nil {
			t.Errorf("%s is still there", file)
		}
	}
	if n := clonesOf(h, id); n != 0 {
		t.Errorf("kills were taken for %d clones", n)
	}
	h.VerifyLedger()
}
