package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"steward/internal/agent/host"
)

// faults are what goes wrong on the machine just now.
type faults struct {
	mu      sync.Mutex
	offline bool
	slow    time.Duration
	full    bool
	failing map[string]int // program → exit code
	conns   map[*conn]struct{}
}

func (f *faults) diskFull() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.full
}

// errOffline is what dialing and talking give while the device is offline.
var errOffline = errors.New("simulated: network is unreachable")

// SetOffline takes the device off the net, cutting its connections, or puts it back.
func (d *Device) SetOffline(offline bool) {
	d.faults.mu.Lock()
	d.faults.offline = offline
	var cut []*conn
	if offline {
		for c := range d.faults.conns {
			cut = append(cut, c)
		}
	}
	d.faults.mu.Unlock()
	for _, c := range cut {
		_ = c.Close()
	}
}

// SetSlow delays each write to the net.
func (d *Device) SetSlow(delay time.Duration) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.slow = delay
}

// SetDiskFull makes FreeBytes nothing and Disk fail.
func (d *Device) SetDiskFull(full bool) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	d.faults.full = full
}

// SetExit makes a program (the last part of its path) end with the code; 0 takes that back.
func (d *Device) SetExit(program string, code int) {
	d.faults.mu.Lock()
	defer d.faults.mu.Unlock()
	if d.faults.failing == nil {
		d.faults.failing = map[string]int{}
	}
	d.faults.failing[program] = code
}

// Disk is an agent's Config.Crash: it fails while the disk is full.
func (d *Device) Disk(string) error {
	if d.faults.diskFull() {
		return syscall.ENOSPC
	}
	return nil
}

// Dial is an agent's Config.Dial: the device's net with its faults.
func (d *Device) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.faults.mu.Lock()
	offline := d.faults.offline
	d.faults.mu.Unlock()
	if offline {
		return nil, errOffline
	}
	raw, err := (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, faults: &d.faults}
	d.faults.mu.Lock()
	if d.faults.conns == nil {
		d.faults.conns = map[*conn]struct{}{}
	}
	d.faults.conns[c] = struct{}{}
	d.faults.mu.Unlock()
	return c, nil
}

type conn struct {
	net.Conn
	faults *faults
}

func (c *conn) Write(b []byte) (int, error) {
	c.faults.mu.Lock()
	offline, slow := c.faults.offline, c.faults.slow
	c.faults.mu.Unlock()
	if offline {
		return 0, errOffline
	}
	if slow > 0 {
		time.Sleep(slow)
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.faults.mu.Lock()
	delete(c.faults.conns, c)
	c.faults.mu.Unlock()
	return c.Conn.Close()
}

// FreeBytes is a tenth of the made-up disk, or nothing.
func (d *Device) FreeBytes(string) (int64, error) {
	if d.faults.diskFull() {
		return 0, nil
	}
	return d.model.diskBytes / 10, nil
}

// Exec plays programs; nothing of the real machine runs. It knows true, false, sleep, echo and test
// (-e, -f, -d, -x), looking at the real files below dir, and takes a program of the component itself
// (a path with a slash) for what its text says: a script ends with the code of its last "exit N" line,
// anything else executable with 0.
func (d *Device) Exec(ctx context.Context, dir string, argv []string, timeout time.Duration) ([]byte, int, error) {
	if len(argv) == 0 || argv[0] == "" {
		return nil, 0, fmt.Errorf("%w: no program was named", host.ErrStart)
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	name := filepath.Base(argv[0])
	d.faults.mu.Lock()
	code, failing := d.faults.failing[name]
	d.faults.mu.Unlock()
	if failing && code != 0 {
		return fmt.Appendf(nil, "%s: simulated failure\n", name), code, nil
	}
	switch {
	case strings.Contains(argv[0], "/") && !isSystem(argv[0]):
		return script(dir, argv[0])
	case name == "true", name == ":":
		return nil, 0, nil
	case name == "false":
		return nil, 1, nil
	case name == "echo":
		return []byte(strings.Join(argv[1:], " ") + "\n"), 0, nil
	case name == "sleep" && len(argv) == 2:
		return sleep(argv[1], timeout)
	case name == "test" && len(argv) == 3:
		return test(dir, argv[1], argv[2])
	}
	return nil, 0, fmt.Errorf("%s: %w: the simulated machine has no such program", argv[0], host.ErrStart)
}

func isSystem(program string) bool {
	return strings.HasPrefix(program, "/bin/") || strings.HasPrefix(program, "/usr/bin/")
}

// sleep takes no time, but ends like one that was too long.
func sleep(arg string, timeout time.Duration) ([]byte, int, error) {
	seconds, err := strconv.ParseFloat(arg, 64)
	if err != nil {
		return []byte("sleep: invalid time interval\n"), 1, nil
	}
	if time.Duration(seconds*float64(time.Second)) > timeout {
		return nil, 0, fmt.Errorf("sleep: %w", host.ErrTimeout)
	}
	return nil, 0, nil
}

func test(dir, operator, name string) ([]byte, int, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	info, err := os.Stat(name)
	ok := err == nil
	switch operator {
	case "-e":
	case "-f":
		ok = ok && info.Mode().IsRegular()
	case "-d":
		ok = ok && info.IsDir()
	case "-x":
		ok = ok && info.Mode()&0o111 != 0
	default:
		return fmt.Appendf(nil, "test: %s: unknown operator\n", operator), 2, nil
	}
	if ok {
		return nil, 0, nil
	}
	return nil, 1, nil
}

var exitLine = regexp.MustCompile(`(?m)^\s*exit\s+(\d{1,3})\s*$`)

func script(dir, program string) ([]byte, int, error) {
	path := program
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	info, err := os.Stat(path)
	if err == nil && (info.IsDir() || info.Mode()&0o111 == 0) {
		err = fs.ErrPermission
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %w", program, host.ErrStart, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %w", program, host.ErrStart, err)
	}
	if !bytes.HasPrefix(text, []byte("#!")) {
		return nil, 0, nil
	}
	exits := exitLine.FindAllSubmatch(text, -1)
	if len(exits) == 0 {
		return nil, 0, nil
	}
	code, _ := strconv.Atoi(string(exits[len(exits)-1][1])) // the pattern lets digits only through
	if code != 0 {
		return fmt.Appendf(nil, "%s: exit %d\n", filepath.Base(program), code), code & 255, nil
	}
	return nil, 0, nil
}
