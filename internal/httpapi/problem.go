package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"steward/internal/fault"
	"steward/internal/sqldb"
)

// Problem is the document of every refusal (RFC 9457). Its type is always "about:blank", so it is not
// sent; the status says what kind it is and the detail what to do.
type Problem struct {
	Title     string         `json:"title" doc:"The status in words"`
	Status    int            `json:"status" doc:"The HTTP status"`
	Detail    string         `json:"detail,omitempty" doc:"What happened and what to do"`
	RequestID string         `json:"request_id,omitempty" doc:"Stands in the server's log, too"`
	Errors    []ProblemField `json:"errors,omitempty" doc:"Each thing that is wrong with the input"`
}

// ProblemField is one thing that is wrong with the input.
type ProblemField struct {
	Location string `json:"location,omitempty" doc:"e.g. body.lines[2].quantity, query.limit, or line 14, column 3"`
	Message  string `json:"message"`
	Value    any    `json:"value,omitempty" doc:"What was sent there; left out when it is long or secret"`
}

const problemType = "application/problem+json"

// refuse answers a problem document.
func refuse(w http.ResponseWriter, r *http.Request, status int, detail string, fields ...ProblemField) {
	p := Problem{Title: title(status), Status: status, Detail: detail, RequestID: RequestID(r.Context()), Errors: fields}
	body, err := json.Marshal(p)
	if err != nil { // a value that JSON can't hold
		p.Errors = nil
		body, _ = json.Marshal(p)
	}
	w.Header().Set("Content-Type", problemType)
	w.Header().Del("Content-Length")
	w.Header().Del("ETag")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n')) // the caller may be gone
	}
}

// refuseError answers err as a problem document and logs what has no kind.
func (a *API) refuseError(w http.ResponseWriter, r *http.Request, err error) {
	status, detail, fields := a.judge(r.Context(), err)
	for k, v := range refusalHeaders(status, err) {
		w.Header()[k] = v
	}
	refuse(w, r, status, detail, fields...)
}

// judge decides what the caller gets to see of an error; what has no kind is logged and hidden.
func (a *API) judge(ctx context.Context, err error) (status int, detail string, fields []ProblemField) {
	status = Status(err)
	var invalid *fault.Invalid
	switch {
	case status == http.StatusInternalServerError && errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return StatusClientGone, "the caller went away", nil
	case status == http.StatusInternalServerError:
		a.cfg.Log.ErrorContext(ctx, "request failed", keyRequest, RequestID(ctx), keyError, err)
		return status, "something went wrong on the server; its log has the details under this request_id", nil
	case status == http.StatusInsufficientStorage:
		a.cfg.Log.ErrorContext(ctx, "disk is full", keyRequest, RequestID(ctx), keyError, err)
		return status, "the server's disk is full; nothing was changed", nil
	case status == http.StatusGatewayTimeout:
		a.cfg.Log.WarnContext(ctx, "request took too long", keyRequest, RequestID(ctx), keyError, err)
		return status, "the server gave up because it took too long; whether it took effect is unknown: look before you repeat it", nil
	case errors.As(err, &invalid):
		for _, f := range invalid.Fields {
			fields = append(fields, problemField(f.Location, f.Message, f.Value))
		}
		return status, "the input is not valid", fields
	}
	return status, sayable(err), nil
}

// sayable returns the text for the caller: of the *fault.Error within, without what was wrapped around
// it for the log; else, when a bare sentinel was wrapped, the whole.
func sayable(err error) string {
	var known *fault.Error
	if errors.As(err, &known) {
		return known.Detail
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return "the body has more than " + strconv.FormatInt(tooLarge.Limit, 10) + " bytes"
	}
	return err.Error()
}

// maxValueBytes bounds what is echoed of a wrong value.
const maxValueBytes = 100

func problemField(location, message string, value any) ProblemField {
	f := ProblemField{Location: location, Message: message}
	lower := strings.ToLower(location)
	for _, word := range []string{"password", "secret", "token", "authorization", "cookie", "key"} {
		if strings.Contains(lower, word) {
			return f
		}
	}
	switch v := value.(type) {
	case string:
		if location != "body" && len(v) <= maxValueBytes {
			f.Value = v
		}
	case bool, int, int64, json.Number:
		f.Value = v
	case float64:
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			f.Value = v
		}
	}
	return f
}

// title is the status in words.
func title(status int) string {
	if status == StatusClientGone {
		return "Client Closed Request"
	}
	return http.StatusText(status)
}

// StatusClientGone is what the log shows when the caller went away before the answer (nginx's 499).
const StatusClientGone = 499

// Status is the one mapping from kinds of refusal to HTTP.
func Status(err error) int {
	for _, m := range []struct {
		kind   error
		status int
	}{
		{fault.NotFound, http.StatusNotFound}, {fault.Conflict, http.StatusConflict},
		{fault.Precondition, http.StatusPreconditionFailed}, {fault.Forbidden, http.StatusForbidden},
		{fault.Unauthorized, http.StatusUnauthorized}, {fault.TooLarge, http.StatusRequestEntityTooLarge},
		{fault.TooMany, http.StatusTooManyRequests}, {fault.Unprocessable, http.StatusUnprocessableEntity},
		{fault.Unavailable, http.StatusServiceUnavailable}, {context.DeadlineExceeded, http.StatusGatewayTimeout},
	} {
		if errors.Is(err, m.kind) {
			return m.status
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded): // of the connection
		return http.StatusRequestTimeout
	case errors.Is(err, errNoKeys):
		return http.StatusNotImplemented
	case sqldb.IsFull(err):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// Later is a refusal that says when to come back; it wraps another, of the kind TooMany, Unavailable
// or Conflict, and is answered with Retry-After.
type Later struct {
	Err   error
	After time.Duration
}

func (e *Later) Error() string { return e.Err.Error() }

// Unwrap shows the kind.
func (e *Later) Unwrap() error { return e.Err }

// refusalHeaders returns the headers that go with a refusal.
func refusalHeaders(status int, err error) http.Header {
	h := http.Header{}
	var later *Later
	switch {
	case errors.As(err, &later):
		h.Set("Retry-After", RetryAfter(later.After))
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		h.Set("Retry-After", "5")
	case status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", challenge)
	}
	return h
}

const challenge = `Bearer realm="steward"`

// RetryAfter writes a Retry-After header: whole seconds, at least one.
func RetryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// toHuma turns a room's error into what huma answers; see transform for the rest.
func (a *API) toHuma(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	status, detail, fields := a.judge(ctx, err)
	details := make([]error, len(fields))
	for i, f := range fields {
		details[i] = &huma.ErrorDetail{Message: f.Message, Location: f.Location, Value: f.Value}
	}
	return huma.ErrorWithHeaders(huma.NewError(status, detail, details...), refusalHeaders(status, err))
}

// transform turns huma's own error document into ours, which has the request's ID and no secrets.
func transform(ctx huma.Context, _ string, v any) (any, error) {
	m, isError := v.(*huma.ErrorModel)
	if !isError {
		return v, nil
	}
	p := Problem{Title: title(m.Status), Status: m.Status, Detail: m.Detail, RequestID: RequestID(ctx.Context())}
	if m.Detail == "validation failed" {
		p.Detail = "the input is not valid"
	}
	for _, e := range m.Errors {
		if e != nil {
			p.Errors = append(p.Errors, problemField(e.Location, e.Message, e.Value))
		}
	}
	return p, nil
}
