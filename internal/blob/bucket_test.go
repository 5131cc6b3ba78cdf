package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"steward/internal/blob"
	"steward/internal/fault"
)

// s3 is a server that speaks S3, with one bucket; nodes open it.
type s3 struct {
	server *httptest.Server
	bucket *s3mem.Backend
	url    string
}

func startS3(t *testing.T) *s3 {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
	backend := s3mem.New()
	if err := backend.CreateBucket("artifacts"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(server.Close)
	return &s3{server, backend, "s3://artifacts/fleet?region=us-east-1&endpoint=" + server.URL}
}

// node opens the bucket as another node would, with a directory of its own.
func (s *s3) node(t *testing.T) (*blob.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "staging")
	store, err := blob.Open(t.Context(), s.url, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Wait)
	return store, dir
}

func TestBlobPutByOneNodeIsReadByAnother(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	two, dir := far.node(t)
	body := bytes.Repeat([]byte("artifact "), 300_000)
	hash, size, err := one.Put(t.Context(), bytes.NewReader(body), 1<<30)
	if err != nil || hash != hashOf(body) || size != int64(len(body)) {
		t.Fatalf("put: %s, %d, %v", hash, size, err)
	}
	r, size, err := two.Open(hash)
	if err != nil || size != int64(len(body)) {
		t.Fatalf("open: %d, %v", size, err)
	}
	defer r.Close()
	if _, err := r.Seek(-5, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if end, err := io.ReadAll(r); err != nil || !bytes.Equal(end, body[len(body)-5:]) {
		t.Errorf("the end reads %q, %v", end, err)
	}
	if !bytes.Equal(content(t, two, hash), body) {
		t.Error("the whole is not what was put")
	}
	two.Wait()
	if cached, err := os.ReadFile(filepath.Join(dir, "sha256", hash[:2], hash)); err != nil || !bytes.Equal(cached, body) {
		t.Errorf("what was read is not cached: %d bytes, %v", len(cached), err)
	}
	if !bytes.Equal(content(t, two, hash), body) {
		t.Error("the cached blob is not what was put")
	}
}

func TestDeletedBlobIsGoneForEveryNode(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	two, _ := far.node(t)
	hash, _, err := one.Put(t.Context(), strings.NewReader("old"), 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(one.Delete(hash), one.Delete(hash)); err != nil {
		t.Fatal(err)
	}
	if has, err := two.Has(hash); has || err != nil {
		t.Errorf("the other node says %t, %v", has, err)
	}
	if _, _, err := two.Open(hash); !errors.Is(err, fault.NotFound) {
		t.Errorf("open says %v", err)
	}
}

func TestUploadGoesOnAtAnotherNode(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	two, _ := far.node(t)
	up := func(s *blob.Store) *blob.Upload {
		u, err := s.Upload("tenant_1")
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	broken := io.MultiReader(strings.NewReader("begin "), iotest.ErrReader(errors.New("cut")))
	if n, err := up(one).Append(t.Context(), 0, broken, 100); n != 6 || err == nil {
		t.Fatalf("the broken piece: %d, %v", n, err)
	}
	if n, err := up(two).Size(); n != 6 || err != nil {
		t.Fatalf("the other node knows of %d bytes, %v", n, err)
	}
	if n, err := up(two).Append(t.Context(), 3, strings.NewReader("x"), 100); n != 6 || !errors.Is(err, fault.Conflict) {
		t.Errorf("a piece at the wrong place: %d, %v", n, err)
	}
	if _, err := up(two).Append(t.Context(), 6, strings.NewReader(strings.Repeat("y", 95)), 100); !errors.Is(err, fault.TooLarge) {
		t.Errorf("too much: %v", err)
	}
	if err := up(two).Abort(); err != nil {
		t.Fatal(err)
	}
	for i, part := range []string{"begin ", "middle ", "end"} {
		u := up([]*blob.Store{one, two}[i%2])
		at, err := u.Size()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), at, strings.NewReader(part), 100); err != nil {
			t.Fatal(err)
		}
	}
	want := hashOf([]byte("begin middle end"))
	if n, err := up(one).Finish(t.Context(), want); n != 16 || err != nil {
		t.Fatalf("finish: %d, %v", n, err)
	}
	if n, err := up(two).Finish(t.Context(), want); n != 16 || err != nil {
		t.Errorf("finish again at the other node: %d, %v", n, err)
	}
	if _, err := up(two).Complete(t.Context(), want); !errors.Is(err, fault.NotFound) {
		t.Errorf("to know the hash was enough: %v", err)
	}
	if got := content(t, two, want); string(got) != "begin middle end" {
		t.Errorf("it reads %q", got)
	}
}

func TestUploadOfWrongBytesLeavesNothingInTheBucket(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	u, err := one.Upload("wrong")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("wrong"), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Finish(t.Context(), hashOf([]byte("right"))); !errors.Is(err, fault.Unprocessable) {
		t.Errorf("finish says %v", err)
	}
	if n, err := u.Size(); n != 0 || err != nil {
		t.Errorf("%d bytes are left, %v", n, err)
	}
}

func TestAbandonedPiecesAreSweptFromTheBucket(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	u, err := one.Upload("abandoned")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), 0, strings.NewReader("some"), 100); err != nil {
		t.Fatal(err)
	}
	if n, err := one.Sweep(time.Now()); n != 0 || err != nil {
		t.Fatalf("a young upload was swept: %d, %v", n, err)
	}
	if n, err := one.Sweep(time.Now().Add(25 * time.Hour)); n != 1 || err != nil {
		t.Fatalf("sweep: %d, %v", n, err)
	}
	if n, err := u.Size(); n != 0 || err != nil {
		t.Errorf("%d bytes are left, %v", n, err)
	}
}

func TestBlobThatWasAlteredInTheBucketIsNotCached(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	two, dir := far.node(t)
	hash, _, err := one.Put(t.Context(), strings.NewReader("signed"), 10)
	if err != nil {
		t.Fatal(err)
	}
	key := "fleet/sha256/" + hash[:2] + "/" + hash
	if _, err := far.bucket.PutObject("artifacts", key, map[string]string{}, strings.NewReader("forged"), 6, nil); err != nil {
		t.Fatal(err)
	}
	r, _, err := two.Open(hash)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	two.Wait()
	if _, err := os.Stat(filepath.Join(dir, "sha256", hash[:2], hash)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the forged blob is cached: %v", err)
	}
}

func TestBucketThatIsAwayIsARefusalForLater(t *testing.T) {
	far := startS3(t)
	one, _ := far.node(t)
	far.server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := one.Put(ctx, strings.NewReader("body"), 10); !errors.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("put says %v", err)
	}
}

func TestWrongAddressesOfBucketsAreToldAtTheStart(t *testing.T) {
	far := startS3(t)
	for url, says := range map[string]string{
		"s3:artifacts": "want s3://bucket",
		"s3://other?region=us-east-1&endpoint=" + far.server.URL: "there is no bucket other",
		"s3://artifacts?endpoint=ftp://host":                     "want https://host",
	} {
		_, err := blob.Open(t.Context(), url, t.TempDir(), slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", url, err, says)
		}
	}
}
