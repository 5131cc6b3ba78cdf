package ledger

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Key signs tree heads: Ed25519 in the form of signed notes (c2sp.org/signed-note).
type Key struct {
	signer   note.Signer
	verifier string
}

// Origin is the name of the key and of the log, the first line of every checkpoint.
func (k *Key) Origin() string { return k.signer.Name() }

// Verifier is the public key in text, "origin+hash+key": what VerifyProof needs, and what people keep
// outside of the server.
func (k *Key) Verifier() string { return k.verifier }

// GenerateKey makes a key that is held in memory only. The origin is a name without blanks and
// plus signs, by convention a host name with a path: "steward.example.com/ledger".
func GenerateKey(origin string) (*Key, error) {
	secret, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("make ledger key: %w", err)
	}
	return parseKey(secret)
}

// LoadOrCreateKey reads the key at path, or makes one there with mode 0600. An existing key keeps its
// own origin: a log does not change its name.
func LoadOrCreateKey(path, origin string) (*Key, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		return parseKey(strings.TrimSpace(string(text)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read ledger key: %w", err)
	}
	secret, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("make ledger key: %w", err)
	}
	key, err := parseKey(secret)
	if err != nil {
		return nil, err
	}
	return key, writeSecret(path, secret+"\n")
}

// writeSecret writes a whole file or nothing, and survives power loss: a half-written key would
// orphan the log.
func writeSecret(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the ledger key's directory: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".ledger-key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write ledger key: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // renamed away unless something failed
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write ledger key: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// parseKey reads the text form of note's secret keys: "PRIVATE+KEY+name+hash+base64(algorithm, seed)".
func parseKey(secret string) (*Key, error) {
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, errors.New("the ledger key is not of the form PRIVATE+KEY+origin+hash+key") // never quote it
	}
	public, err := publicKey(secret)
	if err != nil {
		return nil, err
	}
	verifier, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("ledger key: %w", err)
	}
	return &Key{signer: signer, verifier: verifier}, nil
}

// publicKey takes the Ed25519 public key out of a secret key that note has accepted.
func publicKey(secret string) (ed25519.PublicKey, error) {
	parts := strings.SplitN(secret, "+", 5) // the last part may have "+" of base64 in it
	if len(parts) != 5 {
		return nil, errors.New("the ledger key has too few parts")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, errors.New("the ledger key is not an Ed25519 key")
	}
	return ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey), nil
}
