package disposal

import (
	"context"
	"crypto"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/ui"
	"steward/internal/wire"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration returns the room's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded
	}
	return sqldb.Migration{Room: "disposal", Files: files}
}

// Devices is what this room needs of the device records.
type Devices interface {
	ByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error)
	ByNum(ctx context.Context, q sqldb.Reader, num int64) (device.Device, error)
	Move(ctx context.Context, tx *sqldb.Tx, actor device.Actor, m device.Move) (device.Device, error)
	// Matching returns a sub-SELECT of device numbers with "?" placeholders.
	Matching(scope device.Scope, sel device.Selector, stages []device.Stage) (query string, args []any)
}

// Certificates is what this room needs of the device authority.
type Certificates interface {
	// DeviceChain returns the operational certificate that the device uses, then the authorities above
	// it, the self-signed root last; fault.NotFound when the device has no valid certificate.
	DeviceChain(ctx context.Context, q sqldb.Reader, num int64) ([]*x509.Certificate, error)
	// Revoke ends all certificates of the device; it is no error when there is none.
	Revoke(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, reason string) error
}

// Twin keeps the desired state.
type Twin interface {
	SetDesired(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section, doc any) error
	// ClearDesired is no error when there is nothing to clear.
	ClearDesired(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section) error
}

// Ledger keeps and proves what happened.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
	Events(ctx context.Context, f ledger.Filter) (events []ledger.Event, next string, err error)
	Inclusion(ctx context.Context, eventID string) (ledger.Proof, error)
	Verifier() (string, error)
	Consume(ctx context.Context, name string, handle func(ctx context.Context, tx *sqldb.Tx, events []ledger.Event) error) error
}

// Provenance is where a device came from, as the room purchase knows it.
type Provenance struct {
	Order       string    `json:"order"` // ID
	Number      string    `json:"number"`
	Line        int       `json:"line"`
	Supplier    string    `json:"supplier"` // name
	Model       string    `json:"model"`    // ID
	Maker       string    `json:"maker"`
	ModelName   string    `json:"model_name"`
	Ordered     time.Time `json:"ordered"`
	Delivery    string    `json:"delivery"` // ID
	Delivered   time.Time `json:"delivered"`
	WarrantyEnd string    `json:"warranty_end"`
	UnitPrice   int64     `json:"unit_price"` // minor units
	Currency    string    `json:"currency"`
}

// Config of the room.
type Config struct {
	DB           *sqldb.DB    // required
	Devices      Devices      // required
	Certificates Certificates // required
	Twin         Twin         // required
	Ledger       Ledger       // required
	// Key signs disposal certificates: Ed25519 or ECDSA P-256. Required.
	Key crypto.Signer
	// Issuer is who stands in a certificate as its issuer, e.g. the operator's name. Required.
	Issuer string
	// Provenance tells where a device came from; ok is false when it is not known. Nil: certificates
	// say nothing about it.
	Provenance func(ctx context.Context, q sqldb.Reader, num int64) (p Provenance, ok bool, err error)
	// Undelivered is a sub-SELECT, with "?" placeholders, of devices that were ordered and never came:
	// there is nothing to sanitize of them. Nil: there are none.
	Undelivered func(tenant device.TenantID) (query string, args []any)
	// Effects tell what retiring a device would hit: a running update, a device that is online. They
	// are shown in the preview.
	Effects []func(ctx context.Context, d device.Device) ([]ui.Notice, error)
	Now     func() time.Time // nil means time.Now
	Log     *slog.Logger     // required
}

// Service is the room; safe for concurrent use.
type Service struct {
	cfg   Config
	pages *ui.Pages // set by Pages
}

