package provisioning

import (
	"context"
	"crypto"
	"crypto/tls"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
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
		panic(err) // the directory is embedded above
	}
	return sqldb.Migration{Room: "provisioning", Files: files}
}

// Ledger takes the events that this room tells.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Devices are the device records, kept by the registry.
type Devices interface {
	Create(ctx context.Context, tx *sqldb.Tx, actor device.Actor, n device.New) (device.Device, error)
	Move(ctx context.Context, tx *sqldb.Tx, actor device.Actor, m device.Move) (device.Device, error)
	ByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error)
	ByNum(ctx context.Context, q sqldb.Reader, num int64) (device.Device, error)
	BySerial(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serial string) (device.Device, error)
}

// Fleet translates a scope to a sub-SELECT of device numbers with "?" placeholders.
type Fleet interface {
	Matching(scope device.Scope, sel device.Selector, stages []device.Stage) (sql string, args []any)
}

// Releases knows the tenant's TUF root, or nil while it has none.
type Releases interface {
	ReleaseRoot(ctx context.Context, tenant device.TenantID) (json.RawMessage, error)
}

// Publisher wakes the other nodes.
type Publisher interface {
	Publish(subject string, data []byte) error
}

// RevokedSubject is where the number of a device is published (decimal) after its certificates were
// revoked, so that every node closes what it holds open.
const RevokedSubject = "provisioning.revoked"

// ChangedSubject is where the number of a device is published (decimal) after Identify answers otherwise
// for it than before: an older certificate of it counts no more.
const ChangedSubject = "device.changed"

// Config of the room.
type Config struct {
	DB      *sqldb.DB // required, migrated
	Ledger  Ledger    // required
	Devices Devices   // required
	Fleet   Fleet     // required
	Keys    KeyStore  // required
	Bus     Publisher // nil when there is nobody to wake

	// Enrolled is told, in the transaction, that a device has enrolled, also anew: whoever reports next is
	// the device. Nil: nobody.
	Enrolled func(ctx context.Context, tx *sqldb.Tx, num int64) error

	Releases  Releases // nil: trust documents carry no TUF root
	LedgerKey string   // verifier key of the ledger's tree head, for trust documents

	LinkURL   func() string // required: where devices reach the link, e.g. https://steward.example:8443
	LinkNames []string      // required: DNS names and IP addresses of the link's TLS certificate
	CRLBase   string        // where /pki/ is reachable without TLS trust, e.g. http://steward.example; empty: certificates name no CRL

	CertificateLife time.Duration    // of device certificates; 0 means 90 days
	Now             func() time.Time // nil means time.Now
	Log             *slog.Logger     // required
}

// Service is the room.
type Service struct {
	cfg         Config
	authorities *authorities
	link        *linkCertificate
	envelope    crypto.Signer
	failures    *failures
	chains      *verified
	seals       sealer
	pages       *ui.Pages // set by Pages
}

// New returns the room. It makes the envelope key and the one that seals certificates at first start, and nothing else.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Ledger == nil || cfg.Devices == nil || cfg.Fleet == nil || cfg.Keys == nil || cfg.LinkURL == nil || cfg.Log == nil {
		return nil, errors.New("provisioning: a required field of Config is missing")
	}
	if err := checkLinkNames(cfg.LinkNames); err != nil {
		return nil, fmt.Errorf("provisioning: %w", err)
	}
	if cfg.CertificateLife == 0 {
		cfg.CertificateLife = DefaultCertificateLife
	}
	if cfg.CertificateLife < time.Second {
		return nil, fmt.Errorf("provisioning: certificates that live %s", cfg.CertificateLife)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	envelope, err := EnvelopeSigner(ctx, cfg.Keys)
	if err != nil {
		return nil, err
	}
	seals, err := openSealer(ctx, cfg.Keys)
	if err != nil {
		return nil, err
	}
	as := &authorities{db: cfg.DB, keys: cfg.Keys, ledger: cfg.Ledger, now: cfg.Now, log: cfg.Log, known: map[device.TenantID]*authority{}}
	return &Service{
		cfg: cfg, authorities: as, envelope: envelope,
		link:     &linkCertificate{authorities: as, names: cfg.LinkNames, now: cfg.Now, log: cfg.Log},
		failures: newFailures(cfg.Now), chains: newVerified(), seals: seals,
	}, nil
}

