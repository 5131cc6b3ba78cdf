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
	"regexp"
	"syscall"

	"steward/internal/fault"
)

// Upload is a body that arrives in pieces, over several requests and restarts of both sides. The
// sender asks for Size, appends there, and finishes with the hash of the whole. There is nothing in
// memory: any node and any later process may go on with it.
type Upload struct {
	store *Store
	id    string
	path  string
}

var uploadPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// Upload returns the upload with an ID, which the caller chooses and guards; it begins empty.
func (s *Store) Upload(id string) (*Upload, error) {
	if !uploadPattern.MatchString(id) {
		return nil, fault.New(fault.Unprocessable, "upload ID %.80q: want 1 to 128 letters, digits, - or _", id)
	}
	return &Upload{store: s, id: id, path: filepath.Join(s.dir, uploadsDir, id)}, nil
}

// Size is how many bytes have arrived and are on disk: where the next piece begins.
func (u *Upload) Size() (int64, error) {
	if b := u.store.bucket; b != nil {
		_, size, err := b.pieces(context.Background(), u.id)
		return size, err
	}
	info, err := os.Stat(u.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at upload: %w", err)
	}
	return info.Size(), nil
}

// Append adds all that r gives at offset, which must be Size, and returns the new size; another offset
// or an Append that runs at the same time is fault.Conflict. The whole upload may have at most limit
// bytes (fault.TooLarge). When r breaks off, what arrived is kept and the new size is returned with
// the error.
func (u *Upload) Append(ctx context.Context, offset int64, r io.Reader, limit int64) (size int64, err error) {
	if u.store.bucket != nil {
		return u.appendFar(ctx, offset, r, limit)
	}
	f, err := u.open(os.O_RDWR | os.O_CREATE)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // synced below
	size, err = f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("append to upload: %w", err)
	}
	if offset != size {
		return size, fault.New(fault.Conflict, "the upload has %d bytes: go on there, not at %d", size, offset)
	}
	n, err := receive(ctx, f, r, limit-size)
	if errors.Is(err, fault.TooLarge) {
		err = fault.New(fault.TooLarge, "the upload would have more than %d bytes", limit)
	}
	size += n
	// A write that failed half way, at a full disk, may have left more than receive has counted.
	if syncErr := errors.Join(f.Truncate(size), f.Sync()); syncErr != nil && err == nil {
		err = diskError("append to upload", syncErr)
	}
	return size, err
}

// open opens and locks the file. The lock belongs to the open file and goes with it, also by kill -9.
func (u *Upload) open(flag int) (*os.File, error) {
	f, err := os.OpenFile(u.path, flag, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "nothing has been uploaded yet")
		}
		return nil, diskError("open upload", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fault.New(fault.Conflict, "another request is writing to this upload")
		}
		return nil, fmt.Errorf("lock upload: %w", err)
	}
	// Between opening and locking, somebody may have finished it: then this file is a blob by now.
	mine, err := f.Stat()
	if err == nil {
		var standing os.FileInfo
		if standing, err = os.Stat(u.path); err == nil && os.SameFile(mine, standing) {
			return f, nil
		}
	}
	_ = f.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lock upload: %w", err)
	}
	return nil, fault.New(fault.Conflict, "the upload was finished or aborted by another request")
}

// Finish makes the upload a blob when its bytes have the expected hash, and returns its size. Another
// hash is fault.Unprocessable, and the upload is thrown away: nobody can tell which byte is wrong.
// Finishing again after a lost answer succeeds: an upload that is not there is taken for one that was
// finished when the blob is, whoever has put that there. See Complete for stores that owners share.
func (u *Upload) Finish(ctx context.Context, hash string) (size int64, err error) {
	size, err = u.Complete(ctx, hash)
	if errors.Is(err, fault.NotFound) {
		if size, err := u.store.Size(hash); err == nil {
			return size, nil // finished before
		}
	}
	return size, err
}

// Complete is Finish for bytes that this upload has brought: when it has none (any more) it is
// fault.NotFound, also when the store has a blob with that hash. To know a hash is not to have the bytes.
func (u *Upload) Complete(ctx context.Context, hash string) (size int64, err error) {
	if u.store.bucket != nil {
		return u.completeFar(ctx, hash)
	}
	f, err := u.open(os.O_RDWR)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // synced below
	sum := sha256.New()
	if size, err = receive(ctx, sum, f, 1<<62); err != nil {
		return 0, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != hash {
		return 0, errors.Join(mismatch(got, hash), os.Remove(u.path))
	}
	if err := f.Sync(); err != nil {
		return 0, diskError("finish upload", err)
	}
	return size, u.store.place(ctx, u.path, hash)
}

// Abort throws the upload away.
func (u *Upload) Abort() error {
	if u.store.bucket != nil {
		return u.abortFar()
	}
	if err := os.Remove(u.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("abort upload: %w", err)
	}
	return nil
}
