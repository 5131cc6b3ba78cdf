package access

import (
	"net/http"
	"strconv"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

type ownData struct {
	Account  Account
	Means    string
	Tokens   []Token
	More     bool // than are shown
	Sessions []Session
	Others   int
}

// showOwn shows one's own account: role, tokens, sessions.
func (p *pages) showOwn(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	ctx := r.Context()
	var data ownData
	var err error
	if data.Account, err = readAccount(ctx, p.db, "a.id = $1", who.Actor.ID); err != nil {
		return err
	}
	data.Means = roleMeans[who.Role]
	var next string
	if data.Tokens, next, err = p.Tokens(ctx, who, who.Actor.ID, httpapi.PageIn{Limit: pageRows}); err != nil {
		return err
	}
	data.More = next != ""
	if data.Sessions, err = p.Sessions(ctx, who.Actor.ID, p.sessionSecret(r)); err != nil {
		return err
	}
	for _, s := range data.Sessions {
		if !s.Current {
			data.Others++
		}
	}
	return p.Render(w, r, who, "own.html", ui.View{Title: "Your account", Nav: accountNav, Live: "access", Data: data})
}

func (p *pages) endOthers(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	n, err := p.SignOutOthers(r.Context(), who, p.sessionSecret(r))
	if err != nil {
		return err
	}
	ui.Flash(w, r, "Other sessions ended: "+strconv.FormatInt(n, 10)+".")
	http.Redirect(w, r, accountNav, http.StatusSeeOther)
	return nil
}

type passwordData struct {
	Name   string
	Forced bool // nothing else is possible before
	Errors ui.FormErrors
	Least  int
}

// passwordReader finds whose password it is; who must change theirs has no principal yet.
func (p *pages) passwordReader(r *http.Request) (grant, error) {
	g, err := p.sessionOf(r)
	if err != nil {
		return g, err
	}
	if g.account.Program {
		return g, fault.New(fault.Conflict, "%s is a program and has no password", g.account.Name)
	}
	return g, nil
}

func (p *pages) showPassword(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	g, err := p.passwordReader(r)
	if err != nil {
		return err
	}
	return p.renderPassword(w, r, who, g, nil)
}

func (p *pages) renderPassword(w http.ResponseWriter, r *http.Request, who httpapi.Principal, g grant, errs ui.FormErrors) error {
	view := ui.View{Title: "Change your password", Nav: accountNav,
		Data: passwordData{Name: g.account.Name, Forced: g.account.MustChange, Errors: errs, Least: MinPassword}}
	if errs != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	if who.Role > httpapi.Nobody {
		view.Crumbs = []ui.NavItem{{Name: "Your account", Path: accountNav}}
	}
	return p.Render(w, r, who, "password.html", view)
}

func (p *pages) changePassword(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	g, err := p.passwordReader(r)
	if err != nil {
		return err
	}
	if r.PostFormValue("new") != r.PostFormValue("again") {
		return p.renderPassword(w, r, who, g, ui.FormErrors{"again": "This is not the same password."})
	}
	secret, err := p.ChangeOwnPassword(r.Context(), PasswordChange{
		Account: g.account.ID, Current: r.PostFormValue("current"), New: r.PostFormValue("new"),
		Client: p.proxies.Client(r), Agent: r.UserAgent(),
	})
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderPassword(w, r, who, g, fe)
	}
	if err != nil {
		return err
	}
	p.setCookie(w, r, secret)
	ui.Flash(w, r, "Your password is changed. All your other sessions have ended.")
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// tokenForm is what one types to make a token.
type tokenForm struct{ Account, Name, Role, Selector, Days string }

type newTokenData struct {
	Form   tokenForm
	Owner  Account
	Own    bool
	Roles  []ui.Option
	Lives  []ui.Option
	Errors ui.FormErrors

	Token  Token // made
	Secret string
}

var tokenLives = []ui.Option{
	{Value: "1", Name: "1 day"}, {Value: "30", Name: "30 days"}, {Value: "90", Name: "90 days"},
	{Value: "365", Name: "1 year"}, {Value: "1825", Name: "5 years"},
}

func (p *pages) showNewToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderNewToken(w, r, who, tokenForm{Account: r.FormValue("account"), Days: "90"}, nil)
}

