package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrRunning says that a server, or a tool that needs it stopped, works in the data directory.
var ErrRunning = errors.New("a server runs in this data directory")

const (
	lockFile = "lock"
	heldFile = "held.json"
)

// Lock keeps the data directory to oneself: a server has it from Open to Close, and a tool that must not
// run beside one takes it first. It goes with the process, by whatever cause that ends. It is ErrRunning
// when somebody else has it.
func Lock(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := ownedAs(dir, f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory: %w", err), f.Close())
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("%w: %s", ErrRunning, dir), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory: %w", err), f.Close())
	}
	return f.Close, nil // the lock is the open file's
}

// ownedAs gives a file that root has made to the directory's owner, as whom the server runs.
func ownedAs(dir string, f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}

// hold is what a held data directory says to a server that wants to start in it.
type hold struct {
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
}

// Hold makes servers refuse to start in the data directory until Unhold: its database is not, or no
// longer, the one that the fleet lives in. It is on disk when Hold returns.
func Hold(dir, why string, now time.Time) error {
	data, err := json.MarshalIndent(hold{Why: why, Since: now.UTC().Truncate(time.Second)}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, heldFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("hold the data directory: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, ownedAs(dir, f), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("hold the data directory: %w", err)
	}
	return syncDir(dir)
}

// Unhold takes back what Hold did; it is no error when nothing is held.
func Unhold(dir string) error {
	if err := os.Remove(filepath.Join(dir, heldFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("let go of the data directory: %w", err)
	}
	return syncDir(dir)
}

// Held returns an error that says why the data directory is held, nil when it isn't.
func Held(dir string) error {
	path := filepath.Join(dir, heldFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look whether the data directory is held: %w", err)
	}
	var h hold
	if err := json.Unmarshal(data, &h); err != nil {
		return fmt.Errorf("%s is damaged: find out why the data directory is held, and remove the file", path)
	}
	return fmt.Errorf("%s (since %s; %s says so)", h.Why, h.Since.Format(time.RFC3339), path)
}

// refuseHeld refuses to work on the embedded database of a data directory that is held; one that only has
// keys and artifacts beside a PostgreSQL is free to use.
func (c Config) refuseHeld() error {
	if c.Database != c.embedded() {
		return nil
	}
	return Held(c.DataDir)
}

// embedded is the URL of the database inside the data directory.
func (c Config) embedded() string { return "sqlite:" + c.path("steward.db") }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
