// Package blob keeps large bodies, each under the SHA-256 of its bytes: release artifacts, documents that
// are too big for the database. They stand in a directory, or, for several nodes, in a bucket that speaks
// S3; then the directory is where bodies are received and verified, and a cache. A blob never changes; equal bodies are kept
// once. What stands under a final name is complete and on disk: bytes go to a temporary file, which is
// fsynced and then renamed, and the directory is fsynced after that.
//
//	DIR/sha256/ab/abcdef…   the blobs
//	DIR/tmp/                being received; emptied of what is old by Sweep
//	DIR/upload/ID           resumable uploads; swept when untouched for a day
package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"steward/internal/fault"
)

// Store holds blobs; safe for concurrent use, by several processes too.
type Store struct {
	dir    string
	bucket *bucket // nil: the directory is all
	cache  cache   // of the bucket's blobs, in the directory
}

const (
	blobsDir   = "sha256"
	tmpDir     = "tmp"
	uploadsDir = "upload"
)

// Dir opens the store at path and makes what is missing of it, with mode 0700.
func Dir(path string) (*Store, error) {
	for _, sub := range []string{blobsDir, tmpDir, uploadsDir} {
		if err := os.MkdirAll(filepath.Join(path, sub), 0o700); err != nil {
			return nil, diskError("open blob store", err)
		}
	}
	// All 256 directories now, so that storing a blob has one directory to fsync.
	for i := range 256 {
		err := os.Mkdir(filepath.Join(path, blobsDir, fmt.Sprintf("%02x", i)), 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, diskError("open blob store", err)
		}
	}
	if err := errors.Join(syncDir(filepath.Join(path, blobsDir)), syncDir(path)); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	return &Store{dir: path}, nil
}

// Open opens the store at place, a directory or "s3://bucket[/prefix]?endpoint=https://host[:port]&region=name".
// staging is a directory of this node alone, used with a bucket only; see openBucket for credentials.
func Open(ctx context.Context, place, staging string, log *slog.Logger) (*Store, error) {
	if !strings.HasPrefix(place, "s3:") {
		return Dir(place)
	}
	b, err := openBucket(ctx, place, log)
	if err != nil {
		return nil, err
	}
	s, err := Dir(staging)
	if err != nil {
		return nil, err
	}
	s.bucket, s.cache.limit = b, cacheBytes
	return s, nil
}

var hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// path returns where the blob with a hash stands; a hash of the wrong form has no place.
func (s *Store) path(hash string) (string, error) {
	if !hashPattern.MatchString(hash) {
		return "", fault.New(fault.Unprocessable, "hash %.80q: want 64 lower case hex digits", hash)
	}
	return filepath.Join(s.dir, blobsDir, hash[:2], hash), nil
}

// Put stores all that r gives and returns its hash and size. More than limit bytes are fault.TooLarge,
// a full disk fault.Unavailable; then nothing is kept. An error of r or ctx is returned as it is.
func (s *Store) Put(ctx context.Context, r io.Reader, limit int64) (hash string, size int64, err error) {
	return s.put(ctx, r, limit, "")
}

// PutExpect is Put for a body whose hash is known: another one is fault.Unprocessable and nothing is
// kept. When the blob is there already, r is not read.
func (s *Store) PutExpect(ctx context.Context, r io.Reader, limit int64, hash string) (size int64, err error) {
	if size, err = s.Size(hash); err == nil || !errors.Is(err, fault.NotFound) {
		return size, err
	}
	_, size, err = s.put(ctx, r, limit, hash)
	return size, err
}

