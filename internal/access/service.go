package access

import (
	"context"
	"embed"
	"io/fs"
	"log/slog"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration makes the room's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return sqldb.Migration{Room: "access", Files: files}
}

// Ledger takes the events of a change in its transaction.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Config of a Service.
type Config struct {
	DB     *sqldb.DB        // required
	Ledger Ledger           // required
	Now    func() time.Time // nil means time.Now
	Log    *slog.Logger     // nil means slog.Default

	// Proxies are believed to say where a request comes from; the same as httpapi's.
	Proxies httpapi.Proxies
	// Secure says that browsers reach the console by HTTPS although the server speaks HTTP, as behind
	// a proxy. Requests over TLS are known as such without it.
	Secure bool
}

// Service keeps accounts and finds out who asks. It is safe for concurrent use and has no goroutine of
// its own.
type Service struct {
	db      *sqldb.DB
	ledger  Ledger
	now     func() time.Time
	log     *slog.Logger
	proxies httpapi.Proxies
	secure  bool

	hasher  *hasher
	guesses *guesses
	cache   *cache
}

// New returns a Service on a migrated database. Call EnsureAdmin before serving.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Service{
		db: cfg.DB, ledger: cfg.Ledger, now: cfg.Now, log: cfg.Log, proxies: cfg.Proxies, secure: cfg.Secure,
		hasher: newHasher(), guesses: newGuesses(cfg.Now), cache: newCache(cfg.Now),
	}
}

// clock is the time as it is stored, so that what is returned equals what is read back.
func (s *Service) clock() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// Kinds of events.
const (
	kindTenantCreated   = "access.tenant_created"
	kindTenantEntered   = "access.tenant_entered"
	kindAccountCreated  = "access.account_created"
	kindAccountChanged  = "access.account_changed"
	kindAccountDisabled = "access.account_disabled"
	kindAccountEnabled  = "access.account_enabled"
	kindAccountDeleted  = "access.account_deleted"
	kindPasswordChanged = "access.password_changed"
	kindPasswordReset   = "access.password_reset"
	kindSignedIn        = "access.signed_in"
	kindSignedOut       = "access.signed_out"
	kindSignInFailed    = "access.sign_in_failed"
	kindTokenCreated    = "access.token_created"
	kindTokenRevoked    = "access.token_revoked"
)

// change is a write that is told to the ledger and may change who may what.
type change struct {
	kind    string
	tenant  device.TenantID
	subject string
	data    any
}

// write runs fn in a transaction, tells the ledger what fn returned and empties the cache at the commit.
func (s *Service) write(ctx context.Context, actor device.Actor, fn func(tx *sqldb.Tx) (change, error)) error {
	return s.db.Write(ctx, func(tx *sqldb.Tx) error {
		c, err := fn(tx)
		if err != nil {
			return err
		}
		return s.tell(ctx, tx, actor, c)
	})
}

func (s *Service) tell(ctx context.Context, tx *sqldb.Tx, actor device.Actor, c change) error {
	tx.AfterCommit(s.cache.clear)
	return s.tellOnly(ctx, tx, actor, c)
}

// tellOnly is tell for what changes nothing of what anybody may.
func (s *Service) tellOnly(ctx context.Context, tx *sqldb.Tx, actor device.Actor, c change) error {
	return s.ledger.Append(ctx, tx, ledger.Event{
		Tenant: c.tenant, Kind: c.kind, Subject: c.subject, Actor: actor, Data: ledger.Facts(c.data),
	})
}

// mayManage tells whether who may manage the accounts of their tenant.
func mayManage(who httpapi.Principal) error {
	switch {
	case who.Role < httpapi.Admin:
		return fault.New(fault.Forbidden, "this needs the role %s; you have %s", httpapi.Admin, who.Role)
	case !who.Scope.Selector.Empty():
		return fault.New(fault.Forbidden, "your token is narrowed to some devices (%s), so it can't manage accounts", who.Scope.Selector)
	}
	return nil
}
