package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"steward/internal/server"
)

// Config of Create.
type Config struct {
	DataDir string
	// Recipients are who can open the archive. None makes a plain one, with Steward's keys in it for
	// whoever reads the file.
	Recipients []age.Recipient
	// WithoutMetrics and WithoutArtifacts leave those out; the latter is for servers that keep them in a bucket.
	WithoutMetrics   bool
	WithoutArtifacts bool

	Version  string           // of this program
	Progress Progress         // may be nil
	Now      func() time.Time // nil means time.Now
	Log      *slog.Logger     // nil discards
}

func (c Config) withDefaults() Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// CreateFile is Create into a file that stands under its name once it is whole and on disk, with mode 0600.
// A file that is there already is not touched.
func CreateFile(ctx context.Context, cfg Config, path string) (m Manifest, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return m, errors.Join(fmt.Errorf("%s is there already: choose another name", path), err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return m, fmt.Errorf("write the archive: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone when all went well
	m, err = Create(ctx, cfg, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return m, diskError(err)
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) { // unlike a rename it never replaces
		return m, fmt.Errorf("%s is there already: choose another name", path)
	} else if err != nil {
		if err := os.Rename(f.Name(), path); err != nil { // a file system without hard links
			return m, err
		}
	}
	return m, syncDir(filepath.Dir(path))
}

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the disk is full, nothing was left behind: %w", err)
	}
	return err
}

// Create writes an archive of the data directory, whose server may be running. Nothing is left in the data
// directory.
func Create(ctx context.Context, cfg Config, w io.Writer) (m Manifest, err error) {
	cfg = cfg.withDefaults()
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return m, err
	}
	if err := server.Held(cfg.DataDir); err != nil {
		return m, err
	}
	_, err = os.Stat(filepath.Join(cfg.DataDir, databaseName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("%w in %s: a server on PostgreSQL is backed up with PostgreSQL's own tools, and its key directory beside it", ErrNotEmbedded, cfg.DataDir)
	}
	if err != nil {
		return m, err
	}
	s, err := newStage(cfg.DataDir)
	if err != nil {
		return m, diskError(err)
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	facts, err := s.fill(ctx, cfg)
	if err != nil {
		return m, diskError(err)
	}
	m, err = s.write(ctx, cfg, facts, w)
	return m, diskError(err)
}

// snapshotTries bounds how often the snapshot is taken again because an artifact that it names was deleted
// meanwhile.
const snapshotTries = 5

// fill holds everything that goes into the archive. See the package's text for why this order.
func (s *stage) fill(ctx context.Context, cfg Config) (facts, error) {
	for try := 1; ; try++ {
		if err := s.keysAndArtifacts(cfg); err != nil {
			return facts{}, err
		}
		at := cfg.Now()
		if err := s.database(ctx, cfg.Progress); err != nil {
			return facts{}, err
		}
		if err := s.keysAndArtifacts(cfg); err != nil {
			return facts{}, err
		}
		f, err := readFacts(ctx, s.files[databaseName].from)
		if err != nil {
			return f, err
		}
		f.at = at
		missing := s.missing(f.blobs)
		if len(missing) > 0 && !cfg.WithoutArtifacts {
			if try < snapshotTries {
				continue
			}
			return f, fmt.Errorf("%d artifacts that the database names are not in %s, first %s: if this server keeps them in a bucket, say --without-artifacts",
				len(missing), filepath.Join(s.data, "artifacts"), missing[0])
		}
		if cfg.WithoutMetrics {
			return f, nil
		}
		return f, s.metrics()
	}
}

func (s *stage) keysAndArtifacts(cfg Config) error {
	if err := s.keys(); err != nil {
		return err
	}
	if cfg.WithoutArtifacts {
		return nil
	}
	return s.artifacts()
}

func (s *stage) missing(hashes []string) (out []string) {
	for _, h := range hashes {
		if _, ok := s.files["artifacts/sha256/"+h[:min(2, len(h))]+"/"+h]; !ok {
			out = append(out, h)
		}
	}
	return out
}

// database takes the snapshot.
func (s *stage) database(ctx context.Context, progress Progress) error {
	from, to := filepath.Join(s.data, databaseName), filepath.Join(s.dir, databaseName)
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := enoughSpace(s.dir, info.Size()); err != nil {
		return err
	}
	stop := watchSize(to, func(n int64) { progress.tell("database", min(n, info.Size()), info.Size()) })
	err = Snapshot(ctx, from, to)
	stop()
	if err != nil {
		return err
	}
	copied, err := os.Stat(to)
	if err != nil {
		return err
	}
	s.files[databaseName] = staged{from: to, size: copied.Size()}
	return nil
}

// Snapshot copies an SQLite database, which others may be writing to, as it is at one moment. Whatever was
// committed before Snapshot was called is in the copy.
func Snapshot(ctx context.Context, from, to string) (err error) {
	db, err := sql.Open("sqlite", "file:"+uriPath.Replace(from)+"?mode=rw&_pragma=busy_timeout(60000)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, "VACUUM INTO $1", to); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("copy the database: %w", err)
	}
	return os.Chmod(to, 0o600)
}

// uriPath escapes what has a meaning in SQLite's file URIs (https://www.sqlite.org/uri.html).
var uriPath = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

// spareBytes stay free beside the copy of the database, for the server to go on.
const spareBytes = 64 << 20

func enoughSpace(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil // a file system that can't tell
	}
	if free := int64(st.Bavail) * st.Bsize; free < need+spareBytes {
		return fmt.Errorf("the database has %d MiB, and a backup needs that much more beside it while it runs: only %d MiB are free in %s",
			need>>20, free>>20, filepath.Dir(dir))
	}
	return nil
}

