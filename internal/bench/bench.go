package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// bench is one invocation.
type bench struct {
	devices  int
	clients  int // concurrent, of `reads`
	requests int // of each kind and round
	rounds   int
	settle   time.Duration // before memory is read: garbage of the beginning goes back to the system
	span     time.Duration // over which a process at rest is watched
	tail     time.Duration // after a change, for the last reports to arrive
	database string
	dir      string // for all that is written
	profile  string // directory, or ""
	asJSON   bool
	server   []string // program and first arguments; nil: this program
	progress io.Writer
}

type scenario struct {
	name, short string
	devices     int // by default
	run         func(*bench, context.Context) ([]Result, error)
}

func scenarios() []scenario {
	return []scenario{
		{"reads", "latency of the main API reads and console pages over a registered fleet", 100_000, (*bench).reads},
		{"orders", "placing one order and booking its delivery", 100_000, (*bench).orders},
		{"idle", "server memory and processor time with connected devices", 1000, (*bench).idle},
		{"enroll", "enrollments by EST, alone and up to the first report", 1000, (*bench).enroll},
		{"change", "a one-line change to connected devices", 1000, (*bench).change},
		{"size", "binaries; agent and server at rest", 1, (*bench).size},
	}
}

// Main runs the command line and returns the exit code: 0, 1 after a failure, 2 after a wrong invocation.
func Main(version string, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == serveCommand {
		return Serve(version, args[1:], stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{tail: 3 * time.Second, progress: stderr}
	cmd := b.command(stdout)
	cmd.Version = version
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "steward-bench:", err)
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// usageError is a wrong invocation.
type usageError struct{ error }

func (b *bench) command(stdout io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use: "steward-bench", Short: "Measure Steward",
		Long: "steward-bench starts a server of its own on a scratch directory, loads it through the public API and\n" +
			"the devices' link, and prints what that took. Processor time and memory are the server's alone.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.IntVar(&b.clients, "clients", 4, "concurrent `clients` of reads")
	f.IntVar(&b.requests, "requests", 300, "`requests` of each kind and round of reads")
	f.IntVar(&b.rounds, "rounds", 3, "`rounds` of reads and change; the median counts")
	f.DurationVar(&b.settle, "settle", 30*time.Second, "wait before memory is read")
	f.DurationVar(&b.span, "span", time.Minute, "how long something at rest is watched")
	f.StringVar(&b.database, "database", os.Getenv("STEWARD_DATABASE"), "`URL` postgres://… of a database in which others may be made; default: SQLite")
	f.StringVar(&b.dir, "dir", "", "`directory` for what is written; default: in the temporary directory")
	f.StringVar(&b.profile, "profile", "", "write profiles of the server's processor and heap to this `directory`")
	f.BoolVar(&b.asJSON, "json", false, "print one JSON object per row")
	for _, s := range scenarios() {
		var devices int
		cmd := &cobra.Command{
			Use: s.name, Short: s.short,
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usageError{fmt.Errorf("unknown argument %q", args[0])}
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, _ []string) error {
				b.devices = devices
				rows, err := b.run(cmd.Context(), s)
				return errors.Join(b.write(stdout, rows), err)
			},
		}
		cmd.Flags().IntVar(&devices, "devices", s.devices, "how many `devices`")
		root.AddCommand(cmd)
	}
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

func (b *bench) check() error {
	switch {
	case b.devices < 0 || b.devices > 1_000_000:
		return usageError{fmt.Errorf("--devices %d: want 0 to 1000000", b.devices)}
	case b.clients < 1 || b.requests < 1 || b.rounds < 1:
		return usageError{errors.New("--clients, --requests and --rounds are at least 1")}
	case b.span <= 0 || b.settle < 0:
		return usageError{errors.New("--span and --settle are times, like 30s")}
	}
	return nil
}

// run makes the scratch directory, runs the scenario and removes the directory.
func (b *bench) run(ctx context.Context, s scenario) (rows []Result, err error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if b.devices == 0 && s.name != "idle" {
		return nil, usageError{fmt.Errorf("--devices 0 makes no sense for %s", s.name)}
	}
	if b.profile != "" {
		if b.profile, err = filepath.Abs(b.profile); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(b.profile, 0o755); err != nil {
			return nil, err
		}
	}
	if b.server == nil {
		if b.server, err = serverProgram(); err != nil {
			return nil, err
		}
	}
	scratch, err := os.MkdirTemp(b.dir, "steward-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	defer func(dir string) { b.dir = dir }(b.dir)
	b.dir = scratch
	rows, err = s.run(b, ctx)
	for i := range rows {
		rows[i].Database = "sqlite"
		if b.database != "" {
			rows[i].Database = "postgres"
		}
	}
	return rows, err
}

func (b *bench) write(w io.Writer, rows []Result) error {
	if b.asJSON || len(rows) == 0 {
		return writeJSON(w, rows)
	}
	return writeTable(w, rows)
}

// say tells a person how far it is.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, format+"\n", args...)
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// withNode runs fn with a server and stops it.
func (b *bench) withNode(ctx context.Context, fn func(*node) error) error {
	n, err := b.startNode(ctx, b.server)
	if err != nil {
		return err
	}
	if err = fn(n); err != nil && ctx.Err() == nil {
		b.say("the end of the server's log:\n%s", n.lastWords()) // it is removed with the server
	}
	return errors.Join(err, n.stop())
}

// withFleet runs fn with a server, devices in its stock and their enrollment tokens.
func (b *bench) withFleet(ctx context.Context, devices int, fn func(*node, *fleet, []ticket) error) error {
	return b.withNode(ctx, func(n *node) (err error) {
		if err := n.buy(ctx, devices, maxUnits, func(order) error { return nil }); err != nil {
			return err
		}
		tickets, err := n.tickets(ctx, devices)
		if err != nil {
			return err
		}
		f, err := b.newFleet(n)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.close()) }()
		return fn(n, f, tickets)
	})
}

// withMemory adds what the server holds now.
func (b *bench) withMemory(n *node, row Result) (Result, error) {
	m, err := n.self.memory()
	row.ServerKiB, row.ServerPeakKiB = m.Resident, m.Peak
	return row, err
}
