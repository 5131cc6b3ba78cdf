package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"steward/internal/fault"
)

// bucket is the place of blobs that several nodes share: any store that speaks S3. The directory of the
// Store is then staging, where bodies are received and verified, and a cache of what was read last.
//
//	PREFIX/sha256/ab/abcdef…     the blobs
//	PREFIX/upload/ID/OFFSET      pieces of resumable uploads, each named by where it begins
type bucket struct {
	client *minio.Client
	name   string
	prefix string
	log    *slog.Logger
}

// smallTime bounds an exchange without a large body, bodyTime one with.
const (
	smallTime = 30 * time.Second
	bodyTime  = time.Hour
)

// openBucket reads s3://bucket[/prefix]?endpoint=https://host[:port]&region=…; without an endpoint it is
// AWS. Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), the file
// ~/.aws/credentials, or the machine's role. The bucket must exist.
func openBucket(ctx context.Context, text string, log *slog.Logger) (*bucket, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return nil, errors.New("artifact store: want s3://bucket[/prefix]?endpoint=https://host[:port]&region=name")
	}
	endpoint, secure := "s3.amazonaws.com", true
	if given := u.Query().Get("endpoint"); given != "" {
		e, err := url.Parse(given)
		if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || strings.Trim(e.Path, "/") != "" {
			return nil, fmt.Errorf("artifact store: endpoint %q: want https://host[:port]", given)
		}
		endpoint, secure = e.Host, e.Scheme == "https"
	}
	client, err := minio.New(endpoint, &minio.Options{
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: &http.Client{Timeout: 5 * time.Second}},
		}),
		Secure: secure, Region: u.Query().Get("region"),
	})
	if err != nil {
		return nil, fmt.Errorf("artifact store: %w", err)
	}
	b := &bucket{client: client, name: u.Host, prefix: strings.Trim(u.Path, "/"), log: log}
	ctx, cancel := context.WithTimeout(ctx, smallTime)
	defer cancel()
	exists, err := client.BucketExists(ctx, b.name)
	if err != nil {
		return nil, fmt.Errorf("artifact store: ask for bucket %s: %w", b.name, err)
	}
	if !exists {
		return nil, fmt.Errorf("artifact store: there is no bucket %s at %s: make it first", b.name, endpoint)
	}
	return b, nil
}

func (b *bucket) key(parts ...string) string {
	return path.Join(append([]string{b.prefix}, parts...)...)
}

func (b *bucket) blobKey(hash string) string { return b.key(blobsDir, hash[:2], hash) }

// absent tells whether the store has said that there is no such object.
func absent(err error) bool {
	var said minio.ErrorResponse
	return errors.As(err, &said) && (said.Code == "NoSuchKey" || said.StatusCode == http.StatusNotFound)
}

// size is fault.NotFound when the object is not there.
func (b *bucket) size(hash string) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), smallTime)
	defer cancel()
	info, err := b.client.StatObject(ctx, b.name, b.blobKey(hash), minio.StatObjectOptions{})
	if absent(err) {
		return 0, fault.New(fault.NotFound, "there is no blob %s", hash)
	}
	if err != nil {
		return 0, b.away("ask for blob", err)
	}
	return info.Size, nil
}

// away makes a store that can't be reached a refusal that callers can tell, and repeat later. The cause is
// for the log: devices and operators need not know where the store is.
func (b *bucket) away(doing string, err error) error {
	b.log.Error("artifact store", "doing", doing, "bucket", b.name, "error", err)
	return fault.New(fault.Unavailable, "the artifact store can't be reached now: try again later")
}

// put stores a finished local file. The SHA-256 goes along as a checksum where the store knows that.
func (b *bucket) put(ctx context.Context, file, key string) error {
	ctx, cancel := context.WithTimeout(ctx, bodyTime)
	defer cancel()
	if _, err := b.client.FPutObject(ctx, b.name, key, file, minio.PutObjectOptions{ContentType: "application/octet-stream"}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return b.away("store", err)
	}
	return nil
}

// open returns the object for reading from any place by range requests.
func (b *bucket) open(hash string) (io.ReadSeekCloser, int64, error) {
	size, err := b.size(hash)
	if err != nil {
		return nil, 0, err
	}
	o, err := b.client.GetObject(context.Background(), b.name, b.blobKey(hash), minio.GetObjectOptions{})
	if err != nil {
		return nil, 0, b.away("open blob", err)
	}
	return o, size, nil
}

