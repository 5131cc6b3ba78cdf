package monitoring

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"

	"steward/internal/agent/host"
	"steward/internal/agent/host/sim"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// sender keeps what was sent, or fails.
type sender struct {
	mu     sync.Mutex
	fail   error
	bodies [][]byte
	events []wire.DeviceEvent
}

func (s *sender) PostEvent(_ context.Context, e wire.DeviceEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.events = append(s.events, e)
	return nil
}

func (s *sender) PostMetrics(_ context.Context, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.bodies = append(s.bodies, body)
	return nil
}

func newRoom(s *sender) *Room {
	return New(Config{
		Host: sim.NewFleet(sim.Config{Seed: 3}).Device(1), Sender: s, Device: "dev-x", Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
}

func decode(t *testing.T, body []byte) map[string]int {
	t.Helper()
	var request collector.ExportMetricsServiceRequest
	if err := protojson.Unmarshal(body, &request); err != nil {
		t.Fatalf("no OTLP: %v\n%.300s", err, body)
	}
	points := map[string]int{}
	for _, m := range request.ResourceMetrics[0].ScopeMetrics[0].Metrics {
		points[m.Name] += len(m.GetGauge().GetDataPoints()) + len(m.GetSum().GetDataPoints())
	}
	return points
}

// The reader is OpenTelemetry's own.
func TestMetricsAreOTLP(t *testing.T) {
	s := &sender{}
	r := newRoom(s)
	for range 3 {
		r.measure(t.Context())
	}
	r.send(t.Context())
	if len(s.bodies) != 1 || r.Buffered() != 0 {
		t.Fatalf("%d requests, %d buffered", len(s.bodies), r.Buffered())
	}
	points := decode(t, s.bodies[0])
	if points[host.MetricCPU] != 3 || points[host.MetricNetwork] != 6 {
		t.Errorf("%v", points)
	}
}

func TestMeasurementsWaitUntilTheyAreAcknowledged(t *testing.T) {
	s := &sender{fail: errors.New("offline")}
	r := newRoom(s)
	for range 5 {
		r.measure(t.Context())
		r.send(t.Context())
	}
	if r.Buffered() != 5 {
		t.Fatalf("%d buffered", r.Buffered())
	}
	s.fail = nil
	r.send(t.Context())
	if n := decode(t, s.bodies[0])[host.MetricCPU]; n != 5 || r.Buffered() != 0 {
		t.Errorf("%d sent, %d buffered", n, r.Buffered())
	}
}

func TestMeasurementsThatTheServerRefusesAreDropped(t *testing.T) {
	s := &sender{fail: &link.Problem{Problem: wire.Problem{Status: 422}}}
	r := newRoom(s)
	r.measure(t.Context())
	r.send(t.Context())
	if r.Buffered() != 0 {
		t.Error("kept")
	}
	s.fail = &link.Problem{Problem: wire.Problem{Status: 429}}
	r.measure(t.Context())
	r.send(t.Context())
	if r.Buffered() != 1 {
		t.Error("a refusal that passes dropped them")
	}
}

func TestBufferIsBoundedByAgeAndSizeAndKeepsTheDay(t *testing.T) {
	ring := newRing()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	metrics := make([]host.Metric, 40)
	for i := range metrics {
		metrics[i] = host.Metric{Name: "m" + string(rune('A'+i)), Value: float64(i)}
	}
	minutes := 3 * 24 * 60
	for i := range minutes {
		ring.add(start.Add(time.Duration(i)*time.Minute), metrics)
	}
	end := start.Add(time.Duration(minutes-1) * time.Minute)
	if ring.values > ringValues || ring.values < ringValues/3 {
		t.Errorf("%d values", ring.values)
	}
	oldest := end.Sub(ring.rows[0].at)
	if oldest > ringAge || oldest < ringAge-2*time.Hour {
		t.Errorf("the oldest is %s old", oldest)
	}
	count := 0
	for _, row := range ring.rows {
		count += len(row.values)
	}
	if count != ring.values {
		t.Errorf("%d values are counted, %d are there", ring.values, count)
	}
	for ring.len() > 0 {
		request, n := ring.batch("dev-x")
		body, err := json.Marshal(request)
		if err != nil || len(body) > wire.MaxMetricsBytes {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
		ring.drop(n)
	}
	if ring.values != 0 || len(ring.series) != 0 {
		t.Errorf("left: %d values, %d series", ring.values, len(ring.series))
	}
}

func TestSeriesThatComeAndGo(t *testing.T) {
	ring := newRing()
	disk := func(name string, v float64) host.Metric {
		return host.Metric{Name: host.MetricDiskUsage, Unit: "By", Value: v, Attributes: map[string]string{host.AttrMount: name}}
	}
	now := time.Now()
	ring.add(now, []host.Metric{disk("/", 1)})
	ring.add(now, []host.Metric{disk("/usb", 2), disk("/", 3)})
	ring.add(now, []host.Metric{disk("/", 4), {Name: "broken", Value: math.NaN()}, {Name: "endless", Value: math.Inf(1)}})
	request, n := ring.batch("d")
	body, err := json.Marshal(request)
	if err != nil || n != 3 {
		t.Fatal(n, err)
	}
	if points := decode(t, body); points[host.MetricDiskUsage] != 4 || len(points) != 1 {
		t.Errorf("%v", points)
	}
}

func TestUnchangedFactsKeepTheirPointers(t *testing.T) {
	r := newRoom(&sender{})
	first, err := r.Reported(t.Context())
	if err != nil || len(first) != 3 {
		t.Fatal(first, err)
	}
	r.readFacts(t.Context())
	second, err := r.Reported(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for section, v := range first {
		if second[section] != v {
			t.Errorf("%s has another pointer", section)
		}
	}
}

func TestIntervalsOutOfRangeAreBounded(t *testing.T) {
	r := newRoom(&sender{})
	for _, bad := range []string{`{"report_seconds":-1}`, `{"metrics_seconds":-5}`, `[]`, `{`} {
		if err := r.Apply(t.Context(), []byte(bad)); err == nil || !strings.Contains(err.Error(), "monitoring") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := r.Apply(t.Context(), []byte(`{"report_seconds":999999999}`)); err != nil || r.Interval() != 24*time.Hour {
		t.Errorf("%s %v", r.Interval(), err)
	}
	if err := r.Apply(t.Context(), nil); err != nil || r.Interval() != 0 {
		t.Errorf("%s %v", r.Interval(), err)
	}
}
