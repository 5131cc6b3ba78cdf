package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"steward/internal/release/archive"
)

func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"b/run": "run", "a": "first", "b/c/deep": "deep"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(dir, "b", "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEqualDirectoriesGiveEqualArchives(t *testing.T) {
	var packed [2]bytes.Buffer
	for i := range packed {
		dir := tree(t)
		if err := os.Chtimes(filepath.Join(dir, "a"), time.Unix(int64(i), 0), time.Unix(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
		if err := archive.Pack(&packed[i], dir); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(packed[0].Bytes(), packed[1].Bytes()) {
		t.Error("the archives differ")
	}
	z, err := zstd.NewReader(&packed[0])
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got, want := strings.Join(names, " "), "a b/ b/c/ b/c/deep b/link b/run"; got != want {
		t.Errorf("entries %q, want %q", got, want)
	}
}

func TestWhatAgentsRefuseIsNotPacked(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"link to the outside": func(dir string) error { return os.Symlink("../../etc", filepath.Join(dir, "l")) },
		"absolute link":       func(dir string) error { return os.Symlink("/etc", filepath.Join(dir, "l")) },
		"pipe":                func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600) },
	} {
		dir := tree(t)
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if err := archive.Pack(io.Discard, dir); err == nil {
			t.Errorf("%s was packed", name)
		}
	}
}
