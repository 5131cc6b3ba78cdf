package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"

	"steward/internal/client"
)

// column is one column of a table for people: a title and the path of the value in the object, with
// dots between the parts. A format after "|" names how to show it: age, bytes, labels, money, names.
type column struct{ title, path string }

// printer writes results in the form that --output asks for.
type printer struct {
	w      io.Writer
	format string // "table", "json" or "yaml"
	now    func() time.Time
}

// list writes objects as a table, or as a JSON or YAML list.
func (p printer) list(items []client.Object, columns []column) error {
	if p.format != "table" {
		if items == nil {
			items = []client.Object{}
		}
		return p.value(items)
	}
	if len(items) == 0 {
		_, err := fmt.Fprintln(p.w, "none")
		return err
	}
	tw := tabwriter.NewWriter(p.w, 0, 4, 2, ' ', 0)
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	fmt.Fprintln(tw, strings.Join(titles, "\t"))
	for _, item := range items {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = p.cell(item, c.path)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// value writes anything as JSON or YAML; for people as indented "key: value" lines.
func (p printer) value(v any) error {
	switch p.format {
	case "json":
		enc := json.NewEncoder(p.w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml", "table":
		data, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = p.w.Write(data)
		return err
	}
	return usagef("--output %q: want table, json or yaml", p.format)
}

// say writes a sentence for people; scripts that ask for JSON or YAML get the object instead.
func (p printer) say(v any, format string, args ...any) error {
	if p.format != "table" {
		return p.value(v)
	}
	_, err := fmt.Fprintf(p.w, format+"\n", args...)
	return err
}

func (p printer) cell(item client.Object, path string) string {
	path, format, _ := strings.Cut(path, "|")
	v := lookup(item, path)
	if v == nil {
		return "-"
	}
	switch format {
	case "age":
		return p.age(v)
	case "bytes":
		return formatBytes(v)
	case "money":
		if f, ok := v.(float64); ok {
			return strconv.FormatFloat(f/100, 'f', 2, 64)
		}
	case "labels":
		return formatLabels(v)
	case "names":
		return formatNames(v)
	}
	return formatScalar(v)
}

// objects are the objects of a JSON list.
func objects(v any) []client.Object {
	list, _ := v.([]any)
	var items []client.Object
	for _, e := range list {
		if o, ok := e.(map[string]any); ok {
			items = append(items, o)
		}
	}
	return items
}

func lookup(item client.Object, path string) any {
	var v any = item
	for part := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[part]
	}
	return v
}

func formatScalar(v any) string {
	switch x := v.(type) {
	case nil:
		return ""
	case string:
		if x == "" {
			return "-"
		}
		return x
	case float64:
		if x == math.Trunc(x) {
			return strconv.FormatInt(int64(x), 10)
		}
		return strconv.FormatFloat(x, 'g', 4, 64)
	case bool:
		return strconv.FormatBool(x)
	case []any:
		parts := make([]string, len(x))
		for i, e := range x {
			parts[i] = formatScalar(e)
		}
		return strings.Join(parts, ",")
	}
	data, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return string(data)
}

func formatLabels(v any) string {
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		return "-"
	}
	parts := make([]string, 0, len(m))
	for k, e := range m {
		parts = append(parts, k+"="+formatScalar(e))
	}
	sort.Strings(parts)
	return strings.Join(parts, ",")
}

// formatNames joins the names of a list of objects.
func formatNames(v any) string {
	list, ok := v.([]any)
	if !ok {
		return formatScalar(v)
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		if o, ok := e.(map[string]any); ok {
			names = append(names, formatScalar(o["name"]))
		}
	}
	return first(strings.Join(names, ","), "-")
}

func formatBytes(v any) string {
	f, ok := v.(float64)
	if !ok {
		return formatScalar(v)
	}
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if f < 1024 {
			return strconv.FormatFloat(f, 'f', max(0, 2-len(strconv.Itoa(int(f)))), 64) + " " + unit
		}
		f /= 1024
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " TiB"
}

func (p printer) age(v any) string {
	s, ok := v.(string)
	if !ok || s == "" {
		return "-"
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.IsZero() {
		return "-"
	}
	d := p.now().Sub(t)
	suffix := " ago"
	if d < 0 {
		d, suffix = -d, " from now"
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds%s", int(d.Seconds()), suffix)
	case d < time.Hour:
		return fmt.Sprintf("%dm%s", int(d.Minutes()), suffix)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%s", int(d.Hours()), suffix)
	}
	return fmt.Sprintf("%dd%s", int(d.Hours()/24), suffix)
}
