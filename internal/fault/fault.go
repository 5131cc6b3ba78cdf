// Package fault names the ways in which a request can be refused. Rooms wrap one of the sentinels,
// or return an *Invalid when they can name the fields; httpapi turns them into problem documents and
// the command line into exit codes. Everything else is an internal error: logged, never sent.
package fault

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The sentinels that callers branch on.
var (
	NotFound      = errors.New("not found")               // 404
	Conflict      = errors.New("conflict")                // 409: the state of the thing forbids it
	Precondition  = errors.New("precondition failed")     // 412: the caller's ETag is old
	Forbidden     = errors.New("forbidden")               // 403
	Unauthorized  = errors.New("not authenticated")       // 401
	TooLarge      = errors.New("too large")               // 413
	TooMany       = errors.New("too many requests")       // 429
	Unprocessable = errors.New("cannot be processed")     // 422
	Unavailable   = errors.New("temporarily unavailable") // 503
)

// Error is a refusal whose text may be shown to the caller, of one of the kinds above.
type Error struct {
	Kind   error  // one of the sentinels
	Detail string // one sentence for people: what happened and what to do

	Code       string        // stable word for programs (wire.Code…); empty when nobody acts on it
	RetryAfter time.Duration // when to ask again; 0 says nothing about it
}

func (e *Error) Error() string { return e.Detail }

// Unwrap lets errors.Is find the kind.
func (e *Error) Unwrap() error { return e.Kind }

// New returns a refusal of the kind with a formatted detail; an error among the arguments is quoted
// by its text, not wrapped, so that nothing internal leaks into the kind.
func New(kind error, format string, args ...any) error {
	return &Error{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// Coded is New with a code that devices and other programs act on.
func Coded(kind error, code, format string, args ...any) error {
	return &Error{Kind: kind, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Later is Coded for a refusal that may be lifted: ask again after the given time.
func Later(kind error, code string, after time.Duration, format string, args ...any) error {
	return &Error{Kind: kind, Code: code, RetryAfter: after, Detail: fmt.Sprintf(format, args...)}
}

// Field is one thing that is wrong with the caller's input.
type Field struct {
	Location string `json:"location"` // e.g. "body.lines[2].quantity" or "line 14, column 3"
	Message  string `json:"message"`
	Value    any    `json:"value,omitempty"`
}

// Invalid is a refusal of input that names each field; it counts as Unprocessable.
type Invalid struct{ Fields []Field }

func (e *Invalid) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Location + ": " + f.Message
	}
	return strings.Join(parts, "; ")
}

// Unwrap makes errors.Is(err, Unprocessable) hold.
func (e *Invalid) Unwrap() error { return Unprocessable }

// Add notes one more wrong field.
func (e *Invalid) Add(location, format string, args ...any) {
	e.Fields = append(e.Fields, Field{Location: location, Message: fmt.Sprintf(format, args...)})
}

// OrNil returns e as an error when it names a field, else nil.
func (e *Invalid) OrNil() error {
	if e == nil || len(e.Fields) == 0 {
		return nil
	}
	return e
}

// Bad returns an Invalid with a single field.
func Bad(location, format string, args ...any) error {
	e := &Invalid{}
	e.Add(location, format, args...)
	return e
}