// LinkCertificate is for tls.Config.GetCertificate of the link; it renews itself.
func (s *Service) LinkCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	ctx := context.Background()
	if hello != nil && hello.Context() != nil {
		ctx = hello.Context()
	}
	return s.link.get(context.WithoutCancel(ctx)) // one impatient client must not spoil it for all
}

// LinkRoot returns the PEM certificate that the link's TLS certificate chains to, for bootstrap.json
// and foreign clients.
func (s *Service) LinkRoot(ctx context.Context) (string, error) {
	a, err := s.authorities.get(ctx, linkOwner)
	if err != nil {
		return "", err
	}
	return pemOf(a.root.cert), nil
}

// wakeRevoked tells all nodes after the commit. A lost message costs the time until the device's next
// request, which is refused from the database.
func (s *Service) wakeRevoked(ctx context.Context, tx *sqldb.Tx, num int64) {
	s.afterCommit(ctx, tx, RevokedSubject, num)
}

// afterCommit publishes a device's number once the transaction is durable.
func (s *Service) afterCommit(ctx context.Context, tx *sqldb.Tx, subject string, num int64) {
	if s.cfg.Bus == nil {
		return
	}
	tx.AfterCommit(func() {
		if err := s.cfg.Bus.Publish(subject, []byte(strconv.FormatInt(num, 10))); err != nil {
			s.cfg.Log.ErrorContext(ctx, "publish a change of certificates", "subject", subject, "error", err)
		}
	})
}

// deviceInScope reads a device that the caller may touch; others are not found.
func (s *Service) deviceInScope(ctx context.Context, q sqldb.Reader, scope device.Scope, id device.ID) (device.Device, error) {
	d, err := s.cfg.Devices.ByID(ctx, q, scope.Tenant, id)
	if err != nil {
		return device.Device{}, err
	}
	if !scope.Allows(d) {
		return device.Device{}, fault.New(fault.NotFound, "device %s is not known", id)
	}
	return d, nil
}

// Policy returns the tenant's, or the default.
func (s *Service) Policy(ctx context.Context, tenant device.TenantID) (Policy, error) {
	return readPolicy(ctx, s.cfg.DB, tenant)
}

// SetPolicy stores it.
func (s *Service) SetPolicy(ctx context.Context, actor device.Actor, tenant device.TenantID, choice Unpurchased) (Policy, error) {
	if err := choice.check(); err != nil {
		return Policy{}, err
	}
	var out Policy
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		old, err := readPolicy(ctx, tx, tenant)
		if err != nil {
			return err
		}
		out = old
		if old.Unpurchased == choice && old.Revision > 0 {
			return nil
		}
		out = Policy{Unpurchased: choice, Revision: old.Revision + 1, Changed: s.cfg.Now(), ChangedBy: actorName(actor)}
		if err := writePolicy(ctx, tx, tenant, out); err != nil {
			return err
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: tenant, Kind: "provisioning.policy_changed", Actor: actor,
			Data: ledger.Facts(map[string]any{"unpurchased": map[string]any{"from": old.Unpurchased, "to": choice}}),
		})
	})
	return out, err
}

func actorName(a device.Actor) string {
	if a.Name != "" {
		return a.Name
	}
	return a.ID
}

// Authorities lists the tenant's authorities and the link's.
func (s *Service) Authorities(ctx context.Context, tenant device.TenantID) ([]Authority, error) {
	out := []Authority{} // never null in JSON
	for _, owner := range []device.TenantID{tenant, linkOwner} {
		rows, err := readAuthorities(ctx, s.cfg.DB, owner)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			v, err := r.view(owner)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
	}
	return out, nil
}

func (r stored) view(owner device.TenantID) (Authority, error) {
	keyID, err := wire.KeyIDOf(r.cert.PublicKey)
	if err != nil {
		return Authority{}, fmt.Errorf("name the key of authority %s: %w", r.id, err)
	}
	return Authority{
		ID: r.id, Kind: kindName(owner, r.kind), Subject: r.cert.Subject.String(), KeyID: keyID,
		Fingerprint: string(wire.HashOf(r.cert.Raw)), Created: r.created, Expires: r.cert.NotAfter.UTC(), PEM: pemOf(r.cert),
	}, nil
}
