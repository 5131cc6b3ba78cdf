package host

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"os"
)

// cpuTimes are the sums of /proc/stat's first line, in ticks.
type cpuTimes struct{ busy, total uint64 }

// energySample is a cumulative energy counter (RAPL) at a time.
type energySample struct {
	microjoules uint64
	at          time.Time
}

// Metrics measures what the machine has. The first call has no CPU utilization: it is a rate.
func (l *Linux) Metrics(ctx context.Context) ([]Metric, error) {
	var out []Metric
	add := func(name, unit string, value float64, attributes map[string]string) {
		out = append(out, Metric{Name: name, Unit: unit, Value: value, Attributes: attributes})
	}
	if ratio, ok := l.cpuUtilization(); ok {
		add(MetricCPU, "1", ratio, nil)
	}
	if mem := meminfo(l.read("", "proc/meminfo")); mem["MemTotal"] > 0 {
		available, has := mem["MemAvailable"]
		if !has { // before Linux 3.14
			available = mem["MemFree"] + mem["Buffers"] + mem["Cached"]
		}
		add(MetricMemoryUsage, "By", float64(mem["MemTotal"]-available), nil)
		add(MetricMemoryLimit, "By", float64(mem["MemTotal"]), nil)
	}
	for _, m := range l.mounts() {
		var fs unix.Statfs_t
		if err := unix.Statfs(l.path(m.point), &fs); err != nil || fs.Blocks == 0 || m.fileSystem == "squashfs" {
			continue // squashfs is full by its nature
		}
		attributes := map[string]string{AttrMount: m.point}
		add(MetricDiskUsage, "By", float64(fs.Blocks-fs.Bfree)*float64(fs.Bsize), attributes)
		add(MetricDiskLimit, "By", float64(fs.Blocks)*float64(fs.Bsize), attributes)
	}
	if load, err := strconv.ParseFloat(firstField(l.read("", "proc/loadavg")), 64); err == nil {
		add(MetricLoad, "{process}", load, nil)
	}
	if up, err := strconv.ParseFloat(firstField(l.read("", "proc/uptime")), 64); err == nil {
		add(MetricUptime, "s", up, nil)
	}
	if rss, ok := l.agentMemory(); ok {
		add(MetricAgentMemory, "By", rss, nil)
	}
	out = append(out, networkMetrics(l.read("", "proc/net/dev"))...)
	out = append(out, l.temperatures()...)
	out = append(out, l.power()...)
	return out, ctx.Err()
}

func firstField(s string) string {
	first, _, _ := strings.Cut(s, " ")
	return first
}

// cpuUtilization is the busy share of all cores since the call before. Guest time is part of user time
// already (proc(5)), so only the first eight columns count.
func (l *Linux) cpuUtilization() (float64, bool) {
	line, _, _ := strings.Cut(l.read("", "proc/stat"), "\n")
	fields := strings.Fields(line)
	if len(fields) < 5 || fields[0] != "cpu" {
		return 0, false
	}
	var now cpuTimes
	for i, f := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, false
		}
		now.total += n
		if i != 3 && i != 4 { // idle, iowait
			now.busy += n
		}
	}
	l.mu.Lock()
	before := l.cpu
	l.cpu = now
	l.mu.Unlock()
	if before.total == 0 || now.total <= before.total || now.busy < before.busy {
		return 0, false
	}
	return float64(now.busy-before.busy) / float64(now.total-before.total), true
}

func (l *Linux) agentMemory() (float64, bool) {
	fields := strings.Fields(l.read("", "proc/self/statm"))
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	return float64(pages) * float64(os.Getpagesize()), err == nil
}

// networkMetrics reads /proc/net/dev, without the loopback and the pairs of containers.
func networkMetrics(text string) []Metric {
	var out []Metric
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		fields := strings.Fields(rest)
		if !ok || len(fields) < 9 || name == "lo" || strings.HasPrefix(name, "veth") {
			continue
		}
		for direction, column := range map[string]int{"receive": 0, "transmit": 8} {
			if n, err := strconv.ParseFloat(fields[column], 64); err == nil {
				out = append(out, Metric{Name: MetricNetwork, Unit: "By", Value: n, Cumulative: true,
					Attributes: map[string]string{AttrDevice: name, AttrDirection: direction}})
			}
		}
	}
	return out
}

