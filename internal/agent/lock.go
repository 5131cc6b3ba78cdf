package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another agent works on the state directory.
var ErrLocked = errors.New("another agent uses this state directory")

const lockFile = "lock"

// lockState takes the directory's lock until unlock. Two agents with one identity would both be
// flagged as clones by the server; the kernel gives the lock back when a process dies.
func lockState(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for range 4 {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(25 * time.Millisecond) // `status` holds it for an instant to see whether it can
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
		}
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	return func() { _ = f.Close() }, nil // closing gives the lock back
}
