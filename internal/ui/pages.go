package ui

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/template/parse"

	"steward/internal/httpapi"
)

//go:embed frame
var frameFiles embed.FS

func ownPages() fs.FS {
	sub, err := fs.Sub(frameFiles, "frame/page")
	if err != nil {
		panic(err) // the embedded tree is part of the program
	}
	return sub
}

// Pages are the parsed templates of one room.
type Pages struct {
	c    *Console
	byID map[string]*template.Template
}

// Parse reads a room's page/*.html; each file defines "content" (and optionally "actions", shown right
// of the title) and may use the partials of the frame (frame/partials.html) and the functions of
// funcs.go. A file whose name begins with "_" holds partials for all files of the room. The files may
// lie at the top of the tree or in its folder "page". It panics when a template is wrong.
func (c *Console) Parse(files fs.FS) *Pages {
	names, err := fs.Glob(files, "*.html")
	if err == nil && len(names) == 0 {
		names, err = fs.Glob(files, "page/*.html")
	}
	if err != nil || len(names) == 0 {
		panic(fmt.Sprintf("ui: no *.html among the page files (%v)", err))
	}
	base := template.Must(template.New("frame").Funcs(c.funcs()).ParseFS(frameFiles, "frame/*.html"))
	var own []string
	for _, name := range names {
		if strings.HasPrefix(name[strings.LastIndexByte(name, '/')+1:], "_") {
			template.Must(base.ParseFS(files, name))
			continue
		}
		own = append(own, name)
	}
	p := &Pages{c: c, byID: map[string]*template.Template{}}
	for _, name := range own {
		t := template.Must(template.Must(base.Clone()).ParseFS(files, name))
		if missing := undefined(t); missing != "" {
			panic(fmt.Sprintf("ui: %s uses the template %q, which nobody defines; are its files embedded?", name, missing))
		}
		p.byID[name[strings.LastIndexByte(name, '/')+1:]] = t
	}
	return p
}

// undefined names a template that is used and not defined, "" when there is none: better at the start than
// in front of a person.
func undefined(t *template.Template) string {
	var within func(n parse.Node) string
	list := func(nodes ...*parse.ListNode) string {
		for _, l := range nodes {
			if l == nil {
				continue
			}
			for _, n := range l.Nodes {
				if name := within(n); name != "" {
					return name
				}
			}
		}
		return ""
	}
	within = func(n parse.Node) string {
		switch n := n.(type) {
		case *parse.TemplateNode:
			if t.Lookup(n.Name) == nil {
				return n.Name
			}
		case *parse.IfNode:
			return list(n.List, n.ElseList)
		case *parse.RangeNode:
			return list(n.List, n.ElseList)
		case *parse.WithNode:
			return list(n.List, n.ElseList)
		}
		return ""
	}
	for _, own := range t.Templates() {
		if own.Tree == nil {
			continue
		}
		if name := list(own.Tree.Root); name != "" {
			return name
		}
	}
	return ""
}

// View is what every page gives to the frame.
type View struct {
	Title  string    // of the page and the browser tab
	Nav    string    // path of the navigation entry that is current
	Crumbs []NavItem // way back, without the page itself
	Live   string    // space-separated topics that refresh the page when they change; see Live
	Status int       // HTTP status; 0 means 200. A form with errors is shown again with 422.
	Data   any       // the page's own
}

// Page is the dot of "content" and "actions": .Data is the room's own, .Who the reader.
type Page struct {
	Title  string
	Crumbs []NavItem
	Live   string
	Data   any
	Who    httpapi.Principal
	URL    *url.URL // of this request
	Theme  string   // "light", "dark" or empty
	Flash  string   // what the form before has done; see Flash

	Current string
	head    int64 // length of the ledger before the page's data were read; -1 when unknown
	frame   *Console
}

