package stewardtest_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"steward/internal/agent"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// fullDisk is a device whose disk can be full.
type fullDisk struct {
	id, state string
	fill      func()
	free      func()
	restart   func()
}

// survives proves that a full disk is told, stops nothing that can go on, and costs nothing.
func (f fullDisk) survives(t *testing.T, h *House) {
	t.Helper()
	h.Push("", "1.0.0", Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1)
	f.fill()
	h.Push("", "2.0.0", Good)
	asg := h.Assign("2.0.0", "")
	h.Until("the server knows why nothing is installed", func() bool {
		said := fmt.Sprint(h.Reported(f.id, wire.SectionUpdate)["updates"], h.Reported(f.id, wire.SectionAgent)["problems"])
		return strings.Contains(said, "space")
	})
	began := time.Now().UTC()
	h.Until("the device stays in contact", func() bool {
		p := h.Get("/devices/" + f.id + "/presence")
		text, _ := p["last_contact"].(string)
		at, err := time.Parse(time.RFC3339Nano, text)
		return err == nil && at.After(began)
	})
	if counts := h.Counts(asg); counts["committed"] != 0 || Runs(f.state, "app") != "1.0.0" {
		t.Errorf("with a full disk it runs %q, the server counts %v", Runs(f.state, "app"), counts)
	}
	f.restart() // with the disk still full
	h.Until("it comes back without room to write", func() bool {
		text, _ := h.Get("/devices/" + f.id + "/presence")["last_contact"].(string)
		at, err := time.Parse(time.RFC3339Nano, text)
		return err == nil && time.Since(at) < 2*time.Second
	})
	f.free()
	h.Until("the update comes once there is space", func() bool {
		if h.Counts(asg)["failed"] == 1 {
			_, _ = h.Try(http.MethodPost, "/assignments/"+asg+"/retry", Object{}) // an operator's part, if it gave up
		}
		return h.Counts(asg)["committed"] == 1
	})
	if got := Runs(f.state, "app"); got != "2.0.0" {
		t.Errorf("it runs %q", got)
	}
	if n := len(h.Events(f.id, "provisioning.enrolled")); n != 1 {
		t.Errorf("it has enrolled %d times", n)
	}
}

func TestFullDiskIsToldAndCostsNothing(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true})
	d := h.Prepare(h.API, 0, 1)[0]
	d.Tune(func(c *agent.Config) { c.Crash = d.Machine.Disk; c.ReportInterval = 300 * time.Millisecond })
	d.Start()
	h.AwaitStage(d.ID, "active")
	fullDisk{
		id: d.ID, state: d.State,
		fill: func() { d.Machine.SetDiskFull(true) }, free: func() { d.Machine.SetDiskFull(false) },
		restart: func() {
			if err := d.Stop(); err != nil {
				t.Errorf("the agent ended with %v", err)
			}
			d.Start()
		},
	}.survives(t, h)
}

// smallDisk is a file system of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("steward-test", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("a file system of %s is needed: run as root with the right to mount: %v", size, err)
		}
		t.Skipf("a file system of %s needs the right to mount (%v)", size, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes until the disk is full.
func fill(t *testing.T, path string, atMost int) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, atMost), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the disk is not full: %v", err)
	}
}

func TestFullFileSystemIsToldAndCostsNothing(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "4m")
	h := Start(t, Options{ManagedKeys: true})
	id := h.Buy("REAL-0002")[0]
	p := h.ProcessAt(filepath.Join(dir, "state"), "REAL-0002", h.EnrollmentToken(id))
	p.Start()
	h.AwaitStage(id, "active")
	ballast := filepath.Join(dir, "ballast")
	fullDisk{
		id: id, state: p.State,
		fill:    func() { fill(t, ballast, 8<<20) },
		free:    func() { _ = os.Remove(ballast) },
		restart: func() { p.Kill(); p.Start() },
	}.survives(t, h)
}
