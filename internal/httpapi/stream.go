package httpapi

import (
	"io"
	"net/http"
	"time"
)

// StreamHandler serves the body of a stream operation itself. An error that it returns before it has
// written anything is answered as a problem document; afterwards the connection is cut, so that the
// caller can't take half an answer for a whole one.
type StreamHandler func(w http.ResponseWriter, r *http.Request, who Principal) error

// Stream adds an operation whose request or answer is too large or of the wrong form for Register:
// uploads, downloads, CSV. Path values come from r.PathValue. The body is cut off at op.MaxBody with
// 413; reads and writes may take as long as they make progress.
func (a *API) Stream(op Op, handler StreamHandler) { a.stream(op, handler) }

// patience is how long one read from or write to a caller may take in a stream.
const patience = time.Minute

// patientBody reads the request's body with a deadline on the connection, and takes the deadline away
// at its end: net/http watches the connection while the handler works on, and would take a deadline
// that passes then for a caller that went away.
type patientBody struct {
	io.ReadCloser
	ctl *http.ResponseController
	end time.Time // of the whole body; zero: each read has its own patience
}

func (b *patientBody) Read(p []byte) (int, error) {
	end := b.end
	if end.IsZero() {
		end = time.Now().Add(patience)
	}
	_ = b.ctl.SetReadDeadline(end) // tests' recorders have none
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}

// patientWriter gives each write its own deadline.
type patientWriter struct {
	http.ResponseWriter
	ctl     *http.ResponseController
	started bool
}

func (w *patientWriter) WriteHeader(status int) {
	w.started = w.started || status >= http.StatusOK
	w.ResponseWriter.WriteHeader(status)
}

func (w *patientWriter) Write(p []byte) (int, error) {
	w.started = true
	_ = w.ctl.SetWriteDeadline(time.Now().Add(patience))
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
