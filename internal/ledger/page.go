package ledger

import (
	"context"
	"embed"
	"html/template"
	"net/http"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

//go:embed page/*.html
var pageFiles embed.FS

// liveTopics are all topics there are: the audit view shows everything. At most 16, as package ui allows.
const liveTopics = "access device disposal ledger monitoring provisioning purchase release twin update"

// passportEvents is how many events the device page shows; the rest is behind a link.
const passportEvents = 12

// pages draws the audit view and the passport.
type pages struct {
	l     *Ledger
	pages *ui.Pages
}

// Pages adds the audit view (GET /ledger, GET /ledger/{id}) to the console and returns the device
// page's panel with its passport.
func (l *Ledger) Pages(c *ui.Console) ui.Panel {
	p := &pages{l: l, pages: c.Parse(pageFiles)}
	c.Handle("GET /ledger", httpapi.Viewer, p.audit)
	c.Handle("GET /ledger/{id}", httpapi.Viewer, p.event)
	return ui.Panel{ID: "passport", Title: "Passport", Order: 250, Render: p.passport}
}

// row is an event as pages show it.
type row struct {
	Event
	Text       string
	DeviceName string // its name where one is known, else its ID
}

// ByHand tells whether somebody or something other than the device itself did it.
func (r row) ByHand() bool {
	return r.Actor.Kind != device.ActorDevice || r.Actor.ID != string(r.Device)
}

func (p *pages) rows(events []Event) []row {
	out := make([]row, len(events))
	names := map[device.ID]string{} // of the devices that speak for themselves among these
	for _, e := range events {
		if e.Actor.Kind == device.ActorDevice && e.Actor.Name != "" {
			names[device.ID(e.Actor.ID)] = e.Actor.Name
		}
	}
	for i, e := range events {
		out[i] = row{Event: e, Text: p.l.Sentence(e), DeviceName: string(e.Device)}
		if name := names[e.Device]; name != "" {
			out[i].DeviceName = name
		}
	}
	return out
}

// auditForm is what the audit view's filter holds, all of it in the URL.
type auditForm struct{ Kind, Device, Subject, Actor, Since, Until, Order string }

func readAuditForm(r *http.Request) auditForm {
	q := r.URL.Query()
	value := func(name string) string { return strings.TrimSpace(q.Get(name)) }
	return auditForm{Kind: value("kind"), Device: value("device"), Subject: value("subject"), Actor: value("actor"),
		Since: value("since"), Until: value("until"), Order: value("order")}
}

// filter turns the form into a filter; days are of UTC and both included.
func (f auditForm) filter() (Filter, error) {
	out := Filter{Device: device.ID(f.Device), Subject: f.Subject, Actor: f.Actor, Newest: f.Order != "oldest"}
	if f.Kind != "" {
		out.Kinds = strings.FieldsFunc(f.Kind, func(r rune) bool { return r == ' ' || r == ',' })
	}
	invalid := &fault.Invalid{}
	day := func(name, text string) time.Time {
		if text == "" {
			return time.Time{}
		}
		t, err := time.Parse(time.DateOnly, text)
		if err != nil {
			invalid.Add(name, "%q is not a day: write it as 2026-03-01", text)
		}
		return t
	}
	out.Since = day("since", f.Since)
	if until := day("until", f.Until); !until.IsZero() {
		out.Until = until.AddDate(0, 0, 1)
	}
	return out, invalid.OrNil()
}

// any tells whether the form narrows anything.
func (f auditForm) any() bool {
	f.Order = ""
	return f != auditForm{}
}

type auditView struct {
	Form     auditForm
	Errors   ui.FormErrors
	Events   []row
	Next     string
	Filtered bool
	Head     *HeadInfo // nil while there is none
}

func (p *pages) audit(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := readAuditForm(r)
	view := auditView{Form: form, Filtered: form.any()}
	status := http.StatusOK
	f, err := form.filter()
	if err == nil {
		f.Cursor = r.URL.Query().Get("cursor")
		var events []Event
		events, view.Next, err = p.l.Events(r.Context(), p.l.Within(who.Scope, f))
		view.Events = p.rows(events)
	}
	if err != nil {
		if view.Errors = ui.FormErrorsFrom(err); view.Errors == nil {
			return err
		}
		status = http.StatusUnprocessableEntity
	}
	if head, err := p.l.headInfo(r.Context()); err == nil {
		view.Head = &head
	}
	return p.pages.Render(w, r, who, "audit.html", ui.View{Title: "Ledger", Nav: "/ledger", Live: liveTopics, Status: status, Data: view})
}

type eventView struct {
	Event row
	Head  *HeadInfo
}

func (p *pages) event(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	e, err := p.l.ByID(r.Context(), who.Scope, r.PathValue("id"))
	if err != nil {
		return err
	}
	view := eventView{Event: row{Event: e, Text: p.l.Sentence(e)}}
	if head, err := p.l.headInfo(r.Context()); err == nil {
		view.Head = &head
	}
	return p.pages.Render(w, r, who, "event.html", ui.View{Title: view.Event.Text, Nav: "/ledger",
		Crumbs: []ui.NavItem{{Name: "Ledger", Path: "/ledger"}}, Data: view})
}

type passportView struct {
	Device device.ID
	Events []row
	More   bool
}

// passport is the device page's panel; the reader's scope has been checked against the device.
func (p *pages) passport(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	events, next, err := p.l.Events(ctx, Filter{Tenant: d.Tenant, Device: d.ID, Newest: true, Limit: passportEvents})
	if err != nil {
		return "", err
	}
	return p.pages.Fragment("passport.html", passportView{Device: d.ID, Events: p.rows(events), More: next != ""})
}