func (p *pages) newTokenData(r *http.Request, who httpapi.Principal, form tokenForm) (newTokenData, error) {
	data := newTokenData{Form: form, Own: form.Account == "" || form.Account == who.Actor.ID, Lives: tokenLives}
	var err error
	if data.Own {
		data.Owner, err = readAccount(r.Context(), p.db, "a.id = $1", who.Actor.ID)
	} else {
		data.Owner, err = p.Account(r.Context(), who, form.Account)
	}
	data.Roles = roleOptions(min(who.Role, data.Owner.Role))
	return data, err
}

func (p *pages) renderNewToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal, form tokenForm, errs ui.FormErrors) error {
	data, err := p.newTokenData(r, who, form)
	if err != nil {
		return err
	}
	data.Errors = errs
	view := ui.View{Title: "New API token", Nav: accountNav, Crumbs: data.crumbs(), Data: data}
	if errs != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "token_new.html", view)
}

func (d newTokenData) crumbs() []ui.NavItem {
	if d.Own {
		return []ui.NavItem{{Name: "Your account", Path: accountNav}}
	}
	return []ui.NavItem{{Name: "Access", Path: accessNav}, {Name: d.Owner.Name, Path: accessNav + "/accounts/" + d.Owner.ID}}
}

func (p *pages) createToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := tokenForm{Account: r.PostFormValue("account"), Name: r.PostFormValue("name"), Role: r.PostFormValue("role"),
		Selector: r.PostFormValue("selector"), Days: r.PostFormValue("days")}
	var e fault.Invalid
	n := NewToken{Account: form.Account, Name: form.Name, Role: readRole(r, &e), Selector: readSelector(r, &e)}
	count, err := strconv.Atoi(form.Days)
	if err != nil || count < 1 || days(count) > MaxTokenLife {
		e.Add("days", "choose how long it lasts")
	}
	n.Life = days(count)
	err = e.OrNil()
	var made Token
	var secret string
	if err == nil {
		made, secret, err = p.IssueToken(r.Context(), who, n)
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderNewToken(w, r, who, form, fe)
	}
	if err != nil {
		return err
	}
	data, err := p.newTokenData(r, who, form)
	if err != nil {
		return err
	}
	data.Token, data.Secret = made, secret
	// The secret is shown in this answer and can't be shown again, so there is no redirect.
	return p.Render(w, r, who, "token_new.html", ui.View{Title: "API token " + made.Name, Nav: accountNav, Crumbs: data.crumbs(), Data: data})
}

// revocable returns a token that who may revoke.
func (p *pages) revocable(r *http.Request, who httpapi.Principal) (Token, error) {
	t, err := readToken(r.Context(), p.db, r.PathValue("id"))
	if err != nil {
		return t, err
	}
	if t.Account != who.Actor.ID && (mayManage(who) != nil || t.tenant != who.Scope.Tenant) {
		return t, errNoToken
	}
	return t, nil
}

// backFrom is where one goes after a token was revoked.
func backFrom(t Token, who httpapi.Principal) string {
	if t.Account == who.Actor.ID {
		return accountNav
	}
	return accessNav + "/accounts/" + t.Account
}

func (p *pages) confirmRevoke(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	t, err := p.revocable(r, who)
	if err != nil {
		return err
	}
	return p.Render(w, r, who, "token_revoke.html", ui.View{Title: "Revoke " + t.Name, Nav: accountNav,
		Data: struct {
			Token Token
			Back  string
		}{t, backFrom(t, who)}})
}

func (p *pages) revokeToken(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	t, err := p.revocable(r, who)
	if err != nil {
		return err
	}
	if err := p.RevokeToken(r.Context(), who, t.ID); err != nil {
		return err
	}
	ui.Flash(w, r, "The token "+t.Name+" is revoked.")
	http.Redirect(w, r, backFrom(t, who), http.StatusSeeOther)
	return nil
}
