package signing

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Types of the PEM blocks in key files.
const (
	plainKeyType     = "PRIVATE KEY"                   // PKCS #8 (RFC 5958)
	encryptedKeyType = "ENCRYPTED STEWARD PRIVATE KEY" // PKCS #8 in nacl/secretbox under scrypt, as TUF's own tools keep keys
)

// Errors of reading a key.
var (
	ErrPassphraseNeeded = errors.New("the key is encrypted: a passphrase is needed")
	ErrPassphrase       = errors.New("wrong passphrase")
)

// NewKey makes an Ed25519 key.
func NewKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an Ed25519 key: %w", err)
	}
	return key, nil
}

// WriteKey writes the key to a new file of mode 0600, encrypted when a passphrase is given. It never
// overwrites: the error then wraps fs.ErrExist. The file is durable when it returns.
func WriteKey(path string, key ed25519.PrivateKey, passphrase []byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	block := &pem.Block{Type: plainKeyType, Bytes: der}
	if len(passphrase) > 0 {
		sealed, err := encrypted.Encrypt(der, passphrase)
		if err != nil {
			return fmt.Errorf("encrypt key: %w", err)
		}
		block = &pem.Block{Type: encryptedKeyType, Bytes: sealed}
	}
	return writeNew(path, pem.EncodeToMemory(block))
}

// writeNew makes a file of mode 0600 that must not exist and syncs it and its directory. The content
// stands under its name completely or not at all: a temporary file is linked to the name.
func writeNew(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// replaceFile puts new content in the place of a file's, at once and durably.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadKey reads a file that WriteKey wrote. The errors are ErrPassphraseNeeded, ErrPassphrase, those
// of reading, and one that says what is wrong with the file.
func ReadKey(path string, passphrase []byte) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("key file %s holds no PEM block", path)
	}
	der := block.Bytes
	switch block.Type {
	case plainKeyType:
	case encryptedKeyType:
		if len(passphrase) == 0 {
			return nil, fmt.Errorf("%s: %w", path, ErrPassphraseNeeded)
		}
		if der, err = encrypted.Decrypt(block.Bytes, passphrase); err != nil {
			return nil, fmt.Errorf("%s: %w", path, ErrPassphrase)
		}
	default:
		return nil, fmt.Errorf("key file %s holds a PEM block %q", path, block.Type)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key file %s holds a %T, want Ed25519", path, parsed)
	}
	return key, nil
}

// OnlineKeys are the public keys of the server's two roles, in hex.
type OnlineKeys struct {
	Snapshot  string `json:"snapshot" doc:"Ed25519 public key in hex"`
	Timestamp string `json:"timestamp" doc:"Ed25519 public key in hex"`
}

// PublicHex is the form in which OnlineKeys hold the key.
func PublicHex(key ed25519.PrivateKey) string {
	return hex.EncodeToString(key.Public().(ed25519.PublicKey)) //nolint:forcetypeassert // an Ed25519 key's public part
}

// tufKey reads a public key from hex into TUF's form.
func tufKey(publicHex string) (*metadata.Key, error) {
	raw, err := hex.DecodeString(publicHex)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%.80q is no Ed25519 public key in hex", publicHex)
	}
	return metadata.KeyFromPublicKey(ed25519.PublicKey(raw))
}

// keyID is TUF's name of the key.
func keyID(key ed25519.PrivateKey) (string, error) {
	k, err := metadata.KeyFromPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	return k.ID()
}
