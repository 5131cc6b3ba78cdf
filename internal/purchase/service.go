package purchase

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/job"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration returns the room's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded
	}
	return sqldb.Migration{Room: "purchase", Files: files}
}

// Devices is what this room needs of the device records.
type Devices interface {
	CreateMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.New) ([]device.Device, error)
	// ReceiveMany gives ordered devices their serial numbers and moves them to received; fault.Conflict when
	// another device has one.
	ReceiveMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.Arrival) ([]device.Device, error)
	MoveMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, moves []device.Move) ([]device.Device, error)
	// BySerials returns the tenant's devices that have one of the serial numbers.
	BySerials(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serials []string) ([]device.Device, error)
	// Matching returns a sub-SELECT of device numbers with "?" placeholders.
	Matching(scope device.Scope, sel device.Selector, stages []device.Stage) (query string, args []any)
}

// Ledger keeps what happened.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Config of the room. All fields are required.
type Config struct {
	DB      *sqldb.DB
	Devices Devices
	Ledger  Ledger
	Now     func() time.Time
	Log     *slog.Logger
}

// Service is the room; safe for concurrent use.
type Service struct {
	cfg    Config
	runner *job.Runner
	panel  *ui.Pages // set by Pages
}

// New returns the room; its tables must be migrated. The registry has to tell Moved of the moves.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg}
	s.runner = s.newRunner()
	return s
}

// wholeTenant returns the caller's tenant. Orders and stock belong to the tenant as a whole and carry
// no labels, so who sees only a part of the fleet does not get them.
func wholeTenant(who httpapi.Principal) (device.TenantID, error) {
	if !who.Scope.Selector.Empty() {
		return "", fault.New(fault.Forbidden, "purchasing concerns the whole tenant, and your account is limited to devices with %s", who.Scope.Selector)
	}
	return who.Scope.Tenant, nil
}

// record appends one event about a thing of this room.
func (s *Service) record(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, e ledger.Event) error {
	e.Tenant, e.Actor = who.Scope.Tenant, who.Actor
	if err := s.cfg.Ledger.Append(ctx, tx, e); err != nil {
		return fmt.Errorf("record %s of %s: %w", e.Kind, e.Subject, err)
	}
	return nil
}
