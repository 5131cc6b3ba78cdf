package update

import (
	"context"
	"html/template"
	"net/http"
	"net/url"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
	"steward/internal/ui/chart"
	"steward/internal/wire"
)

const navPath = "/updates"

var crumbs = []ui.NavItem{{Name: "Updates", Path: navPath}}

// page holds what the handlers share.
type page struct {
	s     *Service
	pages *ui.Pages
}

// Pages adds the room's pages to the console.
func (s *Service) Pages(c *ui.Console) {
	s.pages = c.Parse(pageFiles)
	p := page{s: s, pages: s.pages}
	c.Handle("GET /updates", httpapi.Viewer, p.list)
	c.Handle("GET /updates/new", httpapi.ReleaseManager, p.showNew)
	c.Handle("POST /updates", httpapi.ReleaseManager, p.create)
	c.Handle("GET /updates/devices", httpapi.Viewer, p.devices)
	c.Handle("GET /updates/{id}", httpapi.Viewer, p.assignment)
	c.Handle("GET /updates/{id}/devices", httpapi.Viewer, p.devices)
	c.Handle("POST /updates/{id}/cancel", httpapi.ReleaseManager, p.cancel)
	c.Handle("POST /updates/{id}/retry", httpapi.ReleaseManager, p.retry)
}

// Panel is the room's part of the device page; Pages must have been called before it is rendered.
func (s *Service) Panel() ui.Panel {
	return ui.Panel{ID: "updates", Title: "Updates", Order: 200, Render: s.renderPanel}
}

type listData struct {
	Items  []Assignment
	Next   string
	States []AssignmentState
}

func (p page) list(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := Filter{Release: r.FormValue("name"), State: AssignmentState(r.FormValue("state")), Cursor: r.FormValue("cursor")}
	items, next, err := p.s.Assignments(r.Context(), who.Scope, f)
	if err != nil {
		return err
	}
	data := listData{Items: items, Next: next, States: []AssignmentState{Active, Overtaken, CalledBack}}
	return p.pages.Render(w, r, who, "updates.html", ui.View{Title: "Updates", Nav: navPath, Live: "update", Data: data})
}

type failureRow struct {
	Failure
	Href string
}

type assignmentData struct {
	A           Assignment
	Bar         template.HTML
	Failures    []failureRow
	Uncommitted int64
	Errors      ui.FormErrors
}

func (p page) assignment(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.showAssignment(w, r, who, nil)
}

func (p page) showAssignment(w http.ResponseWriter, r *http.Request, who httpapi.Principal, errs ui.FormErrors) error {
	d, err := p.s.detail(r.Context(), who.Scope, r.PathValue("id"))
	if err != nil {
		return err
	}
	data := assignmentData{A: d.Assignment, Bar: progressBar(d.Assignment), Errors: errs}
	for s, n := range d.Counts {
		if _, own := rank[s]; own && s != wire.UpdateCommitted {
			data.Uncommitted += n
		}
	}
	for _, f := range d.Failures {
		data.Failures = append(data.Failures, failureRow{f, devicesHref(d.ID, url.Values{"state": {string(f.State)}, "cause": {f.Cause}})})
	}
	v := ui.View{Title: d.Release + " " + d.Version, Nav: navPath, Crumbs: crumbs, Live: "update", Data: data}
	if len(errs) > 0 {
		v.Status = http.StatusConflict
	}
	return p.pages.Render(w, r, who, "assignment.html", v)
}

func devicesHref(id string, q url.Values) string {
	return navPath + "/" + url.PathEscape(id) + "/devices?" + q.Encode()
}

var stateClass = map[State]string{
	wire.UpdateCommitted: "good", wire.UpdateRolledBack: "bad", wire.UpdateFailed: "bad",
	wire.UpdateDownloading: "info", wire.UpdateDownloaded: "info", wire.UpdateInstalled: "info", wire.UpdateHealthy: "info",
}

// progressBar shows the devices of an assignment by state; each part links to them.
func progressBar(a Assignment) template.HTML {
	bar := chart.StackBar{Title: "Devices by how far they are with " + a.Release + " " + a.Version}
	for _, s := range States {
		n := a.Counts[s]
		if n == 0 {
			continue
		}
		class := stateClass[s]
		if class == "" {
			class = "idle"
		}
		bar.Parts = append(bar.Parts, chart.Part{Name: strings.ReplaceAll(string(s), "_", " "), Value: n, Class: class, Href: devicesHref(a.ID, url.Values{"state": {string(s)}})})
	}
	return bar.HTML()
}

type devicesData struct {
	Items []DeviceState
	Next  string
	Chips []string
}

