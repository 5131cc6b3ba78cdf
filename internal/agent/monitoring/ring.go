package monitoring

import (
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"steward/internal/agent/host"
)

// Limits of the buffer.
const (
	// ringAge is how old a buffered measurement may get.
	ringAge = 24 * time.Hour
	// ringValues bounds the memory of the buffer, 8 bytes for each value: beyond it, every second of
	// the old measurements is given up, so that a day offline stays a day.
	ringValues = 32_768
	// batchValues bounds one request; a value takes about 100 bytes in JSON.
	batchValues = 4096
)

// ring buffers measurements as rows of numbers over a table of series, since names and attributes
// hardly change: a thousand simulated devices buffer in one process.
type ring struct {
	series []series
	index  map[string]int // key of a series → its place
	rows   []row
	values int
}

type series struct {
	name, unit string
	cumulative bool
	attributes map[string]string
}

// row is one measurement: values[i] belongs to series[i]; NaN where it was not measured.
type row struct {
	at     time.Time
	values []float64
}

func newRing() ring { return ring{index: map[string]int{}} }

func (r *ring) len() int { return len(r.rows) }

// add appends a measurement and gives up what is too old or too much.
func (r *ring) add(at time.Time, metrics []host.Metric) {
	values := make([]float64, len(r.series), max(len(r.series), len(metrics)))
	for i := range values {
		values[i] = math.NaN()
	}
	for _, m := range metrics {
		if math.IsNaN(m.Value) || math.IsInf(m.Value, 0) {
			continue // JSON has no such numbers
		}
		i := r.place(m)
		for len(values) <= i {
			values = append(values, math.NaN())
		}
		values[i] = m.Value
	}
	r.rows = append(r.rows, row{at, values})
	r.values += len(values)
	for len(r.rows) > 1 && at.Sub(r.rows[0].at) > ringAge {
		r.drop(1)
	}
	if r.values > ringValues {
		r.thin()
	}
}

// place finds or adds the metric's series.
func (r *ring) place(m host.Metric) int {
	key := m.Name
	names := make([]string, 0, len(m.Attributes))
	for k := range m.Attributes {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		key += "\x00" + k + "\x00" + m.Attributes[k]
	}
	i, has := r.index[key]
	if !has {
		i = len(r.series)
		r.index[strings.Clone(key)] = i
		r.series = append(r.series, series{m.Name, m.Unit, m.Cumulative, m.Attributes})
	}
	return i
}

// drop forgets the oldest rows; an empty ring forgets its series too, so that names of things that have
// gone (a removed disk) don't stay for ever.
func (r *ring) drop(count int) {
	count = min(count, len(r.rows))
	for _, old := range r.rows[:count] {
		r.values -= len(old.values)
	}
	r.rows = append(r.rows[:0], r.rows[count:]...)
	if len(r.rows) == 0 {
		*r = newRing()
	}
}

// thin keeps every second row of the older half.
func (r *ring) thin() {
	half := len(r.rows) / 2
	kept := make([]row, 0, len(r.rows))
	for i, old := range r.rows {
		if i < half && i%2 == 1 {
			r.values -= len(old.values)
			continue
		}
		kept = append(kept, old)
	}
	r.rows = kept
}

// batch returns the oldest rows as one OTLP request, and how many rows it holds.
func (r *ring) batch(device string) (exportRequest, int) {
	count, values := 0, 0
	for _, row := range r.rows {
		if count > 0 && values+len(row.values) > batchValues {
			break
		}
		values += len(row.values)
		count++
	}
	metrics := map[string]*otlpMetric{}
	var order []string
	for _, row := range r.rows[:count] {
		for i, v := range row.values {
			if math.IsNaN(v) {
				continue
			}
			s := r.series[i]
			m, has := metrics[s.name]
			if !has {
				m = newMetric(s)
				metrics[s.name] = m
				order = append(order, s.name)
			}
			m.add(s, row.at, v)
		}
	}
	scope := scopeMetrics{Scope: scope{Name: "steward-agent"}}
	for _, name := range order {
		scope.Metrics = append(scope.Metrics, metrics[name])
	}
	resource := resource{Attributes: []keyValue{{Key: "device.id", Value: anyValue{device}}}}
	return exportRequest{ResourceMetrics: []resourceMetrics{{Resource: resource, ScopeMetrics: []scopeMetrics{scope}}}}, count
}

// The OTLP/JSON form of an ExportMetricsServiceRequest, as far as gauges and sums need it
// (opentelemetry-proto, "JSON Protobuf Encoding": 64-bit integers as strings, enums as numbers).
type (
	exportRequest struct {
		ResourceMetrics []resourceMetrics `json:"resourceMetrics"`
	}
	resourceMetrics struct {
		Resource     resource       `json:"resource"`
		ScopeMetrics []scopeMetrics `json:"scopeMetrics"`
	}
	resource struct {
		Attributes []keyValue `json:"attributes"`
	}
	scopeMetrics struct {
		Scope   scope         `json:"scope"`
		Metrics []*otlpMetric `json:"metrics"`
	}
	scope struct {
		Name string `json:"name"`
	}
	otlpMetric struct {
		Name  string   `json:"name"`
		Unit  string   `json:"unit,omitempty"`
		Gauge *points  `json:"gauge,omitempty"`
		Sum   *sumOTLP `json:"sum,omitempty"`
	}
	points struct {
		DataPoints []point `json:"dataPoints"`
	}
	sumOTLP struct {
		DataPoints  []point `json:"dataPoints"`
		Temporality int     `json:"aggregationTemporality"`
		Monotonic   bool    `json:"isMonotonic"`
	}
	point struct {
		Attributes []keyValue `json:"attributes,omitempty"`
		Time       string     `json:"timeUnixNano"`
		Value      float64    `json:"asDouble"`
	}
	keyValue struct {
		Key   string   `json:"key"`
		Value anyValue `json:"value"`
	}
	anyValue struct {
		String string `json:"stringValue"`
	}
)

// cumulativeTemporality is AGGREGATION_TEMPORALITY_CUMULATIVE.
const cumulativeTemporality = 2

func newMetric(s series) *otlpMetric {
	m := &otlpMetric{Name: s.name, Unit: s.unit}
	if s.cumulative {
		m.Sum = &sumOTLP{Temporality: cumulativeTemporality, Monotonic: true}
	} else {
		m.Gauge = &points{}
	}
	return m
}

func (m *otlpMetric) add(s series, at time.Time, v float64) {
	p := point{Time: strconv.FormatInt(at.UnixNano(), 10), Value: v}
	for k, value := range s.attributes {
		p.Attributes = append(p.Attributes, keyValue{k, anyValue{value}})
	}
	sort.Slice(p.Attributes, func(i, j int) bool { return p.Attributes[i].Key < p.Attributes[j].Key })
	if m.Sum != nil {
		m.Sum.DataPoints = append(m.Sum.DataPoints, p)
		return
	}
	m.Gauge.DataPoints = append(m.Gauge.DataPoints, p)
}
