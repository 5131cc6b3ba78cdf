package link

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"steward/internal/fault"
	"steward/internal/wire"
)

// body gives each read of a request's body a deadline, and the whole body one that grows with what has
// come: whoever drips bytes does not hold a connection for long.
type body struct {
	io.ReadCloser
	ctl      *http.ResponseController
	answer   http.Header // nil for HTTP/2, whose streams end by themselves
	patience time.Duration
	end      time.Time // zero until the first read
	over     bool      // it was read to its end
}

// slowest is the transfer rate in bytes per second below which a body is given up.
const slowest = 4 << 10

func newBody(a *answer, r *http.Request, patience time.Duration) *body {
	b := &body{ReadCloser: r.Body, ctl: a.ctl, patience: patience, over: r.Body == http.NoBody}
	if r.ProtoMajor == 1 {
		b.answer = a.Header()
	}
	return b
}

// release is called when the answer is written. Of a body that nobody wanted, net/http reads on for a
// while to keep the connection; it must not wait for ever.
func (b *body) release() {
	if !b.over {
		_ = b.ctl.SetReadDeadline(time.Now().Add(b.patience))
	}
}

func (b *body) Read(p []byte) (int, error) {
	now := time.Now() // a deadline of the connection is the machine's clock
	if b.end.IsZero() {
		b.end = now.Add(b.patience)
	}
	until := now.Add(b.patience)
	if b.end.Before(until) {
		until = b.end
	}
	_ = b.ctl.SetReadDeadline(until)
	n, err := b.ReadCloser.Read(p)
	b.end = b.end.Add(time.Duration(n) * time.Second / slowest)
	switch {
	case errors.Is(err, io.EOF):
		b.over = true
		// From here on net/http watches the connection for its peer's going, and would take a deadline
		// for that.
		_ = b.ctl.SetReadDeadline(time.Time{})
	case err != nil && b.answer != nil:
		b.answer.Set("Connection", "close") // else the rest is waited for before the answer goes out
	}
	return n, err
}

// read takes the whole body, gzip or plain, of at most limit bytes once unpacked.
func read(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	var from io.Reader = http.MaxBytesReader(w, r.Body, limit)
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(from)
		if err != nil {
			return nil, unpack(err)
		}
		defer func() { _ = z.Close() }() // checks nothing
		from = z
	default:
		return nil, badRequest("the body's Content-Encoding is %.40q: want gzip or none", enc)
	}
	data, err := io.ReadAll(io.LimitReader(from, limit+1))
	if err != nil {
		return nil, unpack(err)
	}
	if int64(len(data)) > limit {
		return nil, tooLarge(limit)
	}
	return data, nil
}

func tooLarge(limit int64) error {
	return fault.Coded(fault.TooLarge, wire.CodeRequestInvalid, "the body has more than %d bytes", limit)
}

func unpack(err error) error {
	if errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) {
		return badRequest("the body is not the gzip that its header says")
	}
	return fmt.Errorf("read the body: %w", err)
}
