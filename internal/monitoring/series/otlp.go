package series

import (
	"context"
	"errors"
	"io"
	"math"
	"mime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/model/labels"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"steward/internal/fault"
)

// Bounds of names and attributes.
const (
	maxNameBytes  = 128
	maxLabelBytes = 128 // of a name or a value
	maxAttributes = 8   // per sample
	maxNesting    = 32  // of the message; OTLP itself needs about ten
	maxProblems   = 5   // told at a time
)

// Parser reads what devices send. Its zero value is not ready; make it with NewParser.
type Parser struct {
	parses chan struct{} // one element per request being decoded
}

// NewParser returns a parser that is safe for concurrent use.
func NewParser() *Parser { return &Parser{parses: make(chan struct{}, 2)} }

// Parse reads an ExportMetricsServiceRequest (OTLP 1.9) in protobuf (application/x-protobuf) or JSON
// (application/json) of at most limit bytes. Gauges and cumulative sums are taken; their names become
// Prometheus names by OpenTelemetry's rules ("system.memory.usage" in By is system_memory_usage_bytes).
// Resource and scope attributes are left out: the certificate says which device it is. It refuses the
// whole request, naming what is wrong with it.
func (p *Parser) Parse(ctx context.Context, contentType string, body io.Reader, limit int64) ([]Sample, error) {
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fault.New(fault.Unprocessable, "the metrics could not be read: %s", err)
	}
	if int64(len(data)) > limit {
		return nil, fault.New(fault.TooLarge, "more than %d bytes of metrics in one request: send fewer samples at a time", limit)
	}
	select { // a small message can decode to a large one; few do so at a time
	case p.parses <- struct{}{}:
		defer func() { <-p.parses }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var request collector.ExportMetricsServiceRequest
	kind, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
		return nil, fault.New(fault.Unprocessable, "content type %.80q: want application/x-protobuf or application/json", contentType)
	case kind == "application/x-protobuf" || kind == "application/protobuf":
		err = proto.UnmarshalOptions{RecursionLimit: maxNesting, DiscardUnknown: true}.Unmarshal(data, &request)
	case kind == "application/json":
		err = protojson.UnmarshalOptions{RecursionLimit: maxNesting, DiscardUnknown: true}.Unmarshal(data, &request)
	default:
		return nil, fault.New(fault.Unprocessable, "content type %.80q: want application/x-protobuf or application/json", contentType)
	}
	if err != nil {
		return nil, fault.New(fault.Unprocessable, "the body is no OTLP metrics request: %.200s", err)
	}
	r := reader{}
	for _, rm := range request.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				r.metric(m)
			}
		}
	}
	if err := r.problems.OrNil(); err != nil {
		return nil, err
	}
	return r.samples, nil
}

// reader collects samples and problems.
type reader struct {
	samples  []Sample
	problems fault.Invalid
	count    int
	stop     bool
}

func (r *reader) refuse(location, format string, args ...any) {
	r.problems.Add(location, format, args...)
	r.stop = r.stop || len(r.problems.Fields) >= maxProblems
}

var errKind = errors.New("only gauges and cumulative sums are taken")

func (r *reader) metric(m *metrics.Metric) {
	if r.stop {
		return
	}
	where := "metric " + strconv.Quote(clip(m.GetName(), 60))
	points, kind, err := pointsOf(m)
	if err != nil {
		r.refuse(where, "%s", err)
		return
	}
	if r.count += len(points); r.count > MaxSamples {
		r.stop = true // nothing further is looked at
		r.problems.Add("metrics", "more than %d samples in one request", MaxSamples)
		return
	}
	name, err := metricName(m.GetName(), m.GetUnit(), kind)
	if err != nil {
		r.refuse(where, "%s", err)
		return
	}
	for _, p := range points {
		if r.stop {
			return
		}
		if p.GetFlags()&uint32(metrics.DataPointFlags_DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK) != 0 {
			continue
		}
		value, err := valueOf(p)
		if err != nil {
			r.refuse(where, "%s", err)
			continue
		}
		l, err := labelsOf(name, p.GetAttributes())
		if err != nil {
			r.refuse(where, "%s", err)
			continue
		}
		r.samples = append(r.samples, Sample{Labels: l, At: timeOf(p.GetTimeUnixNano()), Value: value})
	}
}

