package cli

import (
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/client"
	"steward/internal/server"
)

func (a *app) accessCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "access", Short: "Accounts, API tokens and tenants"}
	cmd.AddCommand(a.whoamiCommand(), a.accountCreateCommand(), a.accountSetCommand(), a.accountResetCommand(), a.tokenCreateCommand(), a.tenantCreateCommand())
	return cmd
}

func (a *app) loginCommand() *cobra.Command {
	var name, passwordFile, caFile string
	var days int
	cmd := &cobra.Command{
		Use:   "login URL",
		Short: "Sign in to a server and keep a token for this machine's user",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			s := client.Settings{URL: argv[0], Tenant: a.flags.tenant}
			if caFile != "" {
				ca, err := os.ReadFile(caFile)
				if err != nil {
					return err
				}
				s.CA = string(ca)
			}
			c, err := client.New(s)
			if err != nil {
				return err
			}
			password, err := readPassphrase(cmd, passwordFile)
			if err != nil {
				return err
			}
			host, _ := os.Hostname()
			body := client.Object{"name": name, "password": string(password), "token_name": "steward login on " + host, "expires_in_days": days}
			var token struct {
				Secret string `json:"secret"`
			}
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/login", Body: body}, &token); err != nil {
				return err
			}
			s.Token = token.Secret
			path, err := saveSettings(s)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "signed in as %s for %d days; kept in %s\n", name, days, path)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "admin", "account")
	f.StringVar(&passwordFile, "password-file", "-", "file with the password ('-' asks)")
	f.StringVar(&caFile, "ca", "", "PEM file with the CA of the console's certificate")
	f.IntVar(&days, "days", 7, "how long the token is good for")
	return cmd
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who you are and what you may", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var me client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/whoami"}, &me); err != nil {
				return err
			}
			return p.value(me)
		},
	}
}

func (a *app) accountCreateCommand() *cobra.Command {
	var role, selector, email string
	var program bool
	cmd := &cobra.Command{
		Use: "create-account NAME --role ROLE", Short: "Make an account; the password is shown once", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			body := client.Object{"name": argv[0], "role": role, "selector": selector, "email": email, "program": program}
			return a.post(cmd, "/accounts", body, "account %v made; password %v (must be changed at the first sign-in)", "name", "password")
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "viewer", "viewer, operator, release-manager or admin")
	f.StringVarP(&selector, "selector", "l", "", "narrow it to some devices")
	f.StringVar(&email, "email", "", "e-mail address")
	f.BoolVar(&program, "program", false, "an account for a program: tokens only, no password")
	return cmd
}

func (a *app) accountSetCommand() *cobra.Command {
	var role, selector, email string
	var disabled bool
	cmd := &cobra.Command{
		Use: "set-account ACCOUNT", Short: "Change role, scope or e-mail of an account (by its ID), or disable it", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			body := client.Object{}
			for flag, value := range map[string]any{"role": role, "selector": selector, "email": email, "disabled": disabled} {
				if cmd.Flags().Changed(flag) {
					body[flag] = value
				}
			}
			if len(body) == 0 {
				return usagef("say what to change: --role, --selector, --email or --disabled")
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var out client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPatch, Path: "/accounts/" + escapePath(argv[0]), Body: body}, &out); err != nil {
				return err
			}
			return p.say(out, "account %v: role %v, disabled %v", out["name"], out["role"], out["disabled"])
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "viewer, operator, release-manager or admin")
	f.StringVarP(&selector, "selector", "l", "", "narrow it to some devices; empty: all")
	f.StringVar(&email, "email", "", "e-mail address")
	f.BoolVar(&disabled, "disabled", false, "true ends its sessions and refuses it; =false lets it in again")
	return cmd
}

// post sends a body and says the named fields of the answer.
func (a *app) post(cmd *cobra.Command, path string, body client.Object, format string, fields ...string) error {
	c, p, err := a.both(cmd)
	if err != nil {
		return err
	}
	var out client.Object
	if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: path, Body: body}, &out); err != nil {
		return err
	}
	values := make([]any, len(fields))
	for i, f := range fields {
		values[i] = first(formatScalar(lookup(out, f)), "-")
	}
	return p.say(out, format, values...)
}

func (a *app) accountResetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reset-password ACCOUNT", Short: "Give an account (by its ID) a fresh password, shown once", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if err := a.confirm(cmd, "Reset the password and end the sessions of "+argv[0]+"?"); err != nil {
				return err
			}
			return a.post(cmd, "/accounts/"+escapePath(argv[0])+"/password", client.Object{}, "password %v", "password")
		},
	}
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var role, selector, account string
	var days int
	cmd := &cobra.Command{
		Use: "create-token NAME", Short: "Make an API token; it is shown once", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			body := client.Object{"name": argv[0], "selector": selector, "expires_in_days": days}
			if role != "" {
				body["role"] = role
			}
			if account != "" {
				body["account"] = account
			}
			return a.post(cmd, "/tokens", body, "%v", "secret")
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "at most yours, which is the default")
	f.StringVarP(&selector, "selector", "l", "", "narrow it to some devices")
	f.StringVar(&account, "account", "", "ID of the account that it acts for; yours by default")
	f.IntVar(&days, "days", 90, "how long it is good for")
	return cmd
}

func (a *app) tenantCreateCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "create-tenant ID", Short: "Make a tenant (administrators of the installation)", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.post(cmd, "/tenants", client.Object{"id": argv[0], "name": name}, "tenant %v made", "id")
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what people call it")
	return cmd
}

// adminCommand works on the server's data directory, on its machine.
func (a *app) adminCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "admin", Short: "What only the server's machine may: reset a password without one"}
	var cfg server.Config
	reset := &cobra.Command{
		Use: "reset-password NAME --data DIR", Short: "Give an account a fresh password and enable it", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if cfg.DataDir == "" {
				return usagef("give the server's data directory with --data DIR")
			}
			if err := a.confirm(cmd, "Reset the password and end the sessions of "+argv[0]+"?"); err != nil {
				return err
			}
			password, err := server.ResetPassword(cmd.Context(), cfg, argv[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), password)
			return nil
		},
	}
	reset.Flags().StringVar(&cfg.DataDir, "data", os.Getenv("STEWARD_DATA"), "the server's data directory")
	reset.Flags().StringVar(&cfg.Database, "database", os.Getenv("STEWARD_DATABASE"), "postgres://… when the server uses it")
	cmd.AddCommand(reset)
	return cmd
}
