package monitoring

import (
	"context"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/monitoring/series"
	"steward/internal/ui/chart"
)

// plan says what a chart shows. In expressions W stands for the window that one step covers.
type plan struct {
	name, title, unit string
	// device gives one line per value of the label by (or one line named as the chart when by is empty).
	device string
	by     string
	// group gives one value per device; empty leaves the chart out for groups.
	group string
	top   float64
}

const (
	cpu      = `system_cpu_utilization_ratio`
	memUsed  = `system_memory_usage_bytes`
	memAll   = `system_memory_limit_bytes`
	diskUsed = `system_filesystem_usage_bytes`
	diskAll  = `system_filesystem_limit_bytes`
)

// plans are the charts, in their order on a page.
var plans = []plan{
	{name: "cpu", title: "CPU in use", unit: "ratio", top: 1, device: `avg_over_time(` + cpu + `[W])`, group: `avg by (device) (avg_over_time(` + cpu + `[W]))`},
	{name: "memory", title: "Memory in use", unit: "ratio", top: 1,
		device: `avg_over_time(` + memUsed + `[W]) / on (device) last_over_time(` + memAll + `[W])`,
		group:  `max by (device) (avg_over_time(` + memUsed + `[W])) / on (device) max by (device) (last_over_time(` + memAll + `[W]))`},
	{name: "disk", title: "Disk in use", unit: "ratio", top: 1, by: "mountpoint",
		device: `last_over_time(` + diskUsed + `[W]) / on (device, mountpoint) last_over_time(` + diskAll + `[W])`,
		group:  `max by (device) (last_over_time(` + diskUsed + `[W]) / on (device, mountpoint) last_over_time(` + diskAll + `[W]))`},
	{name: "temperature", title: "Temperature", unit: "celsius", by: "sensor",
		device: `max_over_time(system_temperature_celsius[W])`, group: `max by (device) (max_over_time(system_temperature_celsius[W]))`},
	{name: "load", title: "Load, 1 minute", unit: "number", device: `avg_over_time(system_cpu_load_average_1m[W])`},
	{name: "network", title: "Network", unit: "bytes/s", by: "direction", device: `sum by (direction) (rate(system_network_io_bytes_total[W]))`,
		group: `sum by (device) (rate(system_network_io_bytes_total[W]))`},
	{name: "power", title: "Power", unit: "watts", by: "sensor", device: `avg_over_time(system_power_watts[W])`, group: `sum by (device) (avg_over_time(system_power_watts[W]))`},
	{name: "battery", title: "Battery charge", unit: "ratio", top: 1, by: "sensor", device: `last_over_time(system_battery_charge_ratio[W])`},
}

// units of plans, for drawing.
var chartUnits = map[string]chart.Unit{
	"ratio": chart.Ratio, "celsius": chart.Celsius, "number": chart.Number, "bytes/s": chart.BytesPerSecond, "watts": chart.Watts,
}

// maxLines of one chart; a machine with more sensors shows the first.
const maxLines = 6

// Chart is what was measured over a time.
type Chart struct {
	Name   string    `json:"name"`
	Title  string    `json:"title"`
	Unit   string    `json:"unit" enum:"ratio,celsius,number,bytes/s,watts"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	StepS  int       `json:"step_seconds"`
	Series []Line    `json:"series" nullable:"false"`
	// Cut counts lines that are not shown.
	Cut int `json:"cut,omitempty" doc:"Lines left out"`
	top float64
}

// Line of a Chart.
type Line struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points" nullable:"false" doc:"Unix time in seconds and the value; steps without data are left out"`
}

// dayHours is what pages show.
const dayHours = 24

// rangeOf divides the last hours into about 288 steps, none shorter than what is measured. It ends at a
// full step, so that charts don't wobble when they are drawn again.
func (s *Service) rangeOf(ctx context.Context, tenant device.TenantID, hours, steps int) (series.Range, time.Duration, error) {
	p, err := s.Policy(ctx, tenant)
	if err != nil {
		return series.Range{}, 0, err
	}
	step := (time.Duration(hours) * time.Hour / time.Duration(steps)).Truncate(time.Second)
	step = max(step, time.Duration(p.MetricsSeconds)*time.Second, 10*time.Second)
	to := s.now().Truncate(step)
	// Two measurements at least, so that a rate has two samples and one lost request makes no hole.
	window := max(step, time.Duration(p.MetricsSeconds)*time.Second*5/2)
	return series.Range{From: to.Add(-time.Duration(hours) * time.Hour), To: to, Step: step}, window, nil
}

func promDuration(d time.Duration) string { return fmt.Sprintf("%ds", int(d.Seconds())) }

