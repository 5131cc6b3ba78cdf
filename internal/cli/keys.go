package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/keys"
	"steward/internal/server"
)

func (a *app) keysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Keep the installation's own keys in the database, for several nodes"}
	cmd.AddCommand(a.newMasterCommand(), a.sealCommand())
	return cmd
}

func (a *app) newMasterCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "new-master FILE",
		Short: "Make a master key, for server --master-key-file",
		Long: `new-master writes 32 random bytes in hex to a new file of mode 0600. All nodes need the same one; keep a
copy at a safe place: without it, the keys in the database are lost, and with them the fleet's authorities.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if err := keys.NewMaster(argv[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made %s: give it to every node and keep a copy at a safe place\n", argv[0])
			return nil
		},
	}
}

func (a *app) sealCommand() *cobra.Command {
	var cfg server.Config
	cmd := &cobra.Command{
		Use:   "seal --data DIR --master-key-file FILE",
		Short: "Copy the keys of a data directory into the database, sealed under a master key",
		Long: `seal takes an installation whose keys are files in DIR/keys to keys in the database. Stop all servers
before, and start them with --master-key-file afterwards. It may be repeated; a key of the database is never
replaced. DIR/keys stays as it is: remove it when the servers have started.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.DataDir == "" || cfg.MasterKeyFile == "" {
				return usagef("give the data directory with --data DIR and the master key with --master-key-file FILE")
			}
			n, err := server.SealKeys(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d keys are sealed in the database\n", n)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data", os.Getenv("STEWARD_DATA"), "data directory that holds the keys")
	f.StringVar(&cfg.Database, "database", os.Getenv("STEWARD_DATABASE"), "postgres://… instead of the embedded database (or STEWARD_DATABASE)")
	f.StringVar(&cfg.MasterKeyFile, "master-key-file", os.Getenv("STEWARD_MASTER_KEY_FILE"), "file with the master key")
	return cmd
}