// devices lists the devices behind a number, of one assignment or of all that is asked for now.
func (p page) devices(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := DeviceFilter{
		Assignment: r.PathValue("id"), Release: r.FormValue("release"), Version: r.FormValue("version"),
		State: State(r.FormValue("state")), Cause: r.FormValue("cause"), Busy: r.FormValue("busy") != "", Cursor: r.FormValue("cursor"),
	}
	v := ui.View{Title: "Devices", Nav: navPath, Crumbs: crumbs, Live: "update"}
	if f.Assignment != "" {
		a, err := p.s.Assignment(r.Context(), who.Scope, f.Assignment)
		if err != nil {
			return err
		}
		v.Crumbs = append([]ui.NavItem{}, crumbs...)
		v.Crumbs = append(v.Crumbs, ui.NavItem{Name: a.Release + " " + a.Version, Path: navPath + "/" + a.ID})
	}
	items, next, err := p.s.DeviceStates(r.Context(), who.Scope, f)
	if err != nil {
		return err
	}
	v.Data = devicesData{Items: items, Next: next, Chips: []string{"release", "version", "state", "cause", "busy"}}
	return p.pages.Render(w, r, who, "devices.html", v)
}

type assignForm struct{ Name, Version, Selector, Note string }

type newData struct {
	Form        assignForm
	Preview     *Preview
	DevicesHref string
	Errors      ui.FormErrors
}

// showNew is the form with its preview, so that a link from a release shows at once what it would do.
func (p page) showNew(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := assignForm{Name: r.FormValue("release"), Version: r.FormValue("version"), Selector: r.FormValue("selector")}
	return p.showForm(w, r, who, newData{Form: form})
}

func (p page) showForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data newData) error {
	v := ui.View{Title: "Assign a release", Nav: navPath, Crumbs: crumbs}
	n, err := data.Form.parse()
	if err == nil && n.Release != "" && n.Version != "" {
		var preview Preview
		if preview, err = p.s.Preview(r.Context(), who.Scope, n); err == nil {
			data.Preview = &preview
			data.DevicesHref = "/devices?" + url.Values{"selector": {data.Form.Selector}}.Encode()
		}
	}
	if data.Errors == nil {
		if data.Errors, err = formErrors(err); err != nil {
			return err
		}
	}
	if len(data.Errors) > 0 {
		v.Status = http.StatusUnprocessableEntity
	}
	v.Data = data
	return p.pages.Render(w, r, who, "new.html", v)
}

// formErrors shows a release that is not there at its field.
func formErrors(err error) (ui.FormErrors, error) {
	if err == nil {
		return nil, nil
	}
	if httpapi.Status(err) == http.StatusNotFound {
		return ui.FormErrors{"version": err.Error()}, nil
	}
	if errs := ui.FormErrorsFrom(err); errs != nil {
		return errs, nil
	}
	return nil, err
}

func (f assignForm) parse() (NewAssignment, error) {
	sel, err := device.ParseSelector(f.Selector)
	if err != nil {
		return NewAssignment{}, fault.Bad("selector", "%v", err)
	}
	return NewAssignment{Release: strings.TrimSpace(f.Name), Version: strings.TrimSpace(f.Version), Selector: sel, Note: f.Note}, nil
}

func (p page) create(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	data := newData{Form: assignForm{
		Name: r.PostFormValue("name"), Version: r.PostFormValue("version"), Selector: r.PostFormValue("selector"), Note: r.PostFormValue("note"),
	}}
	if r.PostFormValue("do") != "assign" {
		return p.showForm(w, r, who, data)
	}
	n, err := data.Form.parse()
	var made Assignment
	if err == nil {
		made, err = p.s.Assign(r.Context(), who.Actor, who.Scope, n)
	}
	if data.Errors, err = formErrors(err); err != nil {
		return err
	}
	if len(data.Errors) > 0 {
		return p.showForm(w, r, who, data)
	}
	http.Redirect(w, r, navPath+"/"+made.ID, http.StatusSeeOther)
	return nil
}

func (p page) cancel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	_, err := p.s.Cancel(r.Context(), who.Actor, who.Scope, r.PathValue("id"), r.PostFormValue("reason"))
	return p.changed(w, r, who, "The assignment was cancelled.", err)
}

func (p page) retry(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	_, err := p.s.Retry(r.Context(), who.Actor, who.Scope, r.PathValue("id"), r.PostFormValue("cause"))
	return p.changed(w, r, who, "The devices try again.", err)
}

func (p page) changed(w http.ResponseWriter, r *http.Request, who httpapi.Principal, message string, err error) error {
	if errs := ui.FormErrorsFrom(err); errs != nil {
		return p.showAssignment(w, r, who, errs)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, message)
	http.Redirect(w, r, navPath+"/"+url.PathEscape(r.PathValue("id")), http.StatusSeeOther)
	return nil
}

func (s *Service) renderPanel(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	u, err := s.OfDevice(ctx, d)
	if err != nil {
		return "", err
	}
	return s.pages.Fragment("panel.html", u)
}
