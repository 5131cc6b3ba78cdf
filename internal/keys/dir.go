package keys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Dir is a Store of PEM files with mode 0600 in one directory.
type Dir struct{ store }

// OpenDir makes the directory with mode 0700 when it is absent.
func OpenDir(dir string) (*Dir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the key directory: %w", err)
	}
	return &Dir{store{directory(dir)}}, nil
}

type directory string

const extension = ".pem"

func (d directory) place() string { return string(d) }

func (d directory) path(name string) string { return filepath.Join(string(d), name+extension) }

// read reads the key's file; one that others may read is refused, since its secret may be out.
func (d directory) read(_ context.Context, name string) ([]byte, error) {
	path := d.path(name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %o: others may have read it; make it 0600 if you are sure that none has", path, info.Mode().Perm())
	}
	return os.ReadFile(path)
}

// add writes a temporary file and links it into place, so that a crash leaves either no key or a whole
// one, and of two makers one wins.
func (d directory) add(_ context.Context, name string, encoded []byte) (err error) {
	f, err := os.CreateTemp(string(d), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(encoded)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), d.path(name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(string(d))
}

func (d directory) remove(_ context.Context, name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(string(d))
}

func (d directory) names(context.Context) (out []string, err error) {
	entries, err := os.ReadDir(string(d)) // sorted
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), extension)
		if ok && e.Type().IsRegular() && keyName.MatchString(name) {
			out = append(out, name)
		}
	}
	return out, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
