package monitoring

import (
	"testing"
	"time"

	"steward/internal/sqldb/sqldbtest"
)

// A device that came minutes ago is charted over its minutes: the steps of a day end before them.
func TestTwoMeasurementsMakeAChart(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(nil)
	for i := range 2 {
		if i > 0 {
			h.clock.pass(time.Minute)
		}
		h.ingest(d, gauge("system.cpu.utilization", "1", h.point(0.25)))
	}
	h.clock.pass(10 * time.Second)
	charts, span, err := h.room.recentCharts(t.Context(), d)
	if err != nil || len(charts) != 1 || charts[0].Name != "cpu" {
		t.Fatalf("charts %+v, error %v", charts, err)
	}
	c := charts[0]
	if span != leastSpan || c.To.Sub(c.From) != leastSpan || len(c.Series[0].Points) < 2 {
		t.Errorf("%s from %s to %s with %d points", span, c.From, c.To, len(c.Series[0].Points))
	}
	for _, p := range c.Series[0].Points {
		if p[1] != 0.25 {
			t.Errorf("a value of %f", p[1])
		}
	}
}
