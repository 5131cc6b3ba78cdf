// Package chart draws small SVG charts on the server: time series, sparklines and stacked bars. They
// need no script and no style attribute (the console's Content-Security-Policy forbids both): colours
// come from classes in ui/static/steward.css, values show on hover by <title>, and screen readers get
// a title and a sentence that says what is to be seen. Equal input gives equal bytes.
//
// Times on the axes are UTC, since the server does not know the reader's clock; they say so.
package chart

import (
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"
)

// Point is one value at one time; NaN counts as missing.
type Point struct {
	T time.Time
	V float64
}

// Series is one line. Points are in the order of time.
type Series struct {
	Name   string
	Points []Point
}

// Band is a shaded area between two lines, such as p5 and p95 of a group.
type Band struct {
	Name      string
	Low, High []Point // of the same times
}

// TimeSeries is a chart of values over time.
type TimeSeries struct {
	ID       string // unique on the page: letters, digits, dashes
	Title    string // what is measured: "Memory used"
	Unit     Unit
	From, To time.Time
	// Step is how far apart the points usually are; a hole of more than two and a half steps is drawn as a
	// gap. 0 joins all points.
	Step   time.Duration
	Series []Series // at most 6
	Band   *Band
	// Top fixes the upper end of the axis, for example 1 for a ratio; 0 fits it to the values.
	Top float64
	// Width and Height of the drawing in its own units; 0 means 400 and 150. It scales to its place.
	Width, Height float64
}

// Margins around the plot, for the axes' words.
const (
	marginLeft, marginRight = 62, 8
	marginTop, marginBottom = 8, 20
	maxHits                 = 96 // places to hover; more are thinner than a pointer can hit
)

// frame maps times and values to coordinates.
type frame struct {
	TimeSeries
	low, high float64
	ticks     []float64
}

// HTML draws the chart as a <figure>.
func (c TimeSeries) HTML() template.HTML {
	if c.Width == 0 {
		c.Width = 400
	}
	if c.Height == 0 {
		c.Height = 150
	}
	if len(c.Series) > 6 {
		c.Series = c.Series[:6]
	}
	f := c.scale()
	var b strings.Builder
	fmt.Fprintf(&b, `<figure class="chart"><figcaption><span>%s</span><span class="now">%s</span></figcaption>`, esc(c.Title), esc(c.caption()))
	fmt.Fprintf(&b, `<svg viewBox="0 0 %s %s" role="img" aria-labelledby="%s-t %s-d">`, num(c.Width), num(c.Height), esc(c.ID), esc(c.ID))
	fmt.Fprintf(&b, `<title id="%s-t">%s</title><desc id="%s-d">%s</desc>`, esc(c.ID), esc(c.Title), esc(c.ID), esc(c.describe()))
	f.grid(&b)
	if c.Band != nil {
		f.band(&b)
	}
	for i, s := range c.Series {
		f.line(&b, i+1, s)
	}
	f.hits(&b)
	b.WriteString(`</svg>`)
	if len(c.Series) > 1 || c.Band != nil {
		c.legend(&b)
	}
	b.WriteString(`</figure>`)
	return template.HTML(b.String())
}

func (c TimeSeries) scale() frame {
	low, high := 0.0, math.Inf(-1)
	each := func(points []Point) {
		for _, p := range points {
			if ok(p.V) {
				low, high = math.Min(low, p.V), math.Max(high, p.V)
			}
		}
	}
	for _, s := range c.Series {
		each(s.Points)
	}
	if c.Band != nil {
		each(c.Band.Low)
		each(c.Band.High)
	}
	if c.Top != 0 && high < c.Top {
		high = c.Top
	}
	if math.IsInf(high, -1) || high <= low {
		high = low + 1
	}
	ticks := c.Unit.ticks(low, high)
	low = math.Min(low, ticks[0])
	high = math.Max(high, ticks[len(ticks)-1])
	return frame{c, low, high, ticks}
}

func (f frame) x(t time.Time) float64 {
	span := f.To.Sub(f.From).Seconds()
	if span <= 0 {
		return marginLeft
	}
	return marginLeft + t.Sub(f.From).Seconds()/span*(f.Width-marginLeft-marginRight)
}

