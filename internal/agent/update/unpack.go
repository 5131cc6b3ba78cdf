package update

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// Bounds of an archive.
const (
	maxEntries      = 200_000
	maxUnpacked     = 16 << 30
	maxWindow       = 8 << 20 // of zstd: what unpacking holds in memory
	maxEntryPath    = 1024
	entryCost       = 4 << 10  // space that an entry takes besides its content
	fileMode        = 0o755    // of an archive's modes; group and others never write
	maxArchiveSlack = 64 << 20 // headers and padding
)

// unpackAll unpacks the parts that are not there yet, each into a directory of its own that gets its
// name when it is complete and on disk.
func (r *Room) unpackAll(ctx context.Context, x *run) error {
	for _, p := range x.Parts {
		if !r.needed(p) {
			continue
		}
		err := r.unpack(ctx, p)
		if errors.Is(err, errGone) {
			return r.enter(x, fetching, nil)
		}
		if err != nil {
			return err
		}
	}
	return r.enter(x, preparing, nil)
}

var errGone = errors.New("the download is gone")

func (r *Room) unpack(ctx context.Context, p part) error {
	archive := r.partPath(p)
	plan := &archivePlan{kinds: map[string]byte{}}
	err := eachEntry(ctx, archive, func(h *tar.Header, _ io.Reader) error { return plan.add(h) })
	if errors.Is(err, fs.ErrNotExist) {
		return errGone // somebody has removed it: it is fetched again
	}
	if err != nil {
		return archiveTrouble(ctx, p, err)
	}
	dir := filepath.Join(r.componentDir(p.Component), versionsDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return diskTrouble(stepUnpack, err)
	}
	if err := r.checkSpace(stepUnpack, dir, plan.bytes+int64(len(plan.kinds))*entryCost); err != nil {
		return err
	}
	tmp := filepath.Join(dir, newPrefix+filepath.Base(p.Link))
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := r.cfg.Journal.Point("unpack " + p.Component); err != nil {
		return err
	}
	if err := r.extract(ctx, archive, tmp); err != nil {
		return errors.Join(archiveTrouble(ctx, p, err), os.RemoveAll(tmp))
	}
	if err := r.cfg.Journal.Point("rename unpacked " + p.Component); err != nil {
		return err
	}
	if err := os.Rename(tmp, r.versionDir(p)); err != nil {
		return err
	}
	for _, d := range []string{dir, r.componentDir(p.Component), r.cfg.Dir} {
		if err := r.syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// archiveTrouble tells what is wrong with an archive from trouble of the disk, which may pass.
func archiveTrouble(ctx context.Context, p part, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var errno syscall.Errno // whatever the system says is not the archive's fault
	if errors.As(err, &errno) {
		return diskTrouble(stepUnpack, fmt.Errorf("unpack component %s: %w", p.Component, err))
	}
	return refuse(stepUnpack, "the archive of component %s: %v", p.Component, err)
}

// eachEntry reads a tar archive, plain or under zstd, with bounded memory.
func eachEntry(ctx context.Context, archive string, visit func(h *tar.Header, content io.Reader) error) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	in := bufio.NewReaderSize(f, 64<<10)
	var src io.Reader = in
	if magic, err := in.Peek(4); err == nil && bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxUnpacked+maxArchiveSlack))
		if err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		defer z.Close()
		src = z
	}
	t := tar.NewReader(&io.LimitedReader{R: src, N: maxUnpacked + maxArchiveSlack})
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tar: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := visit(h, t); err != nil {
			return err
		}
	}
}

// archivePlan is what the first reading of an archive learns; the second one writes. It refuses
// whatever could lead out of the directory.
type archivePlan struct {
	kinds map[string]byte // by clean path
	bytes int64
}

