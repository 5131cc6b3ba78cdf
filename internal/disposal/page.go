package disposal

import (
	"context"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
	"steward/internal/wire"
)

//go:embed all:page
var pageFiles embed.FS

type pages struct {
	s *Service
	*ui.Pages
}

// Pages adds the room's pages. It is called before Panel's Render is.
func (s *Service) Pages(c *ui.Console) {
	p := pages{s, c.Parse(pageFiles)}
	s.pages = p.Pages
	c.Handle("GET /disposal", httpapi.Viewer, p.list)
	c.Handle("GET /disposal/bulk", httpapi.Operator, p.bulk)
	c.Handle("POST /disposal/bulk", httpapi.Operator, p.orderBulk)
	c.Handle("GET /disposal/{id}/certificate", httpapi.Viewer, p.certificate)
	c.Handle("GET /disposal/{id}/certificate.json", httpapi.Viewer, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
		return s.serveCertificate(w, r, who, r.PathValue("id"))
	})
	c.Handle("GET /devices/{id}/dispose", httpapi.Operator, p.dispose)
	c.Handle("POST /devices/{id}/dispose", httpapi.Operator, p.act)
}

var crumb = []ui.NavItem{{Name: "Disposal", Path: "/disposal"}}

type listData struct {
	Disposals   []Disposal
	Next        string
	States      []State
	Waiting     []Waiting
	MoreWaiting bool
}

func (p pages) list(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	q := r.URL.Query()
	data := listData{States: States}
	var err error
	if data.Disposals, data.Next, err = p.s.List(r.Context(), who, Filter{State: State(q.Get("state")), Limit: 50, Cursor: q.Get("cursor")}); err != nil {
		return err
	}
	var next string
	if data.Waiting, next, err = p.s.Waiting(r.Context(), who, httpapi.PageIn{Limit: 50}); err != nil {
		return err
	}
	data.MoreWaiting = next != ""
	return p.Render(w, r, who, "disposals.html", ui.View{Title: "Disposal", Nav: "/disposal", Live: "disposal device", Data: data})
}

// disposeForm is what was typed on the page of a device's end; do names the button.
type disposeForm struct {
	Do, Reason, Confirm string
	Attestation         Attestation
}

// errors names the fields as the page does: the form of an attestation stands beside the other one, and
// has names of its own for what both ask.
func (f disposeForm) errors(fe ui.FormErrors) ui.FormErrors {
	named := ui.FormErrors{}
	for name, text := range fe {
		name = strings.TrimPrefix(name, "attestation.")
		if f.Do == "attest" && (name == "reason" || name == "confirm") {
			name = "attest_" + name
		}
		named[name] = text
	}
	return named
}

type disposeData struct {
	Preview
	Form    disposeForm
	Errors  ui.FormErrors
	Done    *Disposal // what has ended it
	Methods []ui.Option
	Notices []ui.Notice // what it will hit
}

func (p pages) dispose(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderDispose(w, r, who, disposeData{Form: disposeForm{Attestation: Attestation{Method: MethodDestroy}}})
}

func (p pages) renderDispose(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data disposeData) error {
	id, err := deviceID(r.PathValue("id"))
	if err != nil {
		return err
	}
	if data.Preview, err = p.s.Preview(r.Context(), who, id); err != nil {
		return err
	}
	data.Notices = data.notices
	for _, x := range data.Disposals {
		if x.State.Done() {
			data.Done = &x
		}
	}
	data.Methods = []ui.Option{
		{Value: MethodDestroy, Name: "destroy: the medium can't be used again"}, {Value: MethodPurge, Name: "purge: beyond laboratory techniques"},
		{Value: MethodClear, Name: "clear: overwritten by hand"},
	}
	d := data.Preview.Device
	v := ui.View{Title: "Dispose of " + d.DisplayName(), Nav: "/disposal", Live: "disposal device", Data: data,
		Crumbs: []ui.NavItem{{Name: "Devices", Path: "/devices"}, {Name: d.DisplayName(), Path: "/devices/" + string(d.ID)}}}
	if data.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "dispose.html", v)
}

