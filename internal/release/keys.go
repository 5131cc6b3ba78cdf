package release

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"steward/internal/device"
	"steward/internal/keys"
	"steward/internal/release/signing"
)

// onlineKeys are this installation's private keys for a tenant.
type onlineKeys struct{ snapshot, timestamp ed25519.PrivateKey }

func (k onlineKeys) public() signing.OnlineKeys {
	return signing.OnlineKeys{Snapshot: signing.PublicHex(k.snapshot), Timestamp: signing.PublicHex(k.timestamp)}
}

// Roles of keys. The first two are made for every tenant, the others in managed mode.
const (
	roleSnapshot  = "snapshot"
	roleTimestamp = "timestamp"
	roleRoot      = "root"
	roleTargets   = "targets"
)

// keyName is a role's key in the key store.
func keyName(role string, tenant device.TenantID) string {
	return "release-" + role + "-" + string(tenant)
}

// getKey is a method of the key store: one that makes what is missing, or one that does not.
type getKey func(ctx context.Context, name string) (crypto.Signer, error)

// making makes what is missing. It must not be used within a transaction, since it may write.
func (s *Service) making(ctx context.Context, name string) (crypto.Signer, error) {
	return s.cfg.Keys.Ensure(ctx, name, keys.Ed25519)
}

// onlineKeys reads the tenant's online keys.
func (s *Service) onlineKeys(ctx context.Context, tenant device.TenantID, get getKey) (k onlineKeys, err error) {
	if k.snapshot, err = roleKey(ctx, get, roleSnapshot, tenant); err == nil {
		k.timestamp, err = roleKey(ctx, get, roleTimestamp, tenant)
	}
	return k, err
}

// managedKeys reads the tenant's offline keys that managed mode keeps here.
func (s *Service) managedKeys(ctx context.Context, tenant device.TenantID, get getKey) (k signing.Keys, err error) {
	if k.Root, err = roleKey(ctx, get, roleRoot, tenant); err == nil {
		k.Targets, err = roleKey(ctx, get, roleTargets, tenant)
	}
	return k, err
}

func roleKey(ctx context.Context, get getKey, role string, tenant device.TenantID) (ed25519.PrivateKey, error) {
	signer, err := get(ctx, keyName(role, tenant))
	if err != nil {
		return nil, fmt.Errorf("%s key of tenant %s: %w", role, tenant, err)
	}
	key, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s key of tenant %s is a %T, want Ed25519", role, tenant, signer)
	}
	return key, nil
}

// AdoptKeys takes the key files of earlier versions into the store: dir/TENANT/snapshot.key and
// timestamp.key, and managed/root-1.key and targets-1.key. A key that the store has already wins over its file.
func AdoptKeys(ctx context.Context, store keys.Movable, dir string) error {
	tenants, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the release keys: %w", err)
	}
	for _, t := range tenants {
		tenant, err := device.ParseTenantID(t.Name())
		if err != nil || !t.IsDir() {
			continue
		}
		for role, file := range map[string]string{
			roleSnapshot: "snapshot.key", roleTimestamp: "timestamp.key",
			roleRoot: "managed/root-1.key", roleTargets: "managed/targets-1.key",
		} {
			if err := adopt(ctx, store, keyName(role, tenant), filepath.Join(dir, t.Name(), file)); err != nil {
				return fmt.Errorf("take over the %s key of tenant %s: %w", role, tenant, err)
			}
		}
	}
	return nil
}

func adopt(ctx context.Context, store keys.Movable, name, path string) error {
	if _, err := store.Open(ctx, name); !errors.Is(err, keys.ErrNoKey) {
		return err
	}
	key, err := signing.ReadKey(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return store.Import(ctx, name, key)
}
