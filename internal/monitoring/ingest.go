package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/monitoring/series"
	"steward/internal/wire"
)

// Ingest stores a device's metrics: an OTLP ExportMetricsServiceRequest in protobuf or JSON, not
// compressed. Samples that can't be kept are refused by a fault.Unprocessable that says how many and why,
// after all others of the request have been stored: sending the request again changes nothing, so the
// device should drop it. A request that is not understood is refused as a whole.
func (s *Service) Ingest(ctx context.Context, d device.Device, contentType string, body io.Reader) error {
	s.seen(d)
	samples, err := s.parser.Parse(ctx, contentType, body, wire.MaxMetricsBytes)
	if err != nil {
		if errors.Is(err, fault.Unprocessable) || errors.Is(err, fault.TooLarge) {
			s.trouble(d, TroubleMetrics, 1, clip(err.Error(), 300))
		}
		return err
	}
	return s.store(ctx, d, samples)
}

// Telemetry stores simple measurements, each a gauge under its name, with the bounds of Ingest. It returns
// fault.Invalid when a name or a value makes no sense, and then stores nothing.
func (s *Service) Telemetry(ctx context.Context, d device.Device, t wire.Telemetry) error {
	s.seen(d)
	samples, err := series.Gauges(t.TimeUnixMillis, t.Metrics)
	if err != nil {
		s.trouble(d, TroubleMetrics, 1, clip(err.Error(), 300))
		return err
	}
	return s.store(ctx, d, samples)
}

func (s *Service) store(ctx context.Context, d device.Device, samples []series.Sample) error {
	refused, err := s.series.Write(ctx, string(d.Tenant), string(d.ID), samples)
	if err != nil {
		return fmt.Errorf("metrics of %s: %w", d.ID, err)
	}
	return s.judgeRefused(d, refused, len(samples))
}

// judgeRefused notes what was refused and says it. A sample that is only stored already with another
// value, or too old to matter, is dropped without words as long as others were good.
func (s *Service) judgeRefused(d device.Device, r series.Refused, total int) error {
	var why []string
	if r.Ahead > 0 {
		detail := clockWords(r.MostAhead)
		s.trouble(d, TroubleClock, int64(r.Ahead), detail)
		why = append(why, fmt.Sprintf("%d lie more than %s in the future (%s)", r.Ahead, words(series.MaxAhead), detail))
	}
	if r.Series > 0 {
		detail := fmt.Sprintf("more than %d series", series.MaxSeries)
		s.trouble(d, TroubleSeries, int64(r.Series), detail)
		why = append(why, fmt.Sprintf("%d belong to new series, and a device may have %d", r.Series, series.MaxSeries))
	}
	if r.Old > 0 && r.Old == total {
		detail := fmt.Sprintf("all samples are older than %s", words(series.MaxAge))
		s.trouble(d, TroubleClock, int64(r.Old), detail)
		why = append(why, detail)
	}
	if len(why) == 0 {
		return nil
	}
	return fault.New(fault.Unprocessable, "%d of %d samples are not stored: %s", r.Count(), total, strings.Join(why, "; "))
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
