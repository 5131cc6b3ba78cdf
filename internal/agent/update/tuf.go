package update

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Bounds of metadata files in bytes.
const (
	maxRootBytes      = 128 << 10
	maxTimestampBytes = 16 << 10
	maxSnapshotBytes  = 64 << 10
	maxTargetsBytes   = 4 << 20
	// maxRoots is how many root versions one refresh walks. A device that slept longer goes on with the
	// next refresh.
	maxRoots = 256
)

// target is what was signed about one file.
type target struct {
	sha256 wire.Hash
	size   int64
}

type targets map[string]target

func (r *Room) tufDir() string { return filepath.Join(r.cfg.StateDir, "tuf") }

// trust is one refresh of the trusted metadata by TUF's client workflow
// (https://theupdateframework.github.io/specification/v1.0.31/#detailed-client-workflow). Its memory
// are the files of the last refresh: they keep a server from going back to older ones.
type trust struct {
	room *Room
	set  *trustedmetadata.TrustedMetadata
}

// refresh brings root, timestamp, snapshot and targets up to date and returns what is signed. A
// *badDelivery is metadata that did not pass; other errors are of the source or the disk.
func (r *Room) refresh(ctx context.Context) (targets, error) {
	t, err := r.openTrust()
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{t.roots, t.timestamp, t.snapshot, t.targets} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	out := targets{}
	for path, f := range t.set.Targets[metadata.TARGETS].Signed.Targets {
		hash, err := wire.ParseHash(hex.EncodeToString(f.Hashes["sha256"]))
		if err != nil || f.Length < 0 {
			continue // without a SHA-256 it can't be fetched, so it is as good as absent
		}
		out[path] = target{sha256: hash, size: f.Length}
	}
	return out, nil
}

