// Package archive packs a directory into the form that "files" components have: a tar archive under
// zstd. Equal directories give equal bytes, whoever packs them and when, so that a release can be
// reproduced and an artifact is stored once.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
)

// windowBytes is zstd's window; agents refuse more than 8 MiB.
const windowBytes = 8 << 20

// Pack writes the regular files, directories and symbolic links below dir. It refuses everything else
// and links that point out of the directory, as agents do. Owners and times are not kept.
func Pack(w io.Writer, dir string) (err error) {
	z, err := zstd.NewWriter(w, zstd.WithWindowSize(windowBytes), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("start zstd: %w", err)
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	t := tar.NewWriter(z)
	if err := addDir(t, dir); err != nil {
		return err
	}
	return t.Close()
}

func addDir(t *tar.Writer, dir string) error {
	root, err := os.OpenRoot(dir) // refuses what leads out of dir
	if err != nil {
		return fmt.Errorf("open the directory to pack: %w", err)
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error { // in lexical order
		if err != nil || path == "." {
			return err
		}
		return addEntry(t, root, path, d)
	})
}

func addEntry(t *tar.Writer, root *os.Root, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: path, Mode: int64(info.Mode().Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = root.Readlink(path); err != nil {
			return err
		}
		if filepath.IsAbs(h.Linkname) || !filepath.IsLocal(filepath.Join(filepath.Dir(path), h.Linkname)) {
			return fmt.Errorf("%s links to %s, outside of the directory", path, h.Linkname)
		}
	case info.Mode().IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	default:
		return fmt.Errorf("%s is neither a file nor a directory nor a link", path)
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := root.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return errors.Join(err, f.Close())
}
