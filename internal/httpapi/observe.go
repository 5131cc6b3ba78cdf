package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"steward/internal/device"
)

// Keys of log attributes; OpenTelemetry's names where it has one.
const (
	keyRequest  = "request.id"
	keyError    = "error"
	keyMethod   = "http.request.method"
	keyPath     = "url.path"
	keyOp       = "operation"
	keyStatus   = "http.response.status_code"
	keyBytes    = "http.response.body.size"
	keyDuration = "duration_ms"
	keyClient   = "client.address"
	keyActor    = "enduser.id"
	keyTenant   = "tenant"
	keyStack    = "exception.stacktrace"
)

// exchange is what is known of one request while it is served. Only its own goroutine touches it.
type exchange struct {
	id     string
	op     string // operation ID; empty outside of the API
	client netip.Addr
	who    Principal
	settle *settlement // set while an idempotency key is being worked on
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	if ex, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		return ex
	}
	return &exchange{}
}

// RequestID returns the ID of the request that is being served, which the answer's X-Request-Id, the
// log and problem documents show; empty outside of a request.
func RequestID(ctx context.Context) string { return exchangeOf(ctx).id }

// ClientAddr returns where the request that is being served comes from (see Proxies); the zero Addr
// outside of one.
func ClientAddr(ctx context.Context) netip.Addr { return exchangeOf(ctx).client }

var requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{8,64}$`)

// Observe gives each request its ID, writes one line of access log for it (never a query, a header or
// a body, since these may hold secrets), counts it and turns a panic into 500. The API has it built in;
// the server puts it around the console, too. A caller's own X-Request-Id is taken over when it has a
// harmless form. A request that is observed already is passed on as it is: it has one ID, one line and
// one count, however many doors it goes through.
func (a *API) Observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, inside := r.Context().Value(exchangeKey{}).(*exchange); inside {
			next.ServeHTTP(w, r)
			return
		}
		ex := &exchange{id: r.Header.Get("X-Request-Id")}
		if !requestIDPattern.MatchString(ex.id) {
			ex.id = "req-" + device.RandomName(10)
		}
		ex.client = a.cfg.Proxies.Client(r)
		r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, ex))
		w.Header().Set("X-Request-Id", ex.id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		if r.TLS != nil {
			w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		}
		rec := &answer{ResponseWriter: w}
		start := a.cfg.Now()
		a.meter.inFlight.Inc()
		defer func() {
			a.meter.inFlight.Dec()
			if p := recover(); p != nil {
				a.panicked(rec, r, p)
			}
			a.finish(rec, r, ex, a.cfg.Now().Sub(start))
		}()
		next.ServeHTTP(rec, r)
	})
}

// panicked answers 500 when nothing was sent yet; else it cuts the connection, so that half an answer
// is not taken for a whole one.
func (a *API) panicked(rec *answer, r *http.Request, p any) {
	if p != http.ErrAbortHandler {
		a.meter.panics.Inc()
		a.cfg.Log.ErrorContext(r.Context(), "panic while serving a request",
			keyRequest, RequestID(r.Context()), keyError, p, keyStack, string(debug.Stack()))
		if rec.status == 0 {
			refuse(rec, r, http.StatusInternalServerError,
				"something went wrong on the server; its log has the details under this request_id")
			return
		}
	}
	a.finish(rec, r, exchangeOf(r.Context()), 0)
	panic(http.ErrAbortHandler)
}

// maxLoggedPath bounds the path in a line of the log.
const maxLoggedPath = 200

func (a *API) finish(rec *answer, r *http.Request, ex *exchange, took time.Duration) {
	status := rec.status
	if status == 0 {
		status = http.StatusOK
	}
	a.meter.observe(ex.op, r.Method, status, took)
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	a.cfg.Log.LogAttrs(r.Context(), level, "request",
		slog.String(keyRequest, ex.id), slog.String(keyMethod, r.Method),
		slog.String(keyPath, shorten(r.URL.Path, maxLoggedPath)), slog.String(keyOp, ex.op),
		slog.Int(keyStatus, status), slog.Int64(keyBytes, rec.bytes),
		slog.Float64(keyDuration, float64(took.Microseconds())/1000),
		slog.String(keyClient, ex.client.String()),
		slog.String(keyActor, ex.who.Actor.ID), slog.String(keyTenant, string(ex.who.Scope.Tenant)))
}

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