// New returns the room; its tables must be migrated.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Devices == nil || cfg.Certificates == nil || cfg.Twin == nil || cfg.Ledger == nil || cfg.Key == nil || cfg.Issuer == "" || cfg.Log == nil {
		return nil, errors.New("disposal: a required field of Config is missing")
	}
	if _, err := wire.KeyIDOf(cfg.Key.Public()); err != nil {
		return nil, fmt.Errorf("disposal: the certificate key: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg}, nil
}

// now is the clock in the database's precision.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Microsecond) }

// device returns a device in the scope, else fault.NotFound.
func (s *Service) device(ctx context.Context, q sqldb.Reader, scope device.Scope, id device.ID) (device.Device, error) {
	d, err := s.cfg.Devices.ByID(ctx, q, scope.Tenant, id)
	if err != nil {
		return device.Device{}, err
	}
	if !scope.Allows(d) {
		return device.Device{}, fault.New(fault.NotFound, "no device %s", id)
	}
	return d, nil
}

// record appends an event of the device.
func (s *Service) record(ctx context.Context, tx *sqldb.Tx, actor device.Actor, d device.Device, e ledger.Event) error {
	e.Tenant, e.Device, e.Actor, e.At = d.Tenant, d.ID, actor, s.now()
	if err := s.cfg.Ledger.Append(ctx, tx, e); err != nil {
		return fmt.Errorf("record %s of %s: %w", e.Kind, d.ID, err)
	}
	return nil
}

// Preview is what ending a device's life hits, and what is possible now.
type Preview struct {
	Device      device.Device `json:"device"`
	Certificate bool          `json:"certificate" doc:"Whether it has a valid certificate, so that it can sign its own sanitization"`
	MayRetire   bool          `json:"may_retire"`
	MayOrder    bool          `json:"may_order" doc:"Whether a sanitize order can be given"`
	MayAttest   bool          `json:"may_attest" doc:"Whether people can attest the disposal"`
	Confirm     string        `json:"confirm" doc:"What to send as confirmation: the serial number, or the ID of a device without one"`
	Effects     []Effect      `json:"effects" nullable:"false" doc:"What retiring would hit"`
	Disposals   []Disposal    `json:"disposals" nullable:"false" doc:"Attempts so far, newest first"`
	notices     []ui.Notice   // the effects for the page
}

// Effect is one thing that retiring a device hits, as another room tells it.
type Effect struct {
	Level  string `json:"level" enum:"info,good,warn,bad"`
	Title  string `json:"title"`
	Detail string `json:"detail,omitempty"`
	Count  int64  `json:"count,omitempty"`
}

// Preview tells what retiring and disposing of a device hits; it changes nothing.
func (s *Service) Preview(ctx context.Context, who httpapi.Principal, id device.ID) (Preview, error) {
	d, err := s.device(ctx, s.cfg.DB, who.Scope, id)
	if err != nil {
		return Preview{}, err
	}
	p := Preview{Device: d, Confirm: confirmation(d), Effects: []Effect{}, MayRetire: device.CheckMove(d.Stage, device.Retired) == nil, MayAttest: d.Stage == device.Retired}
	chain, err := s.cfg.Certificates.DeviceChain(ctx, s.cfg.DB, d.Num)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return Preview{}, fmt.Errorf("look for the certificate of %s: %w", id, err)
	}
	p.Certificate = len(chain) > 0
	if p.Disposals, err = ofDevice(ctx, s.cfg.DB, d.Num); err != nil {
		return Preview{}, err
	}
	open := len(p.Disposals) > 0 && p.Disposals[0].State.Open()
	p.MayOrder = d.Stage == device.Retired && p.Certificate && !open
	for _, effects := range s.cfg.Effects {
		list, err := effects(ctx, d)
		if err != nil {
			return Preview{}, fmt.Errorf("look for what retiring %s hits: %w", id, err)
		}
		p.notices = append(p.notices, list...)
		for _, n := range list {
			p.Effects = append(p.Effects, Effect{n.Level.String(), n.Title, n.Detail, n.Count})
		}
	}
	return p, nil
}

// confirmation is what somebody types to show that they mean this device.
func confirmation(d device.Device) string {
	if d.Serial != "" {
		return d.Serial
	}
	return string(d.ID)
}

func checkConfirmation(d device.Device, typed string) error {
	if typed != confirmation(d) {
		return fault.Bad("body.confirm", "type %s to confirm: this cannot be undone", confirmation(d))
	}
	return nil
}

func checkReason(reason string) error {
	bad := &fault.Invalid{}
	text(bad, "body.reason", reason, 300, true)
	return bad.OrNil()
}

// Retire takes a device out of service.
func (s *Service) Retire(ctx context.Context, who httpapi.Principal, id device.ID, reason string) (d device.Device, err error) {
	if err := checkReason(reason); err != nil {
		return device.Device{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		d, err = s.device(ctx, tx, who.Scope, id)
		if err != nil {
			return err
		}
		d, err = s.cfg.Devices.Move(ctx, tx, who.Actor, device.Move{Num: d.Num, To: device.Retired, Reason: reason})
		return err
	})
	return d, err
}