// watchSize tells how a file grows until stop is called.
func watchSize(path string, tell func(int64)) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				if info, err := os.Stat(path); err == nil {
					tell(info.Size())
				}
			}
		}
	}()
	return func() { close(end); <-ended }
}

// write packs what is held.
func (s *stage) write(ctx context.Context, cfg Config, f facts, w io.Writer) (Manifest, error) {
	m := Manifest{Devices: f.devices, Events: f.events, Checkpoint: f.checkpoint, Header: Header{
		Format: Format, Created: f.at.UTC().Truncate(time.Millisecond), Version: cfg.Version, Schema: f.schema, Files: len(s.files), Bytes: s.bytes(),
	}}
	if cfg.WithoutMetrics {
		m.Header.Without = append(m.Header.Without, "metrics")
	}
	if cfg.WithoutArtifacts {
		m.Header.Without = append(m.Header.Without, "artifacts")
	}
	out, err := newWriter(w, cfg.Recipients, m.Header.Created)
	if err != nil {
		return m, err
	}
	if err := out.addJSON(headerName, m.Header); err != nil {
		return m, err
	}
	var done int64
	for _, name := range s.names() {
		e, err := s.writeFile(ctx, out, name, func(n int64) { cfg.Progress.tell(topOf(name), done+n, m.Header.Bytes) })
		if err != nil {
			return m, err
		}
		done += e.Size
		m.Entries = append(m.Entries, e)
	}
	if err := out.addJSON(manifestName, m); err != nil {
		return m, err
	}
	return m, out.close()
}

func (s *stage) writeFile(ctx context.Context, out *writer, name string, tell func(int64)) (Entry, error) {
	held := s.files[name]
	f, err := os.Open(held.from)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close() //nolint:errcheck // read only
	e, err := out.add(name, held.size, &counted{ctx: ctx, in: f, tell: tell})
	if err == nil {
		err = os.Remove(held.from) // space, on a file system without hard links
	}
	return e, err
}

// topOf is what people call the part of an archive that a file belongs to.
func topOf(name string) string {
	top, _, _ := strings.Cut(name, "/")
	if top == databaseName {
		return "database"
	}
	return top
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
