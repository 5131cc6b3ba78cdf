package cli

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) enrollCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "enroll", Short: "Enrollment tokens, certificates and what happens with devices that nobody bought"}
	cmd.AddCommand(a.enrollTokenCommand(), a.enrollTokensCommand(), a.enrollPolicyCommand(), a.certificatesCommand(),
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

// maxTokens is how many tokens the server makes in one request.
const maxTokens = 1000

// enrollTokensCommand makes the tokens of a whole delivery for a flashing or labelling station.
func (a *app) enrollTokensCommand() *cobra.Command {
	var selector, model, note string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "tokens [--model MODEL] [--selector SELECTOR]",
		Short: "Make a token for each received device, as CSV: device,serial,token,expires",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			query := url.Values{"stage": {"received"}}
			for name, value := range map[string]string{"selector": selector, "model": model} {
				if value != "" {
					query.Set(name, value)
				}
			}
			devices, err := c.All(cmd.Context(), "/devices", query, maxTokens+1)
			if err != nil {
				return err
			}
			switch {
			case len(devices) == 0:
				return usagef("no received device matches")
			case len(devices) > maxTokens:
				return usagef("more than %d received devices match: narrow them with --model or --selector", maxTokens)
			}
			if err := a.confirm(cmd, fmt.Sprintf("Make %d tokens? Their devices become staged.", len(devices))); err != nil {
				return err
			}
			wishes := make([]client.Object, len(devices))
			for i, d := range devices {
				wishes[i] = client.Object{"device": d["id"], "life_seconds": int64(life.Seconds()), "note": note}
			}
			var made struct {
				Items []client.Object `json:"items"`
			}
			call := client.Call{Method: http.MethodPost, Path: "/enrollment-tokens/bulk", Body: client.Object{"tokens": wishes}}
			if err := c.Do(cmd.Context(), call, &made); err != nil {
				return err
			}
			if p.format != "table" {
				return p.value(made.Items)
			}
			w := csv.NewWriter(p.w)
			rows := [][]string{{"device", "serial", "token", "expires"}}
			for _, t := range made.Items {
				rows = append(rows, []string{formatScalar(t["device"]), formatScalar(t["serial"]), formatScalar(t["token"]), formatScalar(t["expires"])})
			}
			return w.WriteAll(rows)
		},
	}
	f := cmd.Flags()
	f.StringVar(&model, "model", "", "only devices of this hardware model")
	f.StringVarP(&selector, "selector", "l", "", "only devices with these labels")
	f.StringVar(&note, "note", "", "what they are for")
	f.DurationVar(&life, "expires", 24*time.Hour, "how long they can be used, at most 720h")
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
			items := objects(out["items"])
			if p.format != "table" {
				return p.value(out)
			}
			if clone, ok := out["clone"].(map[string]any); ok {
				fmt.Fprintf(cmd.ErrOrStderr(), "two instances use this identity since %v: see steward enroll clear-clone-flag\n", clone["since"])
			}
			return p.list(items, []column{{"SERIAL", "serial"}, {"STATE", "state"}, {"ISSUED", "issued|age"}, {"EXPIRES", "expires|age"}, {"KEY", "key_kind"}, {"REASON", "reason"}})
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
