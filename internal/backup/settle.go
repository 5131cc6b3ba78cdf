package backup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/release"
	"steward/internal/server"
	"steward/internal/sqldb"
	"steward/internal/twin"
)

// skipped is how far a restore raises each device's epoch and the versions of release metadata that the
// server signs: more than any device has seen between a backup and the loss.
const skipped = 1 << 20

// settle makes a restored data directory one that a server can start in: the tables are brought up to date,
// the ledger is recomputed and compared with the head in the manifest, the restore is put into the ledger
// and what devices must not see go back is raised. It returns the root of the ledger's tree.
func settle(ctx context.Context, cfg RestoreConfig, dir string, m Manifest) (root string, err error) {
	scfg := server.Config{DataDir: dir, MasterKeyFile: cfg.MasterKeyFile, Now: cfg.Now}
	if m.Checkpoint != "" {
		head, err := server.VerifyLedger(ctx, scfg, []byte(m.Checkpoint))
		if err != nil {
			return "", fmt.Errorf("the restored ledger does not verify: %w", err)
		}
		root = head.Root.String()
	}
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(dir, databaseName))
	if err != nil {
		return root, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, mig := range server.Migrations() {
		if err := db.Migrate(ctx, mig); err != nil {
			return root, err
		}
	}
	return root, db.Write(ctx, func(tx *sqldb.Tx) error {
		if err := errors.Join(twin.SkipEpochs(ctx, tx, skipped), release.SkipVersions(ctx, tx, skipped)); err != nil {
			return err
		}
		return ledger.New(ledger.Config{DB: db, Now: cfg.Now}).Append(ctx, tx, ledger.Event{
			Tenant: device.DefaultTenant, Kind: "ledger.restored", Actor: device.System("backup"),
			Reason: "the server's data were restored from a backup: what happened after it is not in this ledger",
			Data: ledger.Facts(map[string]any{
				"backup_created": m.Header.Created.Format(time.RFC3339Nano), "backup_version": m.Header.Version,
				"size": m.Events, "old_checkpoint": m.Checkpoint, "version": cfg.Version,
			}),
		})
	})
}
