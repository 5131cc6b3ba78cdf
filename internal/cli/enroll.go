package cli

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) enrollCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "enroll", Short: "Enrollment tokens, certificates and what happens with devices that nobody bought"}
	cmd.AddCommand(a.enrollTokenCommand(), a.enrollPolicyCommand(), a.certificatesCommand(),
		a.deviceReasonCommand("revoke", "Revoke all certificates and open tokens of a device; its connections close at once", "Revoke every certificate of this device?"),
		a.deviceReasonCommand("clear-clone-flag", "Say that a suspected clone is settled", "Clear the flag?"))
	return cmd
}

func (a *app) enrollTokenCommand() *cobra.Command {
	var serial, note string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "token (DEVICE | --serial SERIAL)",
		Short: "Make a single-use enrollment token; it is shown once",
		Long: `token makes an enrollment token for a device in stock, which becomes staged, or with --serial for a number
that is not in stock: what happens when that one enrolls is the tenant's policy (steward enroll policy).`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if (len(argv) == 1) == (serial != "") {
				return usagef("give either a device or --serial")
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			body := client.Object{"life_seconds": int64(life.Seconds()), "note": note}
			if serial != "" {
				body["serial"] = serial
			} else {
				body["device"] = argv[0]
			}
			var token client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/enrollment-tokens", Body: body}, &token); err != nil {
				return err
			}
			return p.say(token, "%v", token["token"])
		},
	}
	f := cmd.Flags()
	f.StringVar(&serial, "serial", "", "serial number that is not in stock")
	f.StringVar(&note, "note", "", "what it is for")
	f.DurationVar(&life, "expires", 24*time.Hour, "how long it can be used, at most 720h")
	return cmd
}

func (a *app) enrollPolicyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "policy [quarantine|accept|refuse]", Short: "Show or set what happens when a device enrolls that nobody bought",
		Args: args(cobra.MaximumNArgs(1)), ValidArgs: []string{"quarantine", "accept", "refuse"},
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			call := client.Call{Path: "/enrollment-policy"}
			if len(argv) == 1 {
				call.Method, call.Body = http.MethodPut, client.Object{"unpurchased": argv[0]}
			}
			var policy client.Object
			if err := c.Do(cmd.Context(), call, &policy); err != nil {
				return err
			}
			return p.say(policy, "unpurchased: %v", policy["unpurchased"])
		},
	}
}

func (a *app) certificatesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "certificates DEVICE", Short: "List the certificates that a device was issued", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var out client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/devices/" + escapePath(argv[0]) + "/certificates"}, &out); err != nil {
				return err
			}
			return p.value(out)
		},
	}
}

// deviceReasonCommand is a command on one device that asks for a reason and a confirmation.
func (a *app) deviceReasonCommand(verb, short, question string) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: verb + " DEVICE --reason TEXT", Short: short, Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if err := a.confirm(cmd, argv[0]+": "+question); err != nil {
				return err
			}
			call := client.Call{Method: http.MethodPost, Path: "/devices/" + escapePath(argv[0]) + "/" + verb, Body: client.Object{"reason": reason}}
			if err := c.Do(cmd.Context(), call, nil); err != nil {
				return err
			}
			return p.say(client.Object{"device": argv[0], "done": verb}, "%s: %s done", argv[0], verb)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why (required)")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}
