package httpapi

import (
	"net/http"
)

// answer watches what is written to the caller. For a conditional GET it turns 200 into 304 when the
// ETag that the operation has set is one that the caller named (RFC 9110 section 13.2.2).
type answer struct {
	http.ResponseWriter
	status    int // 0 until the header is written
	bytes     int64
	noneMatch string // the caller's If-None-Match; empty when it doesn't apply
	drop      bool   // the body is not to be sent
}

func (w *answer) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	if status < http.StatusOK { // 1xx go before the answer
		w.ResponseWriter.WriteHeader(status)
		return
	}
	h := w.Header()
	if status == http.StatusOK && w.noneMatch != "" && NotModified(w.noneMatch, h.Get("ETag")) {
		status, w.drop = http.StatusNotModified, true
		h.Del("Content-Type")
		h.Del("Content-Length")
	}
	if h.Get("ETag") != "" && h.Get("Cache-Control") == noStore {
		h.Set("Cache-Control", "private, no-cache") // may be kept, must be asked for
	}
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *answer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.drop {
		return len(b), nil
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush sends what is buffered, for answers that grow (server-sent events).
func (w *answer) Flush() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush() // not every writer can
}
