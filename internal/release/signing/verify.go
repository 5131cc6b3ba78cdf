package signing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"steward/internal/wire"
)

// Bounds of metadata in bytes; devices refuse more too.
const (
	MaxRootBytes    = 128 << 10
	MaxTargetsBytes = 4 << 20
)

// Root is a verified root.
type Root struct {
	Bytes            []byte
	Version          int64
	Expires          time.Time
	RootThreshold    int
	TargetsThreshold int
	Online           OnlineKeys // empty fields when the root names other than one Ed25519 key for the role

	meta *metadata.Metadata[metadata.RootType]
}

// VerifyFirstRoot reads a root that stands on its own: signed by the threshold of its own root keys.
func VerifyFirstRoot(data []byte) (*Root, error) {
	if len(data) > MaxRootBytes {
		return nil, fmt.Errorf("root of %d bytes: at most %d", len(data), MaxRootBytes)
	}
	trusted, err := trustedmetadata.New(data)
	if err != nil {
		return nil, fmt.Errorf("root is not signed by its own keys: %w", err)
	}
	return checkRoot(data, trusted.Root)
}

// VerifyNextRoot reads a root that must follow this one: the next version, signed by the thresholds of
// both, this one's root keys and its own.
func (r *Root) VerifyNextRoot(data []byte) (*Root, error) {
	if len(data) > MaxRootBytes {
		return nil, fmt.Errorf("root of %d bytes: at most %d", len(data), MaxRootBytes)
	}
	trusted, err := trustedmetadata.New(r.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the current root: %w", err)
	}
	next, err := trusted.UpdateRoot(data)
	if err != nil {
		return nil, fmt.Errorf("root does not follow version %d: %w", r.Version, err)
	}
	return checkRoot(data, next)
}

func checkRoot(data []byte, m *metadata.Metadata[metadata.RootType]) (*Root, error) {
	s := m.Signed
	if !s.ConsistentSnapshot {
		return nil, errors.New("root must set consistent_snapshot")
	}
	if s.Version < 1 {
		return nil, fmt.Errorf("root has version %d", s.Version)
	}
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		r, ok := s.Roles[role]
		if !ok || r.Threshold < 1 || len(r.KeyIDs) < r.Threshold {
			return nil, fmt.Errorf("root's role %s has no threshold that its keys can reach", role)
		}
		if distinctKeys(s, r.KeyIDs) < r.Threshold {
			return nil, fmt.Errorf("root's role %s names fewer different keys than its threshold", role)
		}
	}
	return &Root{
		Bytes: data, Version: s.Version, Expires: s.Expires, meta: m,
		RootThreshold: s.Roles[metadata.ROOT].Threshold, TargetsThreshold: s.Roles[metadata.TARGETS].Threshold,
		Online: OnlineKeys{Snapshot: onlyKey(s, metadata.SNAPSHOT), Timestamp: onlyKey(s, metadata.TIMESTAMP)},
	}, nil
}

// distinctKeys counts different public keys: one key under two IDs must not count twice.
func distinctKeys(s metadata.RootType, ids []string) int {
	seen := map[string]bool{}
	for _, id := range ids {
		if k, ok := s.Keys[id]; ok {
			seen[k.Value.PublicKey] = true
		}
	}
	return len(seen)
}

func onlyKey(s metadata.RootType, role string) string {
	ids := s.Roles[role].KeyIDs
	if len(ids) != 1 {
		return ""
	}
	k, ok := s.Keys[ids[0]]
	if !ok || k.Type != metadata.KeyTypeEd25519 {
		return ""
	}
	return k.Value.PublicKey
}

// Target is one entry of the targets metadata.
type Target struct {
	Path      string    `json:"path"`
	SHA256    wire.Hash `json:"sha256"`
	SizeBytes int64     `json:"size_bytes"`
}

// Targets is verified targets metadata.
type Targets struct {
	Bytes   []byte
	Version int64
	Expires time.Time
	Files   map[string]Target // by path

	meta *metadata.Metadata[metadata.TargetsType]
}

// Paths lists the targets in order.
func (t *Targets) Paths() []string { return slices.Sorted(maps.Keys(t.Files)) }

// VerifyTargets reads targets metadata that the root's targets keys have signed. It refuses delegations,
// since devices don't follow them, and entries without a SHA-256. Expiry is left to the caller.
func (r *Root) VerifyTargets(data []byte) (*Targets, error) {
	if len(data) > MaxTargetsBytes {
		return nil, fmt.Errorf("targets of %d bytes: at most %d", len(data), MaxTargetsBytes)
	}
	m, err := metadata.Targets().FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("read targets: %w", err)
	}
	if err := r.meta.VerifyDelegate(metadata.TARGETS, m); err != nil {
		return nil, fmt.Errorf("targets are not signed by the keys of root version %d: %w", r.Version, err)
	}
	return readTargets(data, m)
}

func readTargets(data []byte, m *metadata.Metadata[metadata.TargetsType]) (*Targets, error) {
	if m.Signed.Version < 1 {
		return nil, fmt.Errorf("targets have version %d", m.Signed.Version)
	}
	if d := m.Signed.Delegations; d != nil && (len(d.Roles) > 0 || d.SuccinctRoles != nil) {
		return nil, errors.New("targets delegate to other roles, which devices don't follow")
	}
	t := &Targets{Bytes: data, Version: m.Signed.Version, Expires: m.Signed.Expires, Files: map[string]Target{}, meta: m}
	for path, f := range m.Signed.Targets {
		if err := wire.SafeTarget(path); err != nil {
			return nil, err
		}
		sum, ok := f.Hashes["sha256"]
		hash, err := wire.ParseHash(fmt.Sprintf("%x", []byte(sum)))
		if !ok || err != nil {
			return nil, fmt.Errorf("target %s has no SHA-256", path)
		}
		if f.Length < 0 || f.Length > wire.MaxArtifactBytes {
			return nil, fmt.Errorf("target %s of %d bytes: at most %d", path, f.Length, int64(wire.MaxArtifactBytes))
		}
		t.Files[path] = Target{Path: path, SHA256: hash, SizeBytes: f.Length}
	}
	return t, nil
}

// ReadTargets reads targets metadata without looking at signatures, for bytes from a trusted place.
func ReadTargets(data []byte) (*Targets, error) {
	m, err := metadata.Targets().FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("read targets: %w", err)
	}
	return readTargets(data, m)
}