func (f frame) y(v float64) float64 {
	return f.Height - marginBottom - (v-f.low)/(f.high-f.low)*(f.Height-marginTop-marginBottom)
}

func (f frame) grid(b *strings.Builder) {
	for _, t := range f.ticks {
		y := f.y(t)
		fmt.Fprintf(b, `<line class="grid-line" x1="%d" x2="%s" y1="%s" y2="%s"/><text x="%d" y="%s" text-anchor="end">%s</text>`,
			marginLeft, num(f.Width-marginRight), num(y), num(y), marginLeft-6, num(y+4), esc(f.Unit.Format(t)))
	}
	step, layout := timeTicks(f.To.Sub(f.From))
	first := f.From.UTC().Truncate(step)
	for t := first; !t.After(f.To); t = t.Add(step) {
		x := f.x(t)
		if t.Before(f.From) || x < marginLeft+12 || x > f.Width-marginRight-14 {
			continue // its words would not fit
		}
		fmt.Fprintf(b, `<line class="axis" x1="%s" x2="%s" y1="%s" y2="%s"/><text x="%s" y="%s" text-anchor="middle">%s</text>`,
			num(x), num(x), num(f.Height-marginBottom), num(f.Height-marginBottom+3), num(x), num(f.Height-5), esc(t.UTC().Format(layout)))
	}
	fmt.Fprintf(b, `<text x="0" y="%s">UTC</text>`, num(f.Height-5))
}

// timeTicks picks the distance of the time axis's words, so that four to eight fit.
func timeTicks(span time.Duration) (time.Duration, string) {
	for _, c := range []struct {
		step   time.Duration
		layout string
	}{
		{time.Minute, "15:04"}, {5 * time.Minute, "15:04"}, {10 * time.Minute, "15:04"}, {30 * time.Minute, "15:04"},
		{time.Hour, "15:04"}, {3 * time.Hour, "15:04"}, {4 * time.Hour, "15:04"}, {12 * time.Hour, "Jan 2 15:04"},
		{24 * time.Hour, "Jan 2"}, {48 * time.Hour, "Jan 2"},
	} {
		if span <= 7*c.step {
			return c.step, c.layout
		}
	}
	return (span / 6).Truncate(24 * time.Hour), "Jan 2"
}

// runs splits the points where one is missing or the hole is too wide.
func (f frame) runs(points []Point) [][]Point {
	var all [][]Point
	var run []Point
	for _, p := range points {
		if !ok(p.V) || p.T.Before(f.From) || p.T.After(f.To) {
			if len(run) > 0 {
				all, run = append(all, run), nil
			}
			continue
		}
		if len(run) > 0 && f.Step > 0 && p.T.Sub(run[len(run)-1].T) > f.Step*5/2 {
			all, run = append(all, run), nil
		}
		run = append(run, p)
	}
	if len(run) > 0 {
		all = append(all, run)
	}
	return all
}

func (f frame) path(run []Point) string {
	var b strings.Builder
	for i, p := range run {
		b.WriteString([]string{"L", "M"}[btoi(i == 0)])
		b.WriteString(num(f.x(p.T)) + " " + num(f.y(p.V)))
	}
	return b.String()
}

func (f frame) line(b *strings.Builder, nr int, s Series) {
	for _, run := range f.runs(s.Points) {
		if len(run) == 1 {
			fmt.Fprintf(b, `<circle class="dot s%d" cx="%s" cy="%s" r="1.5"/>`, nr, num(f.x(run[0].T)), num(f.y(run[0].V)))
			continue
		}
		path := f.path(run)
		if len(f.Series) == 1 && f.Band == nil {
			fmt.Fprintf(b, `<path class="area s%d" d="%sL%s %sL%s %sZ"/>`, nr, path, num(f.x(run[len(run)-1].T)), num(f.y(f.low)), num(f.x(run[0].T)), num(f.y(f.low)))
		}
		fmt.Fprintf(b, `<path class="line s%d" d="%s"/>`, nr, path)
	}
}

