package sqldbtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"steward/internal/sqldb"
)

// errNoPostgres says that this machine has no PostgreSQL to start.
var errNoPostgres = errors.New("no PostgreSQL on this machine: install the package postgresql, or name a server in STEWARD_TEST_POSTGRES")

// postgresURL makes a database from the migrated template and drops it when the test ends.
func postgresURL(t testing.TB, migrations []sqldb.Migration) string {
	t.Helper()
	base, err := postgres()
	if errors.Is(err, errNoPostgres) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	if base.outside {
		return base.fresh(t, "template0", migrations)
	}
	template, err := templates.get(PostgresEngine, migrations, func(ctx context.Context, name string) (string, error) {
		name = fmt.Sprintf("steward_template_%s_%d", name, os.Getpid())
		if err := base.admin(ctx, "CREATE DATABASE "+name+" TEMPLATE template0"); err != nil {
			return "", err
		}
		return name, migrate(ctx, base.database(name), migrations)
	})
	if err != nil {
		t.Fatalf("migrate the PostgreSQL template: %v", err)
	}
	return base.fresh(t, template, nil)
}

// fresh makes a database for one test and drops it when the test ends.
func (c cluster) fresh(t testing.TB, template string, migrations []sqldb.Migration) string {
	t.Helper()
	name := fmt.Sprintf("steward_test_%d_%d", os.Getpid(), databaseCount.Add(1))
	if err := c.admin(t.Context(), "CREATE DATABASE "+name+" TEMPLATE "+template+c.strategy); err != nil {
		t.Fatalf("make test database: %v", err)
	}
	t.Cleanup(func() {
		// FORCE ends connections that a failed test has left open.
		if err := c.admin(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	if err := migrate(t.Context(), c.database(name), migrations); err != nil {
		t.Fatalf("migrate test database: %v", err)
	}
	return c.database(name)
}

var databaseCount atomic.Int64

// cluster is a PostgreSQL server by the URL of its maintenance database.
type cluster struct {
	url      url.URL
	strategy string // how databases are copied; empty leaves it to the server
	outside  bool   // not ours: nothing but the tests' databases is made there, and those are dropped
}

func (c cluster) database(name string) string {
	u := c.url
	u.Path = "/" + name
	return u.String()
}

// admin runs one statement outside of a transaction. It connects anew each time, so that no
// connection outlives the tests that look for leaked goroutines.
func (c cluster) admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, c.url.String())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is left to lose
	_, err = conn.Exec(ctx, statement)
	return err
}

// postgres returns the server of this test binary, started by whoever asks first.
var postgres = sync.OnceValues(func() (cluster, error) {
	if env := os.Getenv("STEWARD_TEST_POSTGRES"); env != "" {
		u, err := url.Parse(env)
		if err != nil {
			return cluster{}, fmt.Errorf("STEWARD_TEST_POSTGRES: %w", err)
		}
		return cluster{url: *u, outside: true}, nil
	}
	return startPostgres()
})

// supervisor runs the server until its standard input ends, which is when the test binary ends, by
// whatever cause; then it stops the server and removes the directory.
const supervisor = `"$0" -D "$1/data" -k "$1" -h "" -F \
	-c full_page_writes=off -c synchronous_commit=off -c max_connections=300 -c shared_buffers=64MB -c autovacuum=off &
server=$!
cat
kill -QUIT $server
wait $server
rm -rf "$1"`

// startPostgres makes a data directory and runs a server on a socket beside it. The server refuses to
// run as root and so runs as the user postgres then.
func startPostgres() (cluster, error) {
	bin, err := postgresBin()
	if err != nil {
		return cluster{}, err
	}
	dir, err := os.MkdirTemp("", "steward-pg-")
	if err != nil {
		return cluster{}, err
	}
	attr := &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for the tests
	if os.Getuid() == 0 {
		if attr.Credential, err = ownedByPostgres(dir); err != nil {
			return cluster{}, err
		}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", dir+"/data", "-U", "steward", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = dir, attr
	if out, err := initdb.CombinedOutput(); err != nil {
		return cluster{}, fmt.Errorf("initdb: %w: %s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return cluster{}, err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	input, hold, err := os.Pipe()
	if err != nil {
		return cluster{}, err
	}
	defer input.Close() //nolint:errcheck // the child has its own
	cmd := exec.Command("/bin/sh", "-c", supervisor, filepath.Join(bin, "postgres"), dir)
	cmd.Dir, cmd.SysProcAttr = dir, attr
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, log, log
	if err := cmd.Start(); err != nil {
		return cluster{}, err
	}
	running = &server{hold: hold, cmd: cmd}
	c := cluster{url: url.URL{Scheme: "postgres", User: url.User("steward"), Path: "/postgres",
		RawQuery: url.Values{"host": {dir}}.Encode()}}
	if versionOf(bin) >= 15 {
		c.strategy = " STRATEGY file_copy" // dropping takes a third of the time
	}
	if err := c.ready(); err != nil {
		text, _ := os.ReadFile(log.Name())
		return cluster{}, fmt.Errorf("%w; its log: %s", err, text)
	}
	return c, nil
}

// ready waits until the server answers.
func (c cluster) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.admin(ctx, "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
	}
}

// server is what must be let go of so that the supervisor stops. The variable also keeps the pipe from
// being collected, and so closed, while tests run.
type server struct {
	hold io.Closer
	cmd  *exec.Cmd
}

var running *server

// Main runs the tests of a package and then stops the PostgreSQL that they have started:
//
//	func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }
//
// A package without it leaks nothing either, since the server ends with the process; with it, the
// server has ended before go test goes on.
func Main(m *testing.M) int {
	code := m.Run()
	if running != nil {
		_ = running.hold.Close()
		_ = running.cmd.Wait()
	}
	return code
}

// postgresBin finds the newest installed server's programs.
func postgresBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		if path, err := exec.LookPath("postgres"); err == nil {
			return filepath.Dir(path), nil
		}
		return "", errNoPostgres
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int {
		return versionOf(filepath.Dir(a)) - versionOf(filepath.Dir(b))
	})), nil
}

// versionOf reads the major version out of Debian's /usr/lib/postgresql/15/bin; 0 when it is elsewhere.
func versionOf(bin string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	if err != nil {
		return 0
	}
	return n
}

// ownedByPostgres gives the directory to the user postgres and returns that user.
func ownedByPostgres(dir string) (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("the server refuses to run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}
