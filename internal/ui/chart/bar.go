package chart

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"
)

// Part is one piece of a stacked bar.
type Part struct {
	Name  string
	Value int64
	Class string // good, info, warn, bad, idle, or s1 to s6
	Href  string // list of the things behind the number; empty makes no link
}

// StackBar shows how a whole divides: a bar, and below it each part's name and number. Parts of
// nothing are left out of the bar and kept in the legend.
type StackBar struct {
	Title string // for screen readers: "Devices by stage"
	Parts []Part
	// Bare leaves the legend out, where the page itself names the parts.
	Bare bool
}

// HTML draws the bar as a <figure>.
func (s StackBar) HTML() template.HTML {
	var total int64
	var words []string
	for _, p := range s.Parts {
		total += max(p.Value, 0)
		words = append(words, fmt.Sprintf("%s %d", p.Name, p.Value))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<figure class="chart stackbar"><svg viewBox="0 0 1000 12" preserveAspectRatio="none" role="img" aria-label="%s">`,
		esc(s.Title+": "+strings.Join(words, ", ")))
	if total == 0 {
		b.WriteString(`<rect class="fill idle" width="1000" height="12"/>`)
	}
	var x, sum float64
	for _, p := range s.Parts {
		if p.Value <= 0 {
			continue
		}
		// Ends are rounded, not widths, so that the pieces close up without gaps.
		sum += float64(p.Value)
		end := math.Round(sum / float64(total) * 1000)
		end = math.Min(math.Max(end, x+3), 1000) // one device among 100,000 is still seen
		fmt.Fprintf(&b, `<rect class="fill %s" x="%s" width="%s" height="12"><title>%s</title></rect>`,
			esc(p.Class), num(x), num(math.Max(end-x-1.5, 1)), esc(fmt.Sprintf("%s: %s of %s", p.Name, plain(float64(p.Value), 0), plain(float64(total), 0))))
		x = end
	}
	b.WriteString(`</svg>`)
	if s.Bare {
		return template.HTML(b.String() + `</figure>`)
	}
	b.WriteString(`<ul class="legend">`)
	for _, p := range s.Parts {
		fmt.Fprintf(&b, `<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="fill %s" width="10" height="10"/></svg>`, esc(p.Class))
		text := esc(p.Name) + " " + plain(float64(p.Value), 0)
		if href := safeHref(p.Href); href != "" {
			fmt.Fprintf(&b, `<a href="%s">%s</a></li>`, esc(href), text)
		} else {
			b.WriteString(text + `</li>`)
		}
	}
	b.WriteString(`</ul></figure>`)
	return template.HTML(b.String())
}

// safeHref lets local paths and queries through and nothing with a scheme.
func safeHref(href string) string {
	if strings.HasPrefix(href, "/") && !strings.HasPrefix(href, "//") || strings.HasPrefix(href, "?") || strings.HasPrefix(href, "#") {
		return href
	}
	return ""
}

// Sparkline draws one series without axes, for a table's cell; label is what screen readers hear.
func Sparkline(label string, unit Unit, step time.Duration, points []Point) template.HTML {
	const width, height = 96.0, 24.0
	low, high := math.Inf(1), math.Inf(-1)
	for _, p := range points {
		if ok(p.V) {
			low, high = math.Min(low, p.V), math.Max(high, p.V)
		}
	}
	last, found := lastOf(points)
	text := label + ": no data"
	if found {
		text = fmt.Sprintf("%s: last %s, lowest %s, highest %s", label, unit.Format(last.V), unit.Format(low), unit.Format(high))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="sparkline" viewBox="0 0 96 24" role="img" aria-label="%s"><title>%s</title>`, esc(text), esc(text))
	if found {
		if high == low {
			low, high = low-1, high+1
		}
		f := frame{TimeSeries: TimeSeries{From: points[0].T, To: points[len(points)-1].T, Step: step}}
		span := math.Max(f.To.Sub(f.From).Seconds(), 1)
		for _, run := range f.runs(points) {
			b.WriteString(`<path class="spark-line" d="`)
			for i, p := range run {
				x := 1 + p.T.Sub(f.From).Seconds()/span*(width-2)
				y := height - 2 - (p.V-low)/(high-low)*(height-4)
				b.WriteString([]string{"L", "M"}[btoi(i == 0)] + num(x) + " " + num(y))
			}
			if len(run) == 1 {
				b.WriteString("h.1") // a round cap makes it a dot
			}
			b.WriteString(`"/>`)
		}
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String())
}