// DeviceCharts returns what a device has measured in the last hours. Charts without data are left out.
func (s *Service) DeviceCharts(ctx context.Context, d device.Device, hours int) ([]Chart, error) {
	r, window, err := s.rangeOf(ctx, d.Tenant, hours, 288)
	if err != nil {
		return nil, err
	}
	return s.chartsOver(ctx, d, r, window)
}

const (
	// young is how little of a day may be known for the page to show that part alone: a few minutes at
	// the right edge of a day are no chart.
	young = 3 * time.Hour
	// leastSpan of a chart keeps its time axis readable.
	leastSpan = 10 * time.Minute
)

// recentCharts returns a device's last day, or what there is of it since its first measurement, and
// how long that is. The steps of a day end up to five minutes ago, so a device that has just come has
// none in it.
func (s *Service) recentCharts(ctx context.Context, d device.Device) ([]Chart, time.Duration, error) {
	charts, err := s.DeviceCharts(ctx, d, dayHours)
	if err != nil {
		return nil, 0, err
	}
	now, first := s.now(), s.now()
	for _, c := range charts {
		for _, l := range c.Series {
			if len(l.Points) > 0 {
				if at := time.Unix(int64(l.Points[0][0]), 0); at.Before(first) {
					first = at.Add(-time.Duration(c.StepS) * time.Second) // the step covers what lies before it
				}
			}
		}
	}
	if now.Sub(first) > young {
		return charts, dayHours * time.Hour, nil
	}
	p, err := s.Policy(ctx, d.Tenant)
	if err != nil {
		return nil, 0, err
	}
	span := max(leastSpan, now.Sub(first).Truncate(time.Minute))
	measured := time.Duration(p.MetricsSeconds) * time.Second
	step := max(span/120, measured/4, time.Second).Truncate(time.Second)
	to := now.Truncate(step)
	charts, err = s.chartsOver(ctx, d, series.Range{From: to.Add(-span), To: to, Step: step}, max(step, measured*5/2))
	return charts, span, err
}

// chartsOver evaluates the plans; each step looks back over the window.
func (s *Service) chartsOver(ctx context.Context, d device.Device, r series.Range, window time.Duration) ([]Chart, error) {
	scope := series.Scope{Tenant: string(d.Tenant), Only: true, Devices: []string{string(d.ID)}}
	charts := []Chart{}
	for _, p := range plans {
		lines, err := s.series.Range(ctx, scope, strings.ReplaceAll(p.device, "W", promDuration(window)), r)
		if err != nil {
			return nil, fmt.Errorf("chart %s of %s: %w", p.name, d.ID, err)
		}
		if len(lines) == 0 {
			continue
		}
		c := p.chart(r)
		for _, l := range lines {
			name := l.Labels[p.by]
			if p.by == "" || name == "" {
				name = p.title
			}
			c.Series = append(c.Series, Line{name, pairs(l.Points)})
		}
		slices.SortFunc(c.Series, func(a, b Line) int { return strings.Compare(a.Name, b.Name) })
		if len(c.Series) > maxLines {
			c.Cut, c.Series = len(c.Series)-maxLines, c.Series[:maxLines]
		}
		charts = append(charts, c)
	}
	return charts, nil
}

func (p plan) chart(r series.Range) Chart {
	return Chart{Name: p.name, Title: p.title, Unit: p.unit, From: r.From, To: r.To, StepS: int(r.Step.Seconds()), Series: []Line{}, top: p.top}
}

func pairs(points []series.Point) [][2]float64 {
	out := make([][2]float64, 0, len(points))
	for _, p := range points {
		if series.Finite(p.Value) {
			out = append(out, [2]float64{float64(p.At.Unix()), p.Value})
		}
	}
	return out
}

// Current is the last value of one series.
type Current struct {
	Name   string            `json:"name" doc:"Prometheus name, e.g. system_memory_usage_bytes"`
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

// CurrentValues returns the last values of a device that are not older than two and a half of its
// measuring intervals, at least five minutes.
func (s *Service) CurrentValues(ctx context.Context, d device.Device) ([]Current, error) {
	p, err := s.Policy(ctx, d.Tenant)
	if err != nil {
		return nil, err
	}
	scope := series.Scope{Tenant: string(d.Tenant), Only: true, Devices: []string{string(d.ID)}}
	window := max(5*time.Minute, time.Duration(p.MetricsSeconds)*time.Second*5/2)
	lines, err := s.series.Instant(ctx, scope, `last_over_time({__name__!=""}[`+promDuration(window)+`])`, s.now())
	if err != nil {
		return nil, fmt.Errorf("current values of %s: %w", d.ID, err)
	}
	out := make([]Current, 0, len(lines))
	for _, l := range lines {
		c := Current{Name: l.Labels["__name__"], Value: l.Points[0].Value, Labels: l.Labels}
		for _, ours := range []string{"__name__", series.LabelTenant, series.LabelDevice} {
			delete(c.Labels, ours)
		}
		if series.Finite(c.Value) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b Current) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(device.FormatLabels(a.Labels), device.FormatLabels(b.Labels))
	})
	return out, nil
}

