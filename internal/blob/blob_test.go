package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"steward/internal/blob"
	"steward/internal/fault"
)

const childEnv = "BLOB_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(putUntilKilled(dir))
	}
	os.Exit(m.Run())
}

func open(t *testing.T) (*blob.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "blobs")
	s, err := blob.Dir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func content(t *testing.T, s *blob.Store, hash string) []byte {
	t.Helper()
	r, size, err := s.Open(hash)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != size {
		t.Fatalf("%d bytes of %d, error %v", len(b), size, err)
	}
	return b
}

// files lists what stands in the store.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestBlobIsReadBackUnderItsHash(t *testing.T) {
	s, dir := open(t)
	for _, body := range [][]byte{nil, []byte("hello"), bytes.Repeat([]byte("0123456789"), 100_000)} {
		for range 2 { // the second time it is there already
			hash, size, err := s.Put(t.Context(), iotest.OneByteReader(bytes.NewReader(body[:min(len(body), 5000)])), 1<<20)
			if err != nil || hash != hashOf(body[:min(len(body), 5000)]) || size != int64(min(len(body), 5000)) {
				t.Fatalf("hash %s, size %d, error %v", hash, size, err)
			}
		}
		if _, err := s.PutExpect(t.Context(), bytes.NewReader(body), 1<<20, hashOf(body)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, s, hashOf(body)); !bytes.Equal(got, body) {
			t.Errorf("%d bytes came back from %d", len(got), len(body))
		}
	}
	for _, name := range files(t, dir) {
		if !strings.HasPrefix(name, "/sha256/") {
			t.Errorf("left behind: %s", name)
		}
	}
	r, _, err := s.Open(hashOf([]byte("hello")))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Seek(2, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "llo" {
		t.Errorf("from 2: %q, error %v", rest, err)
	}
}

