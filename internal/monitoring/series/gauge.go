package series

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/model/labels"

	"steward/internal/fault"
)

// MaxGauges is how many measurements one message may have: as many as a device may have series.
const MaxGauges = MaxSeries

var gaugePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,127}$`)

// Gauges makes samples of a device's simple measurements: names of letters, digits and . _ -, which become
// Prometheus names as those of OTLP do ("tank.level" is tank_level), without labels. millis is Unix time, 0 for
// now. It refuses the whole message, naming what is wrong with it.
func Gauges(millis int64, values map[string]float64) ([]Sample, error) {
	bad := &fault.Invalid{}
	if len(values) == 0 {
		bad.Add("metrics", "want at least one name with a number")
	}
	if len(values) > MaxGauges {
		return nil, fault.Bad("metrics", "%d measurements: at most %d", len(values), MaxGauges)
	}
	var at time.Time
	if millis != 0 {
		at = time.UnixMilli(millis).UTC()
	}
	samples := make([]Sample, 0, len(values))
	from := map[string]string{} // metric name to the name that was sent
	namer := otlptranslator.MetricNamer{WithMetricSuffixes: true}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		where := "metrics." + strconv.Quote(clip(name, 60))
		if len(bad.Fields) >= maxProblems {
			break
		}
		if !gaugePattern.MatchString(name) {
			bad.Add(where, "want 1 to %d letters, digits or . _ -, beginning with a letter", maxNameBytes)
			continue
		}
		metric, err := namer.Build(otlptranslator.Metric{Name: name, Type: otlptranslator.MetricTypeGauge})
		if err != nil {
			bad.Add(where, "%s", err)
			continue
		}
		if other, taken := from[metric]; taken {
			bad.Add(where, "it is the same metric as %q: %s", other, metric)
			continue
		}
		from[metric] = name
		if !Finite(values[name]) {
			bad.Add(where, "the value is not a finite number")
			continue
		}
		samples = append(samples, Sample{Labels: labels.FromStrings(model.MetricNameLabel, metric), At: at, Value: values[name]})
	}
	return samples, bad.OrNil()
}
