package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"steward/internal/agent/agenttest"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/agent/remote"
	"steward/internal/wire"
)

// server keeps the results that it was sent.
type server struct {
	mu      sync.Mutex
	fail    error
	results map[string][]wire.RemoteResult
}

func (s *server) PostResult(_ context.Context, id string, r wire.RemoteResult) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.results == nil {
		s.results = map[string][]wire.RemoteResult{}
	}
	s.results[id] = append(s.results[id], r)
	return nil
}

func (s *server) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *server) of(id string) []wire.RemoteResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.results[id])
}

// machine counts how often a command was done.
type machine struct {
	mu   sync.Mutex
	done map[string]int
}

func (m *machine) count(params json.RawMessage) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done[string(params)]
}

func (m *machine) do(_ context.Context, params json.RawMessage) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done[string(params)]++
	return map[string]string{"did": string(params)}, nil
}

// rig is what outlives the room's process.
type rig struct {
	t       *testing.T
	dir     string
	crash   func(point string) error
	server  *server
	machine *machine
	now     func() time.Time
	more    map[string]remote.Command
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, dir: t.TempDir(), server: &server{}, machine: &machine{done: map[string]int{}}, now: time.Now, more: map[string]remote.Command{}}
}

// start runs a room until stop.
func (g *rig) start() (r *remote.Room, stop func()) {
	g.t.Helper()
	j, err := journal.Open(journal.Config{Dir: g.dir, Crash: g.crash})
	if err != nil {
		g.t.Fatal(err)
	}
	commands := map[string]remote.Command{"do": g.machine.do}
	maps.Copy(commands, g.more)
	r, err = remote.New(remote.Config{
		Journal: j, Sender: g.server, Commands: commands, Now: g.now, Log: slog.New(slog.DiscardHandler),
		Retry: link.Backoff{Least: time.Millisecond, Most: 5 * time.Millisecond},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				g.t.Error(err)
			}
		})
	}
	g.t.Cleanup(stop)
	return r, stop
}

func (g *rig) command(id, name string, left time.Duration) wire.RemoteCommand {
	params, err := json.Marshal(id)
	if err != nil {
		g.t.Fatal(err)
	}
	return wire.RemoteCommand{ID: id, Name: name, Params: params, Issued: g.now(), Deadline: g.now().Add(left)}
}

func (g *rig) result(id string) wire.RemoteResult {
	g.t.Helper()
	agenttest.Eventually(g.t, "result of "+id, func() bool { return len(g.server.of(id)) > 0 })
	return g.server.of(id)[0]
}

func TestCommandIsDoneOnceHoweverOftenItComes(t *testing.T) {
	g := newRig(t)
	r, _ := g.start()
	c := g.command("c1", "do", time.Minute)
	r.Take([]wire.RemoteCommand{c, c})
	r.Take([]wire.RemoteCommand{c})
	if got := g.result("c1"); got.State != wire.CommandDone || !strings.Contains(string(got.Output), "did") || got.At.IsZero() {
		t.Errorf("%+v", got)
	}
	n := len(g.server.of("c1"))
	r.Take([]wire.RemoteCommand{c}) // the server asks for a result that it has lost
	agenttest.Eventually(t, "the result again", func() bool { return len(g.server.of("c1")) > n })
	all := g.server.of("c1")
	if last := all[len(all)-1]; last.State != wire.CommandDone || last.Output == nil {
		t.Errorf("%+v", last)
	}
	if did := g.machine.count(c.Params); did != 1 {
		t.Errorf("done %d times", did)
	}
}

func TestWhatIsNotDoneIsRefusedWithItsReason(t *testing.T) {
	g := newRig(t)
	g.more["forbidden"] = func(context.Context, json.RawMessage) (any, error) {
		return nil, fmt.Errorf("%w: not on a Sunday", remote.ErrRefused)
	}
	g.more["broken"] = func(context.Context, json.RawMessage) (any, error) { return nil, errors.New("no such thing") }
	g.more["endless"] = func(ctx context.Context, _ json.RawMessage) (any, error) { <-ctx.Done(); return nil, ctx.Err() }
	g.more["chatty"] = func(context.Context, json.RawMessage) (any, error) {
		return strings.Repeat("x", wire.MaxCommandBytes), nil
	}
	cases := []struct {
		id, name string
		left     time.Duration
		state    string
		cause    string
	}{
		{"late", "do", -time.Second, wire.CommandRefused, "the deadline was"},
		{"unknown", "explode", time.Minute, wire.CommandRefused, `"explode"`},
		{"forbidden", "forbidden", time.Minute, wire.CommandRefused, "not on a Sunday"},
		{"broken", "broken", time.Minute, wire.CommandFailed, "no such thing"},
		{"endless", "endless", 20 * time.Millisecond, wire.CommandFailed, "did not end before the deadline"},
		{"chatty", "chatty", time.Minute, wire.CommandFailed, "at most 65536"},
	}
	r, _ := g.start()
	for _, c := range cases {
		r.Take([]wire.RemoteCommand{g.command(c.id, c.name, c.left)})
		if got := g.result(c.id); got.State != c.state || !strings.Contains(got.Cause, c.cause) {
			t.Errorf("%s: %+v", c.id, got)
		}
	}
	large := g.command("large", "do", time.Minute)
	large.Params = json.RawMessage(`"` + strings.Repeat("x", wire.MaxCommandBytes) + `"`)
	endless := wire.RemoteCommand{ID: "no-deadline", Name: "do"}
	r.Take([]wire.RemoteCommand{large, endless, {ID: "../../etc", Name: "do", Deadline: g.now().Add(time.Hour)}, {ID: "", Name: "do"}})
	for _, id := range []string{"large", "no-deadline"} {
		if got := g.result(id); got.State != wire.CommandRefused {
			t.Errorf("%s: %+v", id, got)
		}
	}
	if len(g.machine.done) != 0 {
		t.Errorf("done: %v", g.machine.done)
	}
}

