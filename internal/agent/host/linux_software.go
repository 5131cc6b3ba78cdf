package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"steward/internal/agent/host/packages"
	"steward/internal/wire"
)

// softwareCache keeps the last reading, since a list of hundreds of packages is read and encoded only
// when a database has changed.
type softwareCache struct {
	mu       sync.Mutex
	stamp    string
	packages *wire.Packages
	services *wire.Services
}

// Packages reads the package databases, or returns the last reading while none has changed.
func (l *Linux) Packages(ctx context.Context) (*wire.Packages, error) {
	l.software.mu.Lock()
	defer l.software.mu.Unlock()
	stamp := packages.Stamp(l.root)
	if l.software.packages != nil && stamp == l.software.stamp {
		return l.software.packages, nil
	}
	res := packages.Read(l.root)
	for _, manager := range []string{"dpkg", "apk", "opkg", "rpm"} {
		l.noteReason(manager+" packages", "")
	}
	l.noteReason("packages", "")
	for _, m := range res.Missing {
		l.noteReason(m.What, m.Reason)
	}
	if res.Found == 0 {
		l.noteReason("packages", "no database of dpkg, apk, opkg or rpm was found")
	}
	if res.Packages == nil {
		res.Packages = []wire.Package{}
	}
	l.software.stamp, l.software.packages = stamp, &wire.Packages{Packages: res.Packages}
	return l.software.packages, ctx.Err()
}

// serviceTimeout bounds the programs that list services.
const serviceTimeout = 20 * time.Second

// Services lists the services of the manager that runs the machine.
func (l *Linux) Services(ctx context.Context) (*wire.Services, error) {
	manager, list := l.serviceManager()
	services := &wire.Services{Manager: manager, Services: []wire.Service{}}
	if list == nil {
		l.noteReason("services", "no service manager was found (systemd, OpenRC, procd, System V init)")
	} else {
		found, err := list(ctx)
		l.noteReason("services", "")
		if err != nil {
			l.noteReason("services", manager+": "+err.Error())
		}
		slices.SortFunc(found, func(a, b wire.Service) int { return strings.Compare(a.Name, b.Name) })
		services.Services = append(services.Services, found...)
	}
	l.software.mu.Lock()
	defer l.software.mu.Unlock()
	if l.software.services == nil || !reflect.DeepEqual(l.software.services, services) {
		l.software.services = services
	}
	return l.software.services, ctx.Err()
}

func (l *Linux) exists(path string) bool {
	_, err := os.Stat(l.path(path))
	return err == nil
}

// serviceManager tells what runs the machine by the traces that each leaves while it runs.
func (l *Linux) serviceManager() (string, func(context.Context) ([]wire.Service, error)) {
	init := l.read("", "proc/1/comm")
	switch {
	case l.exists("run/systemd/system"):
		return "systemd", l.systemd
	case l.exists("run/openrc/softlevel"):
		return "openrc", l.openRC
	case l.exists("sbin/procd"):
		return "procd", l.procd
	case init == "init" && l.exists("etc/init.d"):
		return "sysv", l.sysV
	}
	return "", nil
}

func (l *Linux) output(ctx context.Context, argv ...string) ([]byte, error) {
	out, code, err := l.Exec(ctx, "/", argv, serviceTimeout)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("%s: exit code %d: %s", argv[0], code, lastLine(out))
	}
	return out, nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// systemd asks systemctl: the states of the loaded units, then which unit files are enabled.
func (l *Linux) systemd(ctx context.Context) ([]wire.Service, error) {
	units, err := l.output(ctx, "systemctl", "list-units", "--type=service", "--all", "--plain", "--no-legend", "--no-pager", "--full")
	if err != nil {
		return nil, err
	}
	files, err := l.output(ctx, "systemctl", "list-unit-files", "--type=service", "--plain", "--no-legend", "--no-pager", "--full")
	return parseSystemd(string(units), string(files)), err
}

