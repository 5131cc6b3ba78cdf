package series

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"steward/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fresh(t testing.TB) *Store {
	s := open(t, t.TempDir())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func sample(at time.Time, v float64, pairs ...string) Sample {
	return Sample{Labels: labels.FromStrings(pairs...), At: at, Value: v}
}

func write(t testing.TB, s keeper, tenant, device string, samples ...Sample) Refused {
	t.Helper()
	r, err := s.Write(t.Context(), tenant, device, samples)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func query(t testing.TB, s keeper, at time.Time, scope Scope, expr string) []Line {
	t.Helper()
	got, err := s.Instant(t.Context(), scope, expr, at)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return got
}

func TestSamplesAreReadBackByTheirOwnTenantOnly(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		write(t, s, "acme", "dev-a", sample(noon, 1, "__name__", "up", "tenant", "other", "device", "dev-x"))
		write(t, s, "other", "dev-b", sample(noon, 2, "__name__", "up"))
		for _, expr := range []string{`up`, `up{tenant=~".+"}`, `{tenant!=""}`, `sum by (tenant, device) (up or {tenant="other"})`, `max_over_time(up[5m:1m])`, `label_replace(up, "tenant", "acme", "", "")`} {
			for _, l := range query(t, s, noon, Scope{Tenant: "acme"}, expr) {
				if l.Labels["device"] != "dev-a" || l.Points[0].Value != 1 {
					t.Errorf("%s reads %v", expr, l)
				}
			}
		}
		if got := query(t, s, noon, Scope{Tenant: "acme"}, `up{tenant="other"}`); len(got) != 0 {
			t.Errorf("reads another tenant: %v", got)
		}
		if got := query(t, s, noon, Scope{Tenant: "acme"}, `up`); len(got) != 1 {
			t.Errorf("own series: %v", got)
		}
	})
}

func TestScopeOfDevicesHidesTheOthers(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		for _, d := range []string{"dev-a", "dev-b", "dev-c"} {
			write(t, s, "acme", d, sample(noon, 1, "__name__", "up"))
		}
		for _, c := range []struct {
			scope Scope
			want  float64
		}{
			{Scope{Tenant: "acme"}, 3}, {Scope{Tenant: "acme", Only: true, Devices: []string{"dev-a", "dev-c"}}, 2},
			{Scope{Tenant: "acme", Only: true, Devices: []string{"dev-b"}}, 1}, {Scope{Tenant: "acme", Only: true, Devices: []string{"dev-."}}, 0},
			{Scope{Tenant: "acme", Only: true}, 0},
		} {
			got := query(t, s, noon, c.scope, `sum(up)`)
			var sum float64
			if len(got) > 0 {
				sum = got[0].Points[0].Value
			}
			if sum != c.want {
				t.Errorf("%+v sums to %v, want %v", c.scope, sum, c.want)
			}
		}
	})
}

func TestSamplesOfWrongClocksAreCountedAndTheOthersKept(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		r := write(t, s, "acme", "dev-a",
			sample(noon, 1, "__name__", "up"), sample(noon.Add(9*time.Minute), 2, "__name__", "up"),
			sample(noon.Add(3*time.Hour), 9, "__name__", "up"), sample(noon.Add(-8*24*time.Hour), 9, "__name__", "up"),
			sample(time.Unix(0, 1), 9, "__name__", "up"))
		if r.Ahead != 1 || r.MostAhead != 3*time.Hour || r.Old != 2 {
			t.Errorf("refused %+v", r)
		}
		if got := query(t, s, noon, Scope{Tenant: "acme"}, `count_over_time(up[1h] offset -15m)`); len(got) != 1 || got[0].Points[0].Value != 2 {
			t.Errorf("kept %v, want 2 samples", got)
		}
	})
}

func TestLateSamplesAreKeptInTheirPlace(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		write(t, s, "acme", "dev-b", sample(noon, 1, "__name__", "up")) // the head's time is now
		var late []Sample
		for i := range 7 * 24 {
			late = append(late, sample(noon.Add(-time.Duration(7*24-i)*time.Hour+time.Minute), float64(i), "__name__", "up"))
		}
		if r := write(t, s, "acme", "dev-a", late...); r.Any() {
			t.Fatalf("refused %+v", r)
		}
		if r := write(t, s, "acme", "dev-a", late...); r.Count() != r.Conflict {
			t.Errorf("sent again: refused %+v", r)
		}
		if got := query(t, s, noon, Scope{Tenant: "acme"}, `count_over_time(up{device="dev-a"}[8d])`); len(got) != 1 || got[0].Points[0].Value != 7*24 {
			t.Errorf("kept %v, want %d", got, 7*24)
		}
	})
}

