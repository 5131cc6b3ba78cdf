package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"steward/internal/backup/move"
)

func (a *app) migrateStoreCommand() *cobra.Command {
	var cfg move.Config
	var from string
	cmd := &cobra.Command{
		Use:   "migrate-store --from DIR --to postgres://…",
		Short: "Move a server's database from SQLite to PostgreSQL",
		Long: `migrate-store copies the embedded database of a data directory into an empty PostgreSQL database, compares
every row, recomputes the ledger there, and only then lets servers use it.

It can be started while the server runs: everything up to the last differences is copied beside it. Then
stop the server: with --wait the command waits for that, without it, call it once more. A run that fails
or is interrupted is repeated with the same command. Afterwards no server starts on the old database.

Keys, artifacts and metrics stay in the data directory, so start the server with the same --data and
--database. For several nodes, --master-key-file seals the keys in the new database; see docs/deploy.md.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := dataDirOf(from)
			if err != nil {
				return err
			}
			if cfg.DataDir = dir; cfg.Target == "" {
				return usagef("give the target with --to postgres://… (or STEWARD_DATABASE)")
			}
			p, err := a.printer(cmd)
			if err != nil {
				return err
			}
			b := newBar(cmd.ErrOrStderr())
			cfg.Progress = b.count
			cfg.Running = func() {
				b.end()
				fmt.Fprintln(cmd.ErrOrStderr(), "steward: all is copied but what changes now: stop the server, and the rest is done at once")
			}
			got, err := move.Run(cmd.Context(), cfg)
			b.end()
			if errors.Is(err, move.ErrRunning) {
				return fmt.Errorf("all is copied but what changes now: %w: stop it, then run the same command again (or use --wait)", err)
			}
			if err != nil {
				return err
			}
			return p.say(got, "moved %d rows of %d tables, %d of them changed after the first pass; every row was compared\nthe ledger verifies there: %d events, root %s\nstart the server with --database, and the same --data",
				got.Rows, got.Tables, got.Changed, got.Events, got.Root)
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", os.Getenv("STEWARD_DATA"), "the server's data directory, or sqlite:DIR/steward.db")
	f.StringVar(&cfg.Target, "to", os.Getenv("STEWARD_DATABASE"), "postgres://… of an empty database (or STEWARD_DATABASE)")
	f.BoolVar(&cfg.Wait, "wait", false, "wait for the server to stop, then finish")
	f.StringVar(&cfg.MasterKeyFile, "master-key-file", os.Getenv("STEWARD_MASTER_KEY_FILE"), "seal the keys in the new database under this master key")
	return cmd
}

// dataDirOf takes a data directory or the URL of the database in it. Another file's server could not be kept
// from writing to it.
func dataDirOf(from string) (string, error) {
	file, ok := strings.CutPrefix(from, "sqlite:")
	switch {
	case from == "":
		return "", usagef("give the server's data directory with --from DIR")
	case !ok:
		return from, nil
	case filepath.Base(file) != "steward.db":
		return "", usagef("--from %s: want the steward.db in a server's data directory", from)
	}
	return filepath.Dir(file), nil
}
