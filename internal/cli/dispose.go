package cli

import (
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) disposeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "dispose", Short: "Retire, sanitize and dispose of devices, with certificates"}
	cmd.AddCommand(a.disposeRetireCommand(), a.disposeSanitizeCommand(), a.disposeAttestCommand(), a.disposeCertificateCommand())
	return cmd
}

// confirmHits shows what the end of a device would hit and asks.
func (a *app) confirmHits(cmd *cobra.Command, c *client.Client, device, question string) error {
	var preview client.Object
	if err := c.Do(cmd.Context(), client.Call{Path: "/devices/" + escapePath(device) + "/disposal"}, &preview); err != nil {
		return err
	}
	if a.yes {
		return nil
	}
	if err := (printer{w: cmd.ErrOrStderr(), format: "yaml"}).value(preview); err != nil {
		return err
	}
	return a.confirm(cmd, question)
}

func (a *app) disposeRetireCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "retire DEVICE --reason TEXT", Short: "Take a device out of service", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if err := a.confirmHits(cmd, c, argv[0], "Retire this device?"); err != nil {
				return err
			}
			var d client.Object
			err = c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/" + escapePath(argv[0]) + "/retire", Body: client.Object{"reason": reason}}, &d)
			if err != nil {
				return err
			}
			return p.say(d, "%s is retired; next: steward dispose sanitize %s", argv[0], argv[0])
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why (required)")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

func (a *app) disposeSanitizeCommand() *cobra.Command {
	var reason, serial string
	cmd := &cobra.Command{
		Use:   "sanitize DEVICE --confirm SERIAL --reason TEXT",
		Short: "Order a retired device to destroy its data and its key; it can't be undone",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if err := a.confirmHits(cmd, c, argv[0], fmt.Sprintf("Destroy all data that Steward manages on %s? This can't be undone.", argv[0])); err != nil {
				return err
			}
			var out client.Object
			body := client.Object{"reason": reason, "confirm": serial}
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/" + escapePath(argv[0]) + "/disposal/order", Body: body}, &out); err != nil {
				return err
			}
			return p.say(out, "ordered as %v; the certificate follows: steward dispose certificate %s", out["id"], argv[0])
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why (required)")
	cmd.Flags().StringVar(&serial, "confirm", "", "the device's serial number, to confirm (required)")
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagRequired("confirm")
	return cmd
}

// disposeAttestCommand is for devices that can't sanitize themselves.
func (a *app) disposeAttestCommand() *cobra.Command {
	var reason, serial string
	attestation := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "attest DEVICE --confirm SERIAL --reason TEXT --method METHOD --technique TEXT --performer NAME --witness NAME --date DAY --evidence TEXT",
		Short: "Dispose of a retired device that can't answer, on the word of two people",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if err := a.confirmHits(cmd, c, argv[0], fmt.Sprintf("Dispose of %s without its own statement? This can't be undone.", argv[0])); err != nil {
				return err
			}
			words := client.Object{}
			for field, value := range attestation {
				if *value != "" {
					words[field] = *value
				}
			}
			var out client.Object
			body := client.Object{"reason": reason, "confirm": serial, "attestation": words}
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/devices/" + escapePath(argv[0]) + "/disposal/attest", Body: body}, &out); err != nil {
				return err
			}
			return p.say(out, "attested as %v; the certificate follows: steward dispose certificate %s", out["id"], argv[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&reason, "reason", "", "why (required)")
	f.StringVar(&serial, "confirm", "", "the device's serial number, to confirm (required)")
	for _, field := range []struct{ name, flag, usage string }{
		{"method", "method", "clear, purge or destroy, as NIST SP 800-88 names it (required)"},
		{"technique", "technique", "how, e.g. shredded to 2 mm particles (required)"},
		{"performer", "performer", "who did it, name and organization (required)"},
		{"witness", "witness", "who saw it; another person (required)"},
		{"performed", "date", "day on which it was done, YYYY-MM-DD (required)"},
		{"evidence", "evidence", "what proves it and where that is kept (required)"},
		{"media", "media", "serial numbers of the storage media"},
	} {
		attestation[field.name] = f.String(field.flag, "", field.usage)
		if field.name != "media" {
			_ = cmd.MarkFlagRequired(field.flag)
		}
	}
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagRequired("confirm")
	return cmd
}

func (a *app) disposeCertificateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "certificate DEVICE", Short: "Fetch a device's disposal certificate; check it with steward verify", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, _, err := a.both(cmd)
			if err != nil {
				return err
			}
			var data []byte
			if err := c.Do(cmd.Context(), client.Call{Path: "/devices/" + escapePath(argv[0]) + "/disposal/certificate"}, &data); err != nil {
				return err
			}
			if file == "" || file == "-" {
				_, err = cmd.OutOrStdout().Write(data)
				return err
			}
			return os.WriteFile(file, data, 0o644)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "where to write it; standard output by default")
	return cmd
}