func (f frame) band(b *strings.Builder) {
	lows := map[int64]float64{}
	for _, p := range f.Band.Low {
		lows[p.T.UnixMilli()] = p.V
	}
	var both []Point
	for _, p := range f.Band.High {
		if v, has := lows[p.T.UnixMilli()]; !has || !ok(v) {
			p.V = math.NaN()
		}
		both = append(both, p)
	}
	for _, run := range f.runs(both) {
		back := slices.Clone(run)
		slices.Reverse(back)
		for i := range back {
			back[i].V = lows[back[i].T.UnixMilli()]
		}
		fmt.Fprintf(b, `<path class="area s1" d="%s%sZ"/>`, f.path(run), strings.Replace(f.path(back), "M", "L", 1))
	}
}

// hits are invisible columns that say their values on hover.
func (f frame) hits(b *strings.Builder) {
	n := 0
	for _, s := range f.Series {
		n = max(n, len(s.Points))
	}
	if n == 0 || !f.To.After(f.From) {
		return
	}
	n = min(n, maxHits)
	width := f.To.Sub(f.From) / time.Duration(n)
	plot := (f.Width - marginLeft - marginRight) / float64(n)
	at := make([]int, len(f.Series))
	for i := range n {
		end := f.From.Add(width * time.Duration(i+1))
		var words []string
		var when time.Time
		for si, s := range f.Series {
			// the last value of the column; each series is walked once
			var last *Point
			for at[si] < len(s.Points) && (s.Points[at[si]].T.Before(end) || i == n-1) {
				if p := &s.Points[at[si]]; ok(p.V) && !p.T.Before(f.From) {
					last = p
				}
				at[si]++
			}
			if last == nil {
				continue
			}
			when = last.T
			text := f.Unit.Format(last.V)
			if len(f.Series) > 1 {
				text = s.Name + " " + text
			}
			words = append(words, text)
		}
		if len(words) > 0 {
			fmt.Fprintf(b, `<rect class="hit" x="%s" y="%d" width="%s" height="%s"><title>%s</title></rect>`,
				num(marginLeft+float64(i)*plot), marginTop, num(plot), num(f.Height-marginTop-marginBottom),
				esc(when.UTC().Format("Jan 2 15:04")+" UTC: "+strings.Join(words, ", ")))
		}
	}
}

func (c TimeSeries) legend(b *strings.Builder) {
	b.WriteString(`<ul class="legend">`)
	for i, s := range c.Series {
		fmt.Fprintf(b, `<li><svg viewBox="0 0 18 10" aria-hidden="true"><path class="line s%d" d="M0 5h18"/></svg>%s</li>`, i+1, esc(s.Name+" "+c.last(s)))
	}
	if c.Band != nil {
		fmt.Fprintf(b, `<li><svg viewBox="0 0 18 10" aria-hidden="true"><path class="area s1" d="M0 0h18v10H0z"/></svg>%s</li>`, esc(c.Band.Name))
	}
	b.WriteString(`</ul>`)
}

// caption is the last value, beside the title; several series have theirs in the legend.
func (c TimeSeries) caption() string {
	if len(c.Series) != 1 {
		return ""
	}
	return c.last(c.Series[0])
}

func (c TimeSeries) last(s Series) string {
	if last, found := lastOf(s.Points); found {
		return c.Unit.Format(last.V)
	}
	return "no data"
}

// describe says the chart in a sentence per series.
func (c TimeSeries) describe() string {
	text := c.From.UTC().Format("Jan 2 15:04") + " to " + c.To.UTC().Format("Jan 2 15:04") + " UTC."
	for _, s := range c.Series {
		low, high := math.Inf(1), math.Inf(-1)
		for _, p := range s.Points {
			if ok(p.V) {
				low, high = math.Min(low, p.V), math.Max(high, p.V)
			}
		}
		last, found := lastOf(s.Points)
		if !found {
			text += " " + strings.TrimSpace(s.Name+" has no data.")
			continue
		}
		text += fmt.Sprintf(" %s: lowest %s, highest %s, last %s.", s.Name, c.Unit.Format(low), c.Unit.Format(high), c.Unit.Format(last.V))
	}
	return text
}

func lastOf(points []Point) (Point, bool) {
	for _, p := range slices.Backward(points) {
		if ok(p.V) {
			return p, true
		}
	}
	return Point{}, false
}

func ok(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func esc(s string) string { return template.HTMLEscapeString(s) }

// num writes a coordinate with one digit behind the point, without a needless ".0" and without "-0".
func num(v float64) string {
	text := strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	if text == "-0" {
		return "0"
	}
	return text
}
