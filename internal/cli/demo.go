package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"steward/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var once bool
	cfg := demo.FleetConfig{Version: a.version}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a server with a demo fleet and this machine as a real device",
		Long: `demo starts a server with its embedded engines, simulated devices that run the agent's own code, and the real
agent on this machine, and prints how to reach the console. Its data is kept for the next time.

With --once it takes this machine through a whole life on a throw-away directory, from the order to the
verified disposal certificate, prints one JSON line per step and exits 0 only if everything held.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			agent, err := demo.FindAgent()
			if err != nil {
				return err
			}
			if once {
				err := demo.Life(cmd.Context(), demo.LifeConfig{Agent: agent, Out: cmd.OutOrStdout(), Version: a.version})
				if errors.Is(err, demo.ErrLife) {
					return errQuiet
				}
				return err
			}
			cfg.Agent, cfg.Out, cfg.Log = agent, cmd.OutOrStdout(), cmd.ErrOrStderr()
			return demo.Fleet(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "take this machine through one whole life and stop")
	f.StringVar(&cfg.Dir, "data", "", "data directory (default: steward-demo in your state directory)")
	f.StringVar(&cfg.ConsoleAddr, "console", "127.0.0.1:8080", "address of console and API; a taken port is replaced by a free one")
	f.StringVar(&cfg.LinkAddr, "link", "127.0.0.1:8443", "address of the devices' door; a taken port is replaced by a free one")
	f.IntVar(&cfg.Devices, "devices", 25, "how many devices to simulate")
	return cmd
}
