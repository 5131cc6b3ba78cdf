package agent_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
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
	"steward/internal/agent/host/sim"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// setup is an agent on a simulated machine with short waits.
type setup struct {
	t      *testing.T
	server *agenttest.Server
	host   *sim.Device
	cfg    agent.Config
}

func newSetup(t *testing.T) *setup { return newSetupBy(t, link.ViaMQTT) }

// byEachWay runs a test over every way that messages can travel.
func byEachWay(t *testing.T, test func(t *testing.T, s *setup)) {
	for _, via := range []string{link.ViaMQTT, link.ViaWebSocket, link.ViaHTTPS} {
		t.Run(via, func(t *testing.T) {
			t.Parallel() // beside the other ways only: the test that they belong to waits for them
			test(t, newSetupBy(t, via))
		})
	}
}

// newSetupBy gives the agent a server whose best way is the named one.
func newSetupBy(t *testing.T, via string) *setup {
	s := agenttest.StartWith(t, agenttest.Doors{MQTT: via == link.ViaMQTT, WebSocket: via != link.ViaHTTPS})
	device := sim.NewFleet(sim.Config{Seed: 1}).Device(0)
	return &setup{t: t, server: s, host: device, cfg: agent.Config{
		StateDir: filepath.Join(t.TempDir(), "state"), Server: s.URL, Token: s.Token, Serial: agenttest.Serial, Host: device,
		Log: testLog(t), Version: "1.2.3", Dial: device.Dial,
		Retry: link.Backoff{Least: 5 * time.Millisecond, Most: 50 * time.Millisecond}, SlowRetry: 200 * time.Millisecond,
	}}
}

func testLog(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// running is a started agent.
type running struct {
	*agent.Agent
	stop func() error
}

func (s *setup) start() *running {
	s.t.Helper()
	a, err := agent.New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	var result error
	stop := func() error {
		once.Do(func() {
			cancel()
			result = <-done
		})
		return result
	}
	s.t.Cleanup(func() { _ = stop() })
	return &running{a, stop}
}

// run runs an agent to its own end.
func (s *setup) run() error {
	a, err := agent.New(s.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.New("the agent went on")
	}
	return nil
}

func (s *setup) agentSection() (out wire.AgentReported) {
	if body := s.server.Reported(wire.SectionAgent); body != nil {
		if err := json.Unmarshal(body, &out); err != nil {
			s.t.Error(err)
		}
	}
	return out
}

func (s *setup) waitForProblem(text string) {
	s.t.Helper()
	agenttest.Eventually(s.t, "problem "+text, func() bool {
		return slices.ContainsFunc(s.agentSection().Problems, func(p string) bool { return strings.Contains(p, text) })
	})
}

func TestDeviceEnrollsAndReportsEverything(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 60, MetricsSeconds: 1})
		a := s.start()
		for _, section := range []wire.Section{wire.SectionInventory, wire.SectionPackages, wire.SectionServices, wire.SectionAgent, wire.SectionUpdate} {
			agenttest.Eventually(t, "report of "+string(section), func() bool { return s.server.Reported(section) != nil })
		}
		agenttest.Eventually(t, "metrics", func() bool { return len(s.server.Metrics()) > 0 })
		agenttest.Eventually(t, "accepted epoch", func() bool { r := s.server.Reports(); return r[len(r)-1].Epoch == 2 })
		section := s.agentSection()
		if section.Version != "1.2.3" || section.ReleaseTrust != "none" || section.CertificateEnds.IsZero() || !slices.Contains(section.Rooms, "update") {
			t.Errorf("%+v", section)
		}
		if first := s.server.Reports()[0]; !first.Full || len(first.Sections) < 5 {
			t.Errorf("the first report is not full: %+v", first)
		}
		if st := a.Status(); st.State != agent.StateOnline || st.Device != agenttest.DeviceID || st.LastContact.IsZero() {
			t.Errorf("%+v", st)
		}
		if err := a.stop(); err != nil {
			t.Error(err)
		}
		st, err := agent.ReadStatus(s.cfg.StateDir)
		if err != nil || st.Running || st.Device != agenttest.DeviceID || st.State != agent.StateOnline {
			t.Errorf("%+v %v", st, err)
		}
	})
}

