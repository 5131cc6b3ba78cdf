package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// headerBytes is the length and the checksum before each body.
const headerBytes = 8

// errTorn says that the rest of the file is a record that was cut off while it was written.
var errTorn = errors.New("torn record")

func encodeRecord(rec record) ([]byte, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode journal key %s: %w", rec.Key, err)
	}
	if len(body) > MaxRecordBytes {
		return nil, fmt.Errorf("journal key %s: %d bytes, at most %d", rec.Key, len(body), MaxRecordBytes)
	}
	out := make([]byte, headerBytes, headerBytes+len(body))
	binary.BigEndian.PutUint32(out, uint32(len(body)))
	binary.BigEndian.PutUint32(out[4:], checksum(body))
	return append(out, body...), nil
}

func checksum(body []byte) uint32 { return crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) }

func recordSize(key string, value json.RawMessage) int64 {
	encoded, err := encodeRecord(record{Key: key, Value: value})
	if err != nil {
		return 0
	}
	return int64(len(encoded))
}

// decodeRecord reads the first record and its length in bytes. A record that ends at or behind the
// end of the data and is not whole is errTorn: the last write before a kill. Zeros to the end are torn
// too, since some file systems extend a file before its data arrives.
func decodeRecord(data []byte) (rec record, n int, err error) {
	if len(data) < headerBytes || allZero(data) {
		return rec, 0, errTorn
	}
	length := int64(binary.BigEndian.Uint32(data))
	if length > MaxRecordBytes || length == 0 {
		return rec, 0, fmt.Errorf("a record of %d bytes", length)
	}
	end := headerBytes + int(length)
	if end > len(data) {
		return rec, 0, errTorn
	}
	body := data[headerBytes:end]
	if checksum(body) != binary.BigEndian.Uint32(data[4:]) {
		if end == len(data) {
			return rec, 0, errTorn
		}
		return rec, 0, errors.New("wrong checksum")
	}
	if err := json.Unmarshal(body, &rec); err != nil {
		return rec, 0, err
	}
	return rec, end, nil
}

func allZero(data []byte) bool {
	return !slices.ContainsFunc(data, func(b byte) bool { return b != 0 })
}

func (c Config) point(name string) error {
	if c.Crash == nil {
		return nil
	}
	return c.Crash(name)
}

// appendBytes writes behind the last whole record and syncs. On an error it cuts the file back, so
// that what stands there is whole; if even that fails, the next append tries it first.
func (j *Journal) appendBytes(encoded []byte) (err error) {
	if err := j.cfg.point("journal append open"); err != nil {
		return err
	}
	fresh := j.size == 0
	f, err := os.OpenFile(j.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if j.dirty {
		if err := f.Truncate(j.size); err != nil {
			return fmt.Errorf("cut off a torn record: %w", err)
		}
		j.dirty = false
	}
	j.dirty = true
	if err := j.writeAndSync(f, encoded); err != nil {
		if f.Truncate(j.size) == nil {
			j.dirty = false
		}
		return err
	}
	if fresh {
		// The file's name is new in the directory: without this the whole file could vanish.
		if err := syncDir(j.cfg.Dir); err != nil {
			return err
		}
	}
	j.size += int64(len(encoded))
	j.dirty = false
	return j.cfg.point("journal append done")
}

func (j *Journal) writeAndSync(f *os.File, encoded []byte) error {
	half := len(encoded) / 2
	if _, err := f.WriteAt(encoded[:half], j.size); err != nil {
		return err
	}
	if err := j.cfg.point("journal append torn"); err != nil {
		return err
	}
	if _, err := f.WriteAt(encoded[half:], j.size+int64(half)); err != nil {
		return err
	}
	if err := j.cfg.point("journal append sync"); err != nil {
		return err
	}
	return f.Sync()
}

// rewrite writes the living values to a new file and puts it in the place of the old.
func (j *Journal) rewrite() error { return j.rewriteOver(false) }

// rewriteOver is rewrite; wipe overwrites the former file after it has lost its name.
func (j *Journal) rewriteOver(wipe bool) error {
	var all []byte
	for _, k := range slices.Sorted(maps.Keys(j.values)) {
		encoded, err := encodeRecord(record{Key: k, Value: j.values[k]})
		if err != nil {
			return err
		}
		all = append(all, encoded...)
	}
	var former *os.File
	if wipe {
		former, _ = os.OpenFile(j.path(), os.O_WRONLY, 0) // absent: nothing to wipe
	}
	if err := writeFile(j.cfg, j.path(), all, 0o600); err != nil {
		return errors.Join(fmt.Errorf("rewrite journal: %w", err), closeIf(former))
	}
	j.size, j.live, j.dirty = int64(len(all)), int64(len(all)), false
	if former == nil {
		return nil
	}
	return errors.Join(overwrite(former), former.Close())
}

func closeIf(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// writeFile replaces a file so that a kill leaves the old content or the new.
func writeFile(cfg Config, path string, data []byte, mode os.FileMode) error {
	name := filepath.Base(path)
	if err := cfg.point("write " + name); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := writeSynced(tmp, data, mode); err != nil {
		_ = os.Remove(tmp) // gives the space back on a full disk
		return err
	}
	if err := cfg.point("rename " + name); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := cfg.point("sync directory of " + name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeSynced(path string, data []byte, mode os.FileMode) (err error) {
	// A leftover of a kill may have another mode: start anew.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Wipe overwrites a file with zeros, syncs it, and unlinks it: "clear" in the words of NIST SP 800-88
// for storage that the file system rewrites in place; on flash and copy-on-write file systems the old
// blocks may survive until the medium reuses them. A missing file is no error. It returns the size.
func (j *Journal) Wipe(path string) (sizeBytes int64, err error) {
	if err := j.cfg.point("wipe " + filepath.Base(path)); err != nil {
		return 0, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if info.Mode().IsRegular() {
		if err := wipeContent(path, info.Mode()); err != nil {
			return 0, err
		}
		sizeBytes = info.Size()
	}
	if err := j.cfg.point("unlink " + filepath.Base(path)); err != nil {
		return 0, err
	}
	return sizeBytes, os.Remove(path)
}

func wipeContent(path string, mode os.FileMode) error {
	if mode.Perm()&0o200 == 0 {
		if err := os.Chmod(path, mode.Perm()|0o200); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(overwrite(f), f.Close())
}

func overwrite(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.NewOffsetWriter(f, 0), zeros{}, info.Size()); err != nil {
		return err
	}
	return f.Sync()
}

// WipeTree wipes every file below dir and removes the directories, dir too. It goes on after a file
// that resists and returns all errors.
func (j *Journal) WipeTree(dir string) (sizeBytes int64, err error) {
	var dirs []string
	var failed []error
	walkErr := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil:
			failed = append(failed, err)
			return nil
		case d.IsDir():
			dirs = append(dirs, path)
			if err := os.Chmod(path, 0o700); err != nil {
				failed = append(failed, err)
			}
			return nil
		}
		n, err := j.Wipe(path)
		sizeBytes += n
		if err != nil {
			failed = append(failed, err)
		}
		return nil
	})
	failed = append(failed, walkErr)
	for _, d := range slices.Backward(dirs) {
		failed = append(failed, os.Remove(d))
	}
	return sizeBytes, errors.Join(failed...)
}

// zeros is an endless source of zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
