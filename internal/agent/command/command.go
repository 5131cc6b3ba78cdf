// Package command is steward-agent's command line.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/agent"
	"steward/internal/agent/host"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Exit codes.
const (
	ExitOK      = 0 // also after a disposal: a service manager should not start the agent again
	ExitFailure = 1
	ExitUsage   = 2
	ExitLocked  = 3 // another agent uses the state directory
	ExitUnwell  = 4 // status, diagnose: something is wrong
)

// errUnwell makes `diagnose` and `status` exit with ExitUnwell after they have said why.
var errUnwell = errors.New("something is wrong")

// usageError is a wrong invocation.
type usageError struct{ error }

// settings are the flags.
type settings struct {
	agent    agent.Config
	root     string // file of --release-root
	link     string // --link
	output   string
	logLevel string
	stdout   io.Writer
	stderr   io.Writer
}

// Main runs the command line and returns the exit code.
func Main(version string, args []string, stdout, stderr io.Writer) int {
	s := &settings{stdout: stdout, stderr: stderr}
	s.agent.Version = version
	cmd := s.command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := cmd.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errUnwell):
		return ExitUnwell
	case errors.Is(err, agent.ErrDecommissioned):
		fmt.Fprintln(stderr, "steward-agent:", err)
		return ExitOK
	case errors.Is(err, agent.ErrLocked):
		fmt.Fprintln(stderr, "steward-agent:", err)
		return ExitLocked
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "steward-agent:", err)
		fmt.Fprintln(stderr, "See 'steward-agent --help'.")
		return ExitUsage
	}
	fmt.Fprintln(stderr, "steward-agent:", err)
	return ExitFailure
}

func (s *settings) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "steward-agent",
		Short: "The device's end of Steward",
		Long: "steward-agent keeps one device in touch with its Steward server: it enrolls with a token, reports,\n" +
			"measures, installs signed releases and destroys its data when the device is disposed of.\n" +
			"It runs as any user; what needs root is named in its reports.",
		Args: noArguments, SilenceUsage: true, SilenceErrors: true, RunE: s.run,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&s.agent.StateDir, "state", env("STEWARD_STATE", "/var/lib/steward-agent"), "state `directory` ($STEWARD_STATE)")
	f.StringVar(&s.agent.Server, "server", os.Getenv("STEWARD_SERVER"), "`URL` of the link, https://host:port; kept for later starts ($STEWARD_SERVER)")
	f.StringVar(&s.agent.Token, "token", os.Getenv("STEWARD_TOKEN"), "enrollment `token`, for the first start; better in $STEWARD_TOKEN, which `ps` does not show")
	f.StringVar(&s.agent.Serial, "serial", os.Getenv("STEWARD_SERIAL"), "serial `number` instead of the machine's own ($STEWARD_SERIAL)")
	f.StringVar(&s.root, "release-root", os.Getenv("STEWARD_RELEASE_ROOT"), "`file` with the TUF root.json that releases are verified from ($STEWARD_RELEASE_ROOT)")
	f.StringVar(&s.agent.ComponentsDir, "components", "", "`directory` for installed components (default \"components\" in the state directory)")
	f.DurationVar(&s.agent.ReportInterval, "interval", 0, "longest time between two reports (default: what the server says)")
	f.StringVar(&s.link, "link", os.Getenv("STEWARD_LINK"), "`way` of messages: auto, mqtt or https; kept for later starts ($STEWARD_LINK) (default auto)")
	f.DurationVar(&s.agent.KeepAlive, "keep-alive", 0, "time without a word after which an MQTT connection is tested (default 5m)")
	f.StringVar(&s.logLevel, "log", "info", "log `level`: debug, info, warn, error")
	f.StringVarP(&s.output, "output", "o", "text", "`form` of status, diagnose and inventory: text or json")
	root.AddCommand(
		&cobra.Command{Use: "run", Short: "Serve (the default)", Args: noArguments, RunE: s.run},
		&cobra.Command{Use: "status", Short: "Tell how the agent of the state directory is doing", Args: noArguments, RunE: s.status},
		&cobra.Command{Use: "diagnose", Short: "Name what keeps the device from its server", Args: noArguments, RunE: s.diagnose},
		&cobra.Command{Use: "inventory", Short: "Print what would be reported of this machine", Args: noArguments, RunE: s.inventory},
		&cobra.Command{Use: "version", Short: "Print the version", Args: noArguments, RunE: s.version},
	)
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown argument %q", args[0])}
	}
	return nil
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// memoryTarget makes the collector work harder before the agent grows beyond what it may use.
const memoryTarget = 18 << 20