// temperatures reads the thermal zones, and the hardware monitors when there are no zones.
func (l *Linux) temperatures() []Metric {
	var out []Metric
	add := func(sensor, text string) {
		milli, err := strconv.ParseFloat(text, 64)
		// Sensors that are not wired show absolute zero or hundreds of degrees.
		if err == nil && milli > -60_000 && milli < 200_000 {
			out = append(out, Metric{Name: MetricTemperature, Unit: "Cel", Value: milli / 1000, Attributes: map[string]string{AttrSensor: sensor}})
		}
	}
	for _, dir := range l.glob("sys/class/thermal/thermal_zone*") {
		add(l.label(dir, "type"), l.read("", dir, "temp"))
	}
	if len(out) > 0 {
		return out
	}
	for _, file := range l.glob("sys/class/hwmon/hwmon*/temp*_input") {
		dir, base := filepath.Split(file)
		add(l.label(dir, "name")+" "+strings.TrimSuffix(base, "_input"), l.read("", file))
	}
	return out
}

// power reads watts from hardware monitors and power supplies, the charge of batteries, and the
// processor package's energy counter (RAPL), which only root may read.
func (l *Linux) power() []Metric {
	var out []Metric
	watts := func(sensor string, value float64) {
		out = append(out, Metric{Name: MetricPower, Unit: "W", Value: value, Attributes: map[string]string{AttrSensor: sensor}})
	}
	for _, file := range l.glob("sys/class/hwmon/hwmon*/power*_input") {
		dir, base := filepath.Split(file)
		if micro, err := strconv.ParseFloat(l.read("", file), 64); err == nil {
			watts(l.label(dir, "name")+" "+strings.TrimSuffix(base, "_input"), micro/1e6)
		}
	}
	for _, dir := range l.glob("sys/class/power_supply/*") {
		sensor := filepath.Base(dir)
		if micro, err := strconv.ParseFloat(l.read("", dir, "power_now"), 64); err == nil {
			watts(sensor, micro/1e6)
		}
		if l.read("", dir, "type") != "Battery" {
			continue
		}
		if percent, err := strconv.ParseFloat(l.read("", dir, "capacity"), 64); err == nil {
			out = append(out, Metric{Name: MetricBattery, Unit: "1", Value: percent / 100, Attributes: map[string]string{AttrSensor: sensor}})
		}
	}
	for _, dir := range l.glob("sys/class/powercap/intel-rapl:[0-9]") {
		if w, ok := l.raplWatts(dir); ok {
			watts(l.label(dir, "name"), w)
		}
	}
	return out
}

func (l *Linux) raplWatts(dir string) (float64, bool) {
	micro, err := strconv.ParseUint(l.read("processor power (RAPL)", dir, "energy_uj"), 10, 64)
	if err != nil {
		return 0, false
	}
	now := energySample{micro, l.now()}
	l.mu.Lock()
	before, has := l.energy[dir]
	l.energy[dir] = now
	l.mu.Unlock()
	seconds := now.at.Sub(before.at).Seconds()
	if !has || seconds <= 0 || now.microjoules < before.microjoules { // the counter wraps
		return 0, false
	}
	return float64(now.microjoules-before.microjoules) / 1e6 / seconds, true
}

// label is the content of a naming file, or the directory's name.
func (l *Linux) label(dir, file string) string {
	if name := l.read("", dir, file); name != "" {
		return name
	}
	return filepath.Base(dir)
}

// glob returns paths below the root.
func (l *Linux) glob(pattern string) []string {
	paths, err := filepath.Glob(l.path(pattern))
	if err != nil {
		return nil // only for a malformed pattern, and ours are constants
	}
	for i, p := range paths {
		paths[i], _ = filepath.Rel(l.root, p)
	}
	return paths
}