func TestRefusedBodyLeavesNothing(t *testing.T) {
	s, dir := open(t)
	broken := errors.New("line cut")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	body := strings.Repeat("x", 100)
	for name, c := range map[string]struct {
		put  func() error
		want error
	}{
		"too large": {func() error { _, _, err := s.Put(t.Context(), strings.NewReader(body), 99); return err }, fault.TooLarge},
		"other hash": {func() error {
			_, err := s.PutExpect(t.Context(), strings.NewReader(body), 100, hashOf(nil))
			return err
		}, fault.Unprocessable},
		"wrong hash": {func() error {
			_, err := s.PutExpect(t.Context(), strings.NewReader(body), 100, "../../etc/passwd")
			return err
		}, fault.Unprocessable},
		"broken body": {func() error {
			_, _, err := s.Put(t.Context(), io.MultiReader(strings.NewReader(body), iotest.ErrReader(broken)), 1000)
			return err
		}, broken},
		"ended": {func() error { _, _, err := s.Put(ended, strings.NewReader(body), 100); return err }, context.Canceled},
	} {
		if err := c.put(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, _, err := s.Put(t.Context(), strings.NewReader(body), 100); err != nil {
		t.Errorf("exactly the limit: %v", err)
	}
}

func TestMissingBlobIsToldApartFromAWrongHash(t *testing.T) {
	s, _ := open(t)
	if _, _, err := s.Open(hashOf(nil)); !errors.Is(err, fault.NotFound) {
		t.Errorf("open: %v", err)
	}
	if has, err := s.Has(hashOf(nil)); has || err != nil {
		t.Errorf("has %v, error %v", has, err)
	}
	if _, err := s.Has("../x"); !errors.Is(err, fault.Unprocessable) {
		t.Errorf("wrong hash: %v", err)
	}
	hash, _, err := s.Put(t.Context(), strings.NewReader("a"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if has, err := s.Has(hash); !has || err != nil {
		t.Errorf("has %v, error %v", has, err)
	}
	reading, _, err := s.Open(hash)
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	for range 2 {
		if err := s.Delete(hash); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if b, err := io.ReadAll(reading); err != nil || string(b) != "a" {
		t.Errorf("who had it open read %q, error %v", b, err)
	}
	if _, _, err := s.Open(hash); !errors.Is(err, fault.NotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestSameBlobFromManySidesIsKeptOnce(t *testing.T) {
	s, dir := open(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, _, err := s.Put(t.Context(), strings.NewReader("same"), 10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := files(t, dir); len(got) != 1 {
		t.Errorf("files %v", got)
	}
}

func upload(t *testing.T, s *blob.Store, id string) *blob.Upload {
	t.Helper()
	u, err := s.Upload(id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUploadGoesOnWhereItBrokeOff(t *testing.T) {
	s, dir := open(t)
	body := []byte("abcdefghij")
	cut := io.MultiReader(bytes.NewReader(body[:4]), iotest.ErrReader(io.ErrUnexpectedEOF))
	size, err := upload(t, s, "u1").Append(t.Context(), 0, cut, 100)
	if !errors.Is(err, io.ErrUnexpectedEOF) || size != 4 {
		t.Fatalf("size %d, error %v", size, err)
	}
	if s, err = blob.Dir(dir); err != nil { // as after a restart
		t.Fatal(err)
	}
	u := upload(t, s, "u1")
	if size, err := u.Size(); err != nil || size != 4 {
		t.Fatalf("size %d, error %v", size, err)
	}
	for _, offset := range []int64{0, 3, 5} {
		if size, err := u.Append(t.Context(), offset, bytes.NewReader(body), 100); !errors.Is(err, fault.Conflict) || size != 4 {
			t.Errorf("offset %d: size %d, error %v", offset, size, err)
		}
	}
	if size, err := u.Append(t.Context(), 4, bytes.NewReader(body[4:]), 100); err != nil || size != 10 {
		t.Fatalf("size %d, error %v", size, err)
	}
	for range 2 { // the second is of a caller whose first answer was lost
		if size, err := u.Finish(t.Context(), hashOf(body)); err != nil || size != 10 {
			t.Fatalf("size %d, error %v", size, err)
		}
	}
	if got := content(t, s, hashOf(body)); !bytes.Equal(got, body) {
		t.Errorf("got %q", got)
	}
	if size, err := u.Size(); err != nil || size != 0 {
		t.Errorf("after the end: size %d, error %v", size, err)
	}
}

func TestKnowingAHashIsNotHavingItsBytes(t *testing.T) {
	s, _ := open(t)
	theirs := []byte("somebody else's")
	if _, _, err := s.Put(t.Context(), bytes.NewReader(theirs), 100); err != nil {
		t.Fatal(err)
	}
	u := upload(t, s, "u1")
	if _, err := u.Complete(t.Context(), hashOf(theirs)); !errors.Is(err, fault.NotFound) {
		t.Errorf("an upload without bytes: %v", err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("mine"), 100); err != nil {
		t.Fatal(err)
	}
	if size, err := u.Complete(t.Context(), hashOf([]byte("mine"))); err != nil || size != 4 {
		t.Errorf("size %d, error %v", size, err)
	}
	if _, err := u.Complete(t.Context(), hashOf(theirs)); !errors.Is(err, fault.NotFound) {
		t.Errorf("an upload that another request has just finished: %v", err)
	}
}

func TestUploadOfWrongBytesIsThrownAway(t *testing.T) {
	s, dir := open(t)
	u := upload(t, s, "u1")
	if _, err := u.Append(t.Context(), 0, strings.NewReader("damaged"), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Finish(t.Context(), hashOf([]byte("whole"))); !errors.Is(err, fault.Unprocessable) {
		t.Errorf("finish: %v", err)
	}
	if _, err := u.Finish(t.Context(), hashOf([]byte("whole"))); !errors.Is(err, fault.NotFound) {
		t.Errorf("finish again: %v", err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUploadIsBounded(t *testing.T) {
	s, _ := open(t)
	u := upload(t, s, "u1")
	if _, err := u.Append(t.Context(), 0, strings.NewReader("12345"), 8); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 5, strings.NewReader("6789"), 8); !errors.Is(err, fault.TooLarge) {
		t.Errorf("too much: %v", err)
	}
	if size, err := u.Append(t.Context(), 5, strings.NewReader("678"), 8); err != nil || size != 8 {
		t.Errorf("exactly the limit: size %d, error %v", size, err)
	}
	for _, id := range []string{"", "../x", "a/b", ".", strings.Repeat("x", 200)} {
		if _, err := s.Upload(id); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("ID %.20q: %v", id, err)
		}
	}
	if err := u.Abort(); err != nil {
		t.Error(err)
	}
	if size, err := u.Size(); err != nil || size != 0 {
		t.Errorf("aborted: size %d, error %v", size, err)
	}
}

func TestTwoAppendsAtTheSameTimeDoNotMix(t *testing.T) {
	s, _ := open(t)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { _, err := upload(t, s, "u1").Append(t.Context(), 0, r, 100); done <- err }()
	if _, err := w.Write([]byte("a")); err != nil { // returns when the other is reading, and so holds the lock
		t.Fatal(err)
	}
	other := upload(t, s, "u1")
	if _, err := other.Append(t.Context(), 0, strings.NewReader("b"), 100); !errors.Is(err, fault.Conflict) {
		t.Errorf("append beside another: %v", err)
	}
	if _, err := other.Finish(t.Context(), hashOf([]byte("a"))); !errors.Is(err, fault.Conflict) {
		t.Errorf("finish beside an append: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if size, err := other.Finish(t.Context(), hashOf([]byte("a"))); err != nil || size != 1 {
		t.Errorf("size %d, error %v", size, err)
	}
}

func TestAbandonedUploadsAreSweptAfterADay(t *testing.T) {
	s, dir := open(t)
	for _, id := range []string{"old", "young"} {
		if _, err := upload(t, s, id).Append(t.Context(), 0, strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
	}
	hash, _, err := s.Put(t.Context(), strings.NewReader("blob"), 10)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	past := now.Add(-25 * time.Hour)
	blobPath := filepath.Join(dir, "sha256", hash[:2], hash)
	for _, path := range []string{filepath.Join(dir, "upload", "old"), blobPath} {
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Sweep(now); err != nil || n != 1 {
		t.Errorf("%d removed, error %v", n, err)
	}
	if got := files(t, dir); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

// TestFullDiskIsToldAndLeavesNothing fills a real, tiny file system.
func TestFullDiskIsToldAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("steward-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount a tmpfs: %v", err)
		}
		t.Skipf("mount a tmpfs: %v: run as root", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := blob.Dir(dir)
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	if _, _, err := s.Put(t.Context(), bytes.NewReader(big), 1<<30); !errors.Is(err, fault.Unavailable) {
		t.Errorf("put: %v", err)
	}
	u := upload(t, s, "u1")
	size, err := u.Append(t.Context(), 0, bytes.NewReader(big), 1<<30)
	if !errors.Is(err, fault.Unavailable) || size == 0 {
		t.Errorf("append: size %d, error %v", size, err)
	}
	if onDisk, err := u.Size(); err != nil || onDisk != size {
		t.Errorf("the upload has %d bytes and said %d, error %v", onDisk, size, err)
	}
	if err := u.Abort(); err != nil {
		t.Error(err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, _, err := s.Put(t.Context(), strings.NewReader("small"), 10); err != nil {
		t.Errorf("after space was freed: %v", err)
	}
}

// putUntilKilled stores blobs by both ways as fast as it can and prints the hash of each that is said
// to be stored.
func putUntilKilled(dir string) int {
	s, err := blob.Dir(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for i := 0; ; i++ {
		body := bytes.Repeat([]byte(fmt.Sprint("blob ", i, " ")), 20_000)
		hash, _, err := s.Put(context.Background(), bytes.NewReader(body), 1<<30)
		if err == nil {
			fmt.Println(hash)
			var u *blob.Upload
			if u, err = s.Upload(fmt.Sprint("u", i)); err == nil {
				body = append(body, '!')
				_, err = u.Append(context.Background(), 0, bytes.NewReader(body), 1<<30)
			}
			if err == nil {
				_, err = u.Finish(context.Background(), hashOf(body))
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(hashOf(body))
	}
}

func TestKillLeavesNoHalfBlobUnderAFinalName(t *testing.T) {
	_, dir := open(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		child := exec.CommandContext(t.Context(), self)
		child.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 65) // one hash: it is at work
		if _, err := io.ReadFull(out, first); err != nil {
			t.Fatal(err)
		}
		kill := time.NewTimer(time.Duration(3+7*round) * time.Millisecond)
		<-kill.C
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // says that it was killed
		s, err := blob.Dir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, hash := range strings.Fields(string(first) + string(rest)) {
			if has, err := s.Has(hash); len(hash) == 64 && (!has || err != nil) {
				t.Errorf("%s was acknowledged and is not there: %v", hash, err)
			}
		}
	}
	s, err := blob.Dir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files(t, filepath.Join(dir, "sha256")) {
		if hash := filepath.Base(path); hashOf(content(t, s, hash)) != hash {
			t.Errorf("%s holds other bytes", hash)
		}
	}
}