// openTrust starts from the newest root that was verified here, or from the pinned one. Metadata that
// belongs to another pin (the device was enrolled anew, somewhere else) is forgotten.
func (r *Room) openTrust() (*trust, error) {
	var pinned []byte
	if r.cfg.Root != nil {
		pinned = r.cfg.Root()
	}
	if len(pinned) == 0 {
		return nil, refuse(stepVerify, "this device has no pinned release root: it was enrolled before the tenant had release keys, enroll it again")
	}
	pin := wire.HashOf(pinned)
	if was, err := os.ReadFile(filepath.Join(r.tufDir(), "pin")); err != nil || string(was) != string(pin) {
		for _, name := range []string{"root.json", "timestamp.json", "snapshot.json", "targets.json"} {
			if err := os.Remove(filepath.Join(r.tufDir(), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
		if err := r.cfg.Journal.WriteFile(filepath.Join(r.tufDir(), "pin"), []byte(pin), 0o600); err != nil {
			return nil, diskTrouble(stepVerify, err)
		}
	}
	t := &trust{room: r}
	stored, err := os.ReadFile(filepath.Join(r.tufDir(), "root.json"))
	if err == nil {
		if t.set, err = trustedmetadata.New(stored); err == nil {
			t.set.RefTime = r.now()
			return t, nil
		}
	}
	if t.set, err = trustedmetadata.New(pinned); err != nil {
		return nil, refuse(stepVerify, "the pinned release root is not valid: %v", err)
	}
	t.set.RefTime = r.now()
	return t, nil
}

// get fetches a file of bounded size.
func (t *trust) get(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := t.room.cfg.Source.Metadata(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, bad(stepVerify, "%s has %d bytes: at most %d", name, len(data), limit)
	}
	return data, nil
}

func (t *trust) keep(name string, data []byte) error {
	if err := t.room.cfg.Journal.WriteFile(filepath.Join(t.room.tufDir(), name), data, 0o600); err != nil {
		return diskTrouble(stepVerify, fmt.Errorf("keep %s: %w", name, err))
	}
	return nil
}

func (t *trust) stored(name string) []byte {
	data, err := os.ReadFile(filepath.Join(t.room.tufDir(), name))
	if err != nil {
		return nil
	}
	return data
}

// roots walks from the trusted root to the newest, one version after the other, each signed by the one
// before and by itself.
func (t *trust) roots(ctx context.Context) error {
	for range maxRoots {
		next := t.set.Root.Signed.Version + 1
		data, err := t.get(ctx, strconv.FormatInt(next, 10)+".root.json", maxRootBytes)
		if link.NotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := t.set.UpdateRoot(data); err != nil {
			return explain("root", err)
		}
		if err := t.keep("root.json", data); err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d new roots: the rest is walked next time", maxRoots)
}

func (t *trust) timestamp(ctx context.Context) error {
	if data := t.stored("timestamp.json"); data != nil {
		// An expired one still tells below which version nothing is accepted; one of rotated keys is
		// no longer of use.
		_, _ = t.set.UpdateTimestamp(data)
	}
	data, err := t.get(ctx, "timestamp.json", maxTimestampBytes)
	if err != nil {
		return err
	}
	_, err = t.set.UpdateTimestamp(data)
	var equal *metadata.ErrEqualVersionNumber
	if errors.As(err, &equal) {
		return nil // the one that we have; its expiry is checked with the snapshot
	}
	if err != nil {
		return explain("timestamp", err)
	}
	return t.keep("timestamp.json", data)
}

func (t *trust) snapshot(ctx context.Context) error {
	meta := t.set.Timestamp.Signed.Meta["snapshot.json"]
	if meta == nil {
		return bad(stepVerify, "the timestamp names no snapshot")
	}
	if data := t.stored("snapshot.json"); data != nil {
		if _, err := t.set.UpdateSnapshot(data, true); err == nil {
			return nil
		}
	}
	data, err := t.get(ctx, strconv.FormatInt(meta.Version, 10)+".snapshot.json", bound(meta.Length, maxSnapshotBytes))
	if err != nil {
		return err
	}
	if _, err := t.set.UpdateSnapshot(data, false); err != nil {
		return explain("snapshot", err)
	}
	return t.keep("snapshot.json", data)
}

func (t *trust) targets(ctx context.Context) error {
	meta := t.set.Snapshot.Signed.Meta["targets.json"]
	if meta == nil {
		return bad(stepVerify, "the snapshot names no targets")
	}
	if data := t.stored("targets.json"); data != nil {
		if _, err := t.set.UpdateTargets(data); err == nil {
			return nil
		}
	}
	data, err := t.get(ctx, strconv.FormatInt(meta.Version, 10)+".targets.json", bound(meta.Length, maxTargetsBytes))
	if err != nil {
		return err
	}
	if _, err := t.set.UpdateTargets(data); err != nil {
		return explain("targets", err)
	}
	return t.keep("targets.json", data)
}

func bound(signed, limit int64) int64 {
	if signed > 0 && signed < limit {
		return signed
	}
	return limit
}

// explain says in an operator's words why metadata was refused.
func explain(role string, err error) error {
	var (
		expired  *metadata.ErrExpiredMetadata
		version  *metadata.ErrBadVersionNumber
		unsigned *metadata.ErrUnsignedMetadata
		mismatch *metadata.ErrLengthOrHashMismatch
	)
	switch {
	case errors.As(err, &expired):
		return bad(stepVerify, "the release %s has expired (%v): the server no longer signs, somebody holds updates back, or this device's clock is wrong", role, err)
	case errors.As(err, &version):
		return bad(stepVerify, "the release %s is older than one seen before, or skips one (%v)", role, err)
	case errors.As(err, &unsigned):
		return bad(stepVerify, "the release %s is not signed by enough of the trusted keys (%v)", role, err)
	case errors.As(err, &mismatch):
		return bad(stepVerify, "the release %s is not the one that the signed metadata names (%v)", role, err)
	}
	return bad(stepVerify, "the release %s is refused: %v", role, err)
}
