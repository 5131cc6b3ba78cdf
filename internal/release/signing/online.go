package signing

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Lives of what the server signs by itself.
const (
	TimestampLife = 24 * time.Hour
	SnapshotLife  = 7 * 24 * time.Hour
)

// Online is one version of a role that the server signs.
type Online struct {
	Bytes   []byte
	Version int64
	Expires time.Time
}

// SignSnapshot makes the snapshot of that version over the targets.
func SignSnapshot(key ed25519.PrivateKey, version int64, targets *Targets, now time.Time) (Online, error) {
	m := metadata.Snapshot(expiry(now, SnapshotLife))
	m.Signed.Version = version
	m.Signed.Meta["targets.json"] = metaFile(targets.Bytes, targets.Version)
	data, err := sign(m, []ed25519.PrivateKey{key})
	return Online{Bytes: data, Version: version, Expires: m.Signed.Expires}, err
}

// SignTimestamp makes the timestamp of that version over the snapshot.
func SignTimestamp(key ed25519.PrivateKey, version int64, snapshot Online, now time.Time) (Online, error) {
	m := metadata.Timestamp(expiry(now, TimestampLife))
	m.Signed.Version = version
	m.Signed.Meta["snapshot.json"] = metaFile(snapshot.Bytes, snapshot.Version)
	data, err := sign(m, []ed25519.PrivateKey{key})
	return Online{Bytes: data, Version: version, Expires: m.Signed.Expires}, err
}

func metaFile(data []byte, version int64) *metadata.MetaFiles {
	sum := sha256.Sum256(data)
	f := metadata.MetaFile(version)
	f.Length = int64(len(data))
	f.Hashes = metadata.Hashes{"sha256": sum[:]}
	return f
}

func targetFile(t Target) (*metadata.TargetFiles, error) {
	sum, err := hex.DecodeString(string(t.SHA256))
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("target %s: %.80q is no SHA-256", t.Path, t.SHA256)
	}
	if t.SizeBytes < 0 {
		return nil, fmt.Errorf("target %s has %d bytes", t.Path, t.SizeBytes)
	}
	f := metadata.TargetFile()
	f.Length = t.SizeBytes
	f.Hashes = metadata.Hashes{"sha256": sum}
	return f, nil
}

// nameKeys adds the keys to the role and sets its threshold.
func nameKeys(root *metadata.Metadata[metadata.RootType], role string, threshold int, publicHex []string) error {
	for _, hex := range publicHex {
		key, err := tufKey(hex)
		if err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		if err := root.Signed.AddKey(key, role); err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
	}
	root.Signed.Roles[role].Threshold = threshold
	if n := len(root.Signed.Roles[role].KeyIDs); threshold < 1 || n < threshold {
		return fmt.Errorf("%s: %d of %d keys can't be asked to sign", role, threshold, n)
	}
	return nil
}

// nameOnline puts the two online keys in the place of those before.
func nameOnline(root *metadata.Metadata[metadata.RootType], online OnlineKeys) error {
	for role, key := range map[string]string{metadata.SNAPSHOT: online.Snapshot, metadata.TIMESTAMP: online.Timestamp} {
		for _, id := range append([]string(nil), root.Signed.Roles[role].KeyIDs...) {
			if err := root.Signed.RevokeKey(id, role); err != nil {
				return fmt.Errorf("%s: %w", role, err)
			}
		}
		if err := nameKeys(root, role, 1, []string{key}); err != nil {
			return err
		}
	}
	return nil
}

func revoke(root *metadata.Metadata[metadata.RootType], role string, publicHex []string) error {
	for _, hex := range publicHex {
		key, err := tufKey(hex)
		if err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		id, err := key.ID()
		if err != nil {
			return err
		}
		if err := root.Signed.RevokeKey(id, role); err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
	}
	return nil
}

func publics(keys []ed25519.PrivateKey) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = PublicHex(k)
	}
	return out
}
