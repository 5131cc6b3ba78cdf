package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
)

// funcs are the functions of all page templates.
//
//	{{reltime .At}}               "3 min ago" as a <time> with the exact one on hover; "never" for the zero time
//	{{exact .At}}                 "2026-11-23 06:15:35 UTC"
//	{{date .At}}                  "2026-11-23"
//	{{bytes .Size}}               "1.5 GiB"        {{number .Count}}   "12,345"
//	{{percent .Ratio}}            "42 %" of 0.42   {{duration .D}}     "3 d 4 h"
//	{{plural .N "device" "devices"}}               "1 device", "2 devices"
//	{{status .Stage}}             badge: a shape and the word, its level known from the word
//	{{badge "warn" "clock is wrong"}}              badge of an own level: good, info, warn, bad, idle
//	{{labels .Device.Labels}}     label chips
//	{{icon "devices"}}            a line icon
//	{{field "serial" "Serial number" .Form.Serial .Errors "hint" "…" "required" true}}
//	                              label, input, hint and error; further names: type, placeholder, rows (makes a
//	                              textarea), options ([]Option, makes a select), autocomplete, min, max, accept
//	{{copy .Command}}             code with a copy button
//	{{json .Document}}            indented JSON in <pre>
//	{{dict "A" 1 "B" 2}}          a map for partials     {{list 1 2 3}}
//	{{bar .Done .Total "committed"}}               progress bar with its text
//	{{short .Hash}}               first 12 characters, whole on hover
//	{{asset "steward.css"}}       URL of a static file
func (c *Console) funcs() template.FuncMap {
	return template.FuncMap{
		"reltime":    func(t time.Time) template.HTML { return relTime(t, c.cfg.Now()) },
		"exact":      exactTime,
		"date":       func(t time.Time) string { return t.UTC().Format(time.DateOnly) },
		"bytes":      func(v any) (string, error) { return withFloat(v, formatBytes) },
		"number":     func(v any) (string, error) { return withFloat(v, formatNumber) },
		"percent":    func(v any) (string, error) { return withFloat(v, formatPercent) },
		"duration":   FormatDuration,
		"plural":     plural,
		"status":     func(word any) template.HTML { return Status(fmt.Sprint(word)) },
		"badge":      func(level, word any) template.HTML { return Badge(fmt.Sprint(level), fmt.Sprint(word)) },
		"labels":     labelChips,
		"icon":       icon,
		"field":      field,
		"copy":       copyable,
		"json":       prettyJSON,
		"dict":       dict,
		"list":       func(items ...any) []any { return items },
		"bar":        progressBar,
		"short":      short,
		"join":       strings.Join,
		"noticeWord": func(l Level) string { return noticeWords[l.String()] },
		"asset":      func(name string) string { return c.assets.urls[name] },
	}
}

// relTime is a <time> that ui.js keeps ticking.
func relTime(t, now time.Time) template.HTML {
	if t.IsZero() {
		return `<span class="muted">never</span>`
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s" data-rel>%s</time>`,
		t.UTC().Format(time.RFC3339), exactTime(t), relText(t, now)))
}

// relText says how long ago t was, or how long until it is. ui.js has the same table.
func relText(t, now time.Time) string {
	d := now.Sub(t)
	text := FormatDuration(d.Abs())
	switch {
	case d.Abs() < 5*time.Second:
		return "just now"
	case d < 0:
		return "in " + text
	}
	return text + " ago"
}

func exactTime(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// FormatDuration writes a duration in its two largest units at most: "45 s", "3 min", "2 h 5 min", "9 d".
func FormatDuration(d time.Duration) string {
	if d < 0 {
		return "−" + FormatDuration(-d)
	}
	s := int64(d / time.Second)
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d min", s/60)
	case s < 24*3600:
		return twoUnits(s/3600, "h", s%3600/60, "min")
	case s < 7*24*3600:
		return twoUnits(s/86400, "d", s%86400/3600, "h")
	}
	return formatNumber(float64(s/86400)) + " d"
}

func twoUnits(a int64, unitA string, b int64, unitB string) string {
	if b == 0 {
		return fmt.Sprintf("%d %s", a, unitA)
	}
	return fmt.Sprintf("%d %s %d %s", a, unitA, b, unitB)
}

func withFloat(v any, format func(float64) string) (string, error) {
	switch n := v.(type) {
	case int:
		return format(float64(n)), nil
	case int64:
		return format(float64(n)), nil
	case int32:
		return format(float64(n)), nil
	case uint64:
		return format(float64(n)), nil
	case float64:
		return format(n), nil
	}
	return "", fmt.Errorf("want a number, got %T", v)
}

