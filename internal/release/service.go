package release

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"steward/internal/blob"
	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/release/signing"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Ledger takes the events of changes.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Usage tells who needs a release; the room update knows.
type Usage interface {
	// InUse counts the assignments and devices that a release can't be taken from.
	InUse(ctx context.Context, q sqldb.Reader, tenant device.TenantID, release Ref) (assignments, devices int64, err error)
	// States counts the scope's devices by how far they are with the release.
	States(ctx context.Context, scope device.Scope, release Ref) (map[string]int64, error)
}

// Ref is a release's name and version. It is an alias so that other rooms need not import this one.
type Ref = struct{ Name, Version string }

// Config of a Service.
type Config struct {
	DB     *sqldb.DB
	Blobs  *blob.Store // of artifacts and manifests
	Ledger Ledger
	Usage  Usage // nil means nothing is in use
	// Keys holds the online keys of each tenant, and in managed mode all keys. Nodes of one
	// installation share it.
	Keys keys.Store
	// Demo says that managed keys are meant: the console then warns on the page only.
	Demo bool
	Log  *slog.Logger
	Now  func() time.Time // nil means time.Now
}

// Service is the room. It is safe for concurrent use.
type Service struct {
	cfg Config

	managed sync.Mutex // one managed signing at a time on this node
}

// New returns the room; it starts nothing.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{cfg: cfg}
}

func (s *Service) now() time.Time { return s.cfg.Now().UTC() }

// Repository returns the state of the tenant's repository, making it and its online keys at the first
// call.
func (s *Service) Repository(ctx context.Context, tenant device.TenantID) (Repository, error) {
	online, err := s.onlineKeys(ctx, tenant, s.making)
	if err != nil {
		return Repository{}, err
	}
	repo, err := repository(ctx, s.cfg.DB, tenant)
	if errors.Is(err, fault.NotFound) {
		err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return insertRepository(ctx, tx, tenant, online.public(), s.now()) })
		if err == nil {
			repo, err = repository(ctx, s.cfg.DB, tenant)
		}
	}
	if err != nil {
		return Repository{}, err
	}
	// What the next root has to name are the keys that this server has, whatever the last one named.
	repo.OnlineKeys = online.public()
	if repo.Managed {
		repo.Warning = ManagedWarning
	}
	return repo, nil
}

// Metadata returns a file of the tenant's repository by the name that devices ask for. It wraps
// fault.NotFound.
func (s *Service) Metadata(ctx context.Context, tenant device.TenantID, name string) ([]byte, error) {
	return metadataFile(ctx, s.cfg.DB, tenant, name)
}

// Root returns the newest root for the trust document that devices pin; nil while there is none.
func (s *Service) Root(ctx context.Context, tenant device.TenantID) ([]byte, error) {
	repo, err := repository(ctx, s.cfg.DB, tenant)
	if errors.Is(err, fault.NotFound) || err == nil && !repo.Rooted {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return metadataFile(ctx, s.cfg.DB, tenant, versioned(repo.Root.Version, "root"))
}

// currentTargets returns the newest signed targets, nil before the first.
func (s *Service) currentTargets(ctx context.Context, q sqldb.Reader, repo Repository) ([]byte, error) {
	if repo.Targets.Version == 0 {
		return nil, nil
	}
	return metadataFile(ctx, q, repo.Tenant, versioned(repo.Targets.Version, "targets"))
}

func versioned(version int64, role string) string { return fmt.Sprintf("%d.%s.json", version, role) }

// SetRoot accepts a root. The first may be any that is signed by its own keys and names this server's
// online keys; a later one must follow the current one and be signed by both. The same root again
// changes nothing.
func (s *Service) SetRoot(ctx context.Context, actor device.Actor, tenant device.TenantID, data []byte) (Repository, error) {
	return s.setRoot(ctx, actor, tenant, rootChange{data: data})
}

type rootChange struct {
	data    []byte
	managed bool
}

func (s *Service) setRoot(ctx context.Context, actor device.Actor, tenant device.TenantID, change rootChange) (Repository, error) {
	repo, err := s.Repository(ctx, tenant)
	if err != nil {
		return repo, err
	}
	if repo.Rooted {
		if current, err := s.Root(ctx, tenant); err == nil && string(current) == string(change.data) {
			return repo, nil
		}
	}
	next, err := s.checkRoot(ctx, repo, change.data)
	if err != nil {
		return repo, err
	}
	online, err := s.onlineKeys(ctx, tenant, s.making)
	if err != nil {
		return repo, err
	}
	if next.Online != online.public() {
		return repo, fault.Bad("root", "the root must name exactly this server's keys for snapshot (%s) and timestamp (%s)",
			online.public().Snapshot, online.public().Timestamp)
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if err := storeRoot(ctx, tx, repo, next, change.managed || repo.Managed); err != nil {
			return err
		}
		if err := insertMetadata(ctx, tx, tenant, file{role: "root", version: next.Version, body: next.Bytes, at: s.now()}); err != nil {
			return err
		}
		if err := s.signOnline(ctx, tx, tenant, true); err != nil {
			return err
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: tenant, Kind: EventRooted, Actor: actor, Subject: string(tenant),
			Data: ledger.Facts(map[string]any{
				"version": next.Version, "expires": next.Expires, "managed": change.managed || repo.Managed,
				"root_threshold": next.RootThreshold, "targets_threshold": next.TargetsThreshold, "sha256": wire.HashOf(next.Bytes),
			}),
		})
	})
	if err != nil {
		return repo, err
	}
	return s.Repository(ctx, tenant)
}

