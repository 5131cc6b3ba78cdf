package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"steward/internal/fault"
)

// cacheBytes is how much of a bucket a node keeps in its directory.
const cacheBytes = 10 << 30

// cache fills the directory with what is read from the bucket.
type cache struct {
	limit int64 // bytes

	mu      sync.Mutex
	filling map[string]struct{}
	fills   sync.WaitGroup
}

// used notes that the blob was read, for the order in which blobs are evicted.
func (c *cache) used(path string) {
	if c.limit > 0 {
		now := time.Now()
		_ = os.Chtimes(path, now, now) // only an order: it may fail
	}
}

// begin tells whether the caller should fetch the blob; then done is called at the end.
func (c *cache) begin(hash string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, busy := c.filling[hash]; busy {
		return false
	}
	if c.filling == nil {
		c.filling = map[string]struct{}{}
	}
	c.filling[hash] = struct{}{}
	c.fills.Add(1)
	return true
}

func (c *cache) done(hash string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.filling, hash)
	c.fills.Done()
}

// openFar serves a blob that isn't cached from the bucket, and has it fetched: a rollout reads an artifact
// from the bucket a few times, not once per device.
func (s *Store) openFar(hash string) (io.ReadSeekCloser, int64, error) {
	o, size, err := s.bucket.open(hash)
	if err != nil {
		return nil, 0, err
	}
	if size <= s.cache.limit/4 && s.cache.begin(hash) {
		go func() {
			defer s.cache.done(hash)
			if err := s.fill(hash); err != nil {
				s.bucket.log.Warn("artifact not cached", "sha256", hash, "error", err)
			}
		}()
	}
	return o, size, nil
}

// Wait returns when no blob is being fetched into the cache any more.
func (s *Store) Wait() { s.cache.fills.Wait() }

// fill fetches a blob, and keeps it when it is what its name says.
func (s *Store) fill(hash string) error {
	tmp, err := os.CreateTemp(filepath.Join(s.dir, tmpDir), "fill-*")
	if err != nil {
		return diskError("cache blob", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // renamed away unless something failed
	defer tmp.Close()           //nolint:errcheck // closed below when all is well
	sum := sha256.New()
	if err := s.bucket.read(context.Background(), io.MultiWriter(tmp, sum), s.bucket.blobKey(hash)); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != hash {
		return mismatch(got, hash)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return diskError("cache blob", err)
	}
	path, err := s.path(hash)
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// evict removes the cached blobs that were not read for the longest time until the rest fits.
func (s *Store) evict() error {
	type cached struct {
		path string
		size int64
		at   time.Time
	}
	var all []cached
	var total int64
	err := filepath.WalkDir(filepath.Join(s.dir, blobsDir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			all = append(all, cached{path, info.Size(), info.ModTime()})
			total += info.Size()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("look through the cache: %w", err)
	}
	slices.SortFunc(all, func(x, y cached) int { return x.at.Compare(y.at) })
	for _, c := range all {
		if total <= s.cache.limit {
			return nil
		}
		if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("evict from the cache: %w", err)
		}
		total -= c.size
	}
	return nil
}

// appendFar is Append with a bucket: what r gives becomes one piece.
func (u *Upload) appendFar(ctx context.Context, offset int64, r io.Reader, limit int64) (int64, error) {
	b := u.store.bucket
	_, size, err := b.pieces(ctx, u.id)
	if err != nil {
		return 0, err
	}
	if offset != size {
		return size, fault.New(fault.Conflict, "the upload has %d bytes: go on there, not at %d", size, offset)
	}
	tmp, err := os.CreateTemp(filepath.Join(u.store.dir, tmpDir), "piece-*")
	if err != nil {
		return size, diskError("append to upload", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // it is in the bucket by then
	defer tmp.Close()           //nolint:errcheck // it is read again by its name
	n, err := receive(ctx, tmp, r, limit-size)
	if errors.Is(err, fault.TooLarge) {
		err = fault.New(fault.TooLarge, "the upload would have more than %d bytes", limit)
	}
	if truncErr := tmp.Truncate(n); truncErr != nil {
		return size, errors.Join(err, diskError("append to upload", truncErr))
	}
	if n == 0 {
		return size, err
	}
	// What has arrived counts, also when the sender broke off.
	if putErr := b.addPiece(context.WithoutCancel(ctx), u.id, offset, tmp.Name()); putErr != nil {
		return size, errors.Join(err, putErr)
	}
	return size + n, err
}

// completeFar is Complete with a bucket: the pieces become one file here, are verified and stored.
func (u *Upload) completeFar(ctx context.Context, hash string) (int64, error) {
	b := u.store.bucket
	pieces, size, err := b.pieces(ctx, u.id)
	if err != nil {
		return 0, err
	}
	if len(pieces) == 0 {
		return 0, fault.New(fault.NotFound, "nothing has been uploaded yet")
	}
	tmp, err := os.CreateTemp(filepath.Join(u.store.dir, tmpDir), "upload-*")
	if err != nil {
		return 0, diskError("finish upload", err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // renamed away unless something failed
	defer tmp.Close()           //nolint:errcheck // closed below when all is well
	sum := sha256.New()
	for _, p := range pieces {
		if err := b.read(ctx, io.MultiWriter(tmp, sum), p.key); err != nil {
			return 0, err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != hash {
		return 0, errors.Join(mismatch(got, hash), u.abortFar())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return 0, diskError("finish upload", err)
	}
	if err := u.store.place(ctx, tmp.Name(), hash); err != nil {
		return 0, err
	}
	return size, u.abortFar()
}

// abortFar removes the pieces, also those behind a gap.
func (u *Upload) abortFar() error {
	keys, err := u.store.bucket.keysOf(u.id)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := u.store.bucket.remove(key); err != nil {
			return err
		}
	}
	return nil
}