// entryName returns the clean path of an entry, "." for the top.
func entryName(name string) (string, error) {
	if len(name) > maxEntryPath || strings.ContainsAny(name, "\x00\\") {
		return "", fmt.Errorf("entry %.100q: its name is too long or has forbidden characters", name)
	}
	if strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("entry %.100q: an absolute path", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("entry %.100q leads out of the directory", name)
		}
	}
	return path.Clean(name), nil
}

func (a *archivePlan) add(h *tar.Header) error {
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	if len(a.kinds) >= maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	if err := a.checkParents(name); err != nil {
		return err
	}
	before, twice := a.kinds[name]
	if name == "." || twice {
		if h.Typeflag == tar.TypeDir && (name == "." || before == tar.TypeDir) {
			return nil
		}
		return fmt.Errorf("entry %.100q stands there twice", h.Name)
	}
	if err := a.checkKind(name, h); err != nil {
		return err
	}
	a.kinds[name] = h.Typeflag
	return nil
}

func (a *archivePlan) checkKind(name string, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return nil
	case tar.TypeReg:
		for record := range h.PAXRecords {
			if strings.HasPrefix(record, "GNU.sparse.") {
				return fmt.Errorf("entry %.100q is a sparse file", h.Name)
			}
		}
		if h.Size < 0 || a.bytes+h.Size > maxUnpacked {
			return fmt.Errorf("more than %d bytes", int64(maxUnpacked))
		}
		a.bytes += h.Size
		return nil
	case tar.TypeSymlink:
		return checkLink(name, h.Linkname)
	case tar.TypeLink:
		to, err := entryName(h.Linkname)
		if err != nil || a.kinds[to] != tar.TypeReg {
			return fmt.Errorf("hard link %.100q to %.100q, which is no file of the archive before it", h.Name, h.Linkname)
		}
		return nil
	}
	return fmt.Errorf("entry %.100q is neither a file nor a directory nor a link", h.Name)
}

// checkParents refuses an entry below a link or a file; parents that are not listed become directories.
func (a *archivePlan) checkParents(name string) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		kind, listed := a.kinds[dir]
		if listed && kind != tar.TypeDir {
			return fmt.Errorf("entry %.100q lies below %.100q, which is no directory", name, dir)
		}
		if !listed {
			a.kinds[dir] = tar.TypeDir
		}
	}
	return nil
}

// checkLink refuses symbolic links that could lead out. Since all parents are real directories, one that
// goes up no further than the top and never up again behind a name stays inside, whatever other links
// it passes.
func checkLink(name, to string) error {
	if to == "" || len(to) > maxEntryPath || strings.HasPrefix(to, "/") || strings.ContainsAny(to, "\x00\\") {
		return fmt.Errorf("link %.100q to %.100q: want a relative path", name, to)
	}
	depth, named := strings.Count(name, "/"), false
	for part := range strings.SplitSeq(to, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; named || depth < 0 {
				return fmt.Errorf("link %.100q to %.100q leads out of the directory", name, to)
			}
		default:
			named = true
		}
	}
	return nil
}

// extract writes the archive's entries below dir and waits until they are on disk.
func (r *Room) extract(ctx context.Context, archive, dir string) error {
	if err := writeEntries(ctx, archive, dir); err != nil {
		return err
	}
	if err := r.cfg.Journal.Point("sync unpacked files"); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	return unix.Syncfs(int(f.Fd()))
}

func writeEntries(ctx context.Context, archive, dir string) (err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // a second wall: nothing opened through it lies outside
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	plan := &archivePlan{kinds: map[string]byte{}} // the file could have changed since
	return eachEntry(ctx, archive, func(h *tar.Header, content io.Reader) error {
		if err := plan.add(h); err != nil {
			return err
		}
		return writeEntry(root, h, content)
	})
}

func writeEntry(root *os.Root, h *tar.Header, content io.Reader) error {
	name, err := entryName(h.Name)
	if err != nil || name == "." {
		return err
	}
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode) & fileMode
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		to, err := entryName(h.Linkname)
		if err != nil {
			return err
		}
		return root.Link(to, name)
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Chmod(mode|0o600), f.Close())
}