func pointsOf(m *metrics.Metric) ([]*metrics.NumberDataPoint, otlptranslator.MetricType, error) {
	switch d := m.GetData().(type) {
	case *metrics.Metric_Gauge:
		return d.Gauge.GetDataPoints(), otlptranslator.MetricTypeGauge, nil
	case *metrics.Metric_Sum:
		if d.Sum.GetAggregationTemporality() != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
			return nil, 0, errors.New("the sum is not cumulative; only cumulative sums are taken")
		}
		if d.Sum.GetIsMonotonic() {
			return d.Sum.GetDataPoints(), otlptranslator.MetricTypeMonotonicCounter, nil
		}
		return d.Sum.GetDataPoints(), otlptranslator.MetricTypeNonMonotonicCounter, nil
	}
	return nil, 0, errKind
}

func metricName(name, unit string, kind otlptranslator.MetricType) (string, error) {
	if name == "" || len(name) > maxNameBytes || len(unit) > 32 || !utf8.ValidString(name) || !utf8.ValidString(unit) {
		return "", errors.New("the name has 1 to 128 bytes of UTF-8, its unit at most 32")
	}
	namer := otlptranslator.MetricNamer{WithMetricSuffixes: true}
	return namer.Build(otlptranslator.Metric{Name: name, Unit: unit, Type: kind})
}

func valueOf(p *metrics.NumberDataPoint) (float64, error) {
	switch v := p.GetValue().(type) {
	case *metrics.NumberDataPoint_AsDouble:
		if math.IsNaN(v.AsDouble) || math.IsInf(v.AsDouble, 0) {
			return 0, errors.New("a value is not a finite number")
		}
		return v.AsDouble, nil
	case *metrics.NumberDataPoint_AsInt:
		return float64(v.AsInt), nil
	}
	return 0, errors.New("a data point has no value")
}

func timeOf(nanos uint64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(int64(nanos/1e9), int64(nanos%1e9)).UTC()
}

// labelsOf makes labels of a data point's attributes. "tenant" and whatever Prometheus reserves is
// dropped; "device", which OpenTelemetry uses for a network interface or a disk, is kept under the name
// "interface", since "device" is ours.
func labelsOf(name string, attributes []*common.KeyValue) (labels.Labels, error) {
	if len(attributes) > maxAttributes {
		return labels.EmptyLabels(), errors.New("a data point has more than 8 attributes")
	}
	b := labels.NewScratchBuilder(len(attributes) + 3)
	b.Add(model.MetricNameLabel, name)
	var seen []string
	namer := otlptranslator.LabelNamer{}
	for _, a := range attributes {
		key := a.GetKey()
		if key == LabelTenant || strings.HasPrefix(key, "__") {
			continue
		}
		if key == LabelDevice {
			key = "interface"
		}
		if key == "" || len(key) > maxLabelBytes || !utf8.ValidString(key) {
			return labels.EmptyLabels(), errors.New("an attribute's name has 1 to 128 bytes of UTF-8")
		}
		label, err := namer.Build(key)
		if err != nil {
			return labels.EmptyLabels(), err
		}
		if label == LabelTenant || label == LabelDevice || strings.HasPrefix(label, "__") {
			continue
		}
		if slices.Contains(seen, label) {
			return labels.EmptyLabels(), errors.New("two attributes become the same label " + strconv.Quote(label))
		}
		value, err := textOf(a.GetValue())
		if err != nil {
			return labels.EmptyLabels(), errors.New("attribute " + strconv.Quote(clip(key, 40)) + ": " + err.Error())
		}
		if value == "" {
			continue // an empty label is no label
		}
		seen = append(seen, label)
		b.Add(label, value)
	}
	b.Sort()
	return b.Labels(), nil
}

func textOf(v *common.AnyValue) (string, error) {
	var text string
	switch v := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		text = v.StringValue
	case *common.AnyValue_BoolValue:
		text = strconv.FormatBool(v.BoolValue)
	case *common.AnyValue_IntValue:
		text = strconv.FormatInt(v.IntValue, 10)
	case *common.AnyValue_DoubleValue:
		text = strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
	case nil:
	default:
		return "", errors.New("want a text, a number or a truth value")
	}
	if len(text) > maxLabelBytes || !utf8.ValidString(text) {
		return "", errors.New("want at most 128 bytes of UTF-8")
	}
	return text, nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
