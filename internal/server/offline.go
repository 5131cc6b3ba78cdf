package server

import (
	"context"
	"errors"
	"os"

	"steward/internal/access"
	"steward/internal/ledger"
)

// OpenAPI returns the API's description in YAML, made from the code: it opens a server on a throw-away
// data directory, since rooms add their operations as they are made.
func OpenAPI(ctx context.Context) (doc []byte, err error) {
	dir, err := os.MkdirTemp("", "steward-openapi-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := Open(ctx, Config{DataDir: dir, ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0", Version: "1"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.api.OpenAPI()
}

// ResetPassword gives an account a fresh password, for whoever has the server's machine; the server may
// be running.
func ResetPassword(ctx context.Context, cfg Config, name string) (password string, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return "", err
	}
	if _, err := os.Stat(cfg.DataDir); err != nil {
		return "", err
	}
	db, err := openDatabase(ctx, cfg) // no keys: they may be sealed, and none is needed
	if err != nil {
		return "", err
	}
	e := engines{db: db}
	defer func() { err = errors.Join(err, e.close()) }()
	if e.bus, err = openBus(ctx, cfg, nil); err != nil {
		return "", err
	}
	events := ledger.New(ledger.Config{DB: e.db, Bus: e.bus, Now: cfg.Now, Log: cfg.Log})
	return access.New(access.Config{DB: e.db, Ledger: events, Now: cfg.Now, Log: cfg.Log}).ResetPassword(ctx, name)
}

// VerifyLedger recomputes the ledger's tree from the database and compares it with its signed head and
// with those that the caller kept; see ledger.Verify. The server may be running.
func VerifyLedger(ctx context.Context, cfg Config, kept ...[]byte) (head ledger.Checkpoint, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return head, err
	}
	if _, err := os.Stat(cfg.path("keys")); err != nil {
		return head, err
	}
	e, err := openEngines(ctx, cfg)
	if err != nil {
		return head, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	secret, err := e.keys.Open(ctx, ledger.KeyName)
	if err != nil {
		return head, err
	}
	signer, err := ledger.NewKey(ledgerOrigin, secret)
	if err != nil {
		return head, err
	}
	return ledger.New(ledger.Config{DB: e.db, Key: signer, Now: cfg.Now, Log: cfg.Log}).Verify(ctx, kept...)
}
