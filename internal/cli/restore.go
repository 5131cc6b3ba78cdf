package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/backup"
)

func (a *app) restoreCommand() *cobra.Command {
	cfg := backup.RestoreConfig{Version: a.version}
	var key backupKey
	cmd := &cobra.Command{
		Use:   "restore FILE --data DIR",
		Short: "Restore a backup into an empty directory",
		Long: `restore brings back what "steward backup" has written: it compares every file with the manifest, recomputes
the ledger, and only then puts the directory into its place. After a failure there is nothing of it.

DIR must be absent or empty; an empty one keeps its owner. Start the server on it afterwards: devices come
back by themselves. What happened after the backup is gone, revocations among it: see docs/deploy.md.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if cfg.DataDir == "" {
				return usagef("give the directory to restore into with --data DIR")
			}
			p, err := a.printer(cmd)
			if err != nil {
				return err
			}
			got, err := a.readArchive(cmd, argv[0], &key, cfg, backup.Restore)
			if err != nil {
				return err
			}
			at := got.Header.Created.Format("2006-01-02 15:04:05 MST")
			fmt.Fprintf(cmd.ErrOrStderr(), "steward: what happened after %s is gone; repeat what must count: revoked certificates and tokens, disabled accounts, disposals\n", at)
			return p.say(summary(got), "%s restored as of %s: %d devices, %d ledger events, root %s", cfg.DataDir, at, got.Devices, got.Events, got.Root)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data", os.Getenv("STEWARD_DATA"), "directory to restore into: absent or empty")
	f.StringVar(&cfg.MasterKeyFile, "master-key-file", os.Getenv("STEWARD_MASTER_KEY_FILE"), "of the server, when its keys are sealed in the database")
	key.flags(cmd)
	return cmd
}
