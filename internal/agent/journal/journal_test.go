package journal_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"steward/internal/agent/journal"
)

// errKilled plays a kill: from the point on, nothing reaches the disk any more.
var errKilled = errors.New("killed")

// killer kills at the n-th point.
type killer struct {
	at, seen int
	point    string
}

func (k *killer) crash(point string) error {
	k.seen++
	if k.seen >= k.at {
		if k.point == "" {
			k.point = point
		}
		return errKilled
	}
	return nil
}

func open(t *testing.T, cfg journal.Config) *journal.Journal {
	t.Helper()
	j, err := journal.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func get(t *testing.T, j *journal.Journal, key string) string {
	t.Helper()
	var v string
	if _, err := j.Get(key, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestValuesSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	j := open(t, journal.Config{Dir: dir})
	for key, v := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		if err := j.Put(key, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Put("a", "one"); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete("c"); err != nil {
		t.Fatal(err)
	}
	j = open(t, journal.Config{Dir: dir})
	if got := fmt.Sprint(get(t, j, "a"), get(t, j, "b"), get(t, j, "c"), j.Keys("")); got != "one2[a b]" {
		t.Errorf("got %s", got)
	}
	if j.Damage() != "" {
		t.Errorf("damage: %s", j.Damage())
	}
}

// At every point, a kill leaves the old value or the new one, never neither, and the journal works on.
func TestKillAtEveryPointKeepsOldOrNewValue(t *testing.T) {
	points := map[string]bool{}
	for at := 1; ; at++ {
		dir := t.TempDir()
		j := open(t, journal.Config{Dir: dir})
		for _, v := range []string{"old", "kept"} {
			if err := j.Put(v, v); err != nil {
				t.Fatal(err)
			}
		}
		k := &killer{at: at}
		j = open(t, journal.Config{Dir: dir, Crash: k.crash})
		putErr := j.Put("old", "new")
		var compactErr error
		if putErr == nil {
			compactErr = j.Compact()
		}
		if k.point == "" {
			if putErr != nil || compactErr != nil {
				t.Fatal(putErr, compactErr)
			}
			break
		}
		points[k.point] = true
		// A real kill runs no deferred cut: put a torn half back as the disk would show it.
		after := open(t, journal.Config{Dir: dir})
		if v := get(t, after, "old"); v != "old" && v != "new" || putErr == nil && v != "new" {
			t.Errorf("killed at %s: value %q (put: %v)", k.point, v, putErr)
		}
		if get(t, after, "kept") != "kept" {
			t.Errorf("killed at %s: another key is lost", k.point)
		}
		if err := after.Put("old", "newer"); err != nil {
			t.Errorf("killed at %s: %v", k.point, err)
		}
		if v := get(t, open(t, journal.Config{Dir: dir}), "old"); v != "newer" {
			t.Errorf("killed at %s: the next value is %q", k.point, v)
		}
	}
	for _, want := range []string{"journal append open", "journal append torn", "journal append sync", "journal append done", "rename journal.log", "sync directory of journal.log"} {
		if !points[want] {
			t.Errorf("no kill at %q; got %v", want, points)
		}
	}
}

// A cut at every byte, as a power cut leaves it, loses at most the last record.
func TestTornTailAtEveryByteIsDropped(t *testing.T) {
	dir := t.TempDir()
	j := open(t, journal.Config{Dir: dir})
	if err := j.Put("a", "first"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "journal.log")
	one, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Put("a", "second"); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := len(one); n < len(whole); n++ {
		for _, filled := range [][]byte{whole[:n], append(append([]byte(nil), whole[:n]...), make([]byte, len(whole)-n)...)} {
			if err := os.WriteFile(path, filled, 0o600); err != nil {
				t.Fatal(err)
			}
			torn := open(t, journal.Config{Dir: dir})
			if v := get(t, torn, "a"); v != "first" || torn.Damage() != "" {
				t.Fatalf("cut at %d: %q, damage %q", n, v, torn.Damage())
			}
			if err := torn.Put("b", "x"); err != nil {
				t.Fatal(err)
			}
			again := open(t, journal.Config{Dir: dir})
			if get(t, again, "a") != "first" || get(t, again, "b") != "x" {
				t.Fatalf("cut at %d: values lost after the next write", n)
			}
		}
	}
}

func TestDamageInTheMiddleIsSetAsideAndTold(t *testing.T) {
	dir := t.TempDir()
	j := open(t, journal.Config{Dir: dir})
	for _, key := range []string{"a", "b", "c"} {
		if err := j.Put(key, key); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "journal.log")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 0xff
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	j = open(t, journal.Config{Dir: dir})
	if get(t, j, "a") != "a" || !strings.Contains(j.Damage(), "damaged at byte") {
		t.Errorf("a=%q, damage %q", get(t, j, "a"), j.Damage())
	}
	if kept, err := os.ReadFile(path + ".damaged"); err != nil || string(kept) != string(data) {
		t.Errorf("the damaged file is not kept: %v", err)
	}
	if d := open(t, journal.Config{Dir: dir}).Damage(); d != "" {
		t.Errorf("told again: %s", d)
	}
}

func TestFullDiskKeepsTheOldValueAndSaysSo(t *testing.T) {
	for _, where := range []string{"journal append open", "journal append torn", "journal append sync"} {
		dir := t.TempDir()
		full := false
		j := open(t, journal.Config{Dir: dir, Crash: func(point string) error {
			if full && point == where {
				return syscall.ENOSPC
			}
			return nil
		}})
		if err := j.Put("a", "old"); err != nil {
			t.Fatal(err)
		}
		full = true
		if err := j.Put("a", "new"); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "journal key a") {
			t.Errorf("%s: %v", where, err)
		}
		if get(t, j, "a") != "old" || get(t, open(t, journal.Config{Dir: dir}), "a") != "old" {
			t.Errorf("%s: the old value is gone", where)
		}
		full = false
		if err := j.Put("a", "new"); err != nil || get(t, open(t, journal.Config{Dir: dir}), "a") != "new" {
			t.Errorf("%s: not written when there is space again: %v", where, err)
		}
	}
}

// The real thing: a file system of 64 KiB.
func TestReallyFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatalf("mount a tmpfs: %v", err)
		}
		t.Skipf("needs root to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	j := open(t, journal.Config{Dir: dir})
	if err := j.Put("a", "kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 59<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 32<<10)
	if err := j.Put("b", big); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("want no space left, got %v", err)
	}
	if v := get(t, open(t, journal.Config{Dir: dir}), "a"); v != "kept" {
		t.Errorf("a is %q", v)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	if err := j.Put("b", big); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if v := get(t, open(t, journal.Config{Dir: dir}), "b"); v != big {
		t.Error("b is not there")
	}
}

func TestFileStaysSmall(t *testing.T) {
	dir := t.TempDir()
	j := open(t, journal.Config{Dir: dir})
	for i := range 3000 {
		if err := j.Put("counter", fmt.Sprintf("%d %s", i, strings.Repeat("x", 200))); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "journal.log"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 128<<10 {
		t.Errorf("the file has %d bytes", info.Size())
	}
	if v := get(t, open(t, journal.Config{Dir: dir}), "counter"); !strings.HasPrefix(v, "2999 ") {
		t.Errorf("value %.10q", v)
	}
}

func TestEqualValueWritesNothing(t *testing.T) {
	writes := 0
	j := open(t, journal.Config{Dir: t.TempDir(), Crash: func(string) error { writes++; return nil }})
	for range 3 {
		if err := j.Put("a", map[string]int{"x": 1}); err != nil {
			t.Fatal(err)
		}
	}
	if writes != 4 {
		t.Errorf("%d points were passed, want the 4 of one append", writes)
	}
}

// Each step runs until it has ended, in order, whatever the kills; a finished run stays finished.
func TestStepsGoOnAfterAKillAtEveryPoint(t *testing.T) {
	ctx := context.Background()
	for at := 1; ; at++ {
		dir := t.TempDir()
		var log []string
		steps := func() []journal.Step {
			var out []journal.Step
			for _, name := range []string{"one", "two", "three"} {
				out = append(out, journal.Step{Name: name, Do: func(context.Context) error { log = append(log, name); return nil }})
			}
			return out
		}
		k := &killer{at: at}
		err := open(t, journal.Config{Dir: dir, Crash: k.crash}).Steps(ctx, "s", "run1", steps())
		if err == nil {
			break
		}
		if err := open(t, journal.Config{Dir: dir}).Steps(ctx, "s", "run1", steps()); err != nil {
			t.Fatal(err)
		}
		joined := strings.Join(log, " ")
		if !strings.Contains(joined, "one") || !strings.Contains(joined, "two") || !strings.HasSuffix(joined, "three") || len(log) > 4 {
			t.Errorf("killed at point %d: %s", at, joined)
		}
		n := len(log)
		if err := open(t, journal.Config{Dir: dir}).Steps(ctx, "s", "run1", steps()); err != nil || len(log) != n {
			t.Errorf("a finished run did something: %v %v", log[n:], err)
		}
		if err := open(t, journal.Config{Dir: dir}).Steps(ctx, "s", "run2", steps()); err != nil || len(log) != n+3 {
			t.Errorf("another run did %v, %v", log[n:], err)
		}
	}
}

func TestReplacedFileIsOldOrNewAtEveryKill(t *testing.T) {
	for at := 1; ; at++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		k := &killer{at: at}
		err := open(t, journal.Config{Dir: dir, Crash: k.crash}).WriteFile(path, []byte("new"), 0o600)
		got, readErr := os.ReadFile(path)
		if readErr != nil || string(got) != "old" && string(got) != "new" {
			t.Errorf("killed at %s: %q %v", k.point, got, readErr)
		}
		if err == nil {
			break
		}
	}
}

func TestWipeOverwritesBeforeItUnlinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	if err := os.WriteFile(path, []byte("top secret"), 0o400); err != nil {
		t.Fatal(err)
	}
	witness := filepath.Join(dir, "witness") // another name of the same file shows what was written
	if err := os.Link(path, witness); err != nil {
		t.Fatal(err)
	}
	n, err := open(t, journal.Config{Dir: dir}).Wipe(path)
	if err != nil || n != 10 {
		t.Fatal(n, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the file is still there")
	}
	if got, err := os.ReadFile(witness); err != nil || string(got) != strings.Repeat("\x00", 10) {
		t.Errorf("the content was not overwritten: %q %v", got, err)
	}
}

func TestWipeTreeFollowsNoLinks(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("keep me"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "sub", "f"), []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	n, err := open(t, journal.Config{Dir: dir}).WipeTree(tree)
	if err != nil || n != 5 {
		t.Fatal(n, err)
	}
	if _, err := os.Stat(tree); !errors.Is(err, os.ErrNotExist) {
		t.Error("the tree is still there")
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "keep me" {
		t.Errorf("the link's target was touched: %q %v", got, err)
	}
}

func TestKeepForgetsTheRestOnDisk(t *testing.T) {
	dir := t.TempDir()
	j := open(t, journal.Config{Dir: dir})
	for _, key := range []string{"disposal/order", "update/secret"} {
		if err := j.Put(key, "value of "+key); err != nil {
			t.Fatal(err)
		}
	}
	witness := filepath.Join(dir, "witness")
	if err := os.Link(filepath.Join(dir, "journal.log"), witness); err != nil {
		t.Fatal(err)
	}
	if err := j.Keep("disposal/"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"journal.log", "witness"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.Contains(string(data), "update/secret") {
			t.Errorf("%s still holds what was to go: %v", name, err)
		}
	}
	if got := open(t, journal.Config{Dir: dir}).Keys(""); fmt.Sprint(got) != "[disposal/order]" {
		t.Errorf("keys %v", got)
	}
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	j, err := journal.Open(journal.Config{Dir: dir})
	if err != nil {
		f.Fatal(err)
	}
	for _, key := range []string{"a", "b"} {
		if err := j.Put(key, key); err != nil {
			f.Fatal(err)
		}
	}
	seed, err := os.ReadFile(filepath.Join(dir, "journal.log"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-3])
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "journal.log"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(journal.Config{Dir: dir})
		if err != nil {
			t.Fatalf("an agent must start on any journal: %v", err)
		}
		if err := j.Put("after", "damage"); err != nil {
			t.Fatal(err)
		}
		var v string
		again, err := journal.Open(journal.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if found, err := again.Get("after", &v); err != nil || !found || v != "damage" {
			t.Errorf("%q %v %v", v, found, err)
		}
	})
}
