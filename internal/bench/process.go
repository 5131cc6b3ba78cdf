package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is the unit of the kernel's times in /proc (USER_HZ), 100 on every architecture that
// Go runs on.
const ticksPerSecond = 100

// process is a running process by its number.
type process int

// stat returns the fields of /proc/PID/stat from the state on: field n of proc(5) is at n-3.
func (p process) stat() ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
	if err != nil {
		return nil, err
	}
	// The name stands in parentheses and may hold anything.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields", p, len(fields))
	}
	return fields, nil
}

// sumTicks adds fields of proc(5) that count ticks.
func sumTicks(stat []string, fields ...int) (time.Duration, error) {
	var ticks int64
	for _, f := range fields {
		n, err := strconv.ParseInt(stat[f-3], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond), nil
}

// cpu is the processor time that the process has used: user and system.
func (p process) cpu() (time.Duration, error) {
	stat, err := p.stat()
	if err != nil {
		return 0, err
	}
	return sumTicks(stat, 14, 15)
}

// familyCPU is that of the process, its ended children and its living ones: PostgreSQL's.
func (p process) familyCPU() (time.Duration, error) {
	stat, err := p.stat()
	if err != nil {
		return 0, err
	}
	total, err := sumTicks(stat, 14, 15, 16, 17)
	if err != nil {
		return 0, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		n, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		child, err := process(n).stat()
		if err != nil || child[1] != strconv.Itoa(int(p)) {
			continue // ended meanwhile, or another's
		}
		used, err := sumTicks(child, 14, 15)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// memory of a process in KiB.
type memory struct {
	Resident  int64 // all pages in memory, those of the program file included
	Anonymous int64 // what it alone holds: heap and stacks
	Peak      int64 // highest Resident since the start or resetPeak
}

func (p process) memory() (m memory, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		into := map[string]*int64{"VmRSS": &m.Resident, "RssAnon": &m.Anonymous, "VmHWM": &m.Peak}[key]
		if into == nil {
			continue
		}
		if *into, err = strconv.ParseInt(strings.Fields(value)[0], 10, 64); err != nil {
			return m, fmt.Errorf("/proc/%d/status: %w", p, err)
		}
	}
	if m.Resident == 0 {
		return m, errors.New("the process has ended")
	}
	return m, nil
}

// resetPeak makes the present resident set the peak. Kernels that don't allow it keep the old one.
func (p process) resetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p), []byte("5"), 0)
}