func (s *Service) checkRoot(ctx context.Context, repo Repository, data []byte) (*signing.Root, error) {
	var next *signing.Root
	var err error
	if !repo.Rooted {
		next, err = signing.VerifyFirstRoot(data)
		if err == nil && next.Version != 1 {
			// Devices walk from the version that they pinned; a later first root is fine for them,
			// but its predecessors would be missing for devices that were pinned elsewhere.
			s.cfg.Log.Warn("the first root is not version 1", "tenant", repo.Tenant, "version", next.Version)
		}
	} else {
		var current *signing.Root
		if current, err = s.currentRoot(ctx, s.cfg.DB, repo); err != nil {
			return nil, err
		}
		next, err = current.VerifyNextRoot(data)
	}
	if err != nil {
		return nil, fault.New(fault.Unprocessable, "the root is refused: %v", err)
	}
	if next.Expires.Before(s.now()) {
		return nil, fault.New(fault.Unprocessable, "the root is refused: it has expired at %s", next.Expires.Format(time.RFC3339))
	}
	return next, nil
}

func (s *Service) currentRoot(ctx context.Context, q sqldb.Reader, repo Repository) (*signing.Root, error) {
	data, err := metadataFile(ctx, q, repo.Tenant, versioned(repo.Root.Version, "root"))
	if err != nil {
		return nil, fmt.Errorf("read the current root: %w", err)
	}
	return signing.VerifyFirstRoot(data)
}

// List returns a page of releases, newest first.
func (s *Service) List(ctx context.Context, f Filter) (releases []Release, next string, err error) {
	return listReleases(ctx, s.cfg.DB, f)
}

// Release returns one release. It wraps fault.NotFound.
func (s *Service) Release(ctx context.Context, tenant device.TenantID, name, version string) (Release, error) {
	return releaseByName(ctx, s.cfg.DB, tenant, Ref{name, version})
}

// Manifest is Release for other rooms: the manifest and the artifacts' sizes by target name.
func (s *Service) Manifest(ctx context.Context, q sqldb.Reader, tenant device.TenantID, name, version string) (wire.ReleaseManifest, map[string]int64, error) {
	r, err := releaseByName(ctx, q, tenant, Ref{name, version})
	if err != nil {
		return wire.ReleaseManifest{}, nil, err
	}
	sizes := map[string]int64{}
	for _, c := range r.Components {
		sizes[c.Artifact] = c.SizeBytes
	}
	return r.Manifest(), sizes, nil
}

// States counts the scope's devices by how far they are with the release.
func (s *Service) States(ctx context.Context, scope device.Scope, release Ref) (map[string]int64, error) {
	if s.cfg.Usage == nil {
		return nil, nil
	}
	return s.cfg.Usage.States(ctx, scope, release)
}
