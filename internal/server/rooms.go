package server

import (
	"context"
	"fmt"
	"sync/atomic"

	"steward/internal/access"
	"steward/internal/device"
	"steward/internal/disposal"
	"steward/internal/httpapi"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/monitoring"
	"steward/internal/provisioning"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/release"
	"steward/internal/remote"
	"steward/internal/sqldb"
	"steward/internal/twin"
	"steward/internal/ui"
	"steward/internal/update"
	"steward/internal/wire"
)

// ledgerOrigin is the first line of every tree head.
const ledgerOrigin = "steward-ledger"

// issuerName stands on disposal certificates as who issued them.
const issuerName = "Steward"

// rooms are all rooms of one server. Where two rooms need one another, the one made first gets methods
// of this struct (join.go), which find the other once all are made.
type rooms struct {
	cfg Config
	engines

	ledger       *ledger.Ledger
	registry     *registry.Service
	access       *access.Service
	twin         *twin.Service
	purchase     *purchase.Service
	provisioning *provisioning.Service
	release      *release.Service
	update       *update.Service
	monitoring   *monitoring.Service
	disposal     *disposal.Service
	remote       *remote.Service

	alive atomic.Pointer[map[string]string] // names of the nodes that are there, by ID
}

// makeRooms makes the rooms from the spine outwards; it starts nothing.
func makeRooms(ctx context.Context, cfg Config, e engines, door linkDoor) (*rooms, error) {
	r := &rooms{cfg: cfg, engines: e}
	if err := r.makeSpine(ctx); err != nil {
		return nil, err
	}
	r.purchase = purchase.New(purchase.Config{DB: e.db, Devices: r.registry, Ledger: r.ledger, Now: cfg.Now, Log: cfg.Log})
	r.release = release.New(release.Config{
		DB: e.db, Blobs: e.blob, Ledger: r.ledger, Usage: releaseUsage{r}, Keys: e.keys,
		Demo: cfg.ManagedKeys, Log: cfg.Log, Now: cfg.Now,
	})
	r.update = update.New(update.Config{
		DB: e.db, Ledger: r.ledger, Twin: r.twin, Devices: r.registry, Releases: r.release, Log: cfg.Log, Now: cfg.Now,
	})
	verifier, err := r.ledger.Verifier()
	if err != nil {
		return nil, err
	}
	r.provisioning, err = provisioning.New(ctx, provisioning.Config{
		DB: e.db, Ledger: r.ledger, Devices: r.registry, Fleet: r.registry, Keys: e.keys, Bus: e.bus,
		Enrolled: r.twin.ForgetInstance, Releases: releaseRoots{r}, LedgerKey: verifier,
		LinkURL: func() string { return door.url }, LinkNames: door.names,
		CertificateLife: cfg.CertificateLife, Now: cfg.Now, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if err := r.makeDisposal(ctx); err != nil {
		return nil, err
	}
	r.remote = remote.New(remote.Config{DB: e.db, Ledger: r.ledger, Devices: r.registry, Bus: e.bus, Group: r.group, Once: r.once, Log: cfg.Log, Now: cfg.Now})
	outside, err := cfg.metricsStore()
	if err != nil {
		return nil, err
	}
	r.monitoring, err = monitoring.Open(monitoring.Config{
		DB: e.db, Ledger: r.ledger, Devices: r.registry, Twin: r.twin, Dir: cfg.path("metrics"),
		Keep: cfg.MetricsRetention, Once: r.once, Node: r.nodeID, NodeAlive: r.nodeAlive, Outside: outside, Partial: r.partialMetrics, NodeName: func(id string) string { return r.aliveNodes()[id] }, Log: cfg.Log, Now: cfg.Now,
	})
	return r, err
}

// makeSpine makes what all others stand on.
func (r *rooms) makeSpine(ctx context.Context) error {
	key, err := r.ledgerKey(ctx)
	if err != nil {
		return err
	}
	r.ledger = ledger.New(ledger.Config{
		DB: r.db, Key: key, Bus: r.bus, Now: r.cfg.Now, Log: r.cfg.Log, Devices: r.publicIDs, Describe: sentences(),
		Shared: r.sharesLedger(),
	})
	if r.sharesLedger() {
		if err := r.ledger.CheckKey(ctx); err != nil {
			return err
		}
	}
	r.registry = registry.New(registry.Config{DB: r.db, Ledger: r.ledger, Moved: []registry.Moved{r.moved}, MovedMany: []registry.MovedMany{r.movedMany}, Now: r.cfg.Now, Log: r.cfg.Log})
	r.access = access.New(access.Config{
		DB: r.db, Ledger: r.ledger, Now: r.cfg.Now, Log: r.cfg.Log, Proxies: r.cfg.TrustedProxies, Secure: r.cfg.BehindProxy,
	})
	envelope, err := provisioning.EnvelopeSigner(ctx, r.keys)
	if err != nil {
		return err
	}
	r.twin = twin.New(twin.Config{
		DB: r.db, Key: envelope, Bus: r.bus, Ledger: r.ledger, Devices: r.registry, Once: r.once, Now: r.cfg.Now, Log: r.cfg.Log,
		Contact: r.contact, ContactUnchanged: func(d device.Device, rep wire.Report) { r.monitoring.Seen(d, rep) },
		Clone: func(ctx context.Context, tx *sqldb.Tx, d device.Device, old, new string) error {
			return r.provisioning.Clone(ctx, tx, d, old, new)
		},
		Interval: r.interval,
		Reactions: map[wire.Section]twin.Reaction{
			wire.SectionUpdate: func(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
				return r.update.OnReported(ctx, tx, d, body)
			},
			wire.SectionInventory: func(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
				return r.update.OnInventory(ctx, tx, d, body)
			},
			wire.SectionDisposal: func(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
				return r.disposal.Reported(ctx, tx, d, body)
			},
		},
	})
	return nil
}

func (r *rooms) makeDisposal(ctx context.Context) error {
	key, err := r.keys.Ensure(ctx, "disposal-issuer", keys.Ed25519)
	if err != nil {
		return fmt.Errorf("open the key of disposal certificates: %w", err)
	}
	r.disposal, err = disposal.New(disposal.Config{
		DB: r.db, Devices: r.registry, Certificates: r.provisioning, Twin: r.twin, Ledger: r.ledger, Key: key, Issuer: issuerName,
		Provenance: r.provenance, Undelivered: r.purchase.Undelivered, Effects: r.effects(), Now: r.cfg.Now, Log: r.cfg.Log,
	})
	return err
}

// routes adds the API of all rooms.
func (r *rooms) routes(a *httpapi.API, desk *registry.Desk) {
	desk.Routes(a)
	r.nodeRoutes(a)
	r.ledger.Routes(a)
	r.access.Routes(a)
	r.twin.Routes(a)
	r.purchase.Routes(a)
	r.provisioning.Routes(a)
	r.release.Routes(a)
	r.update.Routes(a)
	r.monitoring.Routes(a)
	r.disposal.Routes(a)
	r.remote.Routes(a)
}

// navigation is the console's main menu.
var navigation = []ui.NavItem{
	{Name: "Fleet", Path: "/", Icon: "fleet"},
	{Name: "Devices", Path: "/devices", Icon: "devices"},
	{Name: "Groups", Path: "/groups", Icon: "groups"},
	{Name: "Orders", Path: "/orders", Icon: "orders"},
	{Name: "Enrollment", Path: "/enrollment", Icon: "key"},
	{Name: "Releases", Path: "/releases", Icon: "release"},
	{Name: "Updates", Path: "/updates", Icon: "update"},
	{Name: "Commands", Path: "/commands", Icon: "command"},
	{Name: "Disposal", Path: "/disposal", Icon: "trash"},
	{Name: "Ledger", Path: "/ledger", Icon: "ledger"},
	{Name: "Access", Path: "/access", Icon: "access"},
}

// pages adds the console's pages of all rooms and returns the desk that shows devices.
func (r *rooms) pages(c *ui.Console) *registry.Desk {
	r.access.Pages(c)
	r.nodePages(c)
	r.purchase.Pages(c)
	r.provisioning.Pages(c)
	r.release.Pages(c)
	r.update.Pages(c)
	r.monitoring.Pages(c)
	r.disposal.Pages(c)
	r.remote.Pages(c)
	panels := append(r.twin.Pages(c), r.ledger.Pages(c), r.purchase.Panel(), r.provisioning.Panel(), r.update.Panel(), r.monitoring.Panel(), r.monitoring.EventsPanel(), r.remote.Panel(), r.disposal.Panel())
	desk := registry.NewDesk(registry.DeskConfig{
		Registry: r.registry, Presence: presence{r.monitoring}, PresenceCounts: r.presenceCounts, PresenceIn: presenceIn,
		ModelNames: r.modelNames, Panels: panels, Recent: r.ledger, Sentence: r.ledger.Sentence, Log: r.cfg.Log,
		Notices: []func(context.Context, device.Scope) ([]ui.Notice, error){
			r.provisioning.Notices, r.update.Notices, r.monitoring.Notices, r.disposal.Notices, r.release.Notices, r.purchase.Notices, r.nodeNotices,
		},
	})
	desk.Pages(c)
	return desk
}
