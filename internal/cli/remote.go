package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) remoteCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "remote", Short: "Ask devices to do something once: commands with a deadline and a result"}
	cmd.AddCommand(a.remoteRunCommand(), a.remoteBatchCommand(), a.remoteResultCommand(), a.remoteStatusCommand(), a.remoteCancelCommand())
	return cmd
}

// commandFlags are what every new command may have.
type commandFlags struct {
	params   string
	deadline time.Duration
}

func (f *commandFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.params, "params", "", "a JSON value, or @FILE with one")
	cmd.Flags().DurationVar(&f.deadline, "deadline", time.Hour, "after it the device does nothing any more; 10s to 168h")
}

func (f *commandFlags) body(name string) (client.Object, error) {
	body := client.Object{"name": name, "deadline_seconds": int(f.deadline.Seconds())}
	text := []byte(f.params)
	if path, isFile := strings.CutPrefix(f.params, "@"); isFile {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	if len(text) == 0 {
		return body, nil
	}
	if !json.Valid(text) {
		return nil, usagef("--params: want a JSON value such as '{\"pin\": 4}', not %.60q", string(text))
	}
	body["params"] = json.RawMessage(text)
	return body, nil
}

func (a *app) remoteRunCommand() *cobra.Command {
	var flags commandFlags
	var wait bool
	cmd := &cobra.Command{
		Use: "run DEVICE NAME [--params JSON] [--deadline 1h] [--wait]", Short: "Give a device a command: ping, report, diagnose, or what its maker has defined",
		Long: `run gives a device a command. The device gets it at its next contact, at once when it is connected.

  steward remote run dev-0k3v9m2xq7ah5ptd ping --wait

With --wait the result is printed; a command that failed, was refused or expired then ends with code 1.`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			body, err := flags.body(argv[1])
			if err != nil {
				return err
			}
			var given client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/" + escapePath(argv[0]) + "/commands", Body: body}, &given); err != nil {
				return err
			}
			id := formatScalar(given["id"])
			if !wait {
				return p.say(given, "%s", id)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s given; waiting for the result\n", id)
			return showResult(cmd.Context(), c, p, id)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "wait for the result, until the deadline")
	return cmd
}

// pollSeconds is how long one request waits; proxies usually allow a minute.
const pollSeconds = 30

// open tells whether a command's result is still to come.
func openCommand(command client.Object) bool {
	state := formatScalar(command["state"])
	return state == "waiting" || state == "delivered"
}

// showResult waits for a command's end and prints it.
func showResult(ctx context.Context, c *client.Client, p printer, id string) error {
	var command client.Object
	for {
		command = client.Object{}
		call := client.Call{Path: "/commands/" + escapePath(id), Query: url.Values{"wait": {strconv.Itoa(pollSeconds)}}}
		if err := c.Do(ctx, call, &command); err != nil {
			return err
		}
		if !openCommand(command) {
			break
		}
	}
	if err := p.value(command); err != nil {
		return err
	}
	if command["state"] != "done" {
		return errQuiet
	}
	return nil
}

func (a *app) remoteResultCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "result COMMAND [--wait]", Short: "Show a command and its result", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if wait {
				return showResult(cmd.Context(), c, p, argv[0])
			}
			var command client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/commands/" + escapePath(argv[0])}, &command); err != nil {
				return err
			}
			return p.value(command)
		},
	}
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "wait for the result; ends with code 1 unless it is done")
	return cmd
}

func (a *app) remoteBatchCommand() *cobra.Command {
	var flags commandFlags
	var selector, group string
	var all bool
	cmd := &cobra.Command{
		Use: "batch NAME (--selector SELECTOR | --group GROUP | --all)", Short: "Give a command to a selection of at most 2,000 devices, after showing it", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if given := count(selector != "", group != "", all); given != 1 {
				return usagef("give one of --selector, --group and --all")
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			body, err := flags.body(argv[0])
			if err != nil {
				return err
			}
			body["selector"], body["group"] = selector, group
			var preview, batch client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/commands/preview", Body: body}, &preview); err != nil {
				return err
			}
			devices, _ := preview["devices"].(float64)
			if devices == 0 {
				return usagef("no device would get the command; %s would be left out", formatScalar(preview["skips"]))
			}
			var named []string
			for _, hit := range objects(preview["examples"]) {
				named = append(named, formatScalar(hit["name"]))
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "devices: %s (left out: %s), among them %s\n", formatScalar(preview["devices"]), formatScalar(preview["skips"]), strings.Join(named, ", "))
			if err := a.confirm(cmd, fmt.Sprintf("Give %s to %s devices?", argv[0], formatScalar(preview["devices"]))); err != nil {
				return err
			}
			body["confirm"] = int64(devices)
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/commands", Body: body}, &batch); err != nil {
				return err
			}
			return p.say(batch, "%v", batch["id"])
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "label selector, e.g. site=lab,ring in (a,b)")
	cmd.Flags().StringVar(&group, "group", "", "name of a group")
	cmd.Flags().BoolVar(&all, "all", false, "every device that you may see")
	return cmd
}

func count(flags ...bool) (n int) {
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}

func (a *app) remoteStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status BATCH", Short: "Show how far the devices of a selection are", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var batch client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/command-batches/" + escapePath(argv[0])}, &batch); err != nil {
				return err
			}
			return p.value(batch)
		},
	}
}

func (a *app) remoteCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel COMMAND|BATCH", Short: "Cancel an open command, or those of a batch; a device that has it may do it all the same", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if strings.HasPrefix(argv[0], "bat-") {
				return a.post(cmd, "/command-batches/"+escapePath(argv[0])+"/cancel", client.Object{}, "%v cancelled", "cancelled")
			}
			return a.post(cmd, "/commands/"+escapePath(argv[0])+"/cancel", client.Object{}, "%v is %v", "id", "state")
		},
	}
}