func (s *Store) put(ctx context.Context, r io.Reader, limit int64, want string) (hash string, size int64, err error) {
	tmp, err := os.CreateTemp(filepath.Join(s.dir, tmpDir), "put-*")
	if err != nil {
		return "", 0, diskError("receive blob", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // renamed away unless something failed
	defer tmp.Close()           //nolint:errcheck // closed below when all is well
	sum := sha256.New()
	size, err = receive(ctx, io.MultiWriter(tmp, sum), r, limit)
	if err != nil {
		return "", 0, err
	}
	hash = hex.EncodeToString(sum.Sum(nil))
	if want != "" && hash != want {
		return "", 0, mismatch(hash, want)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return "", 0, diskError("write blob", err)
	}
	return hash, size, s.place(ctx, tmp.Name(), hash)
}

func mismatch(hash, want string) error {
	return fault.New(fault.Unprocessable, "the body has the SHA-256 %s and not %s: it was damaged on its way or is another file", hash, want)
}

// place brings a finished, fsynced file to the bucket, if there is one, and then to its final name.
func (s *Store) place(ctx context.Context, tmp, hash string) error {
	final, err := s.path(hash)
	if err != nil {
		return err
	}
	if s.bucket != nil {
		if err := s.bucket.put(ctx, tmp, s.bucket.blobKey(hash)); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, final); err != nil {
		return diskError("write blob", err)
	}
	if err := syncDir(filepath.Dir(final)); err != nil {
		return diskError("write blob", err)
	}
	return nil
}

// receive copies until the end of r. It tells a reader's error from the disk's: the first is the
// caller's, the second may be fault.Unavailable.
func receive(ctx context.Context, w io.Writer, r io.Reader, limit int64) (int64, error) {
	buf := make([]byte, 64<<10)
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return size, err
		}
		n, readErr := r.Read(buf)
		if size+int64(n) > limit {
			return size, fault.New(fault.TooLarge, "the body has more than %d bytes", limit)
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return size, diskError("write blob", err)
			}
			size += int64(n)
		}
		if errors.Is(readErr, io.EOF) {
			return size, nil
		}
		if readErr != nil {
			return size, fmt.Errorf("read the body: %w", readErr)
		}
	}
}

// diskError makes a full disk or an exhausted quota a refusal that callers can tell, and repeat later.
func diskError(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.New(fault.Unavailable, "the server's disk is full: free some space and try again")
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open returns a blob for reading from any place, and its size; fault.NotFound when it is not there.
func (s *Store) Open(hash string) (io.ReadSeekCloser, int64, error) {
	path, err := s.path(hash)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	if s.bucket != nil && errors.Is(err, fs.ErrNotExist) {
		return s.openFar(hash)
	}
	if err != nil {
		return nil, 0, missing(hash, err)
	}
	s.cache.used(path)
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return f, info.Size(), nil
}

func missing(hash string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no blob %s", hash)
	}
	return fmt.Errorf("open blob: %w", err)
}

// Size returns a blob's size in bytes; fault.NotFound when it is not there.
func (s *Store) Size(hash string) (int64, error) {
	path, err := s.path(hash)
	if err != nil {
		return 0, err
	}
	if s.bucket != nil { // another node may have deleted what is cached here
		return s.bucket.size(hash)
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, missing(hash, err)
	}
	return info.Size(), nil
}

// Has tells whether the blob is there.
func (s *Store) Has(hash string) (bool, error) {
	_, err := s.Size(hash)
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// Delete removes a blob; one that is not there is no error. Who has it open reads on.
func (s *Store) Delete(hash string) error {
	path, err := s.path(hash)
	if err != nil {
		return err
	}
	if s.bucket != nil {
		if err := s.bucket.remove(s.bucket.blobKey(hash)); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// sweepAge is how long an upload may rest before it is taken for abandoned.
const sweepAge = 24 * time.Hour

// Sweep removes uploads and temporary files that nobody has touched for a day before now, and returns
// how many.
func (s *Store) Sweep(now time.Time) (removed int, err error) {
	for _, sub := range []string{tmpDir, uploadsDir} {
		entries, readErr := os.ReadDir(filepath.Join(s.dir, sub))
		if readErr != nil {
			err = errors.Join(err, fmt.Errorf("sweep blob store: %w", readErr))
			continue
		}
		for _, entry := range entries {
			info, statErr := entry.Info()
			if statErr != nil || now.Sub(info.ModTime()) < sweepAge {
				continue // gone meanwhile, or young
			}
			if rmErr := os.Remove(filepath.Join(s.dir, sub, entry.Name())); rmErr != nil {
				if !errors.Is(rmErr, fs.ErrNotExist) {
					err = errors.Join(err, fmt.Errorf("sweep blob store: %w", rmErr))
				}
				continue
			}
			removed++
		}
	}
	if s.bucket != nil {
		n, sweepErr := s.bucket.sweep(now.Add(-sweepAge))
		removed, err = removed+n, errors.Join(err, sweepErr, s.evict())
	}
	return removed, err
}

// Run sweeps now and every hour until ctx ends.
func (s *Store) Run(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if n, err := s.Sweep(time.Now()); err != nil {
			log.ErrorContext(ctx, "sweep abandoned uploads", "error", err)
		} else if n > 0 {
			log.InfoContext(ctx, "swept abandoned uploads", "count", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
