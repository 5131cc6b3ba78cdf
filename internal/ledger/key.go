package ledger

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"steward/internal/keys"
	"steward/internal/sqldb"
)

// Key signs tree heads: Ed25519 in the form of signed notes (c2sp.org/signed-note).
type Key struct {
	origin   string
	hash     uint32
	secret   crypto.Signer
	verifier string
}

// KeyName is the ledger's key in the key store (Ed25519).
const KeyName = "ledger"

// NewKey makes a key of notes from a private Ed25519 key. The origin is a name without blanks and plus
// signs, by convention a host name with a path: "steward.example.com/ledger".
func NewKey(origin string, secret crypto.Signer) (*Key, error) {
	public, ok := secret.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the ledger key is a %T, want Ed25519", secret.Public())
	}
	verifier, err := note.NewEd25519VerifierKey(origin, public)
	if err != nil {
		return nil, fmt.Errorf("ledger key: %w", err)
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return nil, fmt.Errorf("ledger key of %q: %w", origin, err)
	}
	return &Key{origin: origin, hash: v.KeyHash(), secret: secret, verifier: verifier}, nil
}

// GenerateKey makes a key that is held in memory only.
func GenerateKey(origin string) (*Key, error) {
	_, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make ledger key: %w", err)
	}
	return NewKey(origin, secret)
}

// OpenKey returns the key of the store, which it makes unless there is a log already. A log without its
// key is refused with an error that wraps keys.ErrNoKey; renew makes a new key for it all the same, and
// the ledger will tell of it.
func OpenKey(ctx context.Context, db *sqldb.DB, store keys.Store, origin string, renew bool) (*Key, error) {
	secret, err := store.Open(ctx, KeyName)
	if errors.Is(err, keys.ErrNoKey) {
		h, herr := readHead(ctx, db)
		if herr != nil {
			return nil, herr
		}
		if h.checkpoint != "" && !renew {
			return nil, fmt.Errorf("the log in this database was signed with key %s, which this node lacks; give it the keys of the other nodes: %w", signerOf(h), err)
		}
		secret, err = store.Ensure(ctx, KeyName, keys.Ed25519)
	}
	if err != nil {
		return nil, err
	}
	return NewKey(origin, secret)
}

// CheckKey returns an error that wraps ErrForeignHead when the log was signed last with another key
// than this ledger's. A log that has not begun fits any key.
func (l *Ledger) CheckKey(ctx context.Context) error {
	h, err := readHead(ctx, l.cfg.DB)
	if err != nil || h.checkpoint == "" {
		return err
	}
	return l.signed(h)
}

// signed checks the head's signature.
func (l *Ledger) signed(h head) error {
	if _, err := OpenCheckpoint([]byte(h.checkpoint), l.cfg.Key.Verifier()); err != nil {
		return fmt.Errorf("%w: by %s, and this node has %s: give it the keys of the other nodes", ErrForeignHead, signerOf(h), l.cfg.Key.hashName())
	}
	return nil
}

// Origin is the name of the key and of the log, the first line of every checkpoint.
func (k *Key) Origin() string { return k.origin }

// Verifier is the public key in text, "origin+hash+key": what VerifyProof needs, and what people keep
// outside of the server.
func (k *Key) Verifier() string { return k.verifier }

// hashName is how notes name the key: "origin+hash".
func (k *Key) hashName() string { return fmt.Sprintf("%s+%08x", k.origin, k.hash) }

// Name implements note.Signer.
func (k *Key) Name() string { return k.origin }

// KeyHash implements note.Signer.
func (k *Key) KeyHash() uint32 { return k.hash }

// Sign implements note.Signer.
func (k *Key) Sign(msg []byte) ([]byte, error) {
	return k.secret.Sign(rand.Reader, msg, crypto.Hash(0))
}

// signerOf names the key that signed the head, for people: nothing is verified.
func signerOf(h head) string {
	// "— origin base64(hash in 4 bytes, signature)" (c2sp.org/signed-note)
	for line := range strings.Lines(h.checkpoint) {
		parts := strings.Fields(line)
		if len(parts) != 3 || parts[0] != "—" {
			continue
		}
		if raw, err := base64.StdEncoding.DecodeString(parts[2]); err == nil && len(raw) > 4 {
			return fmt.Sprintf("%s+%08x", parts[1], binary.BigEndian.Uint32(raw))
		}
	}
	return "an unknown key"
}

// ReadKeyFile reads a key of earlier versions, which kept it in a file of its own in the text form of
// notes: "PRIVATE+KEY+origin+hash+base64(algorithm, seed)". It wraps fs.ErrNotExist.
func ReadKeyFile(path string) (origin string, secret ed25519.PrivateKey, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", nil, fmt.Errorf("read ledger key: %w", err)
	}
	malformed := fmt.Errorf("ledger key file %s is not of the form PRIVATE+KEY+origin+hash+key", path) // never quote it
	parts := strings.SplitN(strings.TrimSpace(string(text)), "+", 5)                                   // the last part may have "+" of base64 in it
	if len(parts) != 5 || parts[0] != "PRIVATE" || parts[1] != "KEY" {
		return "", nil, malformed
	}
	raw, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return "", nil, malformed
	}
	secret = ed25519.NewKeyFromSeed(raw[1:])
	key, err := NewKey(parts[2], secret)
	if hash, herr := strconv.ParseUint(parts[3], 16, 32); err != nil || herr != nil || uint32(hash) != key.hash {
		return "", nil, malformed // the hash covers name and key: one of them was changed
	}
	return parts[2], secret, nil
}
