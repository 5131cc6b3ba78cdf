package twin

import (
	"context"
	"fmt"

	"steward/internal/sqldb"
)

// SkipEpochs raises every device's epoch by the same number, in a database that was restored from a backup:
// a device may have accepted states that this database has never had, under the numbers that it would give
// next, and it takes none that is not higher than the one it has. Each device then applies what is restored.
func SkipEpochs(ctx context.Context, tx *sqldb.Tx, by int64) error {
	if _, err := tx.Exec(ctx, "UPDATE twin_epoch SET epoch = epoch + $1", by); err != nil {
		return fmt.Errorf("skip epochs: %w", err)
	}
	return nil
}
