package httpapi

import (
	"net/http"
)

// StreamHandler serves the body of a stream operation itself. An error that it returns before it has
// written anything is answered as a problem document; afterwards the connection is cut, so that the
// caller can't take half an answer for a whole one.
type StreamHandler func(w http.ResponseWriter, r *http.Request, who Principal) error

// Stream adds an operation whose request or answer is too large or of the wrong form for Register:
// uploads, downloads, CSV. Path values come from r.PathValue. The body is cut off at op.MaxBody with
// 413; reads and writes may take as long as they make progress.
func (a *API) Stream(op Op, handler StreamHandler) { a.stream(op, handler) }
