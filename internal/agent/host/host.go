// Package host hides the machine from the agent: the real Linux (NewLinux) or a simulated one
// (NewSim), so that a simulated fleet runs the agent's own code.
//
// What the machine or the agent's rights do not give is never an error of the whole: it is left out
// and named by Unavailable with its reason.
package host

import (
	"context"
	"errors"
	"time"

	"steward/internal/wire"
)

// Host is the machine that the agent runs on, in facets so that a room asks only for what it needs.
// Implementations are safe for use by several goroutines.
type Host interface {
	Facts
	Software
	Sensors
	Runner
}

// Facts are what the machine is; they change seldom.
type Facts interface {
	// Identity tells who the machine is and where that was read.
	Identity(ctx context.Context) Identity
	// Inventory reads all facts; the error is for a machine that can't be read at all.
	Inventory(ctx context.Context) (wire.Inventory, error)
	// Unavailable names what could not be learned at the last reading, and why, in a fixed order.
	Unavailable() []wire.Missing
}

// Software is what is installed. Implementations return the same pointer while nothing has changed,
// so that callers need not encode and compare.
type Software interface {
	Packages(ctx context.Context) (*wire.Packages, error)
	Services(ctx context.Context) (*wire.Services, error)
}

// Measurement is what was measured at one time.
type Measurement struct {
	At      time.Time
	Metrics []Metric
}

// Sensors are what changes by the minute.
type Sensors interface {
	// Metrics measures once; rates (CPU utilization) are those since the call before.
	Metrics(ctx context.Context) ([]Metric, error)
}

// Runner does things on the machine.
type Runner interface {
	// Exec runs a program, no shell, with dir as its working directory, and returns its output
	// (stdout and stderr together, at most the last MaxOutputBytes) and exit code. A program that
	// can't be started, or that does not end within the timeout (its process group is killed), is
	// an error; a code other than 0 is not.
	Exec(ctx context.Context, dir string, argv []string, timeout time.Duration) (output []byte, exitCode int, err error)
	// FreeBytes is the space that the agent may still use on the file system of dir.
	FreeBytes(dir string) (int64, error)
}

// MaxOutputBytes bounds the output that Exec keeps: the last bytes, where errors stand.
const MaxOutputBytes = 64 << 10

// Errors of Exec.
var (
	ErrTimeout = errors.New("did not end in time")
	ErrStart   = errors.New("could not be started")
)

// Identity is the machine's serial number and where it comes from.
type Identity struct {
	Serial string
	Source string // "dmi", "device tree", "cpuinfo", "machine-id", "hostname"
	// Fallback says that the maker gave no readable number and Serial was made from what the
	// installation has: it changes when the machine is installed anew.
	Fallback bool
}

// Metric is one measured value. Names are those of OpenTelemetry's semantic conventions where one
// exists; see the constants.
type Metric struct {
	Name       string
	Unit       string // UCUM: "1" for a ratio, "By", "s", "Cel", "W"
	Value      float64
	Cumulative bool              // grows since the boot (a counter), else a gauge
	Attributes map[string]string // nil for most; never changed after the metric was returned
}

// Names of metrics.
const (
	MetricCPU         = "system.cpu.utilization"     // ratio over all cores
	MetricMemoryUsage = "system.memory.usage"        // bytes in use, without caches
	MetricMemoryLimit = "system.memory.limit"        // bytes
	MetricDiskUsage   = "system.filesystem.usage"    // bytes, attribute mountpoint
	MetricDiskLimit   = "system.filesystem.limit"    // bytes, attribute mountpoint
	MetricLoad        = "system.cpu.load_average.1m" // processes
	MetricNetwork     = "system.network.io"          // cumulative bytes, attributes device, direction
	MetricTemperature = "system.temperature"         // Cel, attribute sensor
	MetricPower       = "system.power"               // W, attribute sensor
	MetricBattery     = "system.battery.charge"      // ratio, attribute sensor
	MetricUptime      = "system.uptime"              // s
	MetricAgentMemory = "process.memory.rss"         // bytes of the agent's own process
)

// Attribute names of metrics.
const (
	AttrMount     = "mountpoint"
	AttrDevice    = "device"
	AttrDirection = "direction" // "receive" or "transmit"
	AttrSensor    = "sensor"
)
