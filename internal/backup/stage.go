package backup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// stagePattern names the directories in which backups are put together, inside of the data directory so
// that files can be held by hard links.
const stagePattern = ".backup-*"

// stage is the directory of one backup. Whoever works in one holds a lock on it.
type stage struct {
	data  string // the data directory
	dir   string
	lock  *os.File
	files map[string]staged // by path in the archive
}

// staged is a file that is held for the archive.
type staged struct {
	from string // where it is held
	size int64  // how much of it belongs to the archive; a log may grow meanwhile
}

// newStage makes a directory, and removes those of backups that were killed.
func newStage(data string) (*stage, error) {
	if err := sweepStages(data); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(data, stagePattern) // mode 0700
	if err != nil {
		return nil, fmt.Errorf("prepare the backup: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the backup: %w", err), os.Remove(dir))
	}
	return &stage{data: data, dir: dir, lock: lock, files: map[string]staged{}}, nil
}

func (s *stage) remove() error { return errors.Join(os.RemoveAll(s.dir), s.lock.Close()) }

func sweepStages(data string) error {
	old, err := filepath.Glob(filepath.Join(globQuote.Replace(data), stagePattern))
	if err != nil {
		return err
	}
	for _, dir := range old {
		lock, err := lockDir(dir)
		if err != nil {
			continue // somebody works in it, or has just removed it
		}
		if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
			return fmt.Errorf("remove what a killed backup has left: %w", err)
		}
	}
	return nil
}

var globQuote = strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`)

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// hold keeps all files below a folder of the data directory as they are now. A file that is there already
// from an earlier call stays, unless again says to take it anew. One that goes away while it is looked for
// was not needed: it is replaced by another, or nothing names it.
func (s *stage) hold(folder string, again bool, want func(name string) bool) error {
	root := filepath.Join(s.data, filepath.FromSlash(folder))
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := folder + "/" + filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))
		if path == root {
			return nil
		}
		if d.IsDir() {
			if !want(name + "/") {
				return filepath.SkipDir
			}
			return nil
		}
		if _, known := s.files[name]; !d.Type().IsRegular() || !want(name) || (known && !again) {
			return nil
		}
		return s.holdFile(name, path)
	})
	if err != nil {
		return fmt.Errorf("back up %s: %w", folder, err)
	}
	return nil
}

// holdFile links or copies one file into the stage.
func (s *stage) holdFile(name, path string) error {
	to := filepath.Join(s.dir, "files", filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := errNoLink
	if !strings.HasPrefix(name, "keys/") { // keys are small, and may be written anew in place by hand
		err = os.Link(path, to)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = copyFile(path, to) // or a file system without hard links
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(to)
	if err != nil {
		return err
	}
	s.files[name] = staged{from: to, size: info.Size()}
	return nil
}

var errNoLink = errors.New("not to be linked")

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// keys are all of Steward's own, those of releases too.
func (s *stage) keys() error {
	return s.hold("keys", true, func(name string) bool { return !strings.HasPrefix(filepath.Base(name), ".") })
}

// artifacts are the finished blobs. Parts of uploads are left out: who uploads begins again.
func (s *stage) artifacts() error {
	return s.hold("artifacts", false, func(name string) bool { return strings.HasPrefix(name, "artifacts/sha256/") })
}

// metrics takes the time series as a power cut would leave them. The folder chunks_head repeats what is in
// the logs and is left out: the database makes it anew from them.
func (s *stage) metrics() error {
	isLog := func(name string) bool {
		return strings.HasPrefix(name, "metrics/wal/") || strings.HasPrefix(name, "metrics/wbl/")
	}
	unfinished := func(name string) bool {
		return slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool {
			return strings.HasSuffix(part, ".tmp") || strings.Contains(part, ".tmp-for-")
		})
	}
	block := func(name string) bool {
		folder := strings.Split(name, "/")[1]
		return len(folder) == 26 && !unfinished(name) // named by a ULID
	}
	for _, want := range []func(string) bool{block, func(name string) bool { return isLog(name) && !unfinished(name) }, block} {
		if err := s.hold("metrics", false, want); err != nil {
			return err
		}
	}
	return s.dropHalfBlocks()
}

// dropHalfBlocks leaves out blocks that were being deleted when they were listed: what is missing from them
// is in the block that has replaced them, which the last listing has found.
func (s *stage) dropHalfBlocks() error {
	whole := map[string]int{} // files without which a block is none
	for name := range s.files {
		parts := strings.Split(name, "/")
		if parts[0] != "metrics" || len(parts[1]) != 26 {
			continue
		}
		folder := parts[0] + "/" + parts[1]
		found := 0
		if len(parts) == 3 && (parts[2] == "meta.json" || parts[2] == "index") {
			found = 1
		}
		whole[folder] += found
	}
	for name := range s.files {
		parts := strings.SplitN(name, "/", 3)
		if len(parts) < 3 {
			continue
		}
		if n, isBlock := whole[parts[0]+"/"+parts[1]]; isBlock && n < 2 {
			delete(s.files, name)
		}
	}
	return nil
}

// bytes is the sum of what is held.
func (s *stage) bytes() (n int64) {
	for _, f := range s.files {
		n += f.size
	}
	return n
}

// names are the held files in the archive's order: the database, keys, then the rest.
func (s *stage) names() []string {
	rank := func(name string) int {
		return slices.Index([]string{databaseName, "keys", "artifacts", "metrics"}, strings.SplitN(name, "/", 2)[0])
	}
	out := make([]string, 0, len(s.files))
	for name := range s.files {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return out
}
