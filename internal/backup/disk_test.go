package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func ownedBy(path string, uid, gid uint32) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		return fmt.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
	}
	return nil
}

// disk is a file system of its own.
func disk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("steward-test", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("a file system of %s is needed: run as root with the right to mount: %v", size, err)
		}
		t.Skipf("a file system of %s needs the right to mount (%v)", size, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDiskIsToldAndNothingIsLeftOnIt(t *testing.T) {
	t.Parallel()
	dir, file := small(t)
	tiny := disk(t, "8k")
	if _, err := CreateFile(t.Context(), Config{DataDir: dir}, filepath.Join(tiny, "b")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("backup: %v", err)
	}
	nothingBeside(t, tiny)
	nothingBeside(t, dir, "steward.db", "steward.db-wal", "steward.db-shm", "steward.db.migrate", "keys", "artifacts", "metrics", "bootstrap.json", "lock")
	tiny = disk(t, "100k")
	for _, to := range []string{filepath.Join(tiny, "data"), tiny} {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(t.Context(), RestoreConfig{DataDir: to}, f); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("restore to %s: %v", to, err)
		}
		_ = f.Close()
		nothingBeside(t, tiny)
	}
}

func TestRestoreFillsTheRootOfAFileSystem(t *testing.T) {
	t.Parallel()
	_, file := small(t)
	root := disk(t, "64m")
	if err := os.Mkdir(filepath.Join(root, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	restoreFile(t, file, root)
	for _, name := range []string{databaseName, "keys/envelope.pem"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(root, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