func (s *settings) run(cmd *cobra.Command, _ []string) error {
	debug.SetGCPercent(50) // memory is scarcer than processor time on a device at rest
	debug.SetMemoryLimit(memoryTarget)
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return usageError{fmt.Errorf("--log %q: want debug, info, warn or error", s.logLevel)}
	}
	if err := s.wayOfMessages(); err != nil {
		return err
	}
	s.agent.Log = slog.New(slog.NewTextHandler(s.stderr, &slog.HandlerOptions{Level: level}))
	s.agent.Host = host.NewLinux(host.LinuxConfig{})
	if s.root != "" {
		root, err := os.ReadFile(s.root)
		if err != nil {
			return fmt.Errorf("--release-root: %w", err)
		}
		if !json.Valid(root) {
			return fmt.Errorf("--release-root: %s is no JSON", s.root)
		}
		s.agent.ReleaseRoot = root
	}
	a, err := agent.New(s.agent)
	if err != nil {
		return usageError{err}
	}
	s.agent.Log.Info("agent starts", "version", s.agent.Version, "state", s.agent.StateDir)
	return a.Run(cmd.Context())
}

// wayOfMessages reads --link and --keep-alive.
func (s *settings) wayOfMessages() error {
	mode, err := link.ParseMode(s.link)
	if err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	if s.link != "" { // else that of the start before
		s.agent.Link = mode
	}
	if k := s.agent.KeepAlive; k != 0 && (k < 10*time.Second || k > wire.MaxMQTTKeepAlive*time.Second) {
		return usageError{fmt.Errorf("--keep-alive %s: want 10s to %s", k, wire.MaxMQTTKeepAlive*time.Second)}
	}
	return nil
}

