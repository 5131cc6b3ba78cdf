package registry

import (
	"context"
	"embed"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
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
	c.Handle("GET /devices/{id}", httpapi.Viewer, p.show)
	c.Handle("POST /devices/{id}", httpapi.Operator, p.edit)
	c.Handle("GET /devices/{id}/move", httpapi.Operator, p.moveForm)
	c.Handle("POST /devices/{id}/move", httpapi.Operator, p.move)
}

// count is one number that links to the devices behind it.
type count struct {
	Name  string
	Count int64
	Href  string
}

type homeView struct {
	Fleet    Fleet
	Stages   []count
	Presence []count
	Notices  []ui.Notice
	Recent   []recentEvent
	Failed   bool // a room could not say what needs somebody
}

type recentEvent struct {
	ledger.Event
	Sentence string
	Who      string
}

func (p *pages) home(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	fleet, err := p.Fleet(r.Context(), who.Scope)
	if err != nil {
		return err
	}
	v := homeView{Fleet: fleet}
	for _, s := range stageList(fleet.Stages) {
		v.Stages = append(v.Stages, count{strings.ReplaceAll(string(s.Stage), "_", " "), s.Count, "/devices?stage=" + string(s.Stage)})
	}
	for _, state := range PresenceStates {
		if n, known := fleet.Presence[state]; known {
			v.Presence = append(v.Presence, count{state, n, "/devices?presence=" + state})
		}
	}
	v.Notices, v.Failed = p.notices(r.Context(), who.Scope)
	if v.Recent, err = p.recent(r.Context(), who.Scope); err != nil {
		return err
	}
	return p.files.Render(w, r, who, "home.html", ui.View{Title: "Fleet", Nav: "/", Data: v,
		Live: "device purchase provisioning release update monitoring disposal"})
}

// notices asks all rooms what needs somebody, the worst first. A room that fails must not take the first
// page away from people, who may be looking for the cause of just that.
func (p *pages) notices(ctx context.Context, scope device.Scope) (out []ui.Notice, failed bool) {
	for _, ask := range p.cfg.Notices {
		some, err := ask(ctx, scope)
		if err != nil {
			p.log.ErrorContext(ctx, "notices of a room failed", "error", err)
			failed = true
			continue
		}
		out = append(out, some...)
	}
	slices.SortStableFunc(out, func(a, b ui.Notice) int { return int(b.Level) - int(a.Level) })
	return out, failed
}

// recentEvents is how many the home page shows.
const recentEvents = 12

func (p *pages) recent(ctx context.Context, scope device.Scope) ([]recentEvent, error) {
	if p.cfg.Recent == nil {
		return nil, nil
	}
	events, _, err := p.cfg.Recent.Events(ctx, p.cfg.Recent.Within(scope, ledger.Filter{Newest: true, Limit: recentEvents}))
	if err != nil {
		return nil, err
	}
	out := make([]recentEvent, len(events))
	for i, e := range events {
		out[i] = recentEvent{Event: e, Who: e.Actor.Name}
		if p.cfg.Sentence != nil {
			out[i].Sentence = p.cfg.Sentence(e)
		}
		if out[i].Sentence == "" {
			out[i].Sentence = strings.NewReplacer(".", ": ", "_", " ").Replace(e.Kind)
		}
		if out[i].Who == "" {
			out[i].Who = e.Actor.ID
		}
	}
	return out, nil
}

