package provisioning

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// Algorithm is a kind of key that we make for ourselves.
type Algorithm string

// The algorithms: P-256 for authorities, since every TLS library verifies it; Ed25519 for envelopes.
const (
	P256    Algorithm = "ecdsa-p256"
	Ed25519 Algorithm = "ed25519"
)

// ErrNoKey says that the key store has no key of that name.
var ErrNoKey = errors.New("no such key in the key store")

// KeyStore holds Steward's own private keys. Nodes that share a database must share it. The one that
// stands is a directory; a PKCS#11 token or a TPM fits behind the same three methods.
type KeyStore interface {
	// Ensure returns the named key, which it makes when there is none. Concurrent callers, also of other
	// processes, get the same key.
	Ensure(ctx context.Context, name string, alg Algorithm) (crypto.Signer, error)
	// Open returns the named key, or an error that wraps ErrNoKey.
	Open(ctx context.Context, name string) (crypto.Signer, error)
	// Delete destroys the named key; it is no error when there is none.
	Delete(ctx context.Context, name string) error
}

// EnvelopeKeyName is the key that signs desired state (Ed25519).
const EnvelopeKeyName = "envelope"

// KeyDir is a KeyStore of PKCS#8 PEM files with mode 0600 in one directory.
type KeyDir struct{ dir string }

// OpenKeyDir makes the directory with mode 0700 when it is absent.
func OpenKeyDir(dir string) (*KeyDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the key directory: %w", err)
	}
	return &KeyDir{dir: dir}, nil
}

var keyName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,120}$`)

func (k *KeyDir) path(name string) (string, error) {
	if !keyName.MatchString(name) {
		return "", fmt.Errorf("key name %q: use lower case letters, digits and dashes", name)
	}
	return filepath.Join(k.dir, name+".pem"), nil
}

// Open reads the key's file; one that others may read is refused, since its secret may be out.
func (k *KeyDir) Open(_ context.Context, name string) (crypto.Signer, error) {
	path, err := k.path(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key %s in %s: %w", name, k.dir, ErrNoKey)
	}
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %o: others may have read it; make it 0600 if you are sure that none has", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", name, err)
	}
	return parseKey(path, data)
}

func parseKey(path string, data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("key file %s holds no PKCS#8 private key in PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key file %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key file %s holds a %T, which does not sign", path, key)
	}
	return signer, nil
}

// Ensure makes the key in a temporary file and links it into place, so that a crash leaves either no
// key or a whole one, and of two makers one wins.
func (k *KeyDir) Ensure(ctx context.Context, name string, alg Algorithm) (crypto.Signer, error) {
	key, err := k.Open(ctx, name)
	if !errors.Is(err, ErrNoKey) {
		return key, err
	}
	path, err := k.path(name)
	if err != nil {
		return nil, err
	}
	if err := k.write(path, alg); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	return k.Open(ctx, name)
}

func (k *KeyDir) write(path string, alg Algorithm) (err error) {
	key, err := newKey(alg)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(k.dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	werr := pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(k.dir)
}

func newKey(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("algorithm %q is unknown", alg)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Delete removes the file.
func (k *KeyDir) Delete(_ context.Context, name string) error {
	path, err := k.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete key %s: %w", name, err)
	}
	return syncDir(k.dir)
}
