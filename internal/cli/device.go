package cli

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) deviceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "device", Short: "Change devices: names, labels, stages, many at a time"}
	cmd.AddCommand(a.deviceCreateCommand(), a.deviceMoveCommand(), a.deviceLabelCommand(), a.deviceRenameCommand(), a.deviceBulkCommand(),
		a.deviceShowCommand("packages", "List the packages that a device has reported", "packages"),
		a.deviceShowCommand("inventory", "Show the machine as it has reported itself", "inventory"), a.passportCommand())
	return cmd
}

func (a *app) deviceCreateCommand() *cobra.Command {
	var model, name, reason string
	cmd := &cobra.Command{
		Use: "create SERIAL --reason TEXT", Short: "Add a device that no order brought (stage received)", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var d client.Object
			body := client.Object{"serial": argv[0], "model": model, "name": name, "reason": reason}
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices", Body: body}, &d); err != nil {
				return err
			}
			return p.say(d, "%v", d["id"])
		},
	}
	f := cmd.Flags()
	f.StringVar(&model, "model", "", "hardware model")
	f.StringVar(&name, "name", "", "what people call it")
	f.StringVar(&reason, "reason", "", "why it is there (required)")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

func (a *app) deviceMoveCommand() *cobra.Command {
	var to, reason string
	cmd := &cobra.Command{
		Use: "move DEVICE --to STAGE --reason TEXT", Short: "Move a device to another stage of its life", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var d client.Object
			err = c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/" + escapePath(argv[0]) + "/move", Body: client.Object{"to": to, "reason": reason}}, &d)
			if err != nil {
				return err
			}
			return p.say(d, "%v is %v", d["id"], d["stage"])
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "stage: received, staged, active, quarantined, in_transfer, retired (required)")
	cmd.Flags().StringVar(&reason, "reason", "", "why (required)")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

func (a *app) deviceLabelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "label DEVICE KEY=VALUE… KEY-…",
		Short: "Set labels (key=value) or take them away (key-)",
		Args:  args(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			labels := client.Object{}
			for _, arg := range argv[1:] {
				key, value, set := strings.Cut(arg, "=")
				switch {
				case set:
					labels[key] = value
				case strings.HasSuffix(arg, "-"):
					labels[strings.TrimSuffix(arg, "-")] = nil
				default:
					return usagef("%q: want key=value or key-", arg)
				}
			}
			return a.patchDevice(cmd, argv[0], client.Object{"labels": labels})
		},
	}
}

func (a *app) deviceRenameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename DEVICE NAME", Short: "Change what people call a device", Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.patchDevice(cmd, argv[0], client.Object{"name": argv[1]})
		},
	}
}

func (a *app) patchDevice(cmd *cobra.Command, id string, change client.Object) error {
	c, p, err := a.both(cmd)
	if err != nil {
		return err
	}
	var d client.Object
	if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPatch, Path: "/devices/" + escapePath(id), Body: change}, &d); err != nil {
		return err
	}
	return p.say(d, "%v  %s", d["id"], formatLabels(d["labels"]))
}

func (a *app) deviceBulkCommand() *cobra.Command {
	var selector, stage, to, reason string
	var set map[string]string
	var remove []string
	cmd := &cobra.Command{
		Use:   "bulk (--selector SELECTOR | --stage STAGE) (--label k=v | --unlabel k | --move STAGE)",
		Short: "Change many devices at once, after showing what it would do",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			wish := client.Object{"filter": client.Object{"selector": selector}, "reason": reason}
			if stage != "" {
				wish["filter"] = client.Object{"selector": selector, "stages": []string{stage}}
			}
			switch {
			case len(set) > 0:
				wish["action"], wish["labels"] = "label", set
			case len(remove) > 0:
				wish["action"], wish["keys"] = "unlabel", remove
			case to != "":
				wish["action"], wish["to"] = "move", to
			default:
				return usagef("say what to do: --label, --unlabel or --move")
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var preview client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/bulk/preview", Body: wish}, &preview); err != nil {
				return err
			}
			if !a.yes {
				if err := (printer{w: cmd.ErrOrStderr(), format: "yaml"}).value(preview); err != nil {
					return err
				}
			}
			if err := a.confirm(cmd, fmt.Sprintf("Change %v of %v devices?", preview["willing"], preview["total"])); err != nil {
				return err
			}
			wish["token"] = preview["token"]
			var result client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/bulk", Body: wish}, &result); err != nil {
				return err
			}
			run, long := result["run"].(map[string]any)
			if !long {
				return p.value(result)
			}
			id, _ := run["id"].(string)
			if run, err = a.await(cmd, c, "/bulk-changes/"+escapePath(id), run, bulkProgress); err != nil {
				return err
			}
			return p.value(run)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&selector, "selector", "l", "", "label selector")
	f.StringVar(&stage, "stage", "", "only devices in this stage")
	f.StringToStringVar(&set, "label", nil, "labels to set: key=value")
	f.StringSliceVar(&remove, "unlabel", nil, "labels to take away")
	f.StringVar(&to, "move", "", "stage to move to")
	f.StringVar(&reason, "reason", "", "why")
	return cmd
}

// deviceShowCommand shows a reported document.
func (a *app) deviceShowCommand(name, short, section string) *cobra.Command {
	return &cobra.Command{
		Use: name + " DEVICE", Short: short, Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var doc client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/devices/" + escapePath(argv[0]) + "/reported/" + section}, &doc); err != nil {
				return err
			}
			if _, ok := doc["packages"].([]any); ok && p.format == "table" {
				return p.list(objects(doc["packages"]), []column{{"PACKAGE", "name"}, {"VERSION", "version"}, {"ARCH", "architecture"}, {"MANAGER", "manager"}})
			}
			return p.value(doc)
		},
	}
}

func (a *app) passportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "passport DEVICE", Short: "Show everything that ever happened to a device, from the ledger", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			query := map[string][]string{"device": {argv[0]}}
			items, err := c.All(cmd.Context(), "/events", query, 0)
			if err != nil {
				return err
			}
			return p.list(items, eventColumns)
		},
	}
}

var eventColumns = []column{{"#", "sequence"}, {"WHEN", "at|age"}, {"KIND", "kind"}, {"WHAT", "text"}, {"BY", "actor.name"}, {"REASON", "reason"}}
