package server

import (
	"context"
	"errors"

	"steward/internal/access"
	"steward/internal/blob"
	"steward/internal/bus"
	"steward/internal/disposal"
	"steward/internal/httpapi"
	"steward/internal/keys"
	"steward/internal/lease"
	"steward/internal/ledger"
	"steward/internal/monitoring"
	"steward/internal/provisioning"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/release"
	"steward/internal/remote"
	"steward/internal/sqldb"
	"steward/internal/twin"
	"steward/internal/update"
)

// engines are the technology that rooms stand on.
type engines struct {
	db   *sqldb.DB
	bus  *bus.Bus
	blob *blob.Store
	keys keys.Movable

	nodes *lease.Nodes // set when this node joins, before anything runs
	apart *apart       // likewise
}

// Migrations lists the tables of all rooms.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{
		keys.Migration(), lease.Migration(), ledger.Migration(), registry.Migration(), access.Migration(), httpapi.Migration(), twin.Migration(), purchase.Migration(),
		provisioning.Migration(), release.Migration(), update.Migration(), monitoring.Migration(), disposal.Migration(), remote.Migration(),
	}
}

func openEngines(ctx context.Context, cfg Config) (e engines, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.db, err = openDatabase(ctx, cfg); err != nil {
		return e, err
	}
	if e.keys, err = OpenKeys(ctx, cfg, e.db); err != nil {
		return e, err
	}
	if e.bus, err = openBus(ctx, cfg, e.keys); err != nil {
		return e, err
	}
	e.blob, err = blob.Open(ctx, cfg.Artifacts, cfg.path("artifacts"), cfg.Log)
	return e, err
}

// openDatabase opens the database and brings it up to date.
func openDatabase(ctx context.Context, cfg Config) (*sqldb.DB, error) {
	db, err := sqldb.Open(ctx, cfg.Database)
	if err != nil {
		return nil, err
	}
	for _, m := range Migrations() {
		if err := db.Migrate(ctx, m); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}

func (e engines) close() (err error) {
	if e.bus != nil {
		e.bus.Close()
	}
	if e.db != nil {
		err = errors.Join(err, e.db.Close())
	}
	return err
}
