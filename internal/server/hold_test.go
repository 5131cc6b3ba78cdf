package server

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDataDirectoryIsLockedForOneAtATime(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	again, err := Lock(dir)
	if err != nil {
		t.Fatalf("after the first: %v", err)
	}
	if err := again(); err != nil {
		t.Error(err)
	}
}

func TestServerRefusesAHeldDatabaseAndSaysWhy(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Held(dir), Unhold(dir)); err != nil {
		t.Errorf("nothing is held: %v", err)
	}
	if err := Hold(dir, "the database has moved to the cellar", time.Unix(1_790_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{DataDir: dir, ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), "cellar") {
		t.Errorf("open: %v", err)
	}
	if err := (Config{DataDir: dir, Database: "postgres://elsewhere"}).refuseHeld(); err != nil {
		t.Errorf("on another database: %v", err)
	}
	if err := Unhold(dir); err != nil || Held(dir) != nil {
		t.Errorf("let go: %v", err)
	}
}

func TestWhatRootLeavesInTheDataDirectoryIsItsOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("run as root: only root can give files away")
		}
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 4711, 4712); err != nil {
		t.Fatal(err)
	}
	unlock, err := Lock(dir)
	if err := errors.Join(err, Hold(dir, "a test", time.Now())); err != nil {
		t.Fatal(err)
	}
	defer unlock() //nolint:errcheck // a test's
	for _, name := range []string{lockFile, heldFile} {
		var st syscall.Stat_t
		if err := syscall.Stat(dir+"/"+name, &st); err != nil || st.Uid != 4711 || st.Gid != 4712 {
			t.Errorf("%s belongs to %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}
}
