package backup

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"steward/internal/monitoring/series"
)

// meter is a time-series store that somebody writes to: one sample a minute for each device, and one that
// comes two hours late.
type meter struct {
	t       *testing.T
	store   *series.Store
	minutes atomic.Int64 // that were acknowledged
}

const (
	meterDevices = 5
	meterLate    = 120 // minutes
)

var meterStart = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

func openMeter(t *testing.T, data string, at func() time.Time) *series.Store {
	t.Helper()
	s, err := series.Open(series.Config{Dir: filepath.Join(data, "metrics"), Log: slog.New(slog.DiscardHandler), Now: at})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (m *meter) run(minutes int64) {
	sample := func(name string, minute int64) series.Sample {
		return series.Sample{Labels: labels.FromStrings("__name__", name), At: meterStart.Add(time.Duration(minute) * time.Minute), Value: float64(minute)}
	}
	for minute := int64(1); minute <= minutes; minute++ {
		samples := []series.Sample{sample("steady", minute)}
		if minute > meterLate {
			samples = append(samples, sample("late", minute), sample("late", minute-meterLate))
		}
		for d := range meterDevices {
			refused, err := m.store.Write(m.t.Context(), "default", fmt.Sprintf("device-%d", d), samples)
			if err != nil || refused.Any() {
				m.t.Errorf("minute %d: %+v, %v", minute, refused, err)
				return
			}
		}
		m.minutes.Store(minute)
	}
}

// unpack writes what a stage holds as a restore would.
func unpack(t *testing.T, s *stage, to string) {
	t.Helper()
	for name, held := range s.files {
		path := filepath.Join(to, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(held.from)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(io.LimitReader(in, held.size))
		if err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetricsInABackupMissNoSampleWhileBlocksAreMade(t *testing.T) {
	const minutes = 1200 // twenty hours: several blocks are cut from the head meanwhile
	data := t.TempDir()
	m := &meter{t: t}
	m.store = openMeter(t, data, func() time.Time { return meterStart.Add(time.Duration(m.minutes.Load()) * time.Minute) })
	done := make(chan struct{})
	go func() { defer close(done); m.run(minutes) }()

	type shot struct {
		dir   string
		acked int64
	}
	var shots []shot
	for over := false; !over; {
		select {
		case <-done:
			over = true // one more, of what is there at the end
		default:
		}
		s, err := newStage(data)
		if err != nil {
			t.Fatal(err)
		}
		sh := shot{t.TempDir(), m.minutes.Load()}
		if err := s.metrics(); err != nil {
			t.Error(err)
		}
		unpack(t, s, sh.dir)
		if err := s.remove(); err != nil {
			t.Error(err)
		}
		if sh.acked > 0 {
			shots = append(shots, sh)
		}
	}
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	blocks, _ := filepath.Glob(filepath.Join(data, "metrics", strings.Repeat("?", 26)))
	if len(blocks) == 0 || len(shots) < 3 {
		t.Fatalf("%d blocks and %d backups: the test shows nothing", len(blocks), len(shots))
	}
	for _, sh := range shots {
		complete(t, sh.dir, sh.acked)
	}
}

// complete opens a copy and counts.
func complete(t *testing.T, dir string, acked int64) {
	t.Helper()
	at := meterStart.Add(time.Duration(acked) * time.Minute)
	s := openMeter(t, dir, func() time.Time { return at })
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	count := func(name string) map[string]float64 {
		lines, err := s.Instant(t.Context(), series.Scope{Tenant: "default"}, fmt.Sprintf("count_over_time(%s[3d])", name), at)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, l := range lines {
			out[l.Labels["device"]] = l.Points[0].Value
		}
		return out
	}
	late := int64(0)
	if acked > meterLate {
		late = acked - meterLate // those on time up to now; the late ones lie before
		late += min(late, meterLate)
	}
	for d, names := 0, count("steady"); d < meterDevices; d++ {
		if got := names[fmt.Sprintf("device-%d", d)]; int64(got) != acked {
			t.Errorf("device %d has %v of %d acknowledged samples", d, got, acked)
		}
	}
	for d, names := 0, count("late"); d < meterDevices && late > 0; d++ {
		if got := names[fmt.Sprintf("device-%d", d)]; int64(got) < late {
			t.Errorf("device %d has %v of %d acknowledged late samples", d, got, late)
		}
	}
}
