package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exec runs a program in a process group of its own, which is killed as a whole when the time is over
// or ctx ends: a child that a script left behind must not hold an update.
func (l *Linux) Exec(ctx context.Context, dir string, argv []string, timeout time.Duration) (output []byte, exitCode int, err error) {
	if len(argv) == 0 || argv[0] == "" {
		return nil, 0, fmt.Errorf("%w: no program was named", ErrStart)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrTimeout)
	defer cancel()
	out := &tail{}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = environment(os.Environ())
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second // a grandchild that left the group may hold the pipe
	if err := cmd.Start(); err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %w", argv[0], ErrStart, err)
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return out.bytes(), 0, fmt.Errorf("%s: %w", argv[0], context.Cause(ctx))
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return out.bytes(), cmd.ProcessState.ExitCode(), nil
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return out.bytes(), exit.ExitCode(), nil
	}
	return out.bytes(), 0, fmt.Errorf("%s: %w", argv[0], err) // killed by a signal
}

// environment passes the machine's settings on without the agent's own, which hold a token.
func environment(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, "STEWARD_") })
}

// FreeBytes asks the file system for what an unprivileged writer may use.
func (l *Linux) FreeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil
}

// tail keeps the last MaxOutputBytes that were written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - MaxOutputBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.buf)
}
