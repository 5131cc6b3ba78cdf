package registry

import (
	"html/template"
	"net/http"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

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
	Aside     bool // beside the others on wide screens
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
			v.Panels = append(v.Panels, panelView{ID: panel.ID, Title: panel.Title, HTML: html, Failed: err != nil, Aside: panel.Aside})
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
