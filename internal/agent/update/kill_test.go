package update_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"steward/internal/agent/journal"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

// scenario is an update whose end is known however often the device is killed on the way.
type scenario struct {
	name   string
	before string // version that runs already; empty for none
	codes  map[string]int
	state  wire.UpdateState
	runs   string
	cause  string
}

var scenarios = []scenario{
	{name: "first installation", state: wire.UpdateCommitted, runs: "2.0"},
	{name: "update", before: "1.0", state: wire.UpdateCommitted, runs: "2.0"},
	{name: "bad health", before: "1.0", codes: map[string]int{"health 2.0": 3}, state: wire.UpdateRolledBack, runs: "1.0", cause: `health command "health 2.0" ended with code 3`},
	{name: "bad post", before: "1.0", codes: map[string]int{"post 2.0": 3}, state: wire.UpdateRolledBack, runs: "1.0", cause: `post command "post 2.0" ended with code 3`},
	{name: "bad first installation", codes: map[string]int{"post 2.0": 3}, state: wire.UpdateRolledBack, runs: "", cause: `post command "post 2.0" ended with code 3`},
}

// prepare brings a device to the point before the update.
func (s scenario) prepare(t *testing.T, repo *repository, refs map[string]wire.ReleaseRef) *deviceRig {
	t.Helper()
	d := newDevice(t, repo)
	if s.before != "" {
		d.boot()
		d.install(refs[s.before])
		d.halt()
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	for call, code := range s.codes {
		if strings.HasPrefix(call, "health") {
			d.second = 20 * time.Millisecond // it never passes: no need to wait
		}
		d.host.codes[call] = code
	}
	return d
}

// versionsOf publishes what the scenarios need, once for all.
func versionsOf(t *testing.T) (*repository, map[string]wire.ReleaseRef) {
	repo := newRepository(t, signing.Options{})
	refs := map[string]wire.ReleaseRef{}
	for _, v := range []string{"1.0", "2.0"} {
		m, a := simple(t, v)
		refs[v] = repo.publish(m, a)
	}
	return repo, refs
}

// checkKilled looks at the device after a kill: a whole version runs, or none where none did, and
// nothing claims a commit that the journal doesn't hold.
func (d *deviceRig) checkKilled(point string, s scenario) {
	d.t.Helper()
	if got := d.running("app"); got != s.before && got != "2.0" {
		d.t.Errorf("killed at %q: runs %q", point, got)
	}
	j, err := journal.Open(journal.Config{Dir: filepath.Join(d.dir, "journal")})
	if err != nil {
		d.t.Fatal(err)
	}
	var raw json.RawMessage
	if _, err := j.Get("update", &raw); err != nil {
		d.t.Fatal(err)
	}
	for _, p := range d.report().Updates {
		if p.Version == "2.0" && p.State == wire.UpdateCommitted && !strings.Contains(string(raw), `"state":"committed"`) {
			d.t.Errorf("killed at %q: reported as committed before it was on disk", point)
		}
	}
}

func (d *deviceRig) checkEnd(point string, s scenario, p wire.UpdateProgress) {
	d.t.Helper()
	if p.State != s.state {
		d.t.Errorf("killed at %q: ended %s (%s), want %s", point, p.State, p.Cause, s.state)
	}
	if s.cause != "" && !strings.HasPrefix(p.Cause, s.cause) {
		d.t.Errorf("killed at %q: the first cause became %q", point, p.Cause)
	}
	if got := d.running("app"); got != s.runs {
		d.t.Errorf("killed at %q: runs %q, want %q", point, got, s.runs)
	}
	installed := ""
	for _, in := range d.report().Installed {
		installed = in.Version
	}
	if installed != s.runs {
		d.t.Errorf("killed at %q: says that %q is installed", point, installed)
	}
}

// TestKillAtEveryStepEndsCommittedOrRolledBack plays a kill at each point at which the disk changes, one
// run per point, until a run passes them all.
func TestKillAtEveryStepEndsCommittedOrRolledBack(t *testing.T) {
	repo, refs := versionsOf(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			points := 0
			for n := 1; ; n++ {
				d := s.prepare(t, repo, refs)
				point, killed := d.killAt(n, refs["2.0"])
				if !killed {
					d.checkEnd("nowhere", s, d.progress(refs["2.0"]))
					break
				}
				points++
				d.checkKilled(point, s)
				d.crash = nil
				d.boot()
				d.apply(refs["2.0"])
				p, _ := d.wait(refs["2.0"])
				d.checkEnd(point, s, p)
				d.halt()
				if t.Failed() {
					return
				}
			}
			if points < 40 {
				t.Errorf("only %d points were passed: the crash hook does not reach the disk's changes", points)
			}
			t.Logf("%d points", points)
		})
	}
}

