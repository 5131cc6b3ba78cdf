package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
	"steward/internal/device"
	"steward/internal/wire"
)

// bench is one invocation.
type bench struct {
	devices  int
	clients  int // concurrent, of `reads`
	requests int // of each kind and round
	rounds   int
	settle   time.Duration // before memory is read: garbage of the beginning goes back to the system
	span     time.Duration // over which a process at rest is watched
	database string
	dir      string // for all that is written
	profile  string // directory, or ""
	asJSON   bool
	server   []string // program and first arguments; nil: this program
	worker   []string // of processes with devices in them; nil: this program

	processes int    // with devices in them; 0: as few as can be
	nodes     int    // servers on one database
	inFlight  int    // reports of one device
	hybrid    bool   // devices agree on keys by X25519MLKEM768
	quiet     bool   // devices don't subscribe to the answers to their reports
	bootstrap string // file of a server that is there already; "": start one
	serverURL string // of its console, when it isn't the one in the file
	progress  io.Writer
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
		{"enroll", "enrollments by EST, then the first connection and the first report", 1000, (*bench).enroll},
		{"idle", "server memory and processor time with connected devices", 15_000, (*bench).idle},
		{"connect", "a storm: all devices connect at once", 15_000, (*bench).connect},
		{"reconnect", "the server is killed, and stopped; the fleet comes back", 15_000, (*bench).reconnect},
		{"reports", "reports acknowledged after the commit, changed and unchanged", 5000, (*bench).reports},
		{"change", "a one-line change to connected devices", 10_000, (*bench).change},
		{"mixed", "a day in short: messages, commands, a change, lost connections and readers", 5000, (*bench).mixed},
		{"size", "binaries; agent and server at rest", 1, (*bench).size},
	}
}

// Main runs the command line and returns the exit code: 0, 1 after a failure, 2 after a wrong invocation.
func Main(version string, args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) > 0 && args[0] == serveCommand:
		return Serve(version, args[1:], stdout, stderr)
	case len(args) > 0 && args[0] == workerCommand:
		return Work(os.Stdin, stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{progress: stderr}
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
			"the devices' link, and prints what that took. Processor time and memory are the server's alone.\n\n" +
			"Devices are light ones that speak the device contract by MQTT over mutual TLS, thousands in a process.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.IntVar(&b.clients, "clients", 4, "concurrent `clients` of reads")
	f.IntVar(&b.requests, "requests", 300, "`requests` of each kind and round of reads")
	f.IntVar(&b.rounds, "rounds", 3, "`rounds` of reads and change; the median counts")
	f.IntVar(&b.nodes, "nodes", 1, "`servers` on one database, 1 to 9; more than one needs --database")
	f.IntVar(&b.processes, "processes", 0, "`processes` with devices in them; default: as few as the limit of open files allows")
	f.IntVar(&b.inFlight, "in-flight", 1, "`reports` of one device that may wait for their acknowledgement")
	f.BoolVar(&b.hybrid, "post-quantum", false, "devices agree on keys by X25519MLKEM768, as Go does by itself; default: X25519, as small TLS libraries do")
	f.BoolVar(&b.quiet, "without-answers", false, "devices don't subscribe to down/report: the acknowledgement of a report is enough for them")
	f.StringVar(&b.bootstrap, "bootstrap", "", "bootstrap.json `file` of a running server to measure; default: one is started")
	f.StringVar(&b.serverURL, "server", "", "`URL` of that server's console, when it isn't the one in the file")
	f.DurationVar(&b.settle, "settle", 30*time.Second, "wait before memory is read")
	f.DurationVar(&b.span, "span", time.Minute, "how long a load runs, or something at rest is watched")
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
	case b.processes < 0 || b.processes > 64 || b.inFlight < 1 || b.inFlight > wire.MQTTReceiveMaximum:
		return usageError{fmt.Errorf("--processes is 1 to 64, --in-flight 1 to %d", wire.MQTTReceiveMaximum)}
	case b.nodes < 1 || b.nodes > 9 || b.nodes > 1 && (b.database == "" || b.bootstrap != ""):
		return usageError{errors.New("--nodes is 1 to 9; more than one needs --database, and servers of its own")}
	case b.serverURL != "" && b.bootstrap == "":
		return usageError{errors.New("--server needs --bootstrap: the file says what to trust and how to sign in")}
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
		rows[i].Database, rows[i].Processes, rows[i].Nodes = "sqlite", b.processes, b.nodes
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

// withNode runs fn with a server and stops it.
func (b *bench) withNode(ctx context.Context, fn func(*node) error) error {
	return b.withNodes(ctx, func(nodes []*node) error { return fn(nodes[0]) })
}

// withNodes runs fn with the servers and stops them.
func (b *bench) withNodes(ctx context.Context, fn func([]*node) error) (err error) {
	if b.bootstrap != "" {
		n, err := b.joinNode()
		if err != nil {
			return err
		}
		return fn([]*node{n})
	}
	nodes, err := b.startNodes(ctx)
	defer func() {
		for _, n := range slices.Backward(nodes) { // the first has the database
			err = errors.Join(err, n.stop())
		}
	}()
	if err != nil {
		return err
	}
	if err = fn(nodes); err != nil && ctx.Err() == nil {
		for _, n := range nodes {
			b.say("the end of the server's log:\n%s", n.lastWords()) // it is removed with the server
		}
	}
	return err
}

// joinNode is a server that is there already. Its processor time and memory are known when its process is
// on this machine.
func (b *bench) joinNode() (*node, error) {
	var boot client.Bootstrap
	data, err := os.ReadFile(b.bootstrap)
	if err == nil {
		err = json.Unmarshal(data, &boot)
	}
	if err != nil {
		return nil, usageError{fmt.Errorf("--bootstrap: %w", err)}
	}
	if b.serverURL != "" {
		boot.Console = b.serverURL
	}
	n := &node{boot: boot, run: "B" + strings.ToUpper(device.RandomName(5))}
	if p := process(boot.ServerPID); p > 0 {
		if _, err := p.memory(); err == nil {
			n.self = p
		}
	}
	return n, n.connectAPI()
}

// withMemory adds what the server holds now.
func (b *bench) withMemory(n *node, row Result) (Result, error) {
	m, err := n.self.memory()
	row.ServerKiB, row.ServerPeakKiB = m.Resident, m.Peak
	return row, err
}