func (p pages) act(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	id, err := deviceID(r.PathValue("id"))
	if err != nil {
		return err
	}
	form := disposeForm{Do: r.PostFormValue("do"), Reason: r.PostFormValue("reason"), Confirm: r.PostFormValue("confirm"), Attestation: Attestation{
		Method: r.PostFormValue("method"), Technique: r.PostFormValue("technique"), Performer: r.PostFormValue("performer"), Witness: r.PostFormValue("witness"),
		Performed: r.PostFormValue("performed"), Media: r.PostFormValue("media"), Evidence: r.PostFormValue("evidence"),
	}}
	message := ""
	switch form.Do {
	case "retire":
		_, err = p.s.Retire(r.Context(), who, id, form.Reason)
		message = "The device is retired. Sanitize it next."
	case "order":
		_, err = p.s.Order(r.Context(), who, id, form.Reason, form.Confirm)
		message = "The order stands. The device carries it out at its next contact."
	case "attest":
		form.Reason, form.Confirm = r.PostFormValue("attest_reason"), r.PostFormValue("attest_confirm")
		_, err = p.s.Attest(r.Context(), who, id, form.Attestation, form.Reason, form.Confirm)
		message = "The device is disposed of."
	default:
		err = fault.Bad("do", "want retire, order or attest")
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderDispose(w, r, who, disposeData{Form: form, Errors: form.errors(fe)})
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, message)
	http.Redirect(w, r, "/devices/"+string(id)+"/dispose", http.StatusSeeOther)
	return nil
}

type bulkData struct {
	Bulk     *Bulk // nil while the selector can't be read
	Selector string
	Reason   string
	Confirm  string
	Errors   ui.FormErrors
}

func (p pages) bulk(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderBulk(w, r, who, bulkData{Selector: r.URL.Query().Get("selector")})
}

func (p pages) renderBulk(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data bulkData) error {
	sel, err := parseSelector("selector", data.Selector)
	if err == nil {
		var b Bulk
		if b, err = p.s.PreviewBulk(r.Context(), who, sel); err == nil {
			data.Bulk = &b
		}
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		data.Errors = fe
	} else if err != nil {
		return err
	}
	v := ui.View{Title: "Sanitize retired devices", Nav: "/disposal", Crumbs: crumb, Data: data}
	if data.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "bulk.html", v)
}

func (p pages) orderBulk(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	data := bulkData{Selector: r.PostFormValue("selector"), Reason: r.PostFormValue("reason"), Confirm: r.PostFormValue("confirm")}
	sel, err := parseSelector("selector", data.Selector)
	var n int64
	if err == nil {
		if n, err = parseCount(data.Confirm); err == nil {
			_, err = p.s.OrderBulk(r.Context(), who, sel, data.Reason, n)
		}
	}
	if data.Errors = ui.FormErrorsFrom(err); data.Errors != nil {
		return p.renderBulk(w, r, who, data)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, numbered(n, "device is", "devices are")+" ordered to sanitize themselves.")
	http.Redirect(w, r, "/disposal?state=ordered", http.StatusSeeOther)
	return nil
}

type certificateData struct {
	Disposal  string
	Report    Report
	C         *Certificate
	Statement *wire.SanitizationStatement
	Error     string
	SHA256    wire.Hash
}

// certificate shows the document for people and printers.
func (p pages) certificate(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	x, err := p.s.Get(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	document, err := p.s.Certificate(r.Context(), who.Scope, x.ID)
	if err != nil {
		return err
	}
	data := certificateData{Disposal: x.ID, SHA256: wire.HashOf(document)}
	// The page says what a check by the server's own keys has found, so a damaged database shows.
	opts := VerifyOptions{}
	if opts.IssuerKey, err = p.s.IssuerKey(); err != nil {
		return err
	}
	if opts.LedgerKey, err = p.s.cfg.Ledger.Verifier(); err != nil {
		return err
	}
	if data.Report, err = VerifyCertificate(document, opts); err != nil {
		data.Error = err.Error()
	}
	if data.C = data.Report.Certificate; data.C == nil {
		return errors.New(data.Error)
	}
	if data.C.Sanitization.Kind == KindStatement {
		if data.Statement, err = statementIn(data.C.Sanitization.Statement); err != nil {
			return err
		}
	}
	return p.Render(w, r, who, "certificate.html", ui.View{Title: "Certificate of disposal", Nav: "/disposal", Crumbs: crumb, Data: data})
}

// panelData is the dot of panel.html.
type panelData struct {
	Device    device.Device
	Disposals []Disposal
	Operator  bool
}

// Panel shows on a device's page how it ends.
func (s *Service) Panel() ui.Panel {
	return ui.Panel{ID: "disposal", Title: "Disposal", Order: 900, Aside: true, Render: func(ctx context.Context, who httpapi.Principal, d device.Device) (template.HTML, error) {
		if s.pages == nil {
			return "", errors.New("disposal: Pages must be called before a panel is shown")
		}
		tries, err := ofDevice(ctx, s.cfg.DB, d.Num)
		if err != nil {
			return "", err
		}
		return s.pages.Fragment("panel.html", panelData{d, tries, who.Role >= httpapi.Operator})
	}}
}
