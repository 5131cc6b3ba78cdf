package provisioning

import (
	"context"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

//go:embed page/*.html
var pageFiles embed.FS

const (
	pagePath   = "/enrollment"
	pageTokens = 50
	pagePast   = 10
)

// Pages adds the room's pages to the console.
func (s *Service) Pages(c *ui.Console) {
	s.pages = c.Parse(pageFiles)
	c.Handle("GET /enrollment", httpapi.Viewer, s.pageEnrollment)
	c.Handle("GET /enrollment/new", httpapi.Operator, s.pageNewToken)
	c.Handle("POST /enrollment/tokens", httpapi.Operator, s.pageCreateToken)
	c.Handle("POST /enrollment/tokens/{id}/revoke", httpapi.Operator, s.pageRevokeToken)
	c.Handle("POST /enrollment/policy", httpapi.Admin, s.pageSetPolicy)
	c.Handle("GET /enrollment/certificates", httpapi.Viewer, s.pageExpiring)
	c.Handle("GET /enrollment/clones", httpapi.Viewer, s.pageClones)
	c.Handle("GET /devices/{id}/revoke", httpapi.Operator, s.pageConfirmRevoke)
	c.Handle("POST /devices/{id}/revoke", httpapi.Operator, s.pageRevoke)
	c.Handle("POST /devices/{id}/clear-clone-flag", httpapi.Operator, s.pageClearClone)
}

type enrollmentData struct {
	Tokens      []Token
	Next        string
	Split       bool    // without a filter the open ones come first and the others at the end
	Past        []Token // the last of the others
	MorePast    bool
	Command     string
	States      []ui.Option
	Recent      []Certificate
	Policy      Policy
	Policies    []ui.Option
	Authorities []Authority
	Errors      ui.FormErrors
}

var policyOptions = []ui.Option{
	{Value: string(QuarantineUnpurchased), Name: "Quarantine it: it may talk and gets nothing until somebody looks"},
	{Value: string(AcceptUnpurchased), Name: "Accept it like a device from stock"},
	{Value: string(RefuseUnpurchased), Name: "Refuse it: it gets no certificate"},
}

var stateOptions = []ui.Option{
	{Value: "", Name: "All"}, {Value: "open", Name: "Open"}, {Value: "used", Name: "Used"}, {Value: "expired", Name: "Expired"}, {Value: "revoked", Name: "Revoked"},
}

func (s *Service) pageEnrollment(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	ctx := r.Context()
	q := tokenQuery{scope: who.Scope, state: TokenState(r.FormValue("state")), reused: r.FormValue("reused") != "", serial: strings.TrimSpace(r.FormValue("serial")), limit: pageTokens}
	if err := httpapi.DecodeCursor(r.FormValue("cursor"), &q.after); err != nil {
		return err
	}
	data := enrollmentData{States: stateOptions, Policies: policyOptions, Command: s.command(IssuedToken{Token: Token{Serial: "SERIAL"}, Secret: "TOKEN"})}
	if q.state == "" && q.serial == "" && !q.reused {
		past, more, err := s.Tokens(ctx, tokenQuery{scope: who.Scope, past: true, limit: pagePast})
		if err != nil {
			return err
		}
		data.Split, data.Past, data.MorePast, q.state = len(past) > 0, past, more != nil, TokenOpen
	}
	tokens, next, err := s.Tokens(ctx, q)
	if err != nil {
		return err
	}
	data.Tokens = tokens
	if next != nil {
		data.Next = httpapi.EncodeCursor(*next)
	}
	if data.Recent, err = s.recent(ctx, who.Scope); err != nil {
		return err
	}
	if data.Policy, err = s.Policy(ctx, who.Scope.Tenant); err != nil {
		return err
	}
	if data.Authorities, err = s.Authorities(ctx, who.Scope.Tenant); err != nil {
		return err
	}
	return s.pages.Render(w, r, who, "enrollment.html", ui.View{Title: "Enrollment", Nav: pagePath, Live: "provisioning", Data: data})
}

// recent are the latest certificates of the reader's devices.
func (s *Service) recent(ctx context.Context, scope device.Scope) ([]Certificate, error) {
	q := sqldb.NewQuery("SELECT "+certificateColumns+" FROM provisioning_certificate WHERE tenant = ?", string(scope.Tenant))
	if !scope.Selector.Empty() {
		nums, args := s.cfg.Fleet.Matching(scope, device.Selector{}, nil)
		q.Add("AND num IN ("+nums+")", args...)
	}
	q.Add("ORDER BY issued DESC LIMIT 10")
	return listCertificates(ctx, s.cfg.DB, q, s.cfg.Now())
}

type tokenForm struct{ Device, Serial, Life, Note string }

type newTokenData struct {
	Form    tokenForm
	Errors  ui.FormErrors
	Lives   []ui.Option
	LinkURL string
	Token   *IssuedToken // once it is made
	Command string
}

var lifeOptions = []ui.Option{{Value: "1h", Name: "1 hour"}, {Value: "24h", Name: "1 day"}, {Value: "168h", Name: "7 days"}, {Value: "720h", Name: "30 days"}}

var enrollmentCrumbs = []ui.NavItem{{Name: "Enrollment", Path: pagePath}}

func (s *Service) showNewToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data newTokenData) error {
	data.Lives, data.LinkURL = lifeOptions, s.cfg.LinkURL()
	v := ui.View{Title: "New enrollment token", Nav: pagePath, Crumbs: enrollmentCrumbs, Data: data}
	if len(data.Errors) > 0 {
		v.Status = http.StatusUnprocessableEntity
	}
	w.Header().Set("Cache-Control", "no-store")
	return s.pages.Render(w, r, who, "token_new.html", v)
}

