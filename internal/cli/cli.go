package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

// The exit codes.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNotFound
	exitNotAllowed
	exitRefused
	exitUnreachable
)

// usageError is a mistake in how the command was called.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// Main runs the command line and returns the exit code.
func Main(version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var began bool
	root := newRoot(version)
	noteBegin(root, &began)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !began {
		err = &usageError{err.Error()} // cobra's own refusals: unknown commands, required flags
	}
	if err != nil && !errors.Is(err, errQuiet) {
		fmt.Fprintln(stderr, "steward: "+err.Error())
	}
	return exitCode(err)
}

// noteBegin makes every command say that it was called well enough to begin, and groups of commands
// refuse a command that they don't have.
func noteBegin(cmd *cobra.Command, began *bool) {
	if cmd.HasParent() && cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, argv []string) error {
			if len(argv) > 0 {
				return usagef("unknown command %q; see `%s --help`", argv[0], cmd.CommandPath())
			}
			return cmd.Help()
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, argv []string) error {
			*began = true
			return run(cmd, argv)
		}
	}
	for _, c := range cmd.Commands() {
		noteBegin(c, began)
	}
}

// errQuiet ends a command with a failure that it has told about already.
var errQuiet = errors.New("failed")

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var usage *usageError
	var settings *client.SettingsError
	if errors.As(err, &usage) || errors.As(err, &settings) {
		return exitUsage
	}
	var p *client.Problem
	if errors.As(err, &p) {
		switch {
		case p.Status == http.StatusNotFound:
			return exitNotFound
		case p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden:
			return exitNotAllowed
		case p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests:
			return exitUnreachable
		case p.Status < 500:
			return exitRefused
		}
		return exitFailed
	}
	switch {
	case errors.Is(err, client.ErrUnreachable):
		return exitUnreachable
	case errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	}
	return exitFailed
}

// app is what every command gets: the flags and what follows from them.
type app struct {
	version string
	flags   globalFlags
	yes     bool // --yes: don't ask before what cannot be undone
}

func newRoot(version string) *cobra.Command {
	a := &app{version: version}
	root := &cobra.Command{
		Use:   "steward",
		Short: "Take every IoT device from purchase order to disposal certificate",
		Long: `steward is the server and its command line.

  steward server --data DIR        run a server
  steward demo                     run a server with a demo fleet and this machine as a device
  steward get devices              ask a server (see "steward login")

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 refused, 6 not reachable.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err.Error()} })
	f := root.PersistentFlags()
	f.StringVar(&a.flags.url, "url", "", "server's console URL (or STEWARD_URL)")
	f.StringVar(&a.flags.token, "token", "", "API token (or STEWARD_TOKEN)")
	f.StringVar(&a.flags.tenant, "tenant", "", "tenant, for administrators of the installation (or STEWARD_TENANT)")
	f.StringVar(&a.flags.data, "server-data", "", "take URL and token from the bootstrap.json in this server data directory (or STEWARD_DATA)")
	f.StringVarP(&a.flags.output, "output", "o", "table", "table, json or yaml")
	f.BoolVarP(&a.yes, "yes", "y", false, "don't ask before what cannot be undone")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "any", Title: "Any resource:"}, &cobra.Group{ID: "room", Title: "One group per room:"})
	root.AddCommand(a.runCommands()...)
	root.AddCommand(a.resourceCommands()...)
	root.AddCommand(a.roomCommands()...)
	return root
}

func inGroup(group string, cmds ...*cobra.Command) []*cobra.Command {
	for _, c := range cmds {
		c.GroupID = group
	}
	return cmds
}

func (a *app) client() (*client.Client, error) {
	s, err := a.flags.settings()
	if err != nil {
		return nil, err
	}
	if s.URL == "" {
		return nil, usagef("no server: run `steward login URL`, or give --url and --token, or --server-data DIR")
	}
	return client.New(s)
}

func (a *app) printer(cmd *cobra.Command) (printer, error) {
	switch a.flags.output {
	case "table", "json", "yaml":
		return printer{w: cmd.OutOrStdout(), format: a.flags.output, now: time.Now}, nil
	}
	return printer{}, usagef("--output %q: want table, json or yaml", a.flags.output)
}

// both returns client and printer, which nearly every command needs.
func (a *app) both(cmd *cobra.Command) (*client.Client, printer, error) {
	p, err := a.printer(cmd)
	if err != nil {
		return nil, p, err
	}
	c, err := a.client()
	return c, p, err
}

// confirm asks a person for yes; without a terminal it refuses unless --yes was given.
func (a *app) confirm(cmd *cobra.Command, question string) error {
	if a.yes {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(cmd.InOrStdin(), &answer); err != nil || (answer != "y" && answer != "yes") {
		return usagef("not confirmed: nothing was changed (use --yes in scripts)")
	}
	return nil
}

// args wraps cobra's checks so that they count as wrong usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, argv []string) error {
		if err := check(cmd, argv); err != nil {
			return usagef("%v; see `%s --help`", err, cmd.CommandPath())
		}
		return nil
	}
}
