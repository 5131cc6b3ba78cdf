package access

import (
	"net/http"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

type roleRow struct {
	Role  httpapi.Role
	Means string
}

type accessData struct {
	Accounts     []Account
	NextAccounts string
	Tokens       []Token
	MoreTokens   bool
	Tenants      []Tenant
	Roles        []roleRow
	Installation bool
	Form         tenantForm
	Errors       ui.FormErrors
}

// tenantForm is what one types to make a tenant.
type tenantForm struct{ ID, Name string }

func (p *pages) showAccess(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderAccess(w, r, who, tenantForm{}, nil)
}

func (p *pages) renderAccess(w http.ResponseWriter, r *http.Request, who httpapi.Principal, form tenantForm, errs ui.FormErrors) error {
	ctx := r.Context()
	data := accessData{Installation: who.Installation, Form: form, Errors: errs}
	var err error
	data.Accounts, data.NextAccounts, err = p.Accounts(ctx, who, httpapi.PageIn{Limit: pageRows, Cursor: r.URL.Query().Get("cursor")})
	if err != nil {
		return err
	}
	var next string
	if data.Tokens, next, err = p.Tokens(ctx, who, "", httpapi.PageIn{Limit: pageRows}); err != nil {
		return err
	}
	data.MoreTokens = next != ""
	if data.Tenants, _, err = p.Tenants(ctx, who, httpapi.PageIn{Limit: 1000}); err != nil {
		return err
	}
	for role := httpapi.Viewer; role <= httpapi.Admin; role++ {
		data.Roles = append(data.Roles, roleRow{role, roleMeans[role]})
	}
	view := ui.View{Title: "Access", Nav: accessNav, Live: "access", Data: data}
	if errs != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "access.html", view)
}

// accountForm is what one types to make or change an account.
type accountForm struct{ Name, Email, Role, Selector, Program string }

func readAccountForm(r *http.Request) accountForm {
	return accountForm{Name: r.PostFormValue("name"), Email: r.PostFormValue("email"), Role: r.PostFormValue("role"),
		Selector: r.PostFormValue("selector"), Program: r.PostFormValue("program")}
}

type accountData struct {
	Form     accountForm
	Roles    []ui.Option
	Errors   ui.FormErrors
	Account  Account
	Tokens   []Token
	Sessions []Session
	Made     bool   // just now
	Password string // that was made; shown once
}

var accessCrumbs = []ui.NavItem{{Name: "Access", Path: accessNav}}

func (p *pages) showNewAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderNewAccount(w, r, who, accountForm{Role: httpapi.Viewer.String()}, nil)
}

func (p *pages) renderNewAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal, form accountForm, errs ui.FormErrors) error {
	view := ui.View{Title: "New account", Nav: accessNav, Crumbs: accessCrumbs,
		Data: accountData{Form: form, Roles: roleOptions(httpapi.Admin), Errors: errs}}
	if errs != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "account_new.html", view)
}

func (p *pages) createAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := readAccountForm(r)
	var e fault.Invalid
	n := NewAccount{Name: form.Name, Email: form.Email, Role: readRole(r, &e), Selector: readSelector(r, &e), Program: form.Program != ""}
	err := e.OrNil()
	var a Account
	var password string
	if err == nil {
		a, password, err = p.CreateAccount(r.Context(), who, n)
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderNewAccount(w, r, who, form, fe)
	}
	if err != nil {
		return err
	}
	if a.Program {
		ui.Flash(w, r, "The account "+a.Name+" is made. Make a token for it now.")
		http.Redirect(w, r, "/account/tokens/new?account="+a.ID, http.StatusSeeOther)
		return nil
	}
	return p.renderPasswordOf(w, r, who, accountData{Account: a, Password: password, Made: true})
}

// renderPasswordOf shows a password that was made, in this answer only, so there is no redirect.
func (p *pages) renderPasswordOf(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data accountData) error {
	return p.Render(w, r, who, "account_password.html", ui.View{
		Title: "Password of " + data.Account.Name, Nav: accessNav, Crumbs: accountCrumbs(data.Account), Data: data})
}

func accountPath(a Account) string { return accessNav + "/accounts/" + a.ID }

func accountCrumbs(a Account) []ui.NavItem {
	return []ui.NavItem{{Name: "Access", Path: accessNav}, {Name: a.Name, Path: accountPath(a)}}
}

func (p *pages) showAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	a, err := p.Account(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	form := accountForm{Email: a.Email, Role: a.Role.String(), Selector: a.Selector.String()}
	return p.renderAccount(w, r, who, accountData{Account: a, Form: form})
}