func formatBytes(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; math.Abs(n) >= 1024 && i < len(units)-1; i++ {
		n /= 1024
	}
	if i == 0 || math.Abs(n) >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

// formatNumber groups thousands; fractions keep up to two digits.
func formatNumber(n float64) string {
	text := strconv.FormatFloat(math.Round(n*100)/100, 'f', -1, 64)
	whole, fraction, _ := strings.Cut(text, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "−", whole[1:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction != "" {
		whole += "." + fraction
	}
	return sign + whole
}

func formatPercent(ratio float64) string {
	p := ratio * 100
	if p != 0 && math.Abs(p) < 10 {
		return fmt.Sprintf("%.1f %%", p)
	}
	return fmt.Sprintf("%.0f %%", p)
}

func plural(n any, one, many string) (string, error) {
	text, err := withFloat(n, formatNumber)
	if text == "1" {
		return "1 " + one, err
	}
	return text + " " + many, err
}

// Plural is "1 device" or "2 devices", for texts that handlers make.
func Plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return formatNumber(float64(n)) + " " + many
}

func labelChips(labels map[string]string) template.HTML {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(labels)) {
		if i == 0 {
			b.WriteString(`<span class="labels">`)
		}
		b.WriteString(`<span class="label"><span class="label-key">` + template.HTMLEscapeString(k) + `</span>`)
		if v := labels[k]; v != "" {
			b.WriteString(`=` + template.HTMLEscapeString(v))
		}
		b.WriteString(`</span>`)
	}
	if b.Len() > 0 {
		b.WriteString(`</span>`)
	}
	return template.HTML(b.String())
}

func copyable(text string) template.HTML {
	return template.HTML(`<span class="copy"><code>` + template.HTMLEscapeString(text) +
		`</code><button type="button" class="button small" data-copy hidden>Copy</button></span>`)
}

func prettyJSON(v any) (template.HTML, error) {
	if raw, ok := v.([]byte); ok {
		v = json.RawMessage(raw)
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", err
	}
	return template.HTML(`<pre class="code" tabindex="0">` + template.HTMLEscapeString(string(text)) + `</pre>`), nil
}

func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, errors.New("dict: want names and values")
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: name %d is a %T", i/2, pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

func progressBar(done, total any, what string) (template.HTML, error) {
	d, err := withFloat(done, formatNumber)
	if err != nil {
		return "", err
	}
	t, err := withFloat(total, formatNumber)
	plain := strings.NewReplacer(",", "")
	return template.HTML(fmt.Sprintf(`<span class="progress"><progress value="%s" max="%s" aria-label="%s"></progress><span>%s of %s %s</span></span>`,
		plain.Replace(d), plain.Replace(t), template.HTMLEscapeString(what), d, t, template.HTMLEscapeString(what))), err
}

func short(v any) template.HTML {
	text := fmt.Sprint(v)
	if len(text) <= 12 {
		return template.HTML(`<code>` + template.HTMLEscapeString(text) + `</code>`)
	}
	return template.HTML(`<code title="` + template.HTMLEscapeString(text) + `">` + template.HTMLEscapeString(text[:12]) + `…</code>`)
}

// levelOf knows the words that rooms use for states.
var levelOf = map[string]string{
	"online": "good", "late": "warn", "offline": "bad", "never": "idle", "never seen": "idle",
	string(device.Ordered): "idle", string(device.Received): "info", string(device.Staged): "info",
	string(device.Enrolled): "info", string(device.Active): "good", string(device.Quarantined): "bad",
	string(device.InTransfer): "warn", string(device.Retired): "warn", string(device.Disposed): "idle",
	"pending": "idle", "downloading": "info", "downloaded": "info", "installed": "info", "healthy": "info",
	"committed": "good", "rolled_back": "bad", "failed": "bad",
	"draft": "idle", "placed": "info", "open": "info", "partial": "warn", "partly received": "warn", "complete": "good",
	"closed": "idle", "cancelled": "idle", "valid": "good", "unused": "info", "used": "idle", "expired": "warn",
	"revoked": "bad", "running": "good", "stopped": "idle", "verified": "good", "accepted": "info", "sanitized": "good",
	"published": "good", "signed": "good", "withdrawn": "bad",
}

// Status is the badge of a state by its word; an unknown word is shown as idle.
func Status(word string) template.HTML {
	level, ok := levelOf[word]
	if !ok {
		level = "idle"
	}
	return Badge(level, word)
}

// shapes tell the levels apart without colour.
var shapes = map[string]string{
	"good": `<circle cx="5" cy="5" r="4"/>`,
	"info": `<circle cx="5" cy="5" r="3.25" class="hollow"/><circle cx="5" cy="5" r="1.25"/>`,
	"warn": `<path d="M5 .8 9.6 9.2H.4z"/>`,
	"bad":  `<path d="M1 1h8v8H1z"/>`,
	"idle": `<circle cx="5" cy="5" r="3.25" class="hollow"/>`,
}

// Badge is a shape and a word; level is good, info, warn, bad or idle.
func Badge(level, word string) template.HTML {
	shape, ok := shapes[level]
	if !ok {
		level, shape = "idle", shapes["idle"]
	}
	return template.HTML(`<span class="status status-` + level + `"><svg class="shape" viewBox="0 0 10 10" aria-hidden="true">` +
		shape + `</svg>` + template.HTMLEscapeString(strings.ReplaceAll(word, "_", " ")) + `</span>`)
}