type listView struct {
	Rows     []Row
	Next     string
	Filtered bool
	Empty    bool        // the scope has no device at all
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
		v.Rows, v.Next, err = p.List(r.Context(), who.Scope, f, httpapi.PageIn{Limit: 50, Cursor: q.Get("cursor")})
	}
	if v.Errors = filterErrors(err); v.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	} else if err != nil {
		return err
	}
	if len(v.Rows) == 0 && !v.Filtered && v.Errors == nil {
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

type deviceView struct {
	Row
	Steps  []step
	Moves  []device.Stage
	Panels []panelView
	Name   string // as typed
	Labels string // as typed
	Errors ui.FormErrors
}

// step is one stage of the way that every device goes.
type step struct{ Name, Class string }

type panelView struct {
	ID, Title string
	HTML      template.HTML
	Failed    bool
}

func (p *pages) show(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	row, err := p.Get(r.Context(), who.Scope, device.ID(r.PathValue("id")))
	if err != nil {
		return err
	}
	return p.renderDevice(w, r, who, deviceView{Row: row, Name: row.Device.Name, Labels: lines(row.Device.Labels)})
}

// lines writes labels one per line, for a text field.
func lines(labels map[string]string) string {
	return strings.ReplaceAll(device.FormatLabels(labels), ",", "\n")
}

func (p *pages) renderDevice(w http.ResponseWriter, r *http.Request, who httpapi.Principal, v deviceView) error {
	v.Steps, v.Moves = steps(v.Stage), movesByHand(v.Stage)
	for _, panel := range p.cfg.Panels {
		html, err := panel.Render(r.Context(), who, v.Device)
		if err != nil {
			if r.Context().Err() != nil {
				return err
			}
			p.log.ErrorContext(r.Context(), "panel failed", "panel", panel.ID, "device.id", v.ID, "error", err)
		}
		if html != "" || err != nil {
			v.Panels = append(v.Panels, panelView{ID: panel.ID, Title: panel.Title, HTML: html, Failed: err != nil})
		}
	}
	view := ui.View{Title: v.DisplayName(), Nav: "/devices", Crumbs: devicesCrumb, Data: v,
		Live: "device twin purchase provisioning update monitoring disposal"}
	if v.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.files.Render(w, r, who, "device.html", view)
}

// steps shows the way of a device with its present place; the side stages stand in for active.
func steps(now device.Stage) []step {
	way := []device.Stage{device.Ordered, device.Received, device.Staged, device.Enrolled, device.Active, device.Retired, device.Disposed}
	at := slices.Index(way, now)
	if at < 0 {
		at = slices.Index(way, device.Active)
		way[at] = now
	}
	out := make([]step, len(way))
	for i, s := range way {
		out[i].Name = strings.ReplaceAll(string(s), "_", " ")
		switch {
		case i < at || now == device.Disposed:
			out[i].Class = "done"
		case i == at && now == device.Quarantined:
			out[i].Class = "failed"
		case i == at:
			out[i].Class = "now"
		}
	}
	return out
}

func (p *pages) edit(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	id := device.ID(r.PathValue("id"))
	name, text := r.PostFormValue("name"), r.PostFormValue("labels")
	labels, err := formLabels(text)
	if err == nil {
		err = p.db.Write(r.Context(), func(tx *sqldb.Tx) error {
			d, err := p.inScope(r.Context(), tx, who.Scope, id)
			if err != nil {
				return err
			}
			c := Change{Name: &name, Set: labels}
			for k := range d.Labels {
				if _, stays := labels[k]; !stays {
					c.Remove = append(c.Remove, k)
				}
			}
			_, err = p.Edit(r.Context(), tx, who, id, c, r.PostFormValue("etag"))
			return err
		})
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		row, err := p.Get(r.Context(), who.Scope, id)
		if err != nil {
			return err
		}
		return p.renderDevice(w, r, who, deviceView{Row: row, Name: name, Labels: text, Errors: fe})
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "Name and labels are saved.")
	http.Redirect(w, r, "/devices/"+string(id), http.StatusSeeOther)
	return nil
}

type moveView struct {
	Row
	To      device.Stage
	Means   string
	Missing string // why it is not possible now
	Reason  string
	Errors  ui.FormErrors
}

// means says what a move brings about.
var means = map[device.Stage]string{
	device.Received:    "It goes back into stock.",
	device.Staged:      "It may enroll: make an enrollment token for it next.",
	device.Active:      "It is in service and receives its desired state again.",
	device.Quarantined: "It may talk to Steward and receives nothing: no updates, no configuration. It can come back.",
	device.InTransfer:  "It is prepared for a new owner.",
	device.Retired:     "It leaves service for good. There is no way back: the next step is its disposal.",
}

func (p *pages) moveForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderMove(w, r, who, moveView{To: device.Stage(r.FormValue("to"))})
}

func (p *pages) renderMove(w http.ResponseWriter, r *http.Request, who httpapi.Principal, v moveView) error {
	var err error
	if v.Row, err = p.Get(r.Context(), who.Scope, device.ID(r.PathValue("id"))); err != nil {
		return err
	}
	if _, err := device.ParseStage(string(v.To)); err != nil {
		return fault.Bad("query.to", "%s", err)
	}
	refusal := byHand(v.To)
	if refusal == nil {
		refusal = p.MayMove(r.Context(), p.db, v.Device, v.To)
	}
	if refusal != nil {
		if !isRefusal(refusal) {
			return refusal
		}
		v.Missing = refusal.Error()
	}
	v.Means = means[v.To]
	view := ui.View{Title: "Move to " + strings.ReplaceAll(string(v.To), "_", " "), Nav: "/devices", Data: v,
		Crumbs: append(slices.Clone(devicesCrumb), ui.NavItem{Name: v.DisplayName(), Path: "/devices/" + string(v.ID)})}
	if v.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.files.Render(w, r, who, "device_move.html", view)
}

func (p *pages) move(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	id, m := device.ID(r.PathValue("id")), device.Move{To: device.Stage(r.PostFormValue("to")), Reason: r.PostFormValue("reason")}
	var d device.Device
	err := p.db.Write(r.Context(), func(tx *sqldb.Tx) (err error) {
		d, err = p.MoveOne(r.Context(), tx, who, id, m, r.PostFormValue("etag"))
		return err
	})
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderMove(w, r, who, moveView{To: m.To, Reason: m.Reason, Errors: fe})
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, d.DisplayName()+" is "+strings.ReplaceAll(string(d.Stage), "_", " ")+" now.")
	http.Redirect(w, r, "/devices/"+string(id), http.StatusSeeOther)
	return nil
}
