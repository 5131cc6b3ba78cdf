package cli

import (
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) monitorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "monitor", Short: "Presence, metrics and how often devices report"}
	cmd.AddCommand(a.monitorMetricsCommand(), a.monitorQueryCommand(), a.monitorPresenceCommand(), a.monitorPolicyCommand(), a.groupSetCommand())
	return cmd
}

func (a *app) monitorMetricsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "metrics DEVICE", Short: "Show a device's current values; with -o json the last 24 hours, too", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var out client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/devices/" + escapePath(argv[0]) + "/metrics"}, &out); err != nil {
				return err
			}
			if p.format != "table" {
				return p.value(out)
			}
			return p.list(objects(out["current"]), []column{{"METRIC", "name"}, {"VALUE", "value"}, {"OF", "labels|labels"}})
		},
	}
}

func (a *app) monitorQueryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "query PROMQL", Short: "Ask the metrics of your tenant in PromQL", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var out client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/metrics/query", Query: url.Values{"query": {argv[0]}}}, &out); err != nil {
				return err
			}
			return p.value(out)
		},
	}
}

func (a *app) monitorPresenceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "presence", Short: "Count devices that are online, late, offline or were never seen", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var out client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/presence"}, &out); err != nil {
				return err
			}
			return p.value(out)
		},
	}
}

func (a *app) monitorPolicyCommand() *cobra.Command {
	var report, metrics int
	cmd := &cobra.Command{
		Use: "policy [--report SECONDS] [--metrics SECONDS]", Short: "Show or set how often devices report and measure", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var policy client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/monitoring/policy"}, &policy); err != nil {
				return err
			}
			if report == 0 && metrics == 0 {
				return p.value(policy)
			}
			body := client.Object{"report_seconds": policy["report_seconds"], "metrics_seconds": policy["metrics_seconds"]}
			if report > 0 {
				body["report_seconds"] = report
			}
			if metrics > 0 {
				body["metrics_seconds"] = metrics
			}
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPut, Path: "/monitoring/policy", Body: body}, &policy); err != nil {
				return err
			}
			return p.value(policy)
		},
	}
	cmd.Flags().IntVar(&report, "report", 0, "seconds between two reports at most")
	cmd.Flags().IntVar(&metrics, "metrics", 0, "seconds between two measurements")
	return cmd
}

func (a *app) groupSetCommand() *cobra.Command {
	var selector, note string
	cmd := &cobra.Command{
		Use: "group NAME --selector SELECTOR", Short: "Make a group: a named selector with presence and charts", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.post(cmd, "/groups", client.Object{"name": argv[0], "selector": selector, "note": note}, "group %v made", "name")
		},
	}
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "label selector (required)")
	cmd.Flags().StringVar(&note, "note", "", "what it is for")
	_ = cmd.MarkFlagRequired("selector")
	return cmd
}
