package registry

import (
	"embed"
	"net/http"
	"net/url"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

//go:embed page/*.html
var pageFiles embed.FS

// pages are the console's pages of the desk.
type pages struct {
	*Desk
	files *ui.Pages
}

// Pages adds home, the list of devices, a device's page and bulk actions to the console.
func (dk *Desk) Pages(c *ui.Console) {
	p := &pages{Desk: dk, files: c.Parse(pageFiles)}
	c.Handle("GET /{$}", httpapi.Viewer, p.home)
	c.Handle("GET /devices", httpapi.Viewer, p.list)
	c.Handle("GET /devices/new", httpapi.Operator, p.newForm)
	c.Handle("POST /devices", httpapi.Operator, p.create)
	c.Handle("GET /devices/bulk", httpapi.Operator, p.bulkPreview)
	c.Handle("POST /devices/bulk", httpapi.Operator, p.bulkApply)
	c.Handle("GET /changes/{id}", httpapi.Viewer, p.bulkRun)
	c.Handle("GET /devices/{id}", httpapi.Viewer, p.show)
	c.Handle("POST /devices/{id}", httpapi.Operator, p.edit)
	c.Handle("GET /devices/{id}/move", httpapi.Operator, p.moveForm)
	c.Handle("POST /devices/{id}/move", httpapi.Operator, p.move)
}

type listView struct {
	Rows     []Row
	Next     string
	Filtered bool
	Empty    bool        // the scope has no device at all
	Searched bool        // the search ended before the end of the fleet; Next goes on with it
	Stages   []ui.Option // choices of the filter
	Presence []ui.Option // none when presence is not known
	Errors   ui.FormErrors
	All      string // URL of the bulk page for everything that the filter picks
}

// queryFilter reads the filter from the page's URL.
func (p *pages) queryFilter(q url.Values) (Filter, error) {
	return p.filter(q["stage"], q.Get("selector"), q.Get("model"), q.Get("presence"), q.Get("q"))
}

func (p *pages) list(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	q := r.URL.Query()
	v := listView{Stages: []ui.Option{{Name: "all stages"}}}
	for _, s := range device.Stages {
		v.Stages = append(v.Stages, ui.Option{Value: string(s), Name: strings.ReplaceAll(string(s), "_", " ")})
	}
	if p.cfg.Presence != nil {
		v.Presence = []ui.Option{{Name: "any presence"}}
		for _, s := range PresenceStates {
			v.Presence = append(v.Presence, ui.Option{Value: s, Name: s})
		}
	}
	view := ui.View{Title: "Devices", Nav: "/devices", Live: "device monitoring update"}
	f, err := p.queryFilter(q)
	if err == nil {
		v.Filtered = !f.empty()
		v.Rows, v.Next, err = p.Desk.list(r.Context(), who.Scope, f, httpapi.PageIn{Limit: 50, Cursor: q.Get("cursor")}, consoleRows)
		v.Searched = v.Next != "" && len(v.Rows) < 50
	}
	if v.Errors = filterErrors(err); v.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	} else if err != nil {
		return err
	}
	if len(v.Rows) == 0 && !v.Filtered && !v.Searched && v.Errors == nil {
		v.Empty = true
	}
	q.Del("cursor")
	v.All = "/devices/bulk?" + q.Encode()
	view.Data = v
	return p.files.Render(w, r, who, "devices.html", view)
}

// filterErrors names the fields of the filter form.
func filterErrors(err error) ui.FormErrors {
	fe := ui.FormErrors{}
	for name, text := range ui.FormErrorsFrom(err) {
		fe[strings.TrimPrefix(name, "query.")] = text
	}
	if len(fe) == 0 {
		return nil
	}
	return fe
}

type newView struct {
	Serial, Model, Name, Labels, Reason string
	Errors                              ui.FormErrors
}

func (p *pages) newForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderNew(w, r, who, newView{})
}

func (p *pages) renderNew(w http.ResponseWriter, r *http.Request, who httpapi.Principal, v newView) error {
	view := ui.View{Title: "Register a device", Nav: "/devices", Crumbs: devicesCrumb, Data: v}
	if v.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.files.Render(w, r, who, "device_new.html", view)
}

var devicesCrumb = []ui.NavItem{{Name: "Devices", Path: "/devices"}}

func (p *pages) create(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	v := newView{Serial: r.PostFormValue("serial"), Model: r.PostFormValue("model"), Name: r.PostFormValue("name"),
		Labels: r.PostFormValue("labels"), Reason: r.PostFormValue("reason")}
	var d device.Device
	labels, err := formLabels(v.Labels)
	if err == nil {
		err = p.db.Write(r.Context(), func(tx *sqldb.Tx) (err error) {
			d, err = p.Register(r.Context(), tx, who, device.New{Serial: v.Serial, Model: v.Model, Name: v.Name, Labels: labels, Reason: v.Reason})
			return err
		})
	}
	if v.Errors = ui.FormErrorsFrom(err); v.Errors != nil {
		return p.renderNew(w, r, who, v)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, d.DisplayName()+" is registered.")
	http.Redirect(w, r, "/devices/"+string(d.ID), http.StatusSeeOther)
	return nil
}

// formLabels reads labels from a text field.
func formLabels(text string) (map[string]string, error) {
	labels, err := device.ParseLabels(text)
	if err != nil {
		return nil, fault.Bad("body.labels", "%s", err)
	}
	return labels, nil
}