func (s *Service) pageNewToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return s.showNewToken(w, r, who, newTokenData{Form: tokenForm{Device: r.FormValue("device"), Serial: r.FormValue("serial"), Life: "24h"}})
}

// pageCreateToken answers with the page that shows the token, not with a redirect: it can't be shown
// again.
func (s *Service) pageCreateToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := tokenForm{Device: strings.TrimSpace(r.FormValue("device")), Serial: strings.TrimSpace(r.FormValue("serial")), Life: r.FormValue("life"), Note: r.FormValue("note")}
	life, err := time.ParseDuration(form.Life)
	if err != nil {
		return s.showNewToken(w, r, who, newTokenData{Form: form, Errors: ui.FormErrors{"life": "choose how long the token can be used"}})
	}
	out, err := s.IssueTokens(r.Context(), who.Actor, who.Scope, []NewToken{{Device: device.ID(form.Device), Serial: form.Serial, Life: life, Note: form.Note}})
	if fe := formErrors(err); fe != nil {
		return s.showNewToken(w, r, who, newTokenData{Form: form, Errors: fe})
	}
	if err != nil {
		return err
	}
	return s.showNewToken(w, r, who, newTokenData{Form: form, Token: &out[0], Command: s.command(out[0])})
}

// formErrors also shows an unknown device beside the form.
func formErrors(err error) ui.FormErrors {
	if errors.Is(err, fault.NotFound) {
		return ui.FormErrors{"device": "no such device"}
	}
	return ui.FormErrorsFrom(err)
}

// command is what an operator types on the device.
func (s *Service) command(t IssuedToken) string {
	return "steward-agent --state /var/lib/steward-agent --server " + s.cfg.LinkURL() + " --serial " + t.Serial + " --token " + t.Secret
}

func (s *Service) pageRevokeToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := s.RevokeToken(r.Context(), who.Actor, who.Scope, r.PathValue("id"), "revoked in the console"); err != nil {
		return err
	}
	ui.Flash(w, r, "The token is revoked.")
	http.Redirect(w, r, pagePath, http.StatusSeeOther)
	return nil
}

func (s *Service) pageSetPolicy(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if _, err := s.setPolicy(r.Context(), who, Unpurchased(r.FormValue("unpurchased"))); err != nil {
		return err
	}
	ui.Flash(w, r, "The policy is saved.")
	http.Redirect(w, r, pagePath+"#policy", http.StatusSeeOther)
	return nil
}

type expiringData struct {
	Certificates []Certificate
	Next         string
	Late         bool
}

