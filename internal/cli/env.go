package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envName is the variable that stands for a flag of a command: STEWARD_LINK_URL for --link-url.
func envName(flag string) string {
	return "STEWARD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets the command's own flags that were not given from their variables; an empty one is as
// none. It returns the names that look like settings of Steward and aren't, for a warning: a misspelt one
// should not be found out by what the server then does.
func fromEnvironment(cmd *cobra.Command, environ []string) (unknown []string, err error) {
	values := map[string]string{}
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok && strings.HasPrefix(name, "STEWARD_") {
			values[name] = value
		}
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		value := values[name]
		delete(values, name)
		if err != nil || value == "" || f.Changed {
			return
		}
		if setErr := cmd.Flags().Set(f.Name, value); setErr != nil {
			err = usagef("%s=%q: %v", name, value, setErr)
		}
	})
	for name := range values {
		if !slices.ContainsFunc(elsewhere, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown, err
}

// elsewhere are the beginnings of variables that the command line, the agent, tests and benchmarks read.
var elsewhere = []string{
	"STEWARD_URL", "STEWARD_TOKEN", "STEWARD_TENANT", "STEWARD_BACKUP_", "STEWARD_STATE", "STEWARD_SERVER", "STEWARD_SERIAL", "STEWARD_RELEASE_ROOT",
	"STEWARD_AGENT_", "STEWARD_TEST_", "STEWARD_BENCH_",
}