func (p *pages) renderAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data accountData) error {
	a := data.Account
	data.Roles = roleOptions(httpapi.Admin)
	var err error
	if data.Tokens, _, err = p.Tokens(r.Context(), who, a.ID, httpapi.PageIn{Limit: pageRows}); err != nil {
		return err
	}
	if data.Sessions, err = p.Sessions(r.Context(), a.ID, ""); err != nil {
		return err
	}
	view := ui.View{Title: a.Name, Nav: accessNav, Crumbs: accessCrumbs, Live: "access", Data: data}
	if data.Errors != nil {
		view.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "account.html", view)
}

func (p *pages) changeAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := readAccountForm(r)
	var e fault.Invalid
	role, sel := readRole(r, &e), readSelector(r, &e)
	err := e.OrNil()
	if err == nil {
		// The revision that the form was made from: what somebody else changed meanwhile is not overwritten.
		_, err = p.ChangeAccount(r.Context(), who, r.PathValue("id"), AccountChange{Email: &form.Email, Role: &role, Selector: &sel}, r.PostFormValue("match"))
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		a, err := p.Account(r.Context(), who, r.PathValue("id"))
		if err != nil {
			return err
		}
		return p.renderAccount(w, r, who, accountData{Account: a, Form: form, Errors: fe})
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "The change is saved and in effect.")
	http.Redirect(w, r, accessNav+"/accounts/"+r.PathValue("id"), http.StatusSeeOther)
	return nil
}

type confirmData struct {
	Account  Account
	Verb     string
	Tokens   int
	Sessions int
}

// confirmAccount shows what a step would hit before it is done.
func (p *pages) confirmAccount(verb string) ui.Handler {
	titles := map[string]string{"disable": "Disable ", "delete": "Delete ", "password": "Fresh password for "}
	return func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
		a, err := p.Account(r.Context(), who, r.PathValue("id"))
		if err != nil {
			return err
		}
		tokens, _, err := p.Tokens(r.Context(), who, a.ID, httpapi.PageIn{Limit: pageRows})
		if err != nil {
			return err
		}
		sessions, err := p.Sessions(r.Context(), a.ID, "")
		if err != nil {
			return err
		}
		return p.Render(w, r, who, "account_confirm.html", ui.View{Title: titles[verb] + a.Name, Nav: accessNav,
			Crumbs: accountCrumbs(a), Data: confirmData{a, verb, len(tokens), len(sessions)}})
	}
}

func (p *pages) setDisabled(w http.ResponseWriter, r *http.Request, who httpapi.Principal, disabled bool, words string) error {
	a, err := p.ChangeAccount(r.Context(), who, r.PathValue("id"), AccountChange{Disabled: &disabled}, "")
	if err != nil {
		return err
	}
	ui.Flash(w, r, "The account "+a.Name+" is "+words)
	http.Redirect(w, r, accountPath(a), http.StatusSeeOther)
	return nil
}

func (p *pages) disableAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.setDisabled(w, r, who, true, "disabled. Its sessions and tokens have ended.")
}

func (p *pages) enableAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.setDisabled(w, r, who, false, "enabled.")
}

func (p *pages) deleteAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	a, err := p.Account(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := p.DeleteAccount(r.Context(), who, a.ID, ""); err != nil {
		return err
	}
	ui.Flash(w, r, "The account "+a.Name+" is deleted.")
	http.Redirect(w, r, accessNav, http.StatusSeeOther)
	return nil
}

func (p *pages) resetAccount(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	password, err := p.ResetAccountPassword(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	a, err := p.Account(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	return p.renderPasswordOf(w, r, who, accountData{Account: a, Password: password})
}

func (p *pages) createTenant(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	form := tenantForm{ID: r.PostFormValue("id"), Name: r.PostFormValue("name")}
	t, err := p.CreateTenant(r.Context(), who, form.ID, form.Name)
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderAccess(w, r, who, form, fe)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "The tenant "+t.Name+" is made. Enter it to make its first administrator.")
	http.Redirect(w, r, accessNav, http.StatusSeeOther)
	return nil
}

func (p *pages) enterTenant(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	id, err := device.ParseTenantID(r.PathValue("id"))
	if err != nil {
		return errNoTenant(device.TenantID(r.PathValue("id")))
	}
	if err := p.EnterTenant(r.Context(), who, p.sessionSecret(r), id); err != nil {
		return err
	}
	ui.Flash(w, r, "You act in the tenant "+string(id)+" now.")
	http.Redirect(w, r, accessNav, http.StatusSeeOther)
	return nil
}
