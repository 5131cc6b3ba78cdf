package nodestest

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"steward/internal/sqldb"
	"steward/internal/stewardtest"
)

// postgres is a server of the test's own, as durable as it comes, that the test stops and starts.
type postgres struct {
	t    *testing.T
	bin  string
	dir  string
	attr *syscall.SysProcAttr
	cmd  *exec.Cmd
}

func startPostgres(t *testing.T) *postgres {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("no PostgreSQL on this machine: install the package postgresql")
		}
		t.Skip("no PostgreSQL on this machine: install the package postgresql")
	}
	dir, err := os.MkdirTemp("", "steward-nodes-pg-")
	if err != nil {
		t.Fatal(err)
	}
	p := &postgres{t: t, bin: filepath.Dir(slices.Max(found)), dir: dir, attr: &syscall.SysProcAttr{Setpgid: true}}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.Stop(syscall.SIGQUIT)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if os.Getuid() == 0 { // it refuses to run as root
		p.attr.Credential = credential(t, "postgres")
		if err := os.Chown(dir, int(p.attr.Credential.Uid), int(p.attr.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	initdb := exec.Command(filepath.Join(p.bin, "initdb"), "-D", dir+"/data", "-U", "steward", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = dir, p.attr
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	p.Start()
	return p
}

func credential(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
	if uerr != nil || gerr != nil {
		t.Fatal(uerr, gerr)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// URL is where the nodes find it: a socket in the file system, which no network namespace hides.
func (p *postgres) URL() string {
	return "postgres://steward@/postgres?" + url.Values{"host": {p.dir}}.Encode()
}

// Start runs the server and waits until it answers.
func (p *postgres) Start() {
	p.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the child has its own
	p.cmd = exec.Command(filepath.Join(p.bin, "postgres"), "-D", p.dir+"/data", "-k", p.dir, "-h", "", "-c", "max_connections=200")
	p.cmd.Dir, p.cmd.SysProcAttr, p.cmd.Stdout, p.cmd.Stderr = p.dir, p.attr, log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	stewardtest.Until(p.t, "PostgreSQL answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		db, err := sqldb.Open(ctx, p.URL())
		return err == nil && db.Close() == nil
	})
}

// Stop ends the server: SIGINT is a fast shutdown, which ends connections and writes what is there to
// disk; SIGQUIT an immediate one, after which the log is replayed, as after a power cut.
func (p *postgres) Stop(how syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(how); err != nil {
		p.t.Errorf("stop PostgreSQL: %v", err)
	}
	if err := p.cmd.Wait(); err != nil && how == syscall.SIGINT {
		text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		lines := strings.Split(string(text), "\n")
		p.t.Errorf("PostgreSQL: %v: %s", err, strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
	p.cmd = nil
}
