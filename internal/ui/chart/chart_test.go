package chart

import (
	"encoding/xml"
	"flag"
	"html/template"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

var start = time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)

// wave gives n points five minutes apart.
func wave(n int, f func(i int) float64) []Point {
	points := make([]Point, n)
	for i := range points {
		points[i] = Point{start.Add(time.Duration(i) * 5 * time.Minute), f(i)}
	}
	return points
}

func charts() map[string]template.HTML {
	day := start.Add(24 * time.Hour)
	cpu := wave(289, func(i int) float64 { return 0.4 + 0.3*math.Sin(float64(i)/20) })
	hole := append(wave(60, func(i int) float64 { return 40 + float64(i%7) }), wave(289, func(i int) float64 { return 45 })[150:]...)
	base := func(id, title string, u Unit, s ...Series) TimeSeries {
		return TimeSeries{ID: id, Title: title, Unit: u, From: start, To: day, Step: 5 * time.Minute, Series: s}
	}
	ratio := base("cpu", "CPU", Ratio, Series{"CPU", cpu})
	ratio.Top = 1
	band := base("group", "Memory of 40 devices", Bytes, Series{"mean", wave(289, func(i int) float64 { return 3e8 + 1e6*float64(i) })})
	band.Band = &Band{"p5 to p95", wave(289, func(i int) float64 { return 2e8 }), wave(289, func(i int) float64 { return 9e8 })}
	return map[string]template.HTML{
		"ratio":  ratio.HTML(),
		"gap":    base("temp", "Temperature <board>", Celsius, Series{"board", hole}).HTML(),
		"two":    base("net", "Network", BytesPerSecond, Series{"in", wave(289, func(i int) float64 { return float64(i * 1000) })}, Series{"out", wave(289, func(i int) float64 { return 5e4 })}).HTML(),
		"band":   band.HTML(),
		"empty":  base("none", "Power", Watts, Series{"power", nil}).HTML(),
		"below":  base("frost", "Outside", Celsius, Series{"outside", wave(289, func(i int) float64 { return -12 + float64(i)/20 })}).HTML(),
		"single": base("one", "Load", Number, Series{"load", wave(1, func(int) float64 { return 0.07 })}).HTML(),
		"spark":  Sparkline("CPU", Ratio, 5*time.Minute, cpu),
		"flat":   Sparkline("CPU", Ratio, 5*time.Minute, wave(3, func(int) float64 { return 1 })),
		"bar": StackBar{Title: "Devices by stage", Parts: []Part{
			{"active", 99_980, "good", "/devices?stage=active"}, {"quarantined", 1, "bad", "/devices?stage=quarantined"},
			{"retired", 0, "warn", ""}, {"stock & spares", 12_019, "idle", "javascript:alert(1)"}}}.HTML(),
		"nothing": StackBar{Title: "Devices by stage", Parts: []Part{{"active", 0, "good", ""}}}.HTML(),
	}
}

func TestChartsLookAsApproved(t *testing.T) {
	for name, got := range charts() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".html")
			if *update {
				if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(got), "><", ">\n<")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.ReplaceAll(string(got), "><", ">\n<")+"\n" != string(want) {
				t.Errorf("differs from %s; look at it, then run go test -update\n%s", file, got)
			}
		})
	}
}

func TestChartsObeyTheContentSecurityPolicy(t *testing.T) {
	for name, got := range charts() {
		dec := xml.NewDecoder(strings.NewReader(string(got)))
		for {
			tok, err := dec.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s is not well-formed: %v", name, err)
			}
			el, isStart := tok.(xml.StartElement)
			if !isStart {
				continue
			}
			for _, a := range el.Attr {
				if a.Name.Local == "style" || strings.HasPrefix(a.Name.Local, "on") || strings.Contains(a.Value, "javascript:") || strings.Contains(a.Value, "NaN") {
					t.Errorf("%s: <%s %s=%q>", name, el.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
}

func TestGapBreaksTheLine(t *testing.T) {
	if n := strings.Count(string(charts()["gap"]), `class="line s1"`); n != 2 {
		t.Errorf("%d lines, want 2 around the gap", n)
	}
	if n := strings.Count(string(charts()["ratio"]), `class="line s1"`); n != 1 {
		t.Errorf("%d lines, want 1", n)
	}
}

func TestUnitsAreWrittenForPeople(t *testing.T) {
	for _, c := range []struct {
		unit Unit
		v    float64
		want string
	}{
		{Ratio, 0.4213, "42.1 %"}, {Ratio, 1, "100 %"}, {Bytes, 0, "0 B"}, {Bytes, 1536, "1.5 KiB"}, {Bytes, 5e9, "4.7 GiB"},
		{BytesPerSecond, 2048, "2 KiB/s"}, {Celsius, -3.25, "−3.3 °C"}, {Celsius, -0.01, "0 °C"}, {Watts, 4.256, "4.26 W"}, {Seconds, 90, "90 s"},
		{Seconds, 7200, "2 h"}, {Seconds, 864000, "10 d"}, {Number, 1234567, "1,234,567"}, {Number, 0.07, "0.07"},
		{Number, math.NaN(), "no data"},
	} {
		if got := c.unit.Format(c.v); got != c.want {
			t.Errorf("%v of unit %d is %q, want %q", c.v, c.unit, got, c.want)
		}
	}
}

func TestAxesAreDividedIntoAFewRoundParts(t *testing.T) {
	for _, u := range []Unit{Number, Ratio, Bytes, BytesPerSecond, Celsius, Watts, Seconds} {
		for _, r := range [][2]float64{{0, 1}, {0, 0.003}, {0, 7e11}, {-12, 3}, {0, 1e-9}, {0, 86400}, {-5e6, 0}, {0, 1500}} {
			ticks := u.ticks(r[0], r[1])
			if len(ticks) < 2 || len(ticks) > 8 || ticks[0] > r[0] || ticks[len(ticks)-1] < r[1]*(1-1e-6) {
				t.Errorf("unit %d from %v to %v: %v", u, r[0], r[1], ticks)
			}
		}
	}
}