func TestOneDeviceCannotFillTheStoreWithSeries(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		var many []Sample
		for i := range MaxSeries + 50 {
			many = append(many, sample(noon, 1, "__name__", fmt.Sprintf("m%d", i)))
		}
		if r := write(t, s, "acme", "dev-a", many[:150]...); r.Any() {
			t.Fatalf("refused %+v", r)
		}
		if r := write(t, s, "acme", "dev-a", many[100:]...); r.Series != 50 {
			t.Errorf("refused %+v, want 50 series", r)
		}
		if r := write(t, s, "acme", "dev-b", many[:10]...); r.Any() {
			t.Errorf("another device is refused: %+v", r)
		}
	})
}

func TestForgottenDevicesLeaveNothing(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		want := 1.0
		for _, d := range []string{"dev-a", "dev-b", "dev-c"} {
			write(t, s, "acme", d, sample(noon, 1, "__name__", "up"))
			if _, embedded := s.(*Store); embedded { // Prometheus deletes late samples only once they are in blocks
				write(t, s, "acme", d, sample(noon.Add(-48*time.Hour), 1, "__name__", "up"))
				want = 2
			}
		}
		if err := s.Forget(t.Context(), noon, "dev-a", "dev-c"); err != nil {
			t.Fatal(err)
		}
		got := query(t, s, noon, Scope{Tenant: "acme"}, `count by (device) (count_over_time(up[7d]))`)
		if len(got) != 1 || got[0].Labels["device"] != "dev-b" {
			t.Errorf("left: %v", got)
		}
		if got := query(t, s, noon, Scope{Tenant: "acme"}, `count_over_time(up[7d])`); got[0].Points[0].Value != want {
			t.Errorf("the other device lost samples: %v", got)
		}
		// What it measures for its next owner stays.
		later := noon.Add(time.Minute)
		write(t, s, "acme", "dev-a", sample(later, 7, "__name__", "up"))
		if err := s.Forget(t.Context(), noon, "dev-a"); err != nil {
			t.Fatal(err)
		}
		if got := query(t, s, later, Scope{Tenant: "acme"}, `up{device="dev-a"}`); len(got) != 1 || got[0].Points[0].Value != 7 {
			t.Errorf("measured later: %v", got)
		}
	})
}

func TestSamplesSurviveAKillAndAReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	write(t, s, "acme", "dev-a", sample(noon, 42, "__name__", "up"))
	// Not closed: as after kill -9, the log alone has the sample.
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(copied + "/lock")
	s2 := open(t, copied)
	defer s2.Close()
	if got := query(t, s2, noon, Scope{Tenant: "acme"}, `up`); len(got) != 1 || got[0].Points[0].Value != 42 {
		t.Errorf("after the kill: %v", got)
	}
}

func TestQueriesThatCannotBeAnsweredSayWhy(t *testing.T) {
	both(t, func(t *testing.T, s keeper, noon time.Time) {
		day := Range{From: noon.Add(-24 * time.Hour), To: noon, Step: time.Minute}
		for _, c := range []struct {
			expr string
			r    Range
			want string
		}{
			{`sum(`, day, "parse error"}, {`"text"`, day, "invalid expression type"}, {`up[5m]`, day, "invalid expression type"},
			{`up`, Range{From: noon, To: noon.Add(-time.Hour), Step: time.Minute}, "before the start"},
			{`up`, Range{From: noon.Add(-24 * time.Hour), To: noon, Step: time.Millisecond}, "at least"},
			{`up`, Range{From: noon.Add(-24 * time.Hour), To: noon, Step: time.Second}, "points per series"},
			{strings.Repeat("(", 5000), day, "at most 4096"},
		} {
			_, err := s.Range(t.Context(), Scope{Tenant: "acme"}, c.expr, c.r)
			if !errors.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%.20s: %v, want %q", c.expr, err, c.want)
			}
		}
		if _, err := s.Range(t.Context(), Scope{}, "up", day); err == nil {
			t.Error("a query without a tenant was answered")
		}
	})
}

// request is a message as the agent sends it.
func request(ms ...*metrics.Metric) *collector.ExportMetricsServiceRequest {
	return &collector.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{
		Resource:     &resource.Resource{Attributes: []*common.KeyValue{text("device", "dev-forged"), text("tenant", "other")}},
		ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: ms}},
	}}}
}

func text(k, v string) *common.KeyValue {
	return &common.KeyValue{Key: k, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: v}}}
}

func point(v float64, attributes ...*common.KeyValue) *metrics.NumberDataPoint {
	return &metrics.NumberDataPoint{TimeUnixNano: uint64(noon.UnixNano()), Attributes: attributes, Value: &metrics.NumberDataPoint_AsDouble{AsDouble: v}}
}

