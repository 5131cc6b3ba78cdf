package ui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

// csp allows only what this server serves: no inline script, no inline style, no frame, no plugin.
// Charts are SVG with attributes and classes, so nothing needs an exception.
const csp = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

func secure(h http.Header, r *http.Request) {
	h.Set("Content-Security-Policy", csp)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	// Pages hold what only this person may see.
	h.Set("Cache-Control", "no-store")
	if r.TLS != nil {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

func (c *Console) handle(pattern string, role httpapi.Role, b bounds, h Handler) {
	c.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		who, err := c.admit(r, role)
		if err == nil {
			err = c.bounded(w, r, b, func(r *http.Request) error { return h(w, r, who) })
		}
		if err == nil || errors.Is(err, context.Canceled) && r.Context().Err() != nil {
			return // done, or the reader has gone
		}
		if errors.Is(err, fault.Unauthorized) && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			http.Redirect(w, r, c.cfg.Login+"?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
			return
		}
		c.showError(w, r, who, err)
	})
}

// admit finds out who asks and whether the role is enough.
func (c *Console) admit(r *http.Request, role httpapi.Role) (httpapi.Principal, error) {
	who, err := c.cfg.Auth.Authenticate(r)
	if err != nil {
		if role == httpapi.Nobody {
			return httpapi.Principal{}, nil
		}
		return httpapi.Principal{}, err
	}
	if who.Role < role {
		return who, fault.New(fault.Forbidden, "This needs the role %s; you are signed in as %s.", role, who.Role)
	}
	return who, nil
}

// bounded runs the handler with the bounds of its body and of its time. A stream (GET /live) lifts the
// deadlines itself.
func (c *Console) bounded(w http.ResponseWriter, r *http.Request, b bounds, h func(*http.Request) error) error {
	rc := http.NewResponseController(w)
	deadline := time.Now().Add(b.time)
	_ = rc.SetReadDeadline(deadline) // not supported by recorders in tests
	_ = rc.SetWriteDeadline(deadline.Add(pageTimeout))
	r.Body = http.MaxBytesReader(w, r.Body, b.bodyBytes)
	if r.Pattern == livePattern {
		return h(r)
	}
	ctx, cancel := context.WithTimeout(c.withHead(r), b.time)
	defer cancel()
	err := h(r.WithContext(ctx))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return fault.New(fault.TooLarge, "What you sent is larger than the %s that this form takes.", formatBytes(float64(tooLarge.Limit)))
	}
	return err
}

type headKey struct{}

// withHead remembers how long the ledger was before the page was put together, so that the page's live
// events begin there and none is lost while the page is on its way.
func (c *Console) withHead(r *http.Request) context.Context {
	if c.cfg.Events == nil || r.Method != http.MethodGet {
		return r.Context()
	}
	head, err := c.cfg.Events.Wait(r.Context(), -1)
	if err != nil {
		return r.Context() // the page is worth more than its refresh; the stream will say what is wrong
	}
	return context.WithValue(r.Context(), headKey{}, head)
}

// Next returns the local path that a form wants to go to afterwards, or otherwise: never another
// site's, whatever the caller wrote.
func Next(next, otherwise string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(next, "/") ||
		strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\n\r\t") {
		return otherwise
	}
	return next
}

// Actor names who asks for people.
func actorName(a device.Actor) string {
	if a.Name != "" {
		return a.Name
	}
	return a.ID
}

const themeCookie = "steward_theme"

// themeOf returns "light", "dark" or, when the machine's own setting is to be followed, "".
func themeOf(r *http.Request) string {
	if ck, err := r.Cookie(themeCookie); err == nil && (ck.Value == "light" || ck.Value == "dark") {
		return ck.Value
	}
	return ""
}

// setTheme remembers the theme in a cookie, so that pages arrive in it without a flash and the toggle
// works without script.
func (c *Console) setTheme(w http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
	ck := &http.Cookie{Name: themeCookie, Path: "/", SameSite: http.SameSiteLaxMode, Secure: r.TLS != nil}
	switch theme := r.PostFormValue("theme"); theme {
	case "light", "dark":
		ck.Value, ck.MaxAge = theme, 400*24*3600 // browsers keep no cookie longer
	case "auto":
		ck.MaxAge = -1
	default:
		return fault.Bad("theme", "want light, dark or auto")
	}
	http.SetCookie(w, ck)
	http.Redirect(w, r, Next(r.PostFormValue("next"), "/"), http.StatusSeeOther)
	return nil
}