func parseSystemd(units, files string) []wire.Service {
	enabled := map[string]bool{}
	for line := range strings.Lines(files) {
		if f := strings.Fields(line); len(f) >= 2 {
			enabled[f[0]] = f[1] == "enabled" || f[1] == "enabled-runtime" || f[1] == "static"
		}
	}
	var out []wire.Service
	for line := range strings.Lines(units) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "● "))
		if len(f) < 4 || f[1] == "not-found" || strings.Contains(f[0], "@") && f[2] == "inactive" {
			continue
		}
		s := wire.Service{Name: strings.TrimSuffix(f[0], ".service"), State: "stopped", Enabled: enabled[f[0]]}
		switch {
		case f[2] == "failed":
			s.State = "failed"
		case f[2] == "active" && f[3] != "exited":
			s.State = "running"
		}
		out = append(out, s)
	}
	return out
}

// openRC reads the state directory of OpenRC and the links of its run levels.
func (l *Linux) openRC(context.Context) ([]wire.Service, error) {
	var out []wire.Service
	for _, file := range l.glob("etc/init.d/*") {
		name := filepath.Base(file)
		if strings.HasSuffix(name, ".sh") || name == "functions.sh" {
			continue
		}
		s := wire.Service{Name: name, State: "stopped", Enabled: len(l.glob("etc/runlevels/*/"+name)) > 0}
		switch {
		case l.exists("run/openrc/failed/" + name):
			s.State = "failed"
		case l.exists("run/openrc/started/" + name):
			s.State = "running"
		}
		out = append(out, s)
	}
	return out, nil
}

// procd asks OpenWrt's ubus for the instances; enabled services have a start link in /etc/rc.d.
func (l *Linux) procd(ctx context.Context) ([]wire.Service, error) {
	listing, err := l.output(ctx, "ubus", "call", "service", "list")
	if err != nil {
		return nil, err
	}
	running, err := parseProcd(listing)
	var out []wire.Service
	for _, file := range l.glob("etc/init.d/*") {
		name := filepath.Base(file)
		s := wire.Service{Name: name, State: "stopped", Enabled: len(l.glob("etc/rc.d/S[0-9]*"+name)) > 0}
		if running[name] {
			s.State = "running"
		}
		out = append(out, s)
	}
	return out, err
}

func parseProcd(listing []byte) (map[string]bool, error) {
	var services map[string]struct {
		Instances map[string]struct {
			Running bool `json:"running"`
		} `json:"instances"`
	}
	if err := json.Unmarshal(listing, &services); err != nil {
		return nil, fmt.Errorf("ubus: %w", err)
	}
	running := map[string]bool{}
	for name, s := range services {
		for _, i := range s.Instances {
			running[name] = running[name] || i.Running
		}
	}
	return running, nil
}

// sysV tells a running service by its pid file, else by a process of its name.
func (l *Linux) sysV(context.Context) ([]wire.Service, error) {
	processes := map[string]bool{}
	for _, file := range l.glob("proc/[0-9]*/comm") {
		processes[l.read("", file)] = true
	}
	var out []wire.Service
	for _, file := range l.glob("etc/init.d/*") {
		name := filepath.Base(file)
		info, err := os.Stat(l.path(file))
		if err != nil || info.Mode()&0o111 == 0 || name == "rc" || name == "rcS" || name == "skeleton" {
			continue
		}
		s := wire.Service{Name: name, State: "stopped", Enabled: len(l.glob("etc/rc[2345].d/S[0-9]*"+name)) > 0}
		if processes[name] || l.pidRuns(name) {
			s.State = "running"
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, errors.New("no scripts in /etc/init.d")
	}
	return out, nil
}

func (l *Linux) pidRuns(name string) bool {
	for _, file := range []string{"run/" + name + ".pid", "run/" + name + "/" + name + ".pid", "run/" + name + "d.pid"} {
		if pid, err := strconv.Atoi(firstField(l.read("", file))); err == nil && pid > 1 {
			return l.exists("proc/" + strconv.Itoa(pid))
		}
	}
	return false
}