func gauge(name, unit string, ps ...*metrics.NumberDataPoint) *metrics.Metric {
	return &metrics.Metric{Name: name, Unit: unit, Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: ps}}}
}

func sum(name, unit string, temporality metrics.AggregationTemporality, ps ...*metrics.NumberDataPoint) *metrics.Metric {
	return &metrics.Metric{Name: name, Unit: unit, Data: &metrics.Metric_Sum{Sum: &metrics.Sum{DataPoints: ps, IsMonotonic: true, AggregationTemporality: temporality}}}
}

const cumulative = metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE

func TestMetricsOfTheAgentGetPrometheusNames(t *testing.T) {
	req := request(
		gauge("system.cpu.utilization", "1", point(0.5)), gauge("system.memory.usage", "By", point(1)),
		gauge("system.memory.limit", "By", point(1)), gauge("system.filesystem.usage", "By", point(1, text("mountpoint", "/data"))),
		gauge("system.filesystem.limit", "By", point(1, text("mountpoint", "/data"))), gauge("system.cpu.load_average.1m", "{process}", point(1)),
		sum("system.network.io", "By", cumulative, point(1, text("device", "eth0"), text("direction", "receive"), text("tenant", "other"), text("__name__", "x"))),
		gauge("system.temperature", "Cel", point(1, text("sensor", "board"))), gauge("system.power", "W", point(1)),
		gauge("system.battery.charge", "1", point(1)), gauge("system.uptime", "s", point(1)), gauge("process.memory.rss", "By", point(1)),
	)
	want := []string{
		`{__name__="process_memory_rss_bytes"}`, `{__name__="system_battery_charge_ratio"}`, `{__name__="system_cpu_load_average_1m"}`,
		`{__name__="system_cpu_utilization_ratio"}`, `{__name__="system_filesystem_limit_bytes", mountpoint="/data"}`,
		`{__name__="system_filesystem_usage_bytes", mountpoint="/data"}`, `{__name__="system_memory_limit_bytes"}`, `{__name__="system_memory_usage_bytes"}`,
		`{__name__="system_network_io_bytes_total", direction="receive", interface="eth0"}`, `{__name__="system_power_watts"}`,
		`{__name__="system_temperature_celsius", sensor="board"}`, `{__name__="system_uptime_seconds"}`,
	}
	asProto, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := protojson.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	for kind, body := range map[string][]byte{"application/x-protobuf": asProto, "application/json; charset=utf-8": asJSON} {
		got, err := NewParser().Parse(t.Context(), kind, strings.NewReader(string(body)), 1<<20)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		var names []string
		for _, sample := range got {
			names = append(names, sample.Labels.String())
			if !sample.At.Equal(noon) {
				t.Errorf("%s at %s", sample.Labels, sample.At)
			}
		}
		if missing := difference(want, names); len(missing) > 0 {
			t.Errorf("%s: missing %v in %v", kind, missing, names)
		}
	}
}

func difference(want, got []string) (missing []string) {
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || g == w
		}
		if !found {
			missing = append(missing, w)
		}
	}
	return missing
}

