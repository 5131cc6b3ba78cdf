package httpapi

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"steward/internal/fault"
)

const noStore = "no-store"

// route serves what is below /api, and answers unknown paths and wrong methods as problems.
func (a *API) route(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", noStore)
	if detail := unclean(r.URL); detail != "" {
		refuse(w, r, http.StatusBadRequest, detail)
		return
	}
	if own, pattern := a.mux.Handler(r); pattern == "" {
		lost := &lostWriter{header: http.Header{}}
		own.ServeHTTP(lost, r)
		if lost.status == http.StatusMethodNotAllowed {
			h.Set("Allow", lost.header.Get("Allow"))
			refuse(w, r, lost.status, fmt.Sprintf("%s is not possible here; allowed: %s", r.Method, lost.header.Get("Allow")))
			return
		}
		refuse(w, r, http.StatusNotFound, "there is nothing at this path; /api/openapi.yaml lists all operations")
		return
	}
	a.mux.ServeHTTP(w, r)
}

// unclean says what is wrong with the path or query before any room sees it: NUL and broken UTF-8 are
// things that the databases refuse or, worse, treat differently.
func unclean(u *url.URL) string {
	if !cleanText(u.Path) {
		return "the path has bytes that are not UTF-8 text"
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "the query can't be read: use key=value pairs joined by & and percent-encoding"
	}
	for k, vs := range q {
		if !cleanText(k) || slices.ContainsFunc(vs, func(v string) bool { return !cleanText(v) }) {
			return "the query has bytes that are not UTF-8 text"
		}
		if len(vs) > maxRepeats {
			return fmt.Sprintf("a query parameter stands there %d times", len(vs))
		}
	}
	return ""
}

const maxRepeats = 1000

func cleanText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// lostWriter catches what http.ServeMux would answer to an unknown path.
type lostWriter struct {
	header http.Header
	status int
}

func (w *lostWriter) Header() http.Header         { return w.header }
func (w *lostWriter) WriteHeader(status int)      { w.status = status }
func (w *lostWriter) Write(b []byte) (int, error) { return len(b), nil }

// gate is what admission knows of an operation besides its Op.
type gate struct {
	accepts   []string          // media types of the body; empty: it has none
	timeout   time.Duration     // of the whole; 0: none
	bodySlack int64             // added to the limit of the body
	query     map[string]string // allowed parameters; nil: the operation checks them itself
}

// handle adds an operation behind its admission.
func (a *API) handle(op Op, g gate, serve http.HandlerFunc) {
	if op.Timeout != 0 {
		g.timeout = op.Timeout
	}
	a.mux.HandleFunc(op.Method+" "+prefix+op.Path, func(w http.ResponseWriter, r *http.Request) {
		ex := exchangeOf(r.Context())
		ex.op = op.ID
		who, err := a.admit(r, op, g)
		ex.who = who
		if err != nil {
			a.refuseError(w, r, err)
			return
		}
		if media := r.Header.Get("Content-Type"); len(g.accepts) > 0 && !accepted(media, g.accepts) {
			refuse(w, r, http.StatusUnsupportedMediaType, "the body must be "+strings.Join(g.accepts, " or "))
			return
		}
		if rec, ok := w.(*answer); ok && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			rec.noneMatch = r.Header.Get("If-None-Match")
		}
		body := &patientBody{ReadCloser: r.Body, ctl: http.NewResponseController(w)}
		if g.timeout > 0 {
			body.end = time.Now().Add(g.timeout)
			ctx, cancel := context.WithTimeout(r.Context(), g.timeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		r.Body = http.MaxBytesReader(w, body, op.maxBody()+g.bodySlack)
		if r.Header.Get(keyHeader) != "" && op.takesKey() && who.Actor.ID != "" {
			a.once(w, r, op, serve)
			return
		}
		serve(w, r)
	})
}

// admit finds out who asks and whether they may. The principal is returned with the refusal, too, for
// the log.
func (a *API) admit(r *http.Request, op Op, g gate) (Principal, error) {
	who, err := a.cfg.Auth.Authenticate(r)
	known := err == nil
	if err != nil && !errors.Is(err, fault.Unauthorized) {
		return who, err
	}
	key := "addr " + ClientNetwork(ClientAddr(r.Context()))
	if known {
		key = string(who.Actor.Kind) + " " + who.Actor.ID + " " + who.Token
	}
	if wait, ok := a.limit.Take(key); !ok {
		return who, &Later{After: wait, Err: fault.New(fault.TooMany,
			"more than %g requests per second; wait as Retry-After says", a.limit.rate.PerSecond)}
	}
	if op.Role > Nobody && !known {
		return who, fault.New(fault.Unauthorized, "%s", unauthorizedText(err))
	}
	// A browser sends the cookie by itself, so a foreign page must not be able to make it act.
	if !hasBearer(r) {
		if err := a.cross.Check(r); err != nil {
			return who, fault.New(fault.Forbidden, "a page of another site may not do this")
		}
	}
	if who.Role < op.Role {
		return who, fault.New(fault.Forbidden, "this needs the role %s; you have %s", op.Role, who.Role)
	}
	if n := r.ContentLength; n > op.maxBody() {
		return who, fault.New(fault.TooLarge, "the body has %d bytes; at most %d are taken here", n, op.maxBody())
	}
	return who, checkQuery(r, g.query)
}

func unauthorizedText(err error) string {
	var known *fault.Error
	if errors.As(err, &known) {
		return known.Detail
	}
	return "sign in or send an API token: Authorization: Bearer stp_…"
}

// hasBearer tells whether the caller sent a token, which a browser never does by itself.
func hasBearer(r *http.Request) bool {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "bearer")
}

func checkQuery(r *http.Request, allowed map[string]string) error {
	if allowed == nil {
		return nil
	}
	var invalid fault.Invalid
	for k := range r.URL.Query() {
		if _, ok := allowed[k]; !ok {
			invalid.Add("query."+k, "unknown query parameter")
		}
	}
	return invalid.OrNil()
}

// accepted tells whether a body of this media type may be read as one of those; no type counts as the
// right one.
func accepted(header string, accepts []string) bool {
	if header == "" || slices.Contains(accepts, "application/octet-stream") {
		return true
	}
	media, _, err := mime.ParseMediaType(header)
	if err != nil {
		return false
	}
	return slices.Contains(accepts, media) ||
		strings.HasSuffix(media, "+json") && slices.Contains(accepts, "application/json")
}
