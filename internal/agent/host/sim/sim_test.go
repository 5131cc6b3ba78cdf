package sim

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"steward/internal/agent/host"
)

func TestSameSeedGivesTheSameFleet(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC) }
	a, b := NewFleet(Config{Seed: 7, Now: now}), NewFleet(Config{Seed: 7, Now: now})
	serials := map[string]bool{}
	for i := range 200 {
		x, err := a.Device(i).Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		y, err := b.Device(i).Inventory(t.Context())
		if err != nil || !reflect.DeepEqual(x, y) {
			t.Fatalf("device %d differs: %v", i, err)
		}
		serials[x.Machine.Serial] = true
		if x.Machine.Serial != a.Device(i).Identity(t.Context()).Serial {
			t.Error("two serial numbers")
		}
	}
	if len(serials) != 200 {
		t.Errorf("%d serial numbers for 200 devices", len(serials))
	}
}

func TestFleetSharesFewPackageLists(t *testing.T) {
	f := NewFleet(Config{Seed: 1})
	lists := map[any]int{}
	for i := range 500 {
		p, err := f.Device(i).Packages(t.Context())
		if err != nil || len(p.Packages) < 20 {
			t.Fatal(len(p.Packages), err)
		}
		lists[p]++
	}
	if len(lists) < 4 || len(lists) > 8 {
		t.Errorf("%d lists", len(lists))
	}
}

func TestMetricsFollowTheDayAndCountersNeverFall(t *testing.T) {
	at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	d := NewFleet(Config{Seed: 1, Now: func() time.Time { return at }}).Device(0)
	counters := map[string]float64{}
	least, most := 1.0, 0.0
	for range 24 * 12 {
		metrics, err := d.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range metrics {
			key := m.Name + m.Attributes[host.AttrDirection]
			if m.Cumulative && m.Value < counters[key] {
				t.Fatalf("%s fell at %s", key, at)
			}
			counters[key] = m.Value
			if m.Unit == "1" && (m.Value < 0 || m.Value > 1) {
				t.Errorf("%s is %v", m.Name, m.Value)
			}
			if m.Name == host.MetricCPU {
				least, most = min(least, m.Value), max(most, m.Value)
			}
		}
		at = at.Add(5 * time.Minute)
	}
	if most-least < 0.2 {
		t.Errorf("the processor is busy from %v to %v", least, most)
	}
}

func TestProgramsArePlayed(t *testing.T) {
	d := NewFleet(Config{Seed: 1}).Device(0)
	dir := t.TempDir()
	for name, content := range map[string]string{"bin/good": "#!/bin/sh\nexit 0\n", "bin/bad": "#!/bin/sh\nif true; then\n  exit 0\nfi\nexit 7\n", "bin/elf": "\x7fELF"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		argv string
		code int
		err  error
	}{
		{"true", 0, nil}, {"/bin/true", 0, nil}, {"false", 1, nil}, {"test -f bin/good", 0, nil}, {"test -f bin", 1, nil}, {"test -d bin", 0, nil},
		{"test -x bin/data", 1, nil}, {"test -q x", 2, nil}, {"./bin/good", 0, nil}, {"./bin/bad", 7, nil}, {"bin/elf", 0, nil}, {"echo a b", 0, nil},
		{"./bin/absent", 0, host.ErrStart}, {"./bin/data", 0, host.ErrStart}, {"rm -rf /", 0, host.ErrStart}, {"sleep 1", 0, nil}, {"sleep 60", 0, host.ErrTimeout},
	}
	for _, c := range cases {
		_, code, err := d.Exec(t.Context(), dir, strings.Fields(c.argv), 5*time.Second)
		if code != c.code || !errors.Is(err, c.err) {
			t.Errorf("%s: %d %v", c.argv, code, err)
		}
	}
	d.SetExit("good", 9)
	if out, code, err := d.Exec(t.Context(), dir, []string{"./bin/good"}, time.Second); code != 9 || err != nil || len(out) == 0 {
		t.Errorf("%d %v %s", code, err, out)
	}
}

func TestFaultsComeAndGo(t *testing.T) {
	d := NewFleet(Config{Seed: 1}).Device(0)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	c, err := d.Dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	d.SetOffline(true)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the net")
	}
	if _, err := d.Dial(t.Context(), "tcp", listener.Addr().String()); !errors.Is(err, errOffline) {
		t.Errorf("%v", err)
	}
	d.SetOffline(false)
	c, err = d.Dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	d.SetDiskFull(true)
	if free, err := d.FreeBytes("/"); free != 0 || err != nil || !errors.Is(d.Disk("x"), syscall.ENOSPC) {
		t.Error("the disk is not full")
	}
	d.SetDiskFull(false)
	if free, err := d.FreeBytes("/"); free == 0 || err != nil || d.Disk("x") != nil {
		t.Error("the disk stays full")
	}
}