func TestRestartNeedsNothingButTheStateDirectory(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		a := s.start()
		agenttest.Eventually(t, "first report", func() bool { return len(s.server.Reports()) > 0 })
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		before := s.server.Reports()
		s.cfg.Server, s.cfg.Token, s.cfg.Serial = "", "", ""
		s.start()
		agenttest.Eventually(t, "report of the second start", func() bool { return len(s.server.Reports()) > len(before) })
		last := s.server.Reports()[len(before)]
		if last.Instance != before[0].Instance || last.Boot == before[0].Boot || last.Sequence != 1 {
			t.Errorf("first %+v, second %+v", before[0], last)
		}
		if n := s.server.Calls("POST " + wire.PathESTEnroll); n != 1 {
			t.Errorf("enrolled %d times", n)
		}
	})
}

func TestSecondAgentOnTheStateDirectoryIsRefused(t *testing.T) {
	s := newSetup(t)
	s.start()
	agenttest.Eventually(t, "first agent works", func() bool { return len(s.server.Reports()) > 0 })
	if err := s.run(); !errors.Is(err, agent.ErrLocked) {
		t.Errorf("%v", err)
	}
	if st, err := agent.ReadStatus(s.cfg.StateDir); err != nil || !st.Running {
		t.Errorf("%+v %v", st, err)
	}
}

func TestLostAnswerOfEnrollmentIsAskedForAgain(t *testing.T) {
	s := newSetup(t)
	lost := 0
	s.server.Do(func() {
		s.server.Cut = func(r *http.Request) bool {
			if r.URL.Path != wire.PathESTEnroll || lost == 2 {
				return false
			}
			lost++
			return true
		}
	})
	s.start()
	agenttest.Eventually(t, "enrolled after two lost answers", func() bool { return len(s.server.Reports()) > 0 })
}

func TestWrongTokenIsToldAndRetriedSlowly(t *testing.T) {
	s := newSetup(t)
	s.cfg.Token = s.server.TokenFor("wrongwrongwrongwrong1234")
	a := s.start()
	agenttest.Eventually(t, "blocked", func() bool { return a.Status().State == agent.StateBlocked })
	if d := a.Status().Detail; !strings.Contains(d, wire.CodeTokenInvalid) {
		t.Errorf("detail %q", d)
	}
	started := time.Now()
	agenttest.Eventually(t, "a second attempt", func() bool { return s.server.Calls("POST "+wire.PathESTEnroll) >= 2 })
	if waited := time.Since(started); waited < 100*time.Millisecond {
		t.Errorf("asked again after %s", waited)
	}
	st, err := agent.ReadStatus(s.cfg.StateDir)
	if err != nil || st.State != agent.StateBlocked {
		t.Errorf("%+v %v", st, err)
	}
}

func TestAgentWithoutTokenSaysSo(t *testing.T) {
	s := newSetup(t)
	s.cfg.Token = ""
	if err := s.run(); err == nil || !strings.Contains(err.Error(), "--token") {
		t.Errorf("%v", err)
	}
	s.cfg.Token = "stw1.short.x"
	if err := s.run(); !errors.Is(err, wire.ErrToken) {
		t.Errorf("%v", err)
	}
}

func TestRevokedDeviceEnrollsAgainWithANewTokenOnly(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		a := s.start()
		agenttest.Eventually(t, "first report", func() bool { return len(s.server.Reports()) > 0 })
		s.server.RevokeAll()
		s.server.DropConnections()
		agenttest.Eventually(t, "blocked", func() bool { return a.Status().State == agent.StateBlocked })
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		if n := s.server.Calls("POST " + wire.PathESTEnroll); n != 1 {
			t.Fatalf("a used token was sent again: %d enrollments", n)
		}
		s.cfg.Token = s.server.TokenFor(agenttest.Secret) + " " // the operator gives another one
		n := len(s.server.Reports())
		s.start()
		agenttest.Eventually(t, "a report after the second enrollment", func() bool { return len(s.server.Reports()) > n })
	})
}

