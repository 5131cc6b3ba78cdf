package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"steward/internal/wire"
)

// Problem is a refusal by the server, as problem details (RFC 9457) when the server sent them, else
// made of the status line.
type Problem struct {
	wire.Problem
	// RetryAfter is how long the server asks to wait, from the body or the Retry-After header; 0 when
	// it does not say.
	RetryAfter time.Duration
}

func (p *Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the server refuses (%d", p.Status)
	if p.Code != "" {
		b.WriteString(" " + p.Code)
	}
	b.WriteString("): " + p.Title)
	if p.Detail != "" {
		b.WriteString(": " + p.Detail)
	}
	return b.String()
}

// HTTPStatus lets rooms tell refusals apart without knowing this package.
func (p *Problem) HTTPStatus() int { return p.Status }

// CodeOf returns the problem code in err's chain, or "".
func CodeOf(err error) string {
	var p *Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// StatusOf returns the HTTP status of the problem in err's chain, or 0.
func StatusOf(err error) int {
	var p *Problem
	if errors.As(err, &p) {
		return p.Status
	}
	return 0
}

// NotFound tells whether the server answered that it has no such thing.
func NotFound(err error) bool { return StatusOf(err) == http.StatusNotFound }

// RetryAfter returns the wait that the server asked for, or that is left to the next attempt to connect,
// or 0.
func RetryAfter(err error) time.Duration {
	var p *Problem
	if errors.As(err, &p) {
		return p.RetryAfter
	}
	var lost *lostError
	if errors.As(err, &lost) {
		return lost.retryAfter()
	}
	return 0
}

// maxRetryAfter bounds what a server can ask for, so that a wrong number does not silence a device.
const maxRetryAfter = 24 * time.Hour

// maxProblemBytes bounds the body of a refusal.
const maxProblemBytes = 16 << 10

// problemFrom is a refusal that came by MQTT.
func problemFrom(p wire.Problem) *Problem {
	wait := min(time.Duration(max(0, p.RetryAfterSeconds))*time.Second, maxRetryAfter)
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	return &Problem{Problem: p, RetryAfter: wait}
}

// problemOf reads a refusal. A body that is no problem document (a proxy's page) is left out.
func problemOf(res *http.Response, body []byte, now time.Time) *Problem {
	p := &Problem{}
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if media == "application/problem+json" || media == "application/json" {
		_ = json.Unmarshal(body, &p.Problem) // a broken body leaves what the status line says
	}
	p.Status = res.StatusCode
	if p.Title == "" {
		p.Title = http.StatusText(res.StatusCode)
	}
	p.RetryAfter = time.Duration(p.RetryAfterSeconds) * time.Second
	if p.RetryAfter <= 0 {
		p.RetryAfter = retryAfterHeader(res.Header.Get("Retry-After"), now)
	}
	p.RetryAfter = min(p.RetryAfter, maxRetryAfter)
	return p
}

// retryAfterHeader reads seconds or an HTTP date (RFC 9110, section 10.2.3).
func retryAfterHeader(v string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseInt(v, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
