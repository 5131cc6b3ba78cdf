package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"steward/internal/client"
)

// Times that a server may take.
const (
	startTime = 60 * time.Second
	stopTime  = 60 * time.Second
)

// node is a server in a process of its own, on a fresh data directory; or one that was there before, of which
// only the bootstrap file is known.
type node struct {
	program []string // and first arguments
	dir     string
	cmd     *exec.Cmd
	log     *os.File
	ended   chan error // one value: what the process ended with
	self    process    // 0 when it is on another machine
	db      *database  // nil with SQLite; of the first node only
	boot    client.Bootstrap
	api     *client.Client
	run     string // tells the orders and serial numbers of this run from those of another

	profile  string // directory, or ""
	profiles int    // written so far by this process
}

// serverProgram is how to start a server: program and first arguments.
func serverProgram() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []string{self, serveCommand}, nil
}

// startNode starts a server and returns once it serves. more are further arguments; with b.database and no
// --database among them it gets a database of its own.
func (b *bench) startNode(ctx context.Context, program []string, more ...string) (_ *node, err error) {
	n := &node{profile: b.profile, run: "BEN"}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.stop())
		}
	}()
	if n.dir, err = os.MkdirTemp(b.dir, "server-"); err != nil {
		return n, err
	}
	n.program = append(program[:len(program):len(program)], "--data", n.dir, "--managed-release-keys", "--mqtt", "off")
	n.program = append(n.program, more...)
	if b.database != "" && !slices.Contains(more, "--database") {
		if n.db, err = makeDatabase(ctx, b.database); err != nil {
			return n, err
		}
		n.program = append(n.program, "--database", n.db.url)
	}
	if n.log, err = os.Create(n.dir + ".log"); err != nil {
		return n, err
	}
	console, err := freeAddress()
	if err != nil {
		return n, err
	}
	link, err := freeAddress()
	if err != nil {
		return n, err
	}
	return n, n.start(ctx, console, link)
}

// freeAddress is a loopback address whose port the system gives to nobody by itself, so that a server finds it free
// when it starts again: the usual range for that begins at 32768.
func freeAddress() (string, error) {
	var last error
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(20_000)))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
		last = err
	}
	return "", fmt.Errorf("find a free port: %w", last)
}

// start starts the process, on the given addresses.
func (n *node) start(ctx context.Context, console, link string) error {
	args := append(n.program[1:len(n.program):len(n.program)], "--console", console, "--link", link)
	cmd := exec.Command(n.program[0], args...)
	cmd.Env = append(os.Environ(), profileVariable+"="+n.profile)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	n.cmd, n.ended, n.self, n.profiles = cmd, ended, process(cmd.Process.Pid), 0
	return n.ready(ctx)
}

// ready waits for the bootstrap file that this process has written; an earlier one's may still be there.
func (n *node) ready(ctx context.Context) error {
	err := until(ctx, startTime, func() (bool, error) {
		select {
		case err := <-n.ended:
			n.ended <- err
			return false, fmt.Errorf("the server ended: %w; %s", err, n.lastWords())
		default:
		}
		boot, err := client.ReadBootstrap(n.dir)
		if err != nil || boot.ServerPID != int(n.self) {
			return false, nil
		}
		n.boot = boot
		return true, nil
	})
	if err != nil {
		return err
	}
	return n.connectAPI()
}

func (n *node) connectAPI() (err error) {
	n.api, err = client.New(client.Settings{URL: n.boot.Console, Token: n.boot.Token, CA: n.boot.CA})
	return err
}

// external tells whether the server was there before: it can't be stopped then.
func (n *node) external() bool { return n.program == nil }

