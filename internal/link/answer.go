package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"time"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

const problemType = "application/problem+json"

// errBadRequest is answered with 400: the request itself can't be understood.
var errBadRequest = errors.New("bad request")

func badRequest(format string, args ...any) error {
	return fault.Coded(errBadRequest, wire.CodeRequestInvalid, format, args...)
}

func errNoPath(r *http.Request) error {
	return fault.New(fault.NotFound, "there is no %s %.100s on this link", r.Method, r.URL.Path)
}

func errTooMany(wait time.Duration) error {
	return fault.Later(fault.TooMany, wire.CodeTooMany, wait, "too many requests")
}

// answer sets a deadline for each write, and keeps status and size for the log.
type answer struct {
	http.ResponseWriter
	ctl    *http.ResponseController
	status int
	size   int64
}

// writePatience is how long a peer may take to read a piece of the answer.
const writePatience = 30 * time.Second

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
	_ = a.ctl.SetWriteDeadline(time.Now().Add(writePatience))
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	_ = a.ctl.SetWriteDeadline(time.Now().Add(writePatience))
	n, err := a.ResponseWriter.Write(p)
	a.size += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// refuse answers err as a problem document (RFC 9457) with the code that agents act on.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if a, ok := w.(*answer); ok && a.status != 0 {
		// Half an answer is out: cut it off, so that nobody takes it for a whole one.
		s.cfg.Log.DebugContext(r.Context(), "link: answer cut off", "url.path", r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
	p := s.problemOf(r.Context(), err, r.URL.Path)
	h := w.Header()
	h.Set("Content-Type", problemType)
	h.Set("Cache-Control", "no-store")
	h.Del("Content-Length")
	h.Del("ETag")
	if p.RetryAfterSeconds > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfterSeconds))
	}
	w.WriteHeader(p.Status)
	body, _ := json.Marshal(p) // strings and numbers only
	_, _ = w.Write(append(body, '\n'))
}

// problemOf says in the words of a problem document why what came at a path or on a topic was refused.
func (s *Server) problemOf(ctx context.Context, err error, where string) wire.Problem {
	p := wire.Problem{Status: statusOf(err)}
	p.Title = http.StatusText(p.Status)
	var packet *mqtt.PacketError
	var known *fault.Error
	var invalid *fault.Invalid
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &packet):
		p.Status, p.Title = http.StatusBadRequest, http.StatusText(http.StatusBadRequest)
		p.Detail, p.Code = packet.Detail, wire.CodeRequestInvalid
	case errors.As(err, &known):
		p.Detail, p.Code = known.Detail, known.Code
		p.RetryAfterSeconds = int(math.Ceil(known.RetryAfter.Seconds()))
	case errors.As(err, &invalid):
		p.Detail, p.Code = invalid.Error(), wire.CodeRequestInvalid
	case errors.As(err, &tooLarge):
		p.Detail, p.Code = fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit), wire.CodeRequestInvalid
	case errors.Is(err, io.ErrUnexpectedEOF):
		p.Detail, p.Code = "the body ended before it was whole", wire.CodeRequestInvalid
	case p.Status == http.StatusRequestTimeout:
		p.Detail = "the body came too slowly"
	case p.Status == http.StatusInternalServerError:
		s.cfg.Log.ErrorContext(ctx, "link: request failed", "url.path", where, "error", err)
		p.Detail = "something went wrong on the server; its log has the details"
		p.RetryAfterSeconds = 30
	case p.Status == http.StatusInsufficientStorage:
		s.cfg.Log.ErrorContext(ctx, "link: disk is full", "error", err)
		p.Detail, p.RetryAfterSeconds = "the server's disk is full; nothing was changed", 300
	default:
		p.Detail = err.Error()
	}
	s.spreadRetry(&p)
	return p
}

// spreadRetry makes sure that whoever is to come back later knows when, and that not all come back at the
// same moment: chance adds up to as much again, and more the more devices there are.
func (s *Server) spreadRetry(p *wire.Problem) {
	switch p.Status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInternalServerError, http.StatusInsufficientStorage, http.StatusGatewayTimeout:
	default:
		return
	}
	if p.RetryAfterSeconds == 0 {
		p.RetryAfterSeconds = 5
	}
	p.RetryAfterSeconds += rand.IntN(max(p.RetryAfterSeconds, s.spread()) + 1)
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, errRange):
		return http.StatusRequestedRangeNotSatisfiable
	case errors.Is(err, errBadRequest), errors.Is(err, io.ErrUnexpectedEOF):
		return http.StatusBadRequest
	case errors.Is(err, os.ErrDeadlineExceeded):
		return http.StatusRequestTimeout
	case errors.Is(err, context.Canceled): // the device has gone, or this node goes
		return http.StatusServiceUnavailable
	}
	return httpapi.Status(err)
}

// log writes one line per request: what went well is for debugging only, at a hundred thousand
// devices.
func (s *Server) log(r *http.Request, a *answer, who *visitor, took time.Duration) {
	level := slog.LevelDebug
	switch {
	case a.status >= http.StatusInternalServerError:
		level = slog.LevelWarn
	case a.status >= http.StatusBadRequest:
		level = slog.LevelInfo
	}
	s.cfg.Log.LogAttrs(r.Context(), level, "link request",
		slog.String("http.request.method", r.Method), slog.String("url.path", r.URL.Path),
		slog.Int("http.response.status_code", a.status), slog.Int64("http.response.body.size", a.size),
		slog.String("client.address", r.RemoteAddr), slog.String("device.id", string(who.device)),
		slog.Duration("duration", took))
}
