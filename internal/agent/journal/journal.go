package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Limits of the file.
const (
	// MaxRecordBytes bounds one record; a longer length in the file is damage.
	MaxRecordBytes = 8 << 20
	// compactBytes is the size below which the file is never rewritten.
	compactBytes = 64 << 10
)

// fileName is the journal's file in Config.Dir.
const fileName = "journal.log"

// ErrClosed is returned by all writes after Close.
var ErrClosed = errors.New("journal is closed")

// Config of a Journal.
type Config struct {
	// Dir holds the journal and is made with mode 0700 when missing.
	Dir string
	// Crash, when set, is called with the name of each point at which the disk changes or an fsync
	// happens, before it does. A test panics in it to play a kill at that point, or returns an error
	// to play a failing disk (syscall.ENOSPC). Nil in production.
	Crash func(point string) error
}

// Journal is safe for use by several goroutines. It holds no file open between two writes, so that a
// process may run thousands of them.
type Journal struct {
	cfg Config

	mu      sync.Mutex
	values  map[string]json.RawMessage
	size    int64 // bytes of the file that hold whole records; what lies behind is cut off
	live    int64 // bytes that the file would have after a rewrite
	dirty   bool  // a failed append may have left bytes behind size
	closed  bool
	damaged string
}

type record struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"` // absent: the key was deleted
}

// Open reads the journal of the directory, or starts an empty one. A torn record at the end is cut
// off. When the damage is not at the end, everything before it is kept, the file is set aside as
// journal.damaged and Damage says so: an agent that still works is worth more than one that refuses.
func Open(cfg Config) (*Journal, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make journal directory: %w", err)
	}
	j := &Journal{cfg: cfg, values: map[string]json.RawMessage{}}
	data, err := os.ReadFile(j.path())
	if errors.Is(err, os.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if err := j.load(data); err != nil {
		return nil, err
	}
	return j, nil
}

func (j *Journal) path() string { return filepath.Join(j.cfg.Dir, fileName) }

func (j *Journal) load(data []byte) error {
	for rest := data; len(rest) > 0; {
		rec, n, err := decodeRecord(rest)
		if errors.Is(err, errTorn) {
			break
		}
		if err != nil {
			return j.setAside(data, err)
		}
		j.remember(rec, int64(n))
		j.size += int64(n)
		rest = rest[n:]
	}
	j.dirty = j.size < int64(len(data)) // the torn end is cut off before the next append
	return nil
}

// setAside keeps the damaged file for people and goes on with the records before the damage.
func (j *Journal) setAside(data []byte, cause error) error {
	j.damaged = fmt.Sprintf("the journal was damaged at byte %d (%v); the file is kept as journal.damaged", j.size, cause)
	if err := writeFile(j.cfg, j.path()+".damaged", data, 0o600); err != nil {
		return fmt.Errorf("keep the damaged journal: %w", err)
	}
	return j.rewrite()
}

// remember applies a record of n bytes to the map.
func (j *Journal) remember(rec record, n int64) {
	if old, has := j.values[rec.Key]; has {
		j.live -= recordSize(rec.Key, old)
	}
	if rec.Value == nil {
		delete(j.values, rec.Key)
		return
	}
	j.values[rec.Key] = rec.Value
	j.live += n
}

// Damage describes what Open had to set aside, or is empty.
func (j *Journal) Damage() string { return j.damaged }

// Get decodes the key's value into v and tells whether there is one.
func (j *Journal) Get(key string, v any) (bool, error) {
	j.mu.Lock()
	raw, has := j.values[key]
	j.mu.Unlock()
	if !has {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return true, fmt.Errorf("journal key %s: %w", key, err)
	}
	return true, nil
}

// Put stores the value under the key and returns when it is on stable storage. On an error (a full
// disk) the old value stands, in memory as on disk. Storing an equal value writes nothing.
func (j *Journal) Put(key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("journal key %s: %w", key, err)
	}
	return j.append(record{Key: key, Value: raw})
}

// Delete forgets the key. Its old values leave the file at the next Compact.
func (j *Journal) Delete(key string) error { return j.append(record{Key: key}) }

// Keys lists the keys with the prefix, sorted.
func (j *Journal) Keys(prefix string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var keys []string
	for k := range j.values {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// Keep deletes all keys but those with one of the prefixes and rewrites the file, so that the old
// values are gone from it. The former file is overwritten before it is unlinked.
func (j *Journal) Keep(prefixes ...string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	kept := map[string]json.RawMessage{}
	for k, v := range j.values {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
			kept[k] = v
		}
	}
	before := j.values
	j.values = kept
	if err := j.rewriteOver(true); err != nil {
		j.values = before
		return err
	}
	return nil
}

// Compact rewrites the file with the living values only.
func (j *Journal) Compact() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.rewrite()
}

// Close ends the use of the journal. Nothing is pending: every Put has been synced.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	return nil
}

// Point tells Config.Crash that a room is at a step of its own that reaches the disk. Rooms call it
// before renames, links and the like, so that tests can kill there too.
func (j *Journal) Point(name string) error { return j.cfg.point(name) }

// WriteFile replaces a file crash-safely (write new, fsync, rename, fsync the directory) and passes
// the points of it to Config.Crash.
func (j *Journal) WriteFile(path string, data []byte, mode os.FileMode) error {
	return writeFile(j.cfg, path, data, mode)
}

// Rename puts a file in the place of another and makes that durable.
func (j *Journal) Rename(from, to string) error {
	name := filepath.Base(to)
	if err := j.cfg.point("rename " + name); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := j.cfg.point("sync directory of " + name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func (j *Journal) append(rec record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	old, has := j.values[rec.Key]
	if has == (rec.Value != nil) && bytes.Equal(old, rec.Value) {
		return nil
	}
	encoded, err := encodeRecord(rec)
	if err != nil {
		return err
	}
	if err := j.appendBytes(encoded); err != nil {
		return fmt.Errorf("write journal key %s: %w", rec.Key, err)
	}
	j.remember(rec, int64(len(encoded)))
	if j.size > compactBytes && j.size > 4*j.live {
		// The value is safe already; a failed rewrite leaves the long file, which is as good.
		_ = j.rewrite()
	}
	return nil
}
