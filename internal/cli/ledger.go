package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/client"
	"steward/internal/server"
)

func (a *app) ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ledger", Short: "The append-only record: head, proofs, verification"}
	cmd.AddCommand(a.ledgerGetCommand("checkpoint", "Show the signed tree head; keep it somewhere else to notice a changed past", "/ledger/checkpoint", cobra.NoArgs),
		a.ledgerGetCommand("proof EVENT", "Show an event's proof of inclusion", "/events/%s/proof", cobra.ExactArgs(1)), a.ledgerVerifyCommand())
	return cmd
}

func (a *app) ledgerGetCommand(use, short, path string, check cobra.PositionalArgs) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args(check),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if len(argv) > 0 {
				path = fmt.Sprintf(path, escapePath(argv[0]))
			}
			var out client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: path}, &out); err != nil {
				return err
			}
			if note, ok := out["checkpoint"].(string); ok && p.format == "table" && len(argv) == 0 {
				_, err := fmt.Fprint(p.w, note) // as it is, so that it can be kept in a file
				return err
			}
			return p.value(out)
		},
	}
}

func (a *app) ledgerVerifyCommand() *cobra.Command {
	var cfg server.Config
	var kept []string
	cmd := &cobra.Command{
		Use:   "verify --data DIR [--checkpoint FILE…]",
		Short: "Recompute the whole ledger on the server's machine and compare it with its signed heads",
		Long: `verify reads every event from the database, recomputes the Merkle tree and compares it with the signed
tree head, and with heads that you have kept elsewhere (--checkpoint): a changed, removed or inserted
event, or a history that was rewritten since, fails.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.DataDir == "" {
				return usagef("give the server's data directory with --data DIR")
			}
			p, err := a.printer(cmd)
			if err != nil {
				return err
			}
			var heads [][]byte
			for _, file := range kept {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				heads = append(heads, data)
			}
			head, err := server.VerifyLedger(cmd.Context(), cfg, heads...)
			if err != nil {
				return errors.Join(errors.New("the ledger does not verify"), err)
			}
			return p.say(head, "the ledger verifies: %d events, root %s", head.Size, head.Root)
		},
	}
	cmd.Flags().StringVar(&cfg.DataDir, "data", os.Getenv("STEWARD_DATA"), "the server's data directory")
	cmd.Flags().StringVar(&cfg.Database, "database", os.Getenv("STEWARD_DATABASE"), "postgres://… when the server uses it")
	cmd.Flags().StringVar(&cfg.MasterKeyFile, "master-key-file", os.Getenv("STEWARD_MASTER_KEY_FILE"), "file with the master key, when the server has one")
	cmd.Flags().StringSliceVar(&kept, "checkpoint", nil, "signed tree head that was kept elsewhere (repeat)")
	return cmd
}
