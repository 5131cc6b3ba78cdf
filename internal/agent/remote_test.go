package agent_test

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/agenttest"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

func (s *setup) ask(id, name string) wire.RemoteResult {
	s.t.Helper()
	s.server.Command(wire.RemoteCommand{ID: id, Name: name, Issued: time.Now(), Deadline: time.Now().Add(time.Minute)})
	agenttest.Eventually(s.t, "result of "+name, func() bool { _, has := s.server.Result(id); return has })
	result, _ := s.server.Result(id)
	return result
}

func TestAgentDoesItsCommandsByEachWay(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		a := s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
		var pong struct {
			Boot, Version, Link string
			Time                time.Time
		}
		result := s.ask("c1", wire.CommandPing)
		if err := json.Unmarshal(result.Output, &pong); err != nil || result.State != wire.CommandDone {
			t.Fatal(result, err)
		}
		if pong.Boot != s.server.Reports()[0].Boot || pong.Version != "1.2.3" || pong.Time.IsZero() {
			t.Errorf("%+v", pong)
		}
		agenttest.Eventually(t, "the status names the same way", func() bool { return pong.Link != "" && pong.Link == a.Status().Link })
		n := len(s.server.Reports())
		if result := s.ask("c2", wire.CommandReport); result.State != wire.CommandDone {
			t.Errorf("%+v", result)
		}
		reports := s.server.Reports()[n:]
		if !slices.ContainsFunc(reports, func(r wire.Report) bool { return r.Full && len(r.Sections) >= 5 }) {
			t.Errorf("no full report: %+v", reports)
		}
		var findings []agent.Finding
		result = s.ask("c3", wire.CommandDiagnose)
		if err := json.Unmarshal(result.Output, &findings); err != nil || len(findings) < 6 {
			t.Errorf("%v %s", err, result.Output)
		}
		if result := s.ask("c4", "explode"); result.State != wire.CommandRefused || !strings.Contains(result.Cause, "explode") {
			t.Errorf("%+v", result)
		}
	})
}

func TestResultOfACommandOutlivesAnOutageAndARestart(t *testing.T) {
	s := newSetup(t)
	var away atomic.Bool
	away.Store(true)
	s.server.Do(func() {
		s.server.Refuse = func(r *http.Request) *wire.Problem {
			if away.Load() && strings.HasPrefix(r.URL.Path, wire.PathCommands+"/") {
				return &wire.Problem{Status: http.StatusServiceUnavailable, Title: "away"}
			}
			return nil
		}
	})
	a := s.start()
	s.server.Command(wire.RemoteCommand{ID: "c1", Name: wire.CommandPing, Deadline: time.Now().Add(time.Minute)})
	agenttest.Eventually(t, "tried", func() bool { return s.server.Calls("POST "+wire.PathCommands+"/") > 0 && len(s.server.Reports()) > 0 })
	first := s.server.Reports()[0].Boot
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	away.Store(false)
	s.start()
	agenttest.Eventually(t, "result", func() bool { _, has := s.server.Result("c1"); return has })
	// Done in the first life, told in the second.
	if result, _ := s.server.Result("c1"); !strings.Contains(string(result.Output), first) {
		t.Errorf("%+v", result)
	}
}

func (s *setup) event(name string) *wire.DeviceEvent {
	for _, e := range s.server.Events() {
		if e.Name == name {
			return &e
		}
	}
	return nil
}

func TestUncleanStopIsAnEventOfTheNextStart(t *testing.T) {
	byEachWay(t, func(t *testing.T, s *setup) {
		k := &killer{}
		if err := s.runKilled(k, func(ctx context.Context) {
			for ctx.Err() == nil && len(s.server.Reports()) == 0 {
				pause(ctx)
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.dead = true // nothing reaches the disk any more
			k.kill()
		}); err != nil {
			t.Fatal(err)
		}
		a := s.start()
		agenttest.Eventually(t, "event", func() bool { return s.event("agent.unclean_stop") != nil })
		if e := s.event("agent.unclean_stop"); e.Severity != "warning" || e.Time.IsZero() || !strings.Contains(string(e.Data), "started") {
			t.Errorf("%+v", e)
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		// A good end is none.
		n := len(s.server.Reports())
		s.start()
		agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > n })
		if all := s.server.Events(); len(all) != 1 {
			t.Errorf("%+v", all)
		}
	})
}

func TestClockThatIsSetIsAnEvent(t *testing.T) {
	s := newSetup(t)
	s.cfg.ReportInterval = 20 * time.Millisecond
	var offset atomic.Int64
	s.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	s.start()
	agenttest.Eventually(t, "reports", func() bool { return len(s.server.Reports()) > 2 })
	offset.Store(int64(-3 * time.Hour))
	agenttest.Eventually(t, "event", func() bool { return s.event("clock.set") != nil })
	if e := s.event("clock.set"); !strings.Contains(string(e.Data), "-10800") || !strings.Contains(e.Text, "-3h0m0s") {
		t.Errorf("%+v %s", e, e.Data)
	}
	if n := len(s.server.Events()); n != 1 {
		t.Errorf("%d events", n)
	}
}

func TestStatusIsOnlineAsSoonAsThereIsAConnectionAgain(t *testing.T) {
	s := newSetup(t)
	a := s.start()
	agenttest.Eventually(t, "online by MQTT", func() bool { st := a.Status(); return st.State == agent.StateOnline && st.Link == link.ViaMQTT })
	s.host.SetOffline(true)
	agenttest.Eventually(t, "offline", func() bool {
		st := a.Status()
		return st.State == agent.StateOffline && st.Link == "" && st.LinkReason != ""
	})
	s.host.SetOffline(false)
	agenttest.Eventually(t, "online again", func() bool { st := a.Status(); return st.State == agent.StateOnline && st.Link == link.ViaMQTT })
}

func TestModeOfTheLinkIsKeptForLaterStarts(t *testing.T) {
	s := newSetup(t)
	s.cfg.Link = link.ModeHTTPS
	a := s.start()
	agenttest.Eventually(t, "report", func() bool { return len(s.server.Reports()) > 0 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	s.cfg.Link = ""
	n := len(s.server.Reports())
	a = s.start()
	agenttest.Eventually(t, "report of the second start", func() bool { return len(s.server.Reports()) > n })
	agenttest.Eventually(t, "online", func() bool { return a.Status().State == agent.StateOnline })
	if st := a.Status(); st.LinkMode != link.ModeHTTPS || st.Link != link.ViaHTTPS || !strings.Contains(st.LinkReason, "was chosen") || s.server.Streams() != 0 {
		t.Errorf("%+v", st)
	}
	s.cfg.Link = "pigeon"
	if err := s.run(); err == nil || !strings.Contains(err.Error(), "auto, mqtt or https") {
		t.Errorf("%v", err)
	}
}