// lastWords is the end of the server's log.
func (n *node) lastWords() string {
	if n.log == nil {
		return "its log is elsewhere"
	}
	data, err := os.ReadFile(n.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// end sends the signal and waits for the process.
func (n *node) end(signal syscall.Signal) (err error) {
	if n.cmd == nil {
		return nil
	}
	if n.api != nil {
		n.api.Close()
	}
	if err := n.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.ended:
	case <-time.After(stopTime):
		err = n.stuck()
	}
	n.cmd = nil
	return err
}

// stuck kills a server that doesn't stop, and keeps what it was doing: Go writes that at SIGQUIT.
func (n *node) stuck() error {
	_ = n.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-n.ended:
	case <-time.After(stopTime):
		_ = n.cmd.Process.Kill()
		<-n.ended
	}
	kept := filepath.Join(os.TempDir(), fmt.Sprintf("steward-bench-stuck-%d.log", n.self))
	data, err := os.ReadFile(n.log.Name())
	if err == nil {
		err = os.WriteFile(kept, data, 0o600)
	}
	return errors.Join(fmt.Errorf("the server did not stop within %s; its log and goroutines are in %s", stopTime, kept), err)
}

// again starts an ended server on the same data and addresses.
func (n *node) again(ctx context.Context) error {
	return n.start(ctx, address(n.boot.Console), address(n.boot.Link))
}

func (n *node) restart(ctx context.Context, signal syscall.Signal) error {
	if err := n.end(signal); err != nil {
		return err
	}
	return n.again(ctx)
}

// address is host:port of a URL.
func address(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	return u.Host
}

// stop ends the server, waits for it and removes its data.
func (n *node) stop() (err error) {
	err = n.end(syscall.SIGTERM)
	if n.log != nil {
		err = errors.Join(err, n.log.Close(), os.Remove(n.log.Name()))
	}
	if n.db != nil {
		err = errors.Join(err, n.db.drop())
	}
	if n.dir != "" {
		err = errors.Join(err, os.RemoveAll(n.dir))
	}
	return err
}

// usage is processor time used so far by the server and by PostgreSQL; and, of a step, by the devices' processes.
type usage struct{ server, database, generator time.Duration }

func (n *node) usage() (u usage, err error) {
	if n.self == 0 {
		return u, nil
	}
	if u.server, err = n.self.cpu(); err != nil {
		return u, fmt.Errorf("the server's processor time: %w; %s", err, n.lastWords())
	}
	if n.db != nil {
		u.database, err = n.db.cpu()
	}
	return u, err
}

// memory is what the process holds; nothing when it is on another machine.
func (n *node) memory() (memory, error) {
	if n.self == 0 {
		return memory{}, nil
	}
	return n.self.memory()
}

// during returns what both used while fn ran. The profile, when one is wanted, covers the same time.
func (n *node) during(fn func() error) (u usage, err error) {
	before, err := n.usage()
	if err != nil {
		return u, err
	}
	stop, err := n.startProfile()
	if err != nil {
		return u, err
	}
	if err := errors.Join(fn(), stop()); err != nil {
		return u, err
	}
	after, err := n.usage()
	return usage{server: after.server - before.server, database: after.database - before.database}, err
}

// startProfile has the server's process write a profile until stop; without a profile directory nothing.
// Signals that wait together lose their order, so each is answered before the next: by the file's name.
func (n *node) startProfile() (stop func() error, err error) {
	if n.profile == "" || n.external() {
		return func() error { return nil }, nil
	}
	n.profiles++
	request := func(s os.Signal, kind string) error {
		if err := n.cmd.Process.Signal(s); err != nil {
			return err
		}
		return until(context.Background(), startTime, func() (bool, error) {
			_, err := os.Stat(profileName(n.profile, int(n.self), kind, n.profiles))
			return err == nil, nil
		})
	}
	return func() error { return request(syscall.SIGUSR2, "heap") }, request(syscall.SIGUSR1, "cpu")
}

// collect has the process collect its garbage and give the memory back to the system.
func (n *node) collect() error {
	if n.external() {
		return nil
	}
	return n.cmd.Process.Signal(syscall.SIGHUP)
}

// beside returns a program that was built with this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not beside %s: run `make build`", name, self)
	}
	return path, nil
}
