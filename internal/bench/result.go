package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is one row. Fields that a scenario doesn't measure are zero and left out of the JSON, but for
// those that every object has.
type Result struct {
	Scenario  string  `json:"scenario"` // with a part after a slash when a scenario has several rows
	Database  string  `json:"database"` // sqlite or postgres
	Devices   int     `json:"devices"`
	Failed    int     `json:"failed"`     // requests or devices that did not get what they wanted
	Seconds   float64 `json:"seconds"`    // wall clock
	PerSecond float64 `json:"per_second"` // requests or devices
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`

	KiBPerDevice float64 `json:"server_kib_per_device"` // resident set, less that of the server without devices
	CPUPerDevice float64 `json:"server_cpu_ms_per_device"`

	Processes int              `json:"processes,omitzero"`     // with devices in them
	Nodes     int              `json:"nodes,omitzero"`         // servers
	Resumed   float64          `json:"resumed_share,omitzero"` // of handshakes
	Facts     map[string]int64 `json:"facts,omitempty"`        // what else was counted, for the curious

	GeneratorCPU float64 `json:"generator_cpu_seconds,omitzero"` // what the devices' processes used: it is taken from the server's machine

	CPUPerRequest         float64 `json:"server_cpu_ms_per_request,omitzero"`
	CPUPerDeviceMinute    float64 `json:"server_cpu_ms_per_device_minute,omitzero"`
	DatabaseCPUPerRequest float64 `json:"database_cpu_ms_per_request,omitzero"` // PostgreSQL's processes
	DatabaseCPUPerDevice  float64 `json:"database_cpu_ms_per_device,omitzero"`
	ServerKiB             int64   `json:"server_kib,omitzero"`           // resident set at the end
	ServerAnonKiB         int64   `json:"server_anonymous_kib,omitzero"` // of it, heap and stacks
	ServerPeakKiB         int64   `json:"server_peak_kib,omitzero"`      // its highest during the scenario

	Program      string  `json:"program,omitempty"` // of scenario size
	Bytes        int64   `json:"bytes,omitzero"`
	KiB          int64   `json:"kib,omitzero"` // resident set of the program at rest
	AnonKiB      int64   `json:"anonymous_kib,omitzero"`
	CPUPerMinute float64 `json:"cpu_ms_per_minute,omitzero"`
}

// percentile is the nearest-rank percentile in milliseconds; 0 without values. It sorts its argument.
func percentile(values []time.Duration, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	rank := int(math.Ceil(p / 100 * float64(len(values))))
	return milliseconds(values[min(max(rank, 1), len(values))-1])
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// median is the middle one, or the mean of the two in the middle; 0 without values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// medianOf takes each measured number from the rounds' middle; what failed is counted over all rounds.
func medianOf(rounds []Result) Result {
	out := rounds[0]
	out.Failed = 0
	for _, r := range rounds {
		out.Failed += r.Failed
	}
	for _, field := range []func(*Result) *float64{
		func(r *Result) *float64 { return &r.Seconds }, func(r *Result) *float64 { return &r.PerSecond },
		func(r *Result) *float64 { return &r.P50 }, func(r *Result) *float64 { return &r.P99 },
		func(r *Result) *float64 { return &r.CPUPerRequest }, func(r *Result) *float64 { return &r.DatabaseCPUPerRequest },
	} {
		var values []float64
		for i := range rounds {
			values = append(values, *field(&rounds[i]))
		}
		*field(&out) = median(values)
	}
	return out
}

// rounded keeps four significant digits: more would be noise.
func rounded(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	scale := math.Pow(10, 4-math.Ceil(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

func (r Result) rounded() Result {
	for _, v := range []*float64{
		&r.Seconds, &r.PerSecond, &r.P50, &r.P99, &r.CPUPerRequest, &r.CPUPerDevice, &r.CPUPerDeviceMinute,
		&r.DatabaseCPUPerRequest, &r.DatabaseCPUPerDevice, &r.KiBPerDevice, &r.CPUPerMinute, &r.Resumed, &r.GeneratorCPU,
	} {
		*v = rounded(*v)
	}
	return r
}

// writeJSON writes one object per line.
func writeJSON(w io.Writer, results []Result) error {
	enc := json.NewEncoder(w)
	for _, r := range results {
		if err := enc.Encode(r.rounded()); err != nil {
			return err
		}
	}
	return nil
}

// columns of the table; one that is empty in all rows is left out.
var columns = []struct {
	head string
	cell func(r Result) float64
	form string
}{
	{"devices", func(r Result) float64 { return float64(r.Devices) }, "%.0f"},
	{"failed", func(r Result) float64 { return float64(r.Failed) }, "%.0f"},
	{"seconds", func(r Result) float64 { return r.Seconds }, "%.1f"},
	{"per second", func(r Result) float64 { return r.PerSecond }, "%.0f"},
	{"p50 ms", func(r Result) float64 { return r.P50 }, "%.1f"},
	{"p99 ms", func(r Result) float64 { return r.P99 }, "%.1f"},
	{"CPU ms/request", func(r Result) float64 { return r.CPUPerRequest }, "%.2f"},
	{"db CPU ms/request", func(r Result) float64 { return r.DatabaseCPUPerRequest }, "%.2f"},
	{"CPU ms/device", func(r Result) float64 { return r.CPUPerDevice }, "%.2f"},
	{"db CPU ms/device", func(r Result) float64 { return r.DatabaseCPUPerDevice }, "%.2f"},
	{"CPU ms/device/min", func(r Result) float64 { return r.CPUPerDeviceMinute }, "%.2f"},
	{"KiB/device", func(r Result) float64 { return r.KiBPerDevice }, "%.1f"},
	{"load CPU s", func(r Result) float64 { return r.GeneratorCPU }, "%.1f"},
	{"resumed %", func(r Result) float64 { return 100 * r.Resumed }, "%.0f"},
	{"server MiB", func(r Result) float64 { return float64(r.ServerKiB) / 1024 }, "%.0f"},
	{"anonymous MiB", func(r Result) float64 { return float64(r.ServerAnonKiB) / 1024 }, "%.0f"},
	{"peak MiB", func(r Result) float64 { return float64(r.ServerPeakKiB) / 1024 }, "%.0f"},
	{"binary MB", func(r Result) float64 { return float64(r.Bytes) / 1e6 }, "%.1f"},
	{"resident MiB", func(r Result) float64 { return float64(r.KiB) / 1024 }, "%.1f"},
	{"own MiB", func(r Result) float64 { return float64(r.AnonKiB) / 1024 }, "%.1f"},
	{"CPU ms/min", func(r Result) float64 { return r.CPUPerMinute }, "%.0f"},
}

func writeTable(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	var shown []int
	head := []string{"scenario"}
	for i, c := range columns {
		if i < 2 || slices.ContainsFunc(results, func(r Result) bool { return c.cell(r) != 0 }) {
			shown = append(shown, i)
			head = append(head, c.head)
		}
	}
	fmt.Fprintln(t, strings.Join(head, "\t")+"\t")
	for _, r := range results {
		row := []string{r.Scenario}
		for _, i := range shown {
			row = append(row, fmt.Sprintf(columns[i].form, columns[i].cell(r)))
		}
		fmt.Fprintln(t, strings.Join(row, "\t")+"\t")
	}
	return t.Flush()
}
