package update

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Bounds of a refresh (TUF specification 1.0.31, sections 5.3.1 and 5.3.9).
const (
	maxRootRotations = 256
	maxMetadataBytes = link.MaxMetadataBytes
)

// ErrUntrusted is wrapped when the repository's metadata, or something it should list, is not what the
// release keys have signed.
var ErrUntrusted = errors.New("not signed by the release keys")

// repository is the TUF client (https://theupdateframework.github.io/specification/v1.0.31, section 5).
// It keeps what it trusts in dir, so that older metadata is refused after a restart too.
type repository struct {
	dir     string
	root    []byte // the pinned root
	journal *journal.Journal
	source  Source
	now     func() time.Time
}

// target is one entry of the trusted targets.
type target struct {
	path   string
	sha256 wire.Hash
	size   int64
}

// targets is what the repository lists, verified.
type targets map[string]target

func (t targets) find(path string) (target, error) {
	found, ok := t[path]
	if !ok {
		return target{}, fmt.Errorf("%s is not listed in the targets: %w", path, ErrUntrusted)
	}
	return found, nil
}

// refresh walks root, timestamp, snapshot and targets. It returns an error that wraps ErrUntrusted when
// signatures, versions or expiry forbid to go on, and any other when the server could not be asked.
func (r *repository) refresh(ctx context.Context) (targets, error) {
	if len(r.root) == 0 {
		return nil, fmt.Errorf("this device has no release root: enroll it again once the release keys exist, or give --release-root: %w", ErrUntrusted)
	}
	trusted, err := r.loadRoot()
	if err != nil {
		return nil, err
	}
	if err := r.walkRoots(ctx, trusted); err != nil {
		return nil, err
	}
	if err := r.updateTimestamp(ctx, trusted); err != nil {
		return nil, err
	}
	version := trusted.Timestamp.Signed.Meta["snapshot.json"].Version
	err = r.update(ctx, "snapshot.json", version, func(data []byte, local bool) error {
		_, err := trusted.UpdateSnapshot(data, local)
		return err
	})
	if err != nil {
		return nil, err
	}
	version = trusted.Snapshot.Signed.Meta["targets.json"].Version
	err = r.update(ctx, "targets.json", version, func(data []byte, _ bool) error {
		_, err := trusted.UpdateTargets(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return listTargets(trusted.Targets[metadata.TARGETS])
}

// loadRoot starts from the newest root that was trusted before, else from the pinned one.
func (r *repository) loadRoot() (*trustedmetadata.TrustedMetadata, error) {
	data, err := os.ReadFile(r.path("root.json"))
	if err == nil {
		if trusted, err := trustedmetadata.New(data); err == nil {
			trusted.RefTime = r.now().UTC()
			return trusted, nil
		}
		// A damaged file is not trusted; the pinned root walks the way again.
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	trusted, err := trustedmetadata.New(r.root)
	if err != nil {
		return nil, fmt.Errorf("the pinned release root: %w: %w", ErrUntrusted, err)
	}
	trusted.RefTime = r.now().UTC()
	return trusted, nil
}

// walkRoots follows the chain of roots one version at a time, so that a device that slept for years
// reaches the newest.
func (r *repository) walkRoots(ctx context.Context, trusted *trustedmetadata.TrustedMetadata) error {
	for range maxRootRotations {
		name := fmt.Sprintf("%d.root.json", trusted.Root.Signed.Version+1)
		data, err := r.source.Metadata(ctx, name)
		if link.NotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := trusted.UpdateRoot(data); err != nil {
			return fmt.Errorf("%s: %w: %w", name, ErrUntrusted, err)
		}
		if err := r.keep("root.json", data); err != nil {
			return err
		}
	}
	return nil
}

func (r *repository) updateTimestamp(ctx context.Context, trusted *trustedmetadata.TrustedMetadata) error {
	if data, err := os.ReadFile(r.path("timestamp.json")); err == nil {
		// Only for comparison: an expired or no longer valid one is simply not used.
		_, _ = trusted.UpdateTimestamp(data)
	}
	data, err := r.source.Metadata(ctx, "timestamp.json")
	if err != nil {
		return err
	}
	_, err = trusted.UpdateTimestamp(data)
	if errors.Is(err, &metadata.ErrEqualVersionNumber{}) && !trusted.Timestamp.Signed.IsExpired(trusted.RefTime) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("timestamp.json: %w: %w", ErrUntrusted, err)
	}
	return r.keep("timestamp.json", data)
}

// update loads snapshot or targets: the local copy when it still fits, else the server's.
func (r *repository) update(ctx context.Context, name string, version int64, use func(data []byte, local bool) error) error {
	if data, err := os.ReadFile(r.path(name)); err == nil && use(data, true) == nil {
		return nil
	}
	remote := fmt.Sprintf("%d.%s", version, name)
	data, err := r.source.Metadata(ctx, remote)
	if err != nil {
		return err
	}
	if err := use(data, false); err != nil {
		return fmt.Errorf("%s: %w: %w", remote, ErrUntrusted, err)
	}
	return r.keep(name, data)
}

func (r *repository) path(name string) string { return filepath.Join(r.dir, name) }

func (r *repository) keep(name string, data []byte) error {
	if len(data) > maxMetadataBytes {
		return fmt.Errorf("%s of %d bytes: at most %d: %w", name, len(data), maxMetadataBytes, ErrUntrusted)
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	return r.journal.WriteFile(r.path(name), data, 0o600)
}

func listTargets(m *metadata.Metadata[metadata.TargetsType]) (targets, error) {
	list := targets{}
	for path, f := range m.Signed.Targets {
		if err := wire.SafeTarget(path); err != nil {
			return nil, fmt.Errorf("targets: %w: %w", ErrUntrusted, err)
		}
		sum, err := wire.ParseHash(f.Hashes["sha256"].String())
		if err != nil {
			return nil, fmt.Errorf("target %s: %w: %w", path, ErrUntrusted, err)
		}
		list[path] = target{path: path, sha256: sum, size: f.Length}
	}
	return list, nil
}
