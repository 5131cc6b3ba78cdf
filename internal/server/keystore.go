package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/release"
	"steward/internal/sqldb"
)

// OpenKeys opens the store of the installation's own keys: a directory, or the migrated database when
// there is a master key. Keys that earlier versions kept in other files are taken over.
func OpenKeys(ctx context.Context, cfg Config, db *sqldb.DB) (keys.Movable, error) {
	if cfg.MasterKeyFile != "" {
		m, err := keys.ReadMaster(cfg.MasterKeyFile)
		if err != nil {
			return nil, err
		}
		s, err := keys.OpenSealed(ctx, db, m)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	sealed, err := keys.IsSealed(ctx, db)
	if err != nil {
		return nil, err
	}
	if sealed {
		return nil, errors.New("the keys are sealed in the database: give the master key of the other nodes with --master-key-file")
	}
	return OpenKeyDir(ctx, cfg.path("keys"))
}

// OpenKeyDir opens the store in a data directory's key directory.
func OpenKeyDir(ctx context.Context, dir string) (*keys.Dir, error) {
	s, err := keys.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	if err := adoptLedgerKey(ctx, s, dir+"/ledger.key"); err != nil {
		return nil, err
	}
	return s, release.AdoptKeys(ctx, s, dir+"/release")
}

// adoptLedgerKey leaves the old file where it is: the version before, started once more, would else make
// another key and sign the log with that.
func adoptLedgerKey(ctx context.Context, s keys.Movable, path string) error {
	if _, err := s.Open(ctx, ledger.KeyName); !errors.Is(err, keys.ErrNoKey) {
		return err
	}
	origin, key, err := ledger.ReadKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if origin != ledgerOrigin {
		return fmt.Errorf("ledger key file %s is of the log %q, want %q", path, origin, ledgerOrigin)
	}
	return s.Import(ctx, ledger.KeyName, key)
}

// ledgerKey opens the key that signs the log. On PostgreSQL other nodes may sign the same log: a node
// that has another key than the one that signed it last is refused, unless the old key is lost.
func (r *rooms) ledgerKey(ctx context.Context) (*ledger.Key, error) {
	return ledger.OpenKey(ctx, r.db, r.keys, ledgerOrigin, !r.sharesLedger())
}

func (r *rooms) sharesLedger() bool {
	return r.db.Dialect() == sqldb.Postgres && !r.cfg.NewLedgerKey
}

// SealKeys copies the keys of a data directory into the database, sealed under the master key, and
// returns how many there are. No server may run in the data directory.
func SealKeys(ctx context.Context, cfg Config) (n int, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return 0, err
	}
	if _, err := os.Stat(cfg.path("keys")); err != nil {
		return 0, fmt.Errorf("no keys to seal: %w", err)
	}
	unlock, err := Lock(cfg.DataDir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	db, err := sqldb.Open(ctx, cfg.Database)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Migrate(ctx, keys.Migration()); err != nil {
		return 0, err
	}
	from, err := OpenKeyDir(ctx, cfg.path("keys"))
	if err != nil {
		return 0, err
	}
	to, err := OpenKeys(ctx, cfg, db)
	if err != nil {
		return 0, err
	}
	return keys.Copy(ctx, from, to)
}
