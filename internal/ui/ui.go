package ui

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"steward/internal/httpapi"
)

// Config of a Console.
type Config struct {
	Auth   httpapi.Authenticator // required
	Log    *slog.Logger          // required
	Nav    []NavItem             // entries of the main navigation, in order
	Events Events                // what live pages listen to; nil leaves pages still
	// Now is the clock of relative times; nil means time.Now.
	Now func() time.Time
	// Login is where somebody without a session is sent (GET, with ?next=), Logout where the sign-out
	// form posts to. Empty means "/login" and "/logout".
	Login, Logout string
	// Version of the program, shown below the navigation.
	Version string
}

// NavItem is one entry of the main navigation, or one step of the way back (then without an icon).
// Icons: see icons.go; an unknown name shows a dot.
type NavItem struct{ Name, Path, Icon string }

// Console collects the pages of all rooms. Handle and Parse are called while it is put together;
// afterwards it is safe for concurrent use.
type Console struct {
	cfg    Config
	mux    *http.ServeMux
	cross  *http.CrossOriginProtection
	assets *assets
	own    *Pages // the frame's own pages: errors
	nav    []navEntry
	live   *liveStreams
}

// navEntry is a NavItem with its letter: "g" and then Key goes there.
type navEntry struct {
	NavItem
	Key string
}

// New returns a console without pages but the frame's own: static files, live events, theme, errors.
func New(cfg Config) *Console {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Login == "" {
		cfg.Login = "/login"
	}
	if cfg.Logout == "" {
		cfg.Logout = "/logout"
	}
	c := &Console{
		cfg: cfg, mux: http.NewServeMux(), cross: http.NewCrossOriginProtection(),
		assets: loadAssets(), nav: navKeys(cfg.Nav), live: newLiveStreams(),
	}
	c.own = c.Parse(ownPages())
	c.mux.HandleFunc("GET /static/{name}", c.assets.serve)
	c.mux.HandleFunc("GET /favicon.ico", c.assets.favicon)
	c.Handle("GET /live", httpapi.Viewer, c.serveLive)
	c.Handle("POST /theme", httpapi.Nobody, c.setTheme)
	c.Handle("/", httpapi.Nobody, c.notFound)
	return c
}

// navKeys gives each entry the first letter of its name that no earlier one has.
func navKeys(items []NavItem) []navEntry {
	var taken []rune
	entries := make([]navEntry, len(items))
	for i, item := range items {
		entries[i].NavItem = item
		for _, r := range strings.ToLower(item.Name) {
			if unicode.IsLetter(r) && !slices.Contains(taken, r) {
				entries[i].Key, taken = string(r), append(taken, r)
				break
			}
		}
	}
	return entries
}

// Bounds of a page's request. Uploads have their own (HandleUpload).
const (
	maxFormBytes  = 1 << 20
	pageTimeout   = 30 * time.Second
	uploadTimeout = 30 * time.Minute
)

// ServeHTTP serves the pages, with the security headers on every answer.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header(), r)
	if err := c.cross.Check(r); err != nil {
		c.showError(w, r, httpapi.Principal{}, errCrossOrigin)
		return
	}
	c.mux.ServeHTTP(w, r)
}

// Handler shows a page or does what a form asks; an error it returns becomes an error page of the
// status that httpapi.Status gives it.
type Handler func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error

// Handle adds a page: pattern as of http.ServeMux ("GET /orders/{id}"), role the least that may see it.
// Forms (POST) are checked for cross-site origin before the handler runs; their body is bounded by
// 1 MiB. With httpapi.Nobody the principal is the zero one for who is not signed in.
func (c *Console) Handle(pattern string, role httpapi.Role, h Handler) {
	c.handle(pattern, role, bounds{maxFormBytes, pageTimeout}, h)
}

// HandleUpload is Handle for forms with files of up to maxBytes together, which may take long.
func (c *Console) HandleUpload(pattern string, role httpapi.Role, maxBytes int64, h Handler) {
	c.handle(pattern, role, bounds{maxBytes, uploadTimeout}, h)
}

// HandleRaw adds what is no page: a download, a stylesheet of a printable page. It has no role and no
// session; the frame's security headers apply.
func (c *Console) HandleRaw(pattern string, h http.Handler) { c.mux.Handle(pattern, h) }

type bounds struct {
	bodyBytes int64
	time      time.Duration
}