func TestBadMetricsAreRefusedByName(t *testing.T) {
	marshal := func(ms ...*metrics.Metric) string {
		b, err := proto.Marshal(request(ms...))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	histogram := &metrics.Metric{Name: "h", Data: &metrics.Metric_Histogram{Histogram: &metrics.Histogram{}}}
	nested := &common.KeyValue{Key: "k", Value: &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: &common.ArrayValue{}}}}
	many := make([]*metrics.NumberDataPoint, MaxSamples+1)
	for i := range many {
		many[i] = point(1)
	}
	const pb, js = "application/x-protobuf", "application/json"
	for _, c := range []struct{ name, kind, body, want string }{
		{"kind", "text/plain", "", "want application/x-protobuf"}, {"no kind", "", "", "want application/x-protobuf"},
		{"broken protobuf", pb, "\xff\xff\xff", "no OTLP metrics request"}, {"broken JSON", js, `{"resourceMetrics":`, "no OTLP metrics request"},
		{"JSON of another thing", js, `[]`, "no OTLP metrics request"}, {"too long", js, strings.Repeat(" ", 1<<20+1), "more than 1048576 bytes"},
		{"histogram", pb, marshal(histogram), "only gauges and cumulative sums"},
		{"delta", pb, marshal(sum("s", "1", metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA, point(1))), "not cumulative"},
		{"no name", pb, marshal(gauge("", "1", point(1))), "1 to 128 bytes"}, {"long name", pb, marshal(gauge(strings.Repeat("x", 200), "1", point(1))), "1 to 128 bytes"},
		{"not finite", pb, marshal(gauge("g", "1", point(math.Inf(1)))), "not a finite number"},
		{"nested", pb, marshal(gauge("g", "1", point(1, nested))), "want a text, a number"},
		{"no value", pb, marshal(gauge("g", "1", &metrics.NumberDataPoint{})), "no value"},
		{"long value", pb, marshal(gauge("g", "1", point(1, text("k", strings.Repeat("v", 200))))), "at most 128 bytes"},
		{"same label twice", pb, marshal(gauge("g", "1", point(1, text("a.b", "1"), text("a_b", "2")))), "same label"},
		{"too many", pb, marshal(gauge("g", "1", many...)), "more than 20000 samples"},
		{"deep", js, `{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"metadata":[{"value":` + strings.Repeat(`{"arrayValue":{"values":[`, 50) + strings.Repeat(`]}}`, 50) + `}]}]}]}]}`, "no OTLP metrics request"},
	} {
		_, err := NewParser().Parse(t.Context(), c.kind, strings.NewReader(c.body), 1<<20)
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, fault.Unprocessable) && !errors.Is(err, fault.TooLarge) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	asProto, _ := proto.Marshal(request(gauge("system.cpu.utilization", "1", point(0.5, text("device", "x"))), sum("s", "By", cumulative, point(1))))
	f.Add("application/x-protobuf", asProto)
	f.Add("application/json", []byte(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"a.b","unit":"By","gauge":{"dataPoints":[{"timeUnixNano":"1","asInt":"3"}]}}]}]}]}`))
	s := open(f, f.TempDir())
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		samples, err := NewParser().Parse(context.Background(), kind, strings.NewReader(string(body)), 1<<16)
		if err != nil {
			if !errors.Is(err, fault.Unprocessable) && !errors.Is(err, fault.TooLarge) {
				t.Fatalf("no fault: %v", err)
			}
			return
		}
		for _, sample := range samples {
			if !Finite(sample.Value) || sample.Labels.Get("__name__") == "" || sample.Labels.Has("tenant") || sample.Labels.Has("device") {
				t.Fatalf("let through: %v %v", sample.Labels, sample.Value)
			}
			if _, dup := sample.Labels.HasDuplicateLabelNames(); dup {
				t.Fatalf("labels twice: %v", sample.Labels)
			}
		}
		if _, err := s.Write(context.Background(), "acme", "dev-a", samples); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkIngest(b *testing.B) {
	s := fresh(b)
	var ms []*metrics.Metric
	for i := range 25 {
		ms = append(ms, gauge(fmt.Sprintf("system.metric%d", i), "By", point(float64(i))))
	}
	body, _ := proto.Marshal(request(ms...))
	text := string(body)
	at := noon
	s.now = func() time.Time { return at }
	for i := 0; b.Loop(); i++ {
		samples, err := NewParser().Parse(b.Context(), "application/x-protobuf", strings.NewReader(text), 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		at = noon.Add(time.Duration(i/1000) * time.Minute)
		for j := range samples {
			samples[j].At = at
		}
		if _, err := s.Write(b.Context(), "acme", fmt.Sprintf("dev-%d", i%1000), samples); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(25*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
}

// BenchmarkDayOfOneDevice reads 24 hours at 60 s of one device among 200 as a chart does.
func BenchmarkDayOfOneDevice(b *testing.B) {
	s := fresh(b)
	for d := range 200 {
		var samples []Sample
		for i := range 1440 {
			samples = append(samples, sample(noon.Add(-time.Duration(1440-i)*time.Minute), float64(i%100)/100, "__name__", "system_cpu_utilization_ratio"))
		}
		write(b, s, "acme", fmt.Sprintf("dev-%d", d), samples...)
	}
	day := Range{From: noon.Add(-24 * time.Hour), To: noon, Step: 5 * time.Minute}
	b.Run("device", func(b *testing.B) {
		for b.Loop() {
			got, err := s.Range(b.Context(), Scope{Tenant: "acme", Only: true, Devices: []string{"dev-7"}}, `avg_over_time(system_cpu_utilization_ratio[5m])`, day)
			if err != nil || len(got) != 1 || len(got[0].Points) < 280 {
				b.Fatal(len(got), err)
			}
		}
	})
	b.Run("group-of-200", func(b *testing.B) {
		for b.Loop() {
			got, err := s.Range(b.Context(), Scope{Tenant: "acme"}, `avg_over_time(system_cpu_utilization_ratio[10m])`, Range{From: day.From, To: day.To, Step: 10 * time.Minute})
			if err != nil || len(got) != 200 {
				b.Fatal(len(got), err)
			}
		}
	})
}