// Render writes the page with the frame around it.
func (p *Pages) Render(w http.ResponseWriter, r *http.Request, who httpapi.Principal, file string, v View) error {
	t, ok := p.byID[file]
	if !ok {
		return fmt.Errorf("render page %s: no such file", file)
	}
	page := &Page{
		Title: v.Title, Crumbs: v.Crumbs, Live: v.Live, Data: v.Data, Who: who, URL: r.URL, Current: v.Nav,
		Theme: themeOf(r), Flash: takeFlash(w, r), head: -1, frame: p.c,
	}
	if head, known := r.Context().Value(headKey{}).(int64); known {
		page.head = head
	}
	var buf bytes.Buffer // an error in the middle must not leave half a page
	if err := t.ExecuteTemplate(&buf, "layout", page); err != nil {
		return fmt.Errorf("render page %s: %w", file, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if v.Status != 0 {
		w.WriteHeader(v.Status)
	}
	_, err := w.Write(buf.Bytes())
	return err
}

// Fragment renders the "content" of a file without the frame, with data as its dot: for panels.
func (p *Pages) Fragment(file string, data any) (template.HTML, error) {
	t, ok := p.byID[file]
	if !ok {
		return "", fmt.Errorf("render fragment %s: no such file", file)
	}
	var buf bytes.Buffer
	if err := t.ExecuteTemplate(&buf, "content", data); err != nil {
		return "", fmt.Errorf("render fragment %s: %w", file, err)
	}
	return template.HTML(buf.String()), nil
}

// With returns the page's URL with query parameters changed, given as names and values; an empty value
// removes the parameter. Changing anything goes back to the first page of a list.
func (p *Page) With(pairs ...any) (string, error) {
	if len(pairs)%2 != 0 {
		return "", fmt.Errorf("With: %d arguments, want names and values", len(pairs))
	}
	q := p.URL.Query()
	q.Del("cursor")
	for i := 0; i < len(pairs); i += 2 {
		name, value := fmt.Sprint(pairs[i]), fmt.Sprint(pairs[i+1])
		if value == "" {
			q.Del(name)
		} else {
			q.Set(name, value)
		}
	}
	if len(q) == 0 {
		return p.URL.Path, nil
	}
	return p.URL.Path + "?" + q.Encode(), nil
}

// Query returns a query parameter of the page's URL.
func (p *Page) Query(name string) string { return p.URL.Query().Get(name) }

// Pager is the dot of the partial "pager".
type Pager struct{ First, Next string }

// Pager returns the links of a list of which next is the cursor of the following page, or "".
func (p *Page) Pager(next string) (Pager, error) {
	var links Pager
	var err error
	if p.URL.Query().Has("cursor") {
		if links.First, err = p.With(); err != nil {
			return links, err
		}
	}
	if next != "" {
		links.Next, err = p.With("cursor", next)
	}
	return links, err
}

// Can tells whether the reader has at least the named role: {{if .Can "operator"}}.
func (p *Page) Can(role string) (bool, error) {
	want, err := httpapi.ParseRole(role)
	return err == nil && p.Who.Role >= want, err
}

// What the layout asks for.

// SignedIn tells whether there is somebody to show the navigation to.
func (p *Page) SignedIn() bool { return p.Who.Role > httpapi.Nobody }

// Navigation lists the entries with their letters.
func (p *Page) Navigation() []navEntry { return p.frame.nav }

// Reader is the name of who is signed in.
func (p *Page) Reader() string { return actorName(p.Who.Actor) }

// Logout is where the sign-out form posts to.
func (p *Page) Logout() string { return p.frame.cfg.Logout }

// Version of the program.
func (p *Page) Version() string { return p.frame.cfg.Version }

// Here is the page's path and query, to come back to.
func (p *Page) Here() string { return p.URL.RequestURI() }

// LiveURL is the event stream of the page's topics, or "" when it has none.
func (p *Page) LiveURL() string {
	if p.Live == "" || p.frame.cfg.Events == nil || !p.SignedIn() {
		return ""
	}
	address := "/live?topics=" + url.QueryEscape(strings.Join(strings.Fields(p.Live), " "))
	if p.head >= 0 {
		address += "&after=" + strconv.FormatInt(p.head, 10)
	}
	return address
}