// killAt starts the update and kills it at the n-th point.
func (d *deviceRig) killAt(n int, ref wire.ReleaseRef) (point string, killed bool) {
	d.t.Helper()
	seen := 0
	d.crash = func(p string) error {
		if seen++; seen == n {
			point = p
			panic(kill{p})
		}
		if seen > n {
			panic(kill{p}) // nothing happens after a kill
		}
		return nil
	}
	d.boot()
	d.apply(ref)
	_, killed = d.wait(ref)
	if !killed {
		d.halt() // the room tidies up behind the end
		select {
		case <-d.died:
			killed = true
		default:
		}
	}
	d.halt()
	return point, killed
}

// TestManyKillsInARowEndAsOne kills again and again at random points.
func TestManyKillsInARowEndAsOne(t *testing.T) {
	repo, refs := versionsOf(t)
	for seed := range uint64(12) {
		s := scenarios[1+seed%2]
		t.Run(fmt.Sprintf("%s %d", s.name, seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 7))
			d := s.prepare(t, repo, refs)
			// At most as many kills as a step may be begun: more of them in one step are a release
			// that stops the device.
			for range 5 {
				if point, killed := d.killAt(1+random.IntN(30), refs["2.0"]); killed {
					d.checkKilled(point, s)
				}
			}
			d.crash = nil
			d.boot()
			d.apply(refs["2.0"])
			p, _ := d.wait(refs["2.0"])
			d.checkEnd("many", s, p)
		})
	}
}

// TestReleaseThatStopsTheDeviceGoesBack is a release whose command resets the machine each time.
func TestReleaseThatStopsTheDeviceGoesBack(t *testing.T) {
	for _, command := range []string{"pre 2.0", "post 2.0", "health 2.0"} {
		t.Run(command, func(t *testing.T) {
			repo, refs := versionsOf(t)
			d := scenario{before: "1.0"}.prepare(t, repo, refs)
			d.host.on = func(call string) {
				if call == command {
					panic(kill{call})
				}
			}
			for boots := 1; ; boots++ {
				if boots > 20 {
					t.Fatal("the device resets for ever")
				}
				d.boot()
				d.apply(refs["2.0"])
				p, killed := d.wait(refs["2.0"])
				if killed {
					continue
				}
				if p.State != wire.UpdateRolledBack || !strings.Contains(p.Cause, "stopped") {
					t.Errorf("ended %+v", p)
				}
				break
			}
			if got := d.running("app"); got != "1.0" {
				t.Errorf("runs %q", got)
			}
		})
	}
}

// TestFailingDiskIsBorne plays a disk that fails once at each point instead of a kill.
func TestFailingDiskIsBorne(t *testing.T) {
	repo, refs := versionsOf(t)
	s := scenarios[1]
	for n := 1; ; n++ {
		d := s.prepare(t, repo, refs)
		seen, at := 0, ""
		d.crash = func(p string) error {
			if seen++; seen == n {
				at = p
				return syscall.EIO
			}
			return nil
		}
		d.boot()
		d.apply(refs["2.0"])
		p, _ := d.wait(refs["2.0"])
		d.halt()
		if p.State != wire.UpdateCommitted || d.running("app") != "2.0" {
			t.Errorf("disk failed once at %q: ended %s (%s), runs %q", at, p.State, p.Cause, d.running("app"))
		}
		if at == "" {
			break
		}
	}
}

// TestFullDiskOnTheWayNeverHarmsWhatRuns plays a disk that is full from some point on and has space
// again later.
func TestFullDiskOnTheWayNeverHarmsWhatRuns(t *testing.T) {
	repo, refs := versionsOf(t)
	s := scenarios[1]
	for n := 1; n < 60; n += 2 {
		d := s.prepare(t, repo, refs)
		seen := 0
		d.crash = func(string) error {
			if seen++; seen >= n && seen < n+5 {
				return syscall.ENOSPC
			}
			return nil
		}
		d.boot()
		d.apply(refs["2.0"])
		p, _ := d.wait(refs["2.0"])
		d.halt()
		switch want := d.running("app"); {
		case p.State == wire.UpdateCommitted && want == "2.0":
		case p.State == wire.UpdateFailed && want == "1.0" && strings.Contains(p.Cause, "full"):
		case p.State == wire.UpdateRolledBack && want == "1.0":
		default:
			t.Errorf("disk full at point %d: ended %s (%s), runs %q", n, p.State, p.Cause, want)
		}
	}
}
