package update

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		h.Size = 0
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "text"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// FuzzArchiveStaysInItsDirectory unpacks whatever bytes come and looks that nothing outside has changed
// and that no link inside leads out.
func FuzzArchiveStaysInItsDirectory(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o644}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a/b"}))
	f.Add(tarOf(f, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "l/x", Typeflag: tar.TypeReg}))
	f.Add(tarOf(f, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/up", Typeflag: tar.TypeSymlink, Linkname: "../d"}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/up"}))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		archive, inside := filepath.Join(top, "archive"), filepath.Join(top, "inside")
		if err := os.WriteFile(archive, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if writeEntries(context.Background(), archive, inside) != nil {
			return
		}
		for _, name := range entries(top) {
			if name != "archive" && name != "inside" {
				t.Errorf("wrote %s outside", name)
			}
		}
		real, err := filepath.EvalSymlinks(inside)
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(inside, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Type()&os.ModeSymlink == 0 {
				return err
			}
			if to, err := filepath.EvalSymlinks(path); err == nil {
				if rel, err := filepath.Rel(real, to); err != nil || !filepath.IsLocal(rel) && rel != "." {
					t.Errorf("%s leads to %s", path, to)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