func TestResultIsSentUntilItIsAcknowledged(t *testing.T) {
	g := newRig(t)
	g.server.setFail(errors.New("offline"))
	r, stop := g.start()
	c := g.command("c1", "do", time.Minute)
	r.Take([]wire.RemoteCommand{c})
	agenttest.Eventually(t, "done", func() bool { return g.machine.count(c.Params) == 1 })
	stop()
	// The next start knows the result, whose command nobody gives again.
	g.server.setFail(nil)
	g.start()
	if got := g.result("c1"); got.State != wire.CommandDone {
		t.Errorf("%+v", got)
	}
}

func TestResultThatTheServerRefusesIsNotSentForEver(t *testing.T) {
	g := newRig(t)
	g.server.setFail(&link.Problem{Problem: wire.Problem{Status: 404}})
	r, stop := g.start()
	r.Take([]wire.RemoteCommand{g.command("c1", "do", time.Minute)})
	agenttest.Eventually(t, "told", func() bool { return strings.Contains(g.stored("c1"), `"told":true`) })
	stop()
	g.server.setFail(nil)
	r, _ = g.start()
	r.Take([]wire.RemoteCommand{g.command("c2", "do", time.Minute)})
	g.result("c2")
	if n := len(g.server.of("c1")); n != 0 {
		t.Errorf("sent %d times more", n)
	}
}

// stored reads the command's record from the disk.
func (g *rig) stored(id string) string {
	j, err := journal.Open(journal.Config{Dir: g.dir})
	if err != nil {
		g.t.Fatal(err)
	}
	var raw json.RawMessage
	if _, err := j.Get("remote/"+id, &raw); err != nil {
		g.t.Fatal(err)
	}
	return string(raw)
}

func TestFullDiskFailsTheCommandAndTheServerHearsIt(t *testing.T) {
	g := newRig(t)
	g.crash = func(string) error { return syscall.ENOSPC }
	r, _ := g.start()
	c := g.command("c1", "do", time.Minute)
	r.Take([]wire.RemoteCommand{c})
	if got := g.result("c1"); got.State != wire.CommandFailed || !strings.Contains(got.Cause, "no space left") {
		t.Errorf("%+v", got)
	}
	if g.machine.count(c.Params) != 0 {
		t.Error("it was done though a kill could have it done twice")
	}
}

func TestRecordsGoAfterTheirDeadline(t *testing.T) {
	g := newRig(t)
	var mu sync.Mutex
	offset := time.Duration(0)
	g.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(offset) }
	r, _ := g.start()
	r.Take([]wire.RemoteCommand{g.command("c1", "do", time.Minute)})
	g.result("c1")
	mu.Lock()
	offset = 3 * time.Hour
	mu.Unlock()
	r.Take([]wire.RemoteCommand{g.command("c2", "do", time.Minute)})
	g.result("c2")
	agenttest.Eventually(t, "forgotten", func() bool { return g.stored("c1") == "" })
	if g.stored("c2") == "" {
		t.Error("the newer one is forgotten, too")
	}
}

func TestFloodOfCommandsIsBounded(t *testing.T) {
	g := newRig(t)
	release := make(chan struct{})
	g.more["wait"] = func(ctx context.Context, _ json.RawMessage) (any, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil, nil
	}
	r, _ := g.start()
	var all []wire.RemoteCommand
	for i := range 1000 {
		all = append(all, g.command(fmt.Sprint("c", i), "wait", time.Minute))
	}
	r.Take(all)
	close(release)
	g.result("c0")
	agenttest.Eventually(t, "64 results", func() bool { g.server.mu.Lock(); defer g.server.mu.Unlock(); return len(g.server.results) >= 64 })
	// The server gives the others again until it has their results.
	r.Take(all[:100])
	g.result("c99")
}

var errKilled = errors.New("killed")

// Kill at each point that reaches the disk, start again with the server giving the command until it has
// a result: it is never done twice, and there is always one result.
func TestKillAtEveryPointDoesNothingTwiceAndLeavesOneResult(t *testing.T) {
	for at := 0; ; at++ {
		g := newRig(t)
		passed, dead := 0, make(chan struct{})
		var point string
		var mu sync.Mutex
		g.crash = func(name string) error {
			mu.Lock()
			defer mu.Unlock()
			if passed++; passed == at+1 {
				point = name
				close(dead)
			}
			if passed > at {
				g.server.setFail(errKilled) // a dead process sends nothing
				return errKilled
			}
			return nil
		}
		r, stop := g.start()
		c := g.command("c1", "do", time.Minute)
		r.Take([]wire.RemoteCommand{c})
		finished := false
		agenttest.Eventually(t, "killed or done", func() bool {
			select {
			case <-dead:
				return true
			default:
			}
			finished = strings.Contains(g.stored("c1"), `"told":true`)
			return finished
		})
		stop()
		if finished {
			if at < 6 {
				t.Errorf("only %d points were passed", at)
			}
			return
		}
		g.crash = nil
		g.server.setFail(nil)
		r, stop = g.start()
		if len(g.server.of("c1")) == 0 {
			r.Take([]wire.RemoteCommand{c})
		}
		got := g.result("c1")
		did := g.machine.count(c.Params)
		if did > 1 || got.State == wire.CommandDone && did != 1 || got.State == wire.CommandRefused {
			t.Errorf("killed at %s (%d): done %d times, %+v", point, at, did, got)
		}
		stop()
	}
}
