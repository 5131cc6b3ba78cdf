package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"steward/internal/server"
)

// RestoreConfig of Restore and Verify.
type RestoreConfig struct {
	DataDir    string         // to restore into: absent or empty; not used by Verify
	Identities []age.Identity // with which an encrypted archive opens
	// MasterKeyFile is that of the server, when it keeps its keys sealed in the database.
	MasterKeyFile string

	Version  string           // of this program
	Progress Progress         // may be nil
	Now      func() time.Time // nil means time.Now
}

// Result is what Restore and Verify have found.
type Result struct {
	Manifest
	Encrypted bool   `json:"encrypted"`
	Root      string `json:"root,omitempty"` // of the ledger's tree, recomputed; by Restore and Rehearse
}

// Verify reads a whole archive and compares every file with the manifest; it writes nothing.
func Verify(ctx context.Context, cfg RestoreConfig, archive io.Reader) (Result, error) {
	r, err := openArchive(archive, cfg.Identities)
	if err != nil {
		return Result{}, err
	}
	defer r.close()
	m, err := r.each(ctx, cfg.Progress, func(_ string, _ int64, body io.Reader) error {
		_, err := io.Copy(io.Discard, body)
		return err
	})
	return Result{Manifest: m, Encrypted: r.encrypted}, err
}

// Rehearse restores into a directory of its own below dir, does everything that Restore does, and removes
// it again.
func Rehearse(ctx context.Context, cfg RestoreConfig, archive io.Reader, dir string) (out Result, err error) {
	tmp, err := os.MkdirTemp(dir, "steward-rehearsal-*")
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	cfg.DataDir = filepath.Join(tmp, "data")
	return Restore(ctx, cfg, archive)
}

// Restore brings a data directory back. It stands under its name only when every file was compared with the
// manifest, the ledger was recomputed and all of it is on disk; after an error there is nothing of it. An
// empty directory keeps its owner, who then owns the files.
func Restore(ctx context.Context, cfg RestoreConfig, archive io.Reader) (out Result, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return out, err
	}
	if err := checkTarget(cfg.DataDir); err != nil {
		return out, err
	}
	r, err := openArchive(archive, cfg.Identities)
	if err != nil {
		return out, err
	}
	defer r.close()
	if err := checkSchema(r.header); err != nil {
		return out, err
	}
	p, err := newPlace(cfg.DataDir, cfg.Now())
	if err != nil {
		return out, diskError(err)
	}
	defer func() { err = errors.Join(err, p.discard()) }()
	out = Result{Encrypted: r.encrypted}
	out.Manifest, err = r.each(ctx, cfg.Progress, func(name string, size int64, body io.Reader) error { return p.put(name, body) })
	if err != nil {
		return out, diskError(err)
	}
	if out.Root, err = settle(ctx, cfg, p.dir, out.Manifest); err != nil {
		return out, diskError(err)
	}
	return out, diskError(p.keep())
}

// checkTarget refuses a directory in which something is, except for what a file system puts into its root.
func checkTarget(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into the directory to restore into: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("%w: %s holds %s; restore into another one, or move this one away", ErrNotEmpty, dir, e.Name())
		}
	}
	return nil
}

// checkSchema refuses tables that this program doesn't know yet. Older ones are brought up to date.
func checkSchema(h Header) error {
	known := map[string]int64{}
	for _, m := range server.Migrations() {
		names, err := fs.Glob(m.Files, "*.sql")
		if err != nil {
			return err
		}
		for _, name := range names {
			var n int64
			if _, err := fmt.Sscanf(name, "%d_", &n); err == nil {
				known[m.Room] = max(known[m.Room], n)
			}
		}
	}
	for room, version := range h.Schema {
		if version > known[room] {
			return fmt.Errorf("%w: it was written by %s, whose tables of %s are at %d; this one knows %d: restore with that version or a later one",
				ErrNewer, h.Version, room, version, known[room])
		}
	}
	return nil
}

// place is where a data directory is put together: beside its final name, or inside of it when that is the
// root of a file system or its parent is not to be written to.
type place struct {
	final  string
	dir    string
	inside bool
	kept   bool
	owner  *syscall.Stat_t // of the empty directory that was there
}

const restorePattern = ".restore-*"

func newPlace(final string, now time.Time) (*place, error) {
	p := &place{final: final}
	parent := filepath.Dir(final)
	if info, err := os.Stat(final); err == nil {
		p.owner, _ = info.Sys().(*syscall.Stat_t)
		p.inside = !sameDevice(parent, p.owner) || unix.Access(parent, unix.W_OK) != nil
	}
	if !p.inside {
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(parent, "."+filepath.Base(final)+restorePattern)
		p.dir = dir
		return p, err
	}
	// A server must not take the half-filled directory for a fresh one.
	if err := server.Hold(final, "a restore into this directory has not ended: empty the directory and restore again", now); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(final, restorePattern)
	if err != nil {
		return nil, errors.Join(err, server.Unhold(final))
	}
	p.dir = dir
	return p, nil
}

func sameDevice(dir string, of *syscall.Stat_t) bool {
	var st syscall.Stat_t
	return of != nil && syscall.Stat(dir, &st) == nil && st.Dev == of.Dev
}

// put writes one file.
func (p *place) put(name string, body io.Reader) error {
	path := filepath.Join(p.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// keep gives everything to its owner, has it written to disk, and moves it to its final name.
func (p *place) keep() error {
	if err := p.chown(); err != nil {
		return err
	}
	if err := syncAll(p.dir); err != nil {
		return err
	}
	if p.inside {
		if err := p.moveIn(); err != nil {
			return err
		}
	} else if err := unix.Rename(p.dir, p.final); err != nil { // onto nothing or an empty directory, which os.Rename refuses
		return fmt.Errorf("put the restored directory into its place: %w", err)
	}
	p.kept = true
	return syncDir(filepath.Dir(p.final))
}

// moveIn moves the files up, the database last, and only then lets servers in.
func (p *place) moveIn() error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return btoi(a.Name() == databaseName) - btoi(b.Name() == databaseName) })
	for _, e := range entries {
		if err := os.Rename(filepath.Join(p.dir, e.Name()), filepath.Join(p.final, e.Name())); err != nil {
			return fmt.Errorf("put the restored files into their place: %w", err)
		}
	}
	if err := errors.Join(os.Remove(p.dir), os.Chmod(p.final, 0o700), syncDir(p.final)); err != nil {
		return err
	}
	return server.Unhold(p.final)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// chown gives the files to the owner of the directory that was there, when that is somebody else.
func (p *place) chown() error {
	if p.owner == nil || int(p.owner.Uid) == os.Geteuid() {
		return nil
	}
	err := filepath.WalkDir(p.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(p.owner.Uid), int(p.owner.Gid))
	})
	if err != nil {
		return fmt.Errorf("give the files to the owner of %s: %w", p.final, err)
	}
	return nil
}

// discard removes what was not kept.
func (p *place) discard() error {
	if p.kept {
		return nil
	}
	err := os.RemoveAll(p.dir)
	if !p.inside {
		return err
	}
	for name := range allowed { // what moveIn had begun with
		err = errors.Join(err, os.RemoveAll(filepath.Join(p.final, name)))
	}
	if err != nil {
		return err // and the directory stays held
	}
	return server.Unhold(p.final)
}

// syncAll has everything on the directory's file system written to disk: one call instead of one per file.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("write the restored files to disk: %w", err)
	}
	return nil
}
