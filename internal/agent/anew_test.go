package agent_test

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/agenttest"
	"steward/internal/wire"
)

// shifted sets the clocks of device and server, which agree, and returns what moves both.
func (s *setup) shifted() (pass func(d time.Duration)) {
	var offset atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	s.cfg.Now, s.cfg.PollWait = now, time.Second
	s.server.Do(func() { s.server.Now, s.server.Life = now, 48*time.Hour })
	return func(d time.Duration) { offset.Add(int64(d)) }
}

// "Not modified" is not signed. The test server's envelopes live an hour.
func TestEnvelopeIsFetchedAnewBeforeItExpiresThoughNothingHasChanged(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		pass := s.shifted()
		var sealed atomic.Int64
		s.server.Do(func() {
			s.server.Envelope = func(d wire.Desired) []byte { sealed.Add(1); return s.server.Seal(d) }
		})
		s.start()
		agenttest.Eventually(t, "an envelope that was taken", func() bool { return sealed.Load() >= 1 && len(s.server.Reports()) > 1 })
		before := sealed.Load()
		pass(31 * time.Minute)
		agenttest.Eventually(t, "a fresh envelope", func() bool { return sealed.Load() > before })
		if e := s.server.Reports()[0].Epoch; e > 1 {
			t.Errorf("epoch %d", e)
		}
	})
}

func TestDesiredStateThatNobodyConfirmsIsAProblem(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		pass := s.shifted()
		s.cfg.ReportInterval = 100 * time.Millisecond
		s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 2 })
		s.server.Do(func() {
			s.server.Refuse = func(r *http.Request) *wire.Problem {
				if r.URL.Path == wire.PathDesired {
					return &wire.Problem{Status: http.StatusNotModified}
				}
				return nil
			}
		})
		pass(61 * time.Minute)
		s.waitForProblem("has not been confirmed since")
		s.server.Do(func() { s.server.Refuse = nil })
		agenttest.Eventually(t, "problem is gone", func() bool { return len(s.agentSection().Problems) == 0 })
	})
}

// The time of a device without a battery comes with the trust document, which is stored.
func TestDeviceWithoutAClockThatWasStoppedBeforeItsCertificateEnrolls(t *testing.T) {
	s := newSetup(t)
	boot := time.Now()
	s.cfg.Now = func() time.Time { return time.Date(1970, 1, 1, 0, 0, 30, 0, time.UTC).Add(time.Since(boot)) }
	s.server.Do(func() {
		s.server.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path == wire.PathESTEnroll {
				return &wire.Problem{Status: http.StatusServiceUnavailable}
			}
			return nil
		}
	})
	a := s.start()
	agenttest.Eventually(t, "asked for a certificate", func() bool { return s.server.Calls("POST "+wire.PathESTEnroll) > 0 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	s.server.Do(func() { s.server.Refuse = nil })
	s.start()
	agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
}

// The first time is not authenticated: whoever gives a wrong one must not lock the device out.
func TestWrongTimeAtTheFirstContactIsReplacedByTheNext(t *testing.T) {
	s := newSetup(t)
	boot := time.Now()
	s.cfg.Now = func() time.Time { return time.Date(1970, 1, 1, 0, 0, 30, 0, time.UTC).Add(time.Since(boot)) }
	s.server.Do(func() { s.server.Now = func() time.Time { return time.Now().Add(40 * 365 * 24 * time.Hour) } })
	a := s.start()
	agenttest.Eventually(t, "refuses", func() bool { return a.Status().Detail != "" })
	s.server.Do(func() { s.server.Now = func() time.Time { return time.Now().Add(300 * 24 * time.Hour) } })
	agenttest.Eventually(t, "some more contacts", func() bool { return s.server.Calls("GET "+wire.PathTrust) > 5 })
	s.server.Do(func() { s.server.Now = time.Now })
	agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
}

func TestDeviceThatEnrollsAnewTrustsTheNewReleaseRoot(t *testing.T) {
	s := newSetup(t)
	a := s.start()
	agenttest.Eventually(t, "first report", func() bool { return s.agentSection().ReleaseTrust == "none" })
	s.server.RevokeAll()
	s.server.DropConnections()
	agenttest.Eventually(t, "blocked", func() bool { return a.Status().State == agent.StateBlocked })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	s.server.Do(func() { s.server.Trust.ReleaseRoot = json.RawMessage(`{"signed":{}}`) })
	s.cfg.Token = s.server.TokenFor(agenttest.Secret)
	s.start()
	agenttest.Eventually(t, "the root of the new token", func() bool { return s.agentSection().ReleaseTrust == "token" })
}