// Order tells a retired device to sanitize itself. When an order stands, it is superseded: the device
// drops it for the new one.
func (s *Service) Order(ctx context.Context, who httpapi.Principal, id device.ID, reason, confirm string) (x Disposal, err error) {
	if err := checkReason(reason); err != nil {
		return Disposal{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		d, err := s.device(ctx, tx, who.Scope, id)
		if err != nil {
			return err
		}
		if err := checkConfirmation(d, confirm); err != nil {
			return err
		}
		x, err = s.order(ctx, tx, who.Actor, d, reason)
		return err
	})
	return x, err
}

func (s *Service) order(ctx context.Context, tx *sqldb.Tx, actor device.Actor, d device.Device, reason string) (Disposal, error) {
	if d.Stage != device.Retired {
		return Disposal{}, fault.New(fault.Conflict, "%s is %s: retire it before it is sanitized", d.DisplayName(), d.Stage)
	}
	if _, err := s.cfg.Certificates.DeviceChain(ctx, tx, d.Num); errors.Is(err, fault.NotFound) {
		return Disposal{}, fault.New(fault.Conflict, "%s has no valid certificate to sign a statement with: attest its disposal instead", d.DisplayName())
	} else if err != nil {
		return Disposal{}, fmt.Errorf("look for the certificate of %s: %w", d.ID, err)
	}
	if err := s.supersede(ctx, tx, actor, d, "ordered anew"); err != nil {
		return Disposal{}, err
	}
	x := s.fresh(actor, d, reason)
	x.State, x.Method = Ordered, MethodClear
	if err := insert(ctx, tx, x); err != nil {
		return Disposal{}, raced(err, d)
	}
	// What the device should run no longer matters, and must not be installed while it destroys itself.
	for _, section := range []wire.Section{wire.SectionUpdate, wire.SectionMonitoring} {
		if err := s.cfg.Twin.ClearDesired(ctx, tx, d.Num, section); err != nil {
			return Disposal{}, fmt.Errorf("clear desired %s of %s: %w", section, d.ID, err)
		}
	}
	doc := wire.DisposalDesired{Order: x.ID, Device: string(d.ID), Method: x.Method, Issued: x.Created}
	if err := s.cfg.Twin.SetDesired(ctx, tx, d.Num, wire.SectionDisposal, doc); err != nil {
		return Disposal{}, fmt.Errorf("order %s to sanitize itself: %w", d.ID, err)
	}
	return x, s.record(ctx, tx, actor, d, ledger.Event{Kind: "disposal.ordered", Subject: x.ID, Reason: reason,
		Data: ledger.Facts(map[string]string{"order": x.ID, "method": x.Method, "serial": d.Serial})})
}

// fresh returns a new disposal of the device.
func (s *Service) fresh(actor device.Actor, d device.Device, reason string) Disposal {
	return Disposal{
		ID: "dsp-" + device.RandomName(10), Device: d.ID, Serial: d.Serial, Model: d.Model, Reason: reason, Actor: actor,
		Created: s.now(), tenant: d.Tenant, num: d.Num,
	}
}

func raced(err error, d device.Device) error {
	if sqldb.IsUnique(err) {
		return fault.New(fault.Conflict, "somebody else has ordered the disposal of %s at this moment", d.DisplayName())
	}
	return err
}

// supersede ends the open disposal of a device, if there is one.
func (s *Service) supersede(ctx context.Context, tx *sqldb.Tx, actor device.Actor, d device.Device, why string) error {
	if err := lock(ctx, tx, d.Num); err != nil {
		return err
	}
	list, err := ofDevice(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	for _, x := range list {
		if !x.State.Open() {
			continue
		}
		x.State, x.Ended, x.Cause = Superseded, s.now(), why
		if err := update(ctx, tx, x); err != nil {
			return err
		}
		e := ledger.Event{Kind: "disposal.superseded", Subject: x.ID, Reason: why, Data: ledger.Facts(map[string]string{"order": x.ID})}
		if err := s.record(ctx, tx, actor, d, e); err != nil {
			return err
		}
	}
	return nil
}
