package release

import (
	"context"
	"fmt"

	"steward/internal/sqldb"
)

// SkipVersions raises the versions of what the server signs by itself, snapshot and timestamp, in a database
// that was restored from a backup, and lets both be due, so that the next start signs them anew: a device
// refuses metadata older than what it has seen, and may have seen what this database has lost. Targets are
// signed by people, who publish what was lost again.
func SkipVersions(ctx context.Context, tx *sqldb.Tx, by int64) error {
	_, err := tx.Exec(ctx, `UPDATE release_repository SET snapshot_version = snapshot_version + $1, timestamp_version = timestamp_version + $2,
		snapshot_expires = 1, timestamp_expires = 1 WHERE snapshot_version > 0`, by, by)
	if err != nil {
		return fmt.Errorf("skip versions of release metadata: %w", err)
	}
	return nil
}