func (b *bucket) remove(key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), smallTime)
	defer cancel()
	if err := b.client.RemoveObject(ctx, b.name, key, minio.RemoveObjectOptions{}); err != nil && !absent(err) {
		return b.away("delete", err)
	}
	return nil
}

// piece is one part of an upload that has arrived.
type piece struct {
	key          string
	offset, size int64
	at           time.Time
}

// pieces lists an upload's parts in their order, as far as they follow one another without a gap.
func (b *bucket) pieces(ctx context.Context, id string) (whole []piece, size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, smallTime)
	defer cancel()
	prefix := b.key(uploadsDir, id) + "/"
	var found []piece
	for o := range b.client.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, 0, b.away("look at upload", o.Err)
		}
		offset, err := strconv.ParseInt(strings.TrimPrefix(o.Key, prefix), 10, 64)
		if err == nil && o.Size > 0 {
			found = append(found, piece{o.Key, offset, o.Size, o.LastModified})
		}
	}
	slices.SortFunc(found, func(x, y piece) int { return int(min(max(x.offset-y.offset, -1), 1)) })
	for _, p := range found {
		if p.offset != size {
			break
		}
		whole, size = append(whole, p), size+p.size
	}
	return whole, size, nil
}

// addPiece stores a part that begins at offset. Of two senders that race for one place, the store lets
// one through when it knows conditional writes; where it doesn't, the hash of the whole finds out.
func (b *bucket) addPiece(ctx context.Context, id string, offset int64, file string) error {
	ctx, cancel := context.WithTimeout(ctx, bodyTime)
	defer cancel()
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("append to upload: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was read only
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("append to upload: %w", err)
	}
	options := minio.PutObjectOptions{ContentType: "application/octet-stream"}
	options.SetMatchETagExcept("*")
	_, err = b.client.PutObject(ctx, b.name, b.key(uploadsDir, id, fmt.Sprintf("%020d", offset)), f, info.Size(), options)
	var said minio.ErrorResponse
	if errors.As(err, &said) && (said.StatusCode == http.StatusPreconditionFailed || said.StatusCode == http.StatusConflict) {
		return fault.New(fault.Conflict, "another request has written to this upload")
	}
	if err != nil {
		return b.away("append to upload", err)
	}
	return nil
}

// read copies a part.
func (b *bucket) read(ctx context.Context, w io.Writer, key string) error {
	ctx, cancel := context.WithTimeout(ctx, bodyTime)
	defer cancel()
	o, err := b.client.GetObject(ctx, b.name, key, minio.GetObjectOptions{})
	if err != nil {
		return b.away("read", err)
	}
	defer o.Close() //nolint:errcheck // it was read only
	if _, err := io.Copy(w, o); err != nil {
		if absent(err) {
			return fault.New(fault.NotFound, "it was removed meanwhile")
		}
		return b.away("read", err)
	}
	return nil
}

// sweep removes parts of uploads that nobody has touched since before.
func (b *bucket) sweep(before time.Time) (removed int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), bodyTime)
	defer cancel()
	newest := map[string]time.Time{}
	keys := map[string][]string{}
	prefix := b.key(uploadsDir) + "/"
	for o := range b.client.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return 0, b.away("sweep", o.Err)
		}
		id, _, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
		keys[id] = append(keys[id], o.Key)
		if o.LastModified.After(newest[id]) {
			newest[id] = o.LastModified
		}
	}
	for id, of := range keys {
		if newest[id].After(before) {
			continue
		}
		for _, key := range of {
			if err := b.remove(key); err != nil {
				return removed, err
			}
		}
		removed++
	}
	return removed, nil
}

// keysOf lists the objects of an upload.
func (b *bucket) keysOf(id string) (keys []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), smallTime)
	defer cancel()
	for o := range b.client.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: b.key(uploadsDir, id) + "/", Recursive: true}) {
		if o.Err != nil {
			return nil, b.away("look at upload", o.Err)
		}
		keys = append(keys, o.Key)
	}
	return keys, nil
}
