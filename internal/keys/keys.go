// Package keys holds Steward's own private keys and secrets: those of its authorities, of the ledger, of
// envelopes, of releases. Nodes that share a database share them, in one of two ways: a directory that
// each node has (Dir), or the database itself, where each is sealed under a master key that only the
// nodes have (Sealed).
package keys

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
	"regexp"
)

// Algorithm is a kind of key that we make for ourselves.
type Algorithm string

// The algorithms: P-256 for authorities, since every TLS library verifies it; Ed25519 for what only our
// own programs verify.
const (
	P256    Algorithm = "ecdsa-p256"
	Ed25519 Algorithm = "ed25519"
)

// Errors of a Store.
var (
	ErrNoKey = errors.New("no such key in the key store")
	// ErrOther says that the name is taken by another key or secret.
	ErrOther = errors.New("the key store has another key of this name")
)

// Store holds private keys and secrets by name: lower case letters, digits and dashes, at most 121. A PKCS#11
// token or a TPM fits behind the same methods.
type Store interface {
	// Ensure returns the named key, which it makes when there is none. Concurrent callers, also of other
	// processes, get the same key. It must not be called within a transaction, since it may write.
	Ensure(ctx context.Context, name string, alg Algorithm) (crypto.Signer, error)
	// Open returns the named key, or an error that wraps ErrNoKey.
	Open(ctx context.Context, name string) (crypto.Signer, error)
	// Delete destroys the named key or secret; it is no error when there is none.
	Delete(ctx context.Context, name string) error
	// Secret returns the named random bytes, which it makes when there are none. Like Ensure, it gives
	// all callers the same and must not be called within a transaction.
	Secret(ctx context.Context, name string, size int) ([]byte, error)
}

// keeper keeps encoded keys. Implementations: directory, sealed.
type keeper interface {
	read(ctx context.Context, name string) ([]byte, error) // or ErrNoKey
	// add keeps a key whole or not at all; it does nothing when the name is taken.
	add(ctx context.Context, name string, encoded []byte) error
	remove(ctx context.Context, name string) error
	names(ctx context.Context) ([]string, error)
	place() string // for people
}

// store is a Store on any keeper.
type store struct{ keeper }

var keyName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,120}$`)

func checkName(name string) error {
	if !keyName.MatchString(name) {
		return fmt.Errorf("key name %q: use lower case letters, digits and dashes", name)
	}
	return nil
}

// The types of PEM blocks.
const (
	keyBlock    = "PRIVATE KEY" // PKCS #8 (RFC 5958)
	secretBlock = "STEWARD SECRET"
)

func (s store) get(ctx context.Context, name, block string) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	encoded, err := s.read(ctx, name)
	if errors.Is(err, ErrNoKey) {
		return nil, fmt.Errorf("key %s in %s: %w", name, s.place(), ErrNoKey)
	}
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", name, err)
	}
	p, _ := pem.Decode(encoded)
	if p == nil || p.Type != block {
		return nil, fmt.Errorf("key %s in %s holds no %q in PEM", name, s.place(), block)
	}
	return p.Bytes, nil
}

// make returns what stands under the name after one was added, ours or that of somebody faster.
func (s store) make(ctx context.Context, name, block string, body []byte) ([]byte, error) {
	if err := s.add(ctx, name, pem.EncodeToMemory(&pem.Block{Type: block, Bytes: body})); err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	return s.get(ctx, name, block)
}

// Open implements Store.
func (s store) Open(ctx context.Context, name string) (crypto.Signer, error) {
	der, err := s.get(ctx, name, keyBlock)
	if err != nil {
		return nil, err
	}
	return s.parse(name, der)
}

func (s store) parse(name string, der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse key %s in %s: %w", name, s.place(), err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key %s in %s is a %T, which does not sign", name, s.place(), key)
	}
	return signer, nil
}

// Ensure implements Store.
func (s store) Ensure(ctx context.Context, name string, alg Algorithm) (crypto.Signer, error) {
	key, err := s.Open(ctx, name)
	if !errors.Is(err, ErrNoKey) {
		return key, err
	}
	if key, err = newKey(alg); err != nil {
		return nil, err
	}
	return s.keep(ctx, name, key)
}

// keep adds the key and returns the one that then stands there.
func (s store) keep(ctx context.Context, name string, key crypto.Signer) (crypto.Signer, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	if der, err = s.make(ctx, name, keyBlock, der); err != nil {
		return nil, err
	}
	return s.parse(name, der)
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

// Secret implements Store.
func (s store) Secret(ctx context.Context, name string, size int) ([]byte, error) {
	if size < 16 || size > 1024 {
		return nil, fmt.Errorf("secret %s of %d bytes: want 16 to 1024", name, size)
	}
	body, err := s.get(ctx, name, secretBlock)
	if errors.Is(err, ErrNoKey) {
		body = make([]byte, size)
		_, _ = rand.Read(body) // never fails (crypto/rand)
		body, err = s.make(ctx, name, secretBlock, body)
	}
	if err == nil && len(body) != size {
		return nil, fmt.Errorf("secret %s in %s has %d bytes, want %d", name, s.place(), len(body), size)
	}
	return body, err
}

// Delete implements Store.
func (s store) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := s.remove(ctx, name); err != nil {
		return fmt.Errorf("delete key %s: %w", name, err)
	}
	return nil
}

// Import implements Movable.
func (s store) Import(ctx context.Context, name string, key crypto.Signer) error {
	there, err := s.Open(ctx, name)
	if errors.Is(err, ErrNoKey) {
		there, err = s.keep(ctx, name, key)
	}
	if err != nil {
		return err
	}
	if same, ok := there.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(key.Public()) {
		return fmt.Errorf("key %s in %s: %w", name, s.place(), ErrOther)
	}
	return nil
}

// Names lists all keys and secrets.
func (s store) Names(ctx context.Context) ([]string, error) { return s.names(ctx) }