// print writes JSON, or calls text.
func (s *settings) print(v any, text func(w io.Writer)) error {
	switch s.output {
	case "json":
		enc := json.NewEncoder(s.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "text":
		w := tabwriter.NewWriter(s.stdout, 0, 4, 2, ' ', 0)
		text(w)
		return w.Flush()
	}
	return usageError{fmt.Errorf("--output %q: want text or json", s.output)}
}

func (s *settings) status(*cobra.Command, []string) error {
	st, err := agent.ReadStatus(s.agent.StateDir)
	if err != nil {
		return err
	}
	if err := s.print(st, func(w io.Writer) { printStatus(w, st) }); err != nil {
		return err
	}
	if !st.Running || st.State != agent.StateOnline {
		return errUnwell
	}
	return nil
}

func printStatus(w io.Writer, st agent.Status) {
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	running := "yes"
	if !st.Running {
		running = "no"
	}
	row("state", st.State)
	row("", st.Detail)
	row("running", running)
	row("device", st.Device)
	row("serial", st.Serial)
	row("server", st.Server)
	row("link", st.Link)
	if st.Link != "" { // else the detail above says it
		row("no better link", st.LinkReason)
	}
	row("last contact", moment(st.LastContact))
	row("certificate ends", moment(st.CertificateEnds))
	row("release trust", st.ReleaseTrust)
	var update wire.UpdateReported
	if len(st.Update) > 0 && json.Unmarshal(st.Update, &update) == nil {
		for _, i := range update.Installed {
			row("installed", i.Name+" "+i.Version+" since "+moment(i.Since))
		}
		for _, u := range update.Updates {
			row("update", fmt.Sprintf("%s %s: %s %s", u.Name, u.Version, u.State, u.Cause))
		}
	}
	if st.Buffered > 1 {
		row("unsent metrics", fmt.Sprintf("%d measurements", st.Buffered))
	}
	for _, p := range st.Problems {
		row("problem", p)
	}
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

func (s *settings) diagnose(cmd *cobra.Command, _ []string) error {
	if err := s.wayOfMessages(); err != nil {
		return err
	}
	findings := agent.Diagnose(cmd.Context(), s.agent)
	well := true
	for _, f := range findings {
		well = well && f.OK
	}
	err := s.print(findings, func(w io.Writer) {
		for _, f := range findings {
			mark := "ok"
			if !f.OK {
				mark = "WRONG"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.Check, f.Detail)
			if f.Hint != "" && !f.OK {
				fmt.Fprintf(w, "\t\t→ %s\n", f.Hint)
			}
		}
	})
	if err == nil && !well {
		err = errUnwell
	}
	return err
}

// facts is what `inventory` prints.
type facts struct {
	Serial    string         `json:"serial"`
	Source    string         `json:"serial_source"`
	Inventory wire.Inventory `json:"inventory"`
	Packages  *wire.Packages `json:"packages"`
	Services  *wire.Services `json:"services"`
	Metrics   []host.Metric  `json:"metrics"`
	Missing   []wire.Missing `json:"unavailable"`
}

func (s *settings) inventory(cmd *cobra.Command, _ []string) error {
	ctx := cmd.Context()
	linux := host.NewLinux(host.LinuxConfig{})
	identity := linux.Identity(ctx)
	f := facts{Serial: identity.Serial, Source: identity.Source}
	var errs [4]error
	f.Packages, errs[0] = linux.Packages(ctx)
	f.Services, errs[1] = linux.Services(ctx)
	f.Metrics, errs[2] = linux.Metrics(ctx)
	f.Inventory, errs[3] = linux.Inventory(ctx)
	f.Missing = linux.Unavailable()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	return s.print(f, func(w io.Writer) { printFacts(w, f) })
}

func printFacts(w io.Writer, f facts) {
	i := f.Inventory
	fmt.Fprintf(w, "serial\t%s (%s)\n", f.Serial, f.Source)
	fmt.Fprintf(w, "host\t%s, %s\n", i.Hostname, i.Architecture)
	fmt.Fprintf(w, "machine\t%s %s\n", i.Machine.Vendor, i.Machine.Product)
	fmt.Fprintf(w, "system\t%s, kernel %s\n", i.OS.Name, i.OS.Kernel)
	fmt.Fprintf(w, "processor\t%d × %s\n", i.CPU.Cores, i.CPU.Model)
	fmt.Fprintf(w, "memory\t%d MiB\n", i.MemoryBytes>>20)
	for _, d := range i.Disks {
		fmt.Fprintf(w, "disk\t%s on %s, %s, %d MiB\n", d.Device, d.Mount, d.FileSystem, d.SizeBytes>>20)
	}
	for _, n := range i.Interfaces {
		fmt.Fprintf(w, "interface\t%s %s %s %v\n", n.Name, n.Kind, n.MAC, n.Addresses)
	}
	fmt.Fprintf(w, "packages\t%d\n", len(f.Packages.Packages))
	fmt.Fprintf(w, "services\t%d (%s)\n", len(f.Services.Services), f.Services.Manager)
	for _, m := range f.Metrics {
		fmt.Fprintf(w, "metric\t%s %v %s %v\n", m.Name, m.Value, m.Unit, m.Attributes)
	}
	for _, m := range f.Missing {
		fmt.Fprintf(w, "unavailable\t%s: %s\n", m.What, m.Reason)
	}
}

func (s *settings) version(*cobra.Command, []string) error {
	_, err := fmt.Fprintf(s.stdout, "steward-agent %s, protocol %d\n", s.agent.Version, wire.Protocol)
	return err
}
