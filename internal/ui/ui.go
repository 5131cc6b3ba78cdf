// Package ui is the console's frame: layout, styles, forms, charts and live updates. Rooms bring their
// pages as html/template files and handlers.
package ui

import (
	"io/fs"
	"log/slog"
	"net/http"

	"steward/internal/httpapi"
)

// Config of a Console.
type Config struct {
	Auth httpapi.Authenticator // required
	Log  *slog.Logger          // required
	Nav  []NavItem             // entries of the main navigation, in order
}

// NavItem is one entry of the main navigation.
type NavItem struct{ Name, Path, Icon string }

// Console collects the pages of all rooms.
type Console struct {
	cfg Config
	mux *http.ServeMux
}

// New returns a console without pages.
func New(cfg Config) *Console { return &Console{cfg: cfg, mux: http.NewServeMux()} }

// ServeHTTP serves the pages.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// Handler shows a page or does what a form asks; an error it returns becomes an error page of the
// status that httpapi.Status gives it.
type Handler func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error

// Handle adds a page: pattern as of http.ServeMux ("GET /orders/{id}"), role the least that may see it.
// Forms (POST) are checked for cross-site origin before the handler runs.
func (c *Console) Handle(pattern string, role httpapi.Role, h Handler) {
	panic("built by the ui helper")
}

// Pages are the parsed templates of one room.
type Pages struct{}

// Parse reads a room's page/*.html; each file defines "content" (and optionally "actions") and may use
// the partials of the frame.
func (c *Console) Parse(files fs.FS) *Pages { panic("built by the ui helper") }

// View is what every page gives to the frame.
type View struct {
	Title  string    // of the page and the browser tab
	Nav    string    // path of the navigation entry that is current
	Crumbs []NavItem // way back, without the page itself
	Live   string    // space-separated topics that refresh the page when they change; see Live
	Data   any       // the page's own
}

// Render writes the page with the frame around it.
func (p *Pages) Render(w http.ResponseWriter, r *http.Request, who httpapi.Principal, file string, v View) error {
	panic("built by the ui helper")
}