func TestEnvelopesThatAreNotForThisDeviceNowAreRefused(t *testing.T) {
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		change func(s *agenttest.Server, d *wire.Desired) []byte
		want   string
	}{
		{"other device", func(s *agenttest.Server, d *wire.Desired) []byte {
			d.Device = "dev-ffffffffffffffff"
			return s.Seal(*d)
		}, "another device"},
		{"lower epoch", func(s *agenttest.Server, d *wire.Desired) []byte { d.Epoch = 1; return s.Seal(*d) }, "older than one that was accepted"},
		{"expired", func(s *agenttest.Server, d *wire.Desired) []byte {
			d.Expires = time.Now().Add(-time.Minute)
			return s.Seal(*d)
		}, "has expired"},
		{"strange key", func(s *agenttest.Server, d *wire.Desired) []byte { return s.SealWith(*d, stranger) }, wire.ErrSignature.Error()},
		{"newer protocol", func(s *agenttest.Server, d *wire.Desired) []byte { d.Protocol = 99; return s.Seal(*d) }, "newer protocol"},
		{"other type", func(s *agenttest.Server, d *wire.Desired) []byte {
			return []byte(strings.Replace(string(s.Seal(*d)), "desired", "disposal-certificate", 1))
		}, "wrong payload type"},
		{"no envelope", func(*agenttest.Server, *wire.Desired) []byte { return []byte("<html>") }, "read envelope"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			byEachWay(t, func(t *testing.T, s *setup) {
				s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 300})
				s.start()
				agenttest.Eventually(t, "epoch 2", func() bool { r := s.server.Reports(); return len(r) > 0 && r[len(r)-1].Epoch == 2 })
				s.server.Do(func() {
					s.server.Envelope = func(d wire.Desired) []byte { return c.change(s.server, &d) }
				})
				s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 2})
				s.waitForProblem(c.want)
				for _, r := range s.server.Reports() {
					if r.Epoch > 2 {
						t.Fatalf("epoch %d was accepted", r.Epoch)
					}
				}
				// It is taken back as soon as the server sends a right one.
				s.server.Do(func() { s.server.Envelope = nil })
				agenttest.Eventually(t, "epoch 3", func() bool { r := s.server.Reports(); return r[len(r)-1].Epoch == 3 })
				agenttest.Eventually(t, "problem is gone", func() bool { return len(s.agentSection().Problems) == 0 })
			})
		})
	}
}

func TestFloorOfEpochsSurvivesARestart(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1})
		a := s.start()
		agenttest.Eventually(t, "epoch 2", func() bool { r := s.server.Reports(); return len(r) > 0 && r[len(r)-1].Epoch == 2 })
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		s.server.Do(func() {
			s.server.Envelope = func(d wire.Desired) []byte { d.Epoch = 1; return s.server.Seal(d) }
		})
		s.start()
		s.waitForProblem("epoch 1, accepted 2")
	})
}

func TestUnknownSectionIsAProblemAndTheRestIsApplied(t *testing.T) {
	s := newSetup(t)
	s.server.SetDesired("teleport", map[string]int{"x": 1})
	s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 1})
	s.start()
	s.waitForProblem(`"teleport"`)
	agenttest.Eventually(t, "metrics at the desired interval", func() bool { return len(s.server.Metrics()) > 1 })
	s.server.SetDesired("teleport", nil)
	agenttest.Eventually(t, "problem is gone", func() bool { return len(s.agentSection().Problems) == 0 })
}

func TestSectionThatARoomRefusesIsReportedAndReplaced(t *testing.T) {
	s := newSetup(t)
	s.server.SetDesired(wire.SectionMonitoring, map[string]int{"report_seconds": -1})
	s.start()
	s.waitForProblem("intervals can't be negative")
	s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1})
	agenttest.Eventually(t, "problem is gone", func() bool { return len(s.agentSection().Problems) == 0 })
}

func TestOfflineDeviceGoesOnAndCatchesUp(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 1})
		a := s.start()
		// The second one comes by the desired interval, the first right after the start.
		agenttest.Eventually(t, "metrics every second", func() bool { return len(s.server.Metrics()) > 1 })
		s.host.SetOffline(true)
		agenttest.Eventually(t, "offline", func() bool { return a.Status().State == agent.StateOffline })
		agenttest.Eventually(t, "measurements are kept", func() bool { return a.Status().Buffered >= 2 })
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 2})
		s.host.SetOffline(false)
		agenttest.Eventually(t, "caught up", func() bool { r := s.server.Reports(); return r[len(r)-1].Epoch == 3 })
		agenttest.Eventually(t, "online", func() bool { return a.Status().State == agent.StateOnline })
		agenttest.Eventually(t, "kept measurements are sent", func() bool {
			for _, body := range s.server.Metrics() {
				if strings.Count(string(body), `"timeUnixNano"`) > 0 && countTimes(body) >= 2 {
					return true
				}
			}
			return false
		})
	})
}

// countTimes counts the different times in a metrics body.
func countTimes(body []byte) int {
	times := map[string]bool{}
	for _, part := range strings.Split(string(body), `"timeUnixNano":"`)[1:] {
		times[part[:strings.IndexByte(part, '"')]] = true
	}
	return len(times)
}

