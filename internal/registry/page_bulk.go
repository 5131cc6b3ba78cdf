package registry

import (
	"net/http"
	"net/url"
	"strings"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

// bulkView is the page on which many devices are changed: what to do, then what it would hit, then what
// became of it.
type bulkView struct {
	Query   url.Values // picks the devices and says what to do; carried from step to step
	Action  Action
	Labels  string // as typed
	Keys    string // as typed
	To      device.Stage
	Reason  string
	Moves   []ui.Option
	Words   string
	Preview *Preview
	Result  *BulkResult
	Errors  ui.FormErrors
}

// pickFields are those of the query that pick devices.
var pickFields = []string{"id", "stage", "selector", "model", "presence", "q"}

// Hidden lists what a form must carry on, as names and values.
func (v bulkView) Hidden() [][2]string {
	var out [][2]string
	for _, name := range pickFields {
		for _, value := range v.Query[name] {
			if value != "" {
				out = append(out, [2]string{name, value})
			}
		}
	}
	return out
}

// readBulk reads the wish from a form.
func (p *pages) readBulk(form url.Values) (Bulk, bulkView, error) {
	v := bulkView{Query: form, Action: Action(form.Get("action")), Labels: form.Get("labels"), Keys: form.Get("keys"),
		To: device.Stage(form.Get("to")), Reason: form.Get("reason")}
	for _, s := range device.Stages {
		if byHand(s) == nil {
			v.Moves = append(v.Moves, ui.Option{Value: string(s), Name: strings.ReplaceAll(string(s), "_", " ")})
		}
	}
	f, err := p.queryFilter(form)
	if err != nil {
		return Bulk{}, v, err
	}
	for _, id := range form["id"] {
		f.IDs = append(f.IDs, device.ID(id))
	}
	b := Bulk{Action: v.Action, Filter: f, Reason: v.Reason}
	switch v.Action {
	case LabelAction:
		if b.Labels, err = formLabels(v.Labels); err != nil {
			return b, v, err
		}
	case UnlabelAction:
		b.Keys = strings.FieldsFunc(v.Keys, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
	case MoveAction:
		b.To = v.To
	}
	v.Words = b.words()
	return b, v, nil
}

func (p *pages) bulkPreview(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	b, v, err := p.readBulk(r.URL.Query())
	if err == nil && v.Action != "" {
		var preview Preview
		if preview, err = p.Preview(r.Context(), who, b); err == nil {
			v.Preview = &preview
		}
	}
	return p.renderBulk(w, r, who, v, err)
}

func (p *pages) renderBulk(w http.ResponseWriter, r *http.Request, who httpapi.Principal, v bulkView, err error) error {
	view := ui.View{Title: "Change several devices", Nav: "/devices", Crumbs: devicesCrumb}
	if v.Errors = filterErrors(err); v.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	} else if err != nil {
		return err
	}
	view.Data = v
	return p.files.Render(w, r, who, "bulk.html", view)
}

func (p *pages) bulkApply(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	b, v, err := p.readBulk(r.PostForm)
	if err != nil {
		return p.renderBulk(w, r, who, v, err)
	}
	res, err := p.Apply(r.Context(), who, b, r.PostForm.Get("token"))
	if err != nil {
		refusal := err
		if preview, err := p.Preview(r.Context(), who, b); err == nil { // shown again as it is now
			v.Preview = &preview
		}
		return p.renderBulk(w, r, who, v, refusal)
	}
	if res.Run != nil {
		http.Redirect(w, r, "/changes/"+res.Run.ID, http.StatusSeeOther)
		return nil
	}
	v.Result = &res
	return p.renderBulk(w, r, who, v, nil)
}

// bulkRun shows how far a change of many devices is.
func (p *pages) bulkRun(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	run, err := p.BulkRunOf(r.Context(), who.Scope, r.PathValue("id"))
	if err != nil {
		return err
	}
	return p.files.Render(w, r, who, "bulk_run.html", ui.View{Title: "Change of many devices", Nav: "/devices", Crumbs: devicesCrumb, Live: "device", Data: run})
}
