package link

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"steward/internal/wire"
)

// Artifact writes the artifact's bytes from offset on to w and returns how many it wrote. After an
// error the caller goes on from offset+n. The hash is the caller's to verify, over all parts.
func (c *Client) Artifact(ctx context.Context, sha256Hex string, offset int64, w io.Writer) (n int64, err error) {
	if raw, err := hex.DecodeString(sha256Hex); err != nil || len(raw) != sha256.Size {
		return 0, fmt.Errorf("artifact %.80q: want the SHA-256 in hex", sha256Hex)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.rest()
	stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	r := request{method: http.MethodGet, path: wire.PathArtifacts + sha256Hex}
	if offset > 0 {
		r.header = map[string]string{"Range": fmt.Sprintf("bytes=%d-", offset)}
	}
	res, err := c.send(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("fetch artifact %.12s: %w", sha256Hex, orCause(ctx, err))
	}
	defer func() { _ = res.Body.Close() }()
	if refused(res.StatusCode) {
		_, err := c.read(res, maxProblemBytes)
		return 0, fmt.Errorf("fetch artifact %.12s: %w", sha256Hex, err)
	}
	body := progressReader{res.Body, stall}
	if err := seekTo(res, body, offset); err != nil {
		return 0, fmt.Errorf("fetch artifact %.12s: %w", sha256Hex, orCause(ctx, err))
	}
	n, err = io.Copy(w, body)
	if err != nil {
		return n, fmt.Errorf("fetch artifact %.12s at byte %d: %w", sha256Hex, offset+n, orCause(ctx, err))
	}
	return n, nil
}

var errStalled = fmt.Errorf("no byte for %s", stallTimeout)

func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// seekTo makes the body begin at offset: the server may have ignored the range.
func seekTo(res *http.Response, body io.Reader, offset int64) error {
	if offset == 0 {
		return nil
	}
	if res.StatusCode == http.StatusPartialContent {
		want := "bytes " + strconv.FormatInt(offset, 10) + "-"
		if got := res.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
			return fmt.Errorf("asked for %s, got the range %.80q", want, got)
		}
		return nil
	}
	_, err := io.CopyN(io.Discard, body, offset)
	return err
}

// progressReader puts the stall timer back with each read that brings something.
type progressReader struct {
	r     io.Reader
	stall *time.Timer
}

func (p progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.stall.Reset(stallTimeout)
	}
	return n, err
}