func TestDeviceThatStartsOfflineKnowsItsDesiredState(t *testing.T) {
	s := newSetup(t)
	s.server.SetDesired(wire.SectionDisposal, nil)
	s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 1})
	a := s.start()
	agenttest.Eventually(t, "accepted", func() bool { r := s.server.Reports(); return len(r) > 0 && r[len(r)-1].Epoch == 3 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	s.host.SetOffline(true)
	a = s.start()
	agenttest.Eventually(t, "measures every second while offline", func() bool { return a.Status().Buffered >= 3 })
	if e := a.Status().Epoch; e != 3 {
		t.Errorf("epoch %d", e)
	}
}

func TestDeviceWhoseClockStartsIn1970Enrolls(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		boot := time.Now()
		s.cfg.Now = func() time.Time { return time.Date(1970, 1, 1, 0, 0, 30, 0, time.UTC).Add(time.Since(boot)) }
		a := s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
		s.waitForProblem("behind the server's")
		if r := s.server.Reports()[0]; r.Time.Year() != 1970 {
			t.Errorf("the report hides the device's clock: %s", r.Time)
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		// The next start has the same wrong clock and no hint: what it has seen is stored.
		n := len(s.server.Reports())
		s.start()
		agenttest.Eventually(t, "report after the restart", func() bool { return len(s.server.Reports()) > n })
	})
}

func TestExpiredEnvelopeIsNotRevivedByTurningTheClockBack(t *testing.T) {
	s := newSetup(t)
	s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1})
	a := s.start()
	agenttest.Eventually(t, "epoch 2", func() bool { r := s.server.Reports(); return len(r) > 0 && r[len(r)-1].Epoch == 2 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	// Five hours earlier the envelope would hold; the server's answers carry no usable date.
	past := time.Now().Add(-5 * time.Hour)
	s.cfg.Now = func() time.Time { return past }
	s.server.Do(func() {
		s.server.Envelope = func(d wire.Desired) []byte {
			d.Issued, d.Expires = past.Add(-time.Hour), past.Add(time.Hour)
			return s.server.Seal(d)
		}
		s.server.Now = func() time.Time { return past }
	})
	s.start()
	s.waitForProblem("has expired")
}

func TestFullDiskIsToldAndNothingIsLost(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		s.cfg.Crash = s.host.Disk
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 300})
		s.start()
		agenttest.Eventually(t, "epoch 2", func() bool { r := s.server.Reports(); return len(r) > 0 && r[len(r)-1].Epoch == 2 })
		s.host.SetDiskFull(true)
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1, MetricsSeconds: 1})
		s.waitForProblem("no space left on device")
		s.host.SetDiskFull(false)
		agenttest.Eventually(t, "taken when there is space again", func() bool { r := s.server.Reports(); return r[len(r)-1].Epoch == 3 })
		agenttest.Eventually(t, "problem is gone", func() bool { return len(s.agentSection().Problems) == 0 })
	})
}

func TestRestoredBackupAsksForTheWholeState(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		a := s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(s.cfg.StateDir, "journal", "journal.log"), 5); err != nil {
			t.Fatal(err)
		}
		s.server.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 1})
		n := len(s.server.Reports())
		s.start()
		agenttest.Eventually(t, "works on with an empty journal", func() bool {
			r := s.server.Reports()
			return len(r) > n && r[len(r)-1].Epoch == 2
		})
	})
}

func TestServerThatHoldsNoPollIsNotHammered(t *testing.T) {
	s := newSetupBy(t, link.ViaHTTPS)
	s.start()
	agenttest.Eventually(t, "accepted state", func() bool { // before, the whole is asked for and 304 is a mistake
		r := s.server.Reports()
		return len(r) > 0 && r[len(r)-1].Epoch > 0
	})
	s.server.Do(func() {
		s.server.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path == wire.PathDesired {
				return &wire.Problem{Status: 304}
			}
			return nil
		}
	})
	s.server.DropConnections()
	before := s.server.Calls("GET " + wire.PathDesired)
	agenttest.Eventually(t, "two more polls", func() bool { return s.server.Calls("GET "+wire.PathDesired) >= before+2 })
	started, n := time.Now(), s.server.Calls("GET "+wire.PathDesired)
	agenttest.Eventually(t, "another", func() bool { return s.server.Calls("GET "+wire.PathDesired) > n })
	if waited := time.Since(started); waited < 500*time.Millisecond {
		t.Errorf("polled again after %s", waited)
	}
}
