package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"steward/internal/client"
)

// writeBootstrap writes DataDir/bootstrap.json (mode 0600) whole or not at all, so that a script that
// waits for the file never reads half of it.
func writeBootstrap(dir string, b client.Bootstrap) error {
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".bootstrap-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write bootstrap file: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	if _, err := f.Write(append(data, '\n')); err != nil {
		_ = f.Close()
		return fmt.Errorf("write bootstrap file: %w", err)
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return fmt.Errorf("write bootstrap file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write bootstrap file: %w", err)
	}
	return os.Rename(f.Name(), filepath.Join(dir, bootstrapFile))
}

const bootstrapFile = "bootstrap.json"

// removeBootstrap removes the file of an earlier start.
func removeBootstrap(dir string) error {
	err := os.Remove(filepath.Join(dir, bootstrapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