// pageExpiring lists what ends within a week or is past the time of its renewal: what the notice
// counts.
func (s *Service) pageExpiring(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	var after certificatePosition
	if err := httpapi.DecodeCursor(r.FormValue("cursor"), &after); err != nil {
		return err
	}
	data := expiringData{Late: r.FormValue("late") != ""}
	var err error
	if data.Late {
		data.Certificates, err = listCertificates(r.Context(), s.cfg.DB,
			s.lateQuery(who.Scope, certificateColumns).Add("ORDER BY expires, serial LIMIT ?", maxLatePage), s.cfg.Now())
	} else {
		data.Certificates, err = s.expiring(r.Context(), who.Scope, s.cfg.Now().Add(100*365*24*time.Hour), after, pageTokens+1)
		if len(data.Certificates) > pageTokens {
			data.Certificates = data.Certificates[:pageTokens]
			last := data.Certificates[pageTokens-1]
			data.Next = httpapi.EncodeCursor(certificatePosition{Expires: sqldb.Micros(last.Expires), Serial: last.Serial})
		}
	}
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, who, "certificates.html", ui.View{Title: "Device certificates", Nav: pagePath, Crumbs: enrollmentCrumbs, Live: "provisioning", Data: data})
}

func (s *Service) pageClones(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	flags, err := s.clones(r.Context(), who.Scope)
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, who, "clones.html", ui.View{Title: "Suspected clones", Nav: pagePath, Crumbs: enrollmentCrumbs, Live: "provisioning", Data: flags})
}

type revokeData struct {
	Device       device.Device
	Certificates []Certificate
	Errors       ui.FormErrors
	Reason       string
}

func (s *Service) showRevoke(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data revokeData) error {
	d, err := s.deviceInScope(r.Context(), s.cfg.DB, who.Scope, device.ID(r.PathValue("id")))
	if err != nil {
		return err
	}
	certs, err := certificatesOf(r.Context(), s.cfg.DB, d.Num, s.cfg.Now())
	if err != nil {
		return err
	}
	data.Device, data.Certificates = d, living(certs)
	v := ui.View{Title: "Revoke " + d.DisplayName(), Nav: "/devices", Crumbs: []ui.NavItem{{Name: "Devices", Path: "/devices"}, {Name: d.DisplayName(), Path: "/devices/" + string(d.ID)}}, Data: data}
	if len(data.Errors) > 0 {
		v.Status = http.StatusUnprocessableEntity
	}
	return s.pages.Render(w, r, who, "revoke.html", v)
}

func (s *Service) pageConfirmRevoke(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return s.showRevoke(w, r, who, revokeData{})
}

func (s *Service) pageRevoke(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	id, reason := r.PathValue("id"), r.FormValue("reason")
	err := s.RevokeDevice(r.Context(), who.Actor, who.Scope, device.ID(id), reason)
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return s.showRevoke(w, r, who, revokeData{Errors: fe, Reason: reason})
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "All certificates are revoked; open connections are closed.")
	http.Redirect(w, r, "/devices/"+id+"#certificates", http.StatusSeeOther)
	return nil
}

func (s *Service) pageClearClone(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	id := r.PathValue("id")
	if err := s.ClearClone(r.Context(), who.Actor, who.Scope, device.ID(id), "cleared in the console"); err != nil {
		return err
	}
	ui.Flash(w, r, "The clone flag is cleared.")
	http.Redirect(w, r, "/devices/"+id+"#certificates", http.StatusSeeOther)
	return nil
}

type panelData struct {
	Device       device.Device
	Certificates []Certificate
	Clone        *CloneFlag
	Operator     bool
	CanEnroll    bool
	Living       int
}

// Panel is the device page's part with its certificates.
func (s *Service) Panel() ui.Panel {
	return ui.Panel{ID: "certificates", Title: "Identity", Order: 600, Render: s.renderPanel}
}

// shownCertificates bounds the panel; the API lists all.
const shownCertificates = 8

func (s *Service) renderPanel(ctx context.Context, who httpapi.Principal, d device.Device) (template.HTML, error) {
	certs, err := certificatesOf(ctx, s.cfg.DB, d.Num, s.cfg.Now())
	if err != nil {
		return "", err
	}
	data := panelData{Device: d, Living: len(living(certs)), Certificates: certs[:min(len(certs), shownCertificates)], Operator: who.Role >= httpapi.Operator}
	if data.Clone, err = s.CloneFlagOf(ctx, d.Num); err != nil {
		return "", err
	}
	switch d.Stage {
	case device.Received, device.Staged, device.Enrolled, device.Active, device.Quarantined:
		data.CanEnroll = data.Operator
	}
	return s.pages.Fragment("panel.html", data)
}