// GroupCharts is how the devices of a group measure: mean, 95th percentile and highest over devices.
type GroupCharts struct {
	Node   string  `json:"node,omitempty" doc:"With several nodes and no shared store of metrics: the node that this comes from, which knows only what it has received itself"`
	Charts []Chart `json:"charts" nullable:"false"`
	// Sampled is set when the group is too large to read whole.
	Sampled int `json:"sampled,omitempty" doc:"How many devices, drawn at random, stand for a group that is larger"`
}

// maxGroupDevices is how many devices a group's charts read: a day of 1,000 takes some hundred
// milliseconds per chart. A fair sample of a larger group has the same mean and percentile within a
// percent or two; its maximum may be missed, so pages say that it is a sample.
const maxGroupDevices = 1000

// chartKey is what a group's charts depend on.
type chartKey struct {
	tenant   device.TenantID
	selector string
	hours    int
}

// GroupCharts returns the charts of the devices in the scope that match. They are kept for a minute.
func (s *Service) GroupCharts(ctx context.Context, scope device.Scope, sel device.Selector, hours int) (GroupCharts, error) {
	key := chartKey{scope.Tenant, scope.Selector.And(sel).String(), hours}
	return s.charts.get(ctx, key, s.now, func() (GroupCharts, error) { return s.groupCharts(ctx, scope, sel, hours) })
}

func (s *Service) groupCharts(ctx context.Context, scope device.Scope, sel device.Selector, hours int) (GroupCharts, error) {
	ids, cut, err := s.sampleOf(ctx, scope, sel, maxGroupDevices)
	if err != nil {
		return GroupCharts{}, fmt.Errorf("devices of a group: %w", err)
	}
	out := GroupCharts{Node: s.partial(), Charts: []Chart{}}
	if cut {
		out.Sampled = len(ids)
	}
	r, window, err := s.rangeOf(ctx, scope.Tenant, hours, 144)
	if err != nil {
		return GroupCharts{}, err
	}
	for _, p := range plans {
		if p.group == "" {
			continue
		}
		lines, err := s.series.Range(ctx, series.Scope{Tenant: string(scope.Tenant), Only: true, Devices: ids}, strings.ReplaceAll(p.group, "W", promDuration(window)), r)
		if err != nil {
			return GroupCharts{}, fmt.Errorf("chart %s of a group: %w", p.name, err)
		}
		if len(lines) == 0 {
			continue
		}
		c := p.chart(r)
		c.Series = fold(lines)
		out.Charts = append(out.Charts, c)
	}
	return out, nil
}

// fold makes mean, 95th percentile and maximum of one line per device.
func fold(lines []series.Line) []Line {
	at := map[int64][]float64{}
	for _, l := range lines {
		for _, p := range l.Points {
			if series.Finite(p.Value) {
				at[p.At.Unix()] = append(at[p.At.Unix()], p.Value)
			}
		}
	}
	mean, p95, top := Line{Name: "mean"}, Line{Name: "95th percentile"}, Line{Name: "highest"}
	for _, t := range slices.Sorted(maps.Keys(at)) {
		values := at[t]
		sort.Float64s(values)
		var sum float64
		for _, v := range values {
			sum += v
		}
		mean.Points = append(mean.Points, [2]float64{float64(t), sum / float64(len(values))})
		p95.Points = append(p95.Points, [2]float64{float64(t), quantile(values, 0.95)})
		top.Points = append(top.Points, [2]float64{float64(t), values[len(values)-1]})
	}
	return []Line{mean, p95, top}
}

// quantile of sorted values, between ranks as PromQL's quantile does it.
func quantile(sorted []float64, q float64) float64 {
	rank := q * float64(len(sorted)-1)
	low := int(math.Floor(rank))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (sorted[high]-sorted[low])*(rank-float64(low))
}

// draw makes a chart's picture; prefix keeps IDs on a page apart.
func (c Chart) draw(prefix string) template.HTML {
	step := time.Duration(c.StepS) * time.Second
	ts := chart.TimeSeries{ID: prefix + "-" + c.Name, Title: c.Title, Unit: chartUnits[c.Unit], From: c.From, To: c.To, Step: step, Top: c.top}
	for _, l := range c.Series {
		points := make([]chart.Point, len(l.Points))
		for i, p := range l.Points {
			points[i] = chart.Point{T: time.Unix(int64(p[0]), 0), V: p[1]}
		}
		ts.Series = append(ts.Series, chart.Series{Name: l.Name, Points: points})
	}
	return ts.HTML()
}
