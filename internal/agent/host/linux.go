package host

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"steward/internal/wire"
)

// LinuxConfig of the real machine.
type LinuxConfig struct {
	// Root is where the machine's file system is seen; "" means "/". Tests give a tree of their own.
	// Mount points, addresses and programs are the running machine's only when Root is "/".
	Root string
	// Now is for rates between two measurements; nil means time.Now.
	Now func() time.Time
}

// Linux is the machine that the agent really runs on. It reads files below /proc, /sys, /etc and
// package databases, and runs programs only for the services of systemd and procd.
type Linux struct {
	root string
	now  func() time.Time

	mu      sync.Mutex
	missing map[string]string // what → why, of the newest reading of each
	cpu     cpuTimes          // of the measurement before
	energy  map[string]energySample

	software softwareCache
}

// NewLinux returns the machine below cfg.Root.
func NewLinux(cfg LinuxConfig) *Linux {
	l := &Linux{root: cfg.Root, now: cfg.Now, missing: map[string]string{}, energy: map[string]energySample{}}
	if l.root == "" {
		l.root = "/"
	}
	if l.now == nil {
		l.now = time.Now
	}
	return l
}

var _ Host = (*Linux)(nil)

// real tells whether this is the running machine and not a tree of a test.
func (l *Linux) real() bool { return l.root == "/" }

func (l *Linux) path(elem ...string) string {
	return filepath.Join(append([]string{l.root}, elem...)...)
}

// read returns a small file of /proc or /sys without the blanks around it, or "". When the file is
// there and may not be read, what is named as missing.
func (l *Linux) read(what string, elem ...string) string {
	data, err := os.ReadFile(l.path(elem...))
	l.note(what, err, elem...)
	return strings.TrimSpace(string(bytes.TrimRight(data, "\x00")))
}

// note remembers why something could not be learned, or forgets that it could not. A file that does
// not exist is no lack: the machine has no such thing.
func (l *Linux) note(what string, err error, elem ...string) {
	if what == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, fs.ErrPermission):
		reason := "/" + filepath.Join(elem...) + ": permission denied"
		if os.Geteuid() != 0 {
			reason += " (the agent does not run as root)"
		}
		l.missing[what] = reason
	default:
		delete(l.missing, what)
	}
}

func (l *Linux) noteReason(what, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if reason == "" {
		delete(l.missing, what)
		return
	}
	l.missing[what] = reason
}

// Unavailable names what could not be learned and why.
func (l *Linux) Unavailable() []wire.Missing {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []wire.Missing
	for what, reason := range l.missing {
		out = append(out, wire.Missing{What: what, Reason: reason})
	}
	slices.SortFunc(out, func(a, b wire.Missing) int { return strings.Compare(a.What, b.What) })
	return out
}

// Identity reads the maker's serial number: DMI (root only), the device tree, the board's line in
// cpuinfo. Machines without one get a number made from the installation's machine-id.
func (l *Linux) Identity(context.Context) Identity {
	type source struct{ name, serial string }
	for _, s := range []source{
		{"dmi", l.read("serial number (DMI)", dmiDir, "product_serial")},
		{"dmi", l.read("board serial number (DMI)", dmiDir, "board_serial")},
		{"device tree", l.read("", "proc/device-tree/serial-number")},
		{"cpuinfo", cpuinfoField(l.read("", "proc/cpuinfo"), "Serial")},
	} {
		if serial := cleanSerial(s.serial); serial != "" {
			return Identity{Serial: serial, Source: s.name}
		}
	}
	for _, path := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		if id := l.read("", path); len(id) >= 32 {
			return Identity{Serial: "mid-" + deriveID(id), Source: "machine-id", Fallback: true}
		}
	}
	name := l.hostname()
	return Identity{Serial: "host-" + deriveID(name), Source: "hostname", Fallback: true}
}

const dmiDir = "sys/class/dmi/id"

// Inventory reads what the machine is.
func (l *Linux) Inventory(ctx context.Context) (wire.Inventory, error) {
	identity := l.Identity(ctx)
	release := l.osRelease()
	cpuinfo := l.read("", "proc/cpuinfo")
	inv := wire.Inventory{
		Hostname:     l.hostname(),
		Architecture: architecture(),
		Machine:      l.machine(cpuinfo, identity),
		OS:           release,
		CPU:          cpuOf(cpuinfo),
		MemoryBytes:  meminfo(l.read("", "proc/meminfo"))["MemTotal"],
		Disks:        l.disks(),
		Interfaces:   l.interfaces(),
		TPM:          l.tpm(),
		SecureBoot:   l.secureBoot(),
	}
	inv.Unavailable = l.Unavailable()
	return inv, ctx.Err()
}

func (l *Linux) hostname() string {
	if name := l.read("", "proc/sys/kernel/hostname"); name != "" {
		return name
	}
	return l.read("", "etc/hostname")
}
