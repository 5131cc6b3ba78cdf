package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"steward/internal/client"
)

// Times that a server may take.
const (
	startTime = 60 * time.Second
	stopTime  = 30 * time.Second
)

// node is a server in a process of its own, on a fresh data directory.
type node struct {
	dir  string
	cmd  *exec.Cmd
	log  *os.File
	end  chan error // one value: what the process ended with
	self process
	db   *database // nil with SQLite
	boot client.Bootstrap
	api  *client.Client

	profile  string // directory, or ""
	profiles int    // written so far
}

// serverProgram is how to start a server: program and first arguments.
func serverProgram() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []string{self, serveCommand}, nil
}

// startNode starts a server and returns once it serves.
func (b *bench) startNode(ctx context.Context, program []string) (_ *node, err error) {
	n := &node{profile: b.profile}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.stop())
		}
	}()
	if n.dir, err = os.MkdirTemp(b.dir, "server-"); err != nil {
		return n, err
	}
	args := append(program[1:len(program):len(program)], "--data", n.dir, "--console", "127.0.0.1:0", "--link", "127.0.0.1:0", "--managed-release-keys")
	if b.database != "" {
		if n.db, err = makeDatabase(ctx, b.database); err != nil {
			return n, err
		}
		args = append(args, "--database", n.db.url)
	}
	if n.log, err = os.Create(n.dir + ".log"); err != nil {
		return n, err
	}
	n.cmd = exec.Command(program[0], args...)
	n.cmd.Env = append(os.Environ(), profileVariable+"="+b.profile)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := n.cmd.Start(); err != nil {
		n.cmd = nil
		return n, fmt.Errorf("start the server: %w", err)
	}
	n.self, n.end = process(n.cmd.Process.Pid), make(chan error, 1)
	go func() { n.end <- n.cmd.Wait() }()
	return n, n.ready(ctx)
}

func (n *node) ready(ctx context.Context) error {
	err := until(ctx, startTime, func() (bool, error) {
		select {
		case err := <-n.end:
			n.end <- err
			return false, fmt.Errorf("the server ended: %w; %s", err, n.lastWords())
		default:
		}
		boot, err := client.ReadBootstrap(n.dir)
		n.boot = boot
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	n.api, err = client.New(client.Settings{URL: n.boot.Console, Token: n.boot.Token, CA: n.boot.CA})
	return err
}

// lastWords is the end of the server's log.
func (n *node) lastWords() string {
	data, err := os.ReadFile(n.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// stop ends the server, waits for it and removes its data.
func (n *node) stop() (err error) {
	if n.cmd != nil {
		err = n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.end:
		case <-time.After(stopTime):
			err = errors.Join(err, fmt.Errorf("the server did not stop within %s", stopTime), n.cmd.Process.Kill())
			<-n.end
		}
	}
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

// usage is processor time used so far by the server and by PostgreSQL.
type usage struct{ server, database time.Duration }

func (n *node) usage() (u usage, err error) {
	if u.server, err = n.self.cpu(); err != nil {
		return u, fmt.Errorf("the server's processor time: %w; %s", err, n.lastWords())
	}
	if n.db != nil {
		u.database, err = n.db.cpu()
	}
	return u, err
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
	return usage{after.server - before.server, after.database - before.database}, err
}

// startProfile has the server's process write a profile until stop; without a profile directory nothing.
// Signals that wait together lose their order, so each is answered before the next: by the file's name.
func (n *node) startProfile() (stop func() error, err error) {
	if n.profile == "" {
		return func() error { return nil }, nil
	}
	n.profiles++
	request := func(s os.Signal, kind string) error {
		if err := n.cmd.Process.Signal(s); err != nil {
			return err
		}
		return until(context.Background(), startTime, func() (bool, error) {
			_, err := os.Stat(profileName(n.profile, kind, n.profiles))
			return err == nil, nil
		})
	}
	return func() error { return request(syscall.SIGUSR2, "heap") }, request(syscall.SIGUSR1, "cpu")
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
