package keys

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// masterSize is the master key's size in bytes: AES-256.
const masterSize = 32

// Master is the key under which Sealed keeps all others.
type Master struct {
	file string // where it was read from, for people
	key  []byte
}

// ReadMaster reads a master key of 32 bytes in hex or base64 from a file. The file may be readable for
// its group, as mounted secrets are, and not for everybody.
func ReadMaster(path string) (Master, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Master{}, fmt.Errorf("read the master key: %w; make one with \"steward keys new-master %s\"", err, path)
	}
	if err != nil {
		return Master{}, fmt.Errorf("read the master key: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return Master{}, fmt.Errorf("master key file %s has mode %o: everybody may have read it; make it 0600 if you are sure that nobody has", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Master{}, fmt.Errorf("read the master key: %w", err)
	}
	key, err := decodeMaster(strings.TrimSpace(string(text)))
	if err != nil {
		return Master{}, fmt.Errorf("master key file %s: %w", path, err) // never quote it
	}
	return Master{file: path, key: key}, nil
}

func decodeMaster(text string) ([]byte, error) {
	if key, err := hex.DecodeString(text); err == nil && len(key) == masterSize {
		return key, nil
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if key, err := enc.DecodeString(text); err == nil && len(key) == masterSize {
			return key, nil
		}
	}
	return nil, fmt.Errorf("want %d random bytes in hex or base64", masterSize)
}

// NewMaster writes a fresh master key in hex to a new file of mode 0600. It never overwrites: the error
// then wraps fs.ErrExist.
func NewMaster(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the master key: %w", err)
	}
	key := make([]byte, masterSize)
	_, _ = rand.Read(key) // never fails (crypto/rand)
	_, err = fmt.Fprintln(f, hex.EncodeToString(key))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make the master key: %w", err), os.Remove(path))
	}
	return nil
}
