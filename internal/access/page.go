package access

import (
	"embed"
	"errors"
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

// pages are the room's pages; what one writes is theirs, what is asked for goes to the Service.
type pages struct {
	*Service
	*ui.Pages
}

const (
	accessNav  = "/access"
	accountNav = "/account"
	// pageRows bounds the rows of each list on a page.
	pageRows = 200
)

// Pages adds the room's pages to the console: /login, /logout, /access and /account.
func (s *Service) Pages(c *ui.Console) {
	p := &pages{Service: s, Pages: c.Parse(pageFiles)}
	c.Handle("GET /login", httpapi.Nobody, p.showLogin)
	c.Handle("POST /login", httpapi.Nobody, p.logIn)
	c.Handle("POST /logout", httpapi.Nobody, p.logOut)

	c.Handle("GET /account", httpapi.Viewer, p.showOwn)
	c.Handle("GET /account/password", httpapi.Nobody, p.showPassword)
	c.Handle("POST /account/password", httpapi.Nobody, p.changePassword)
	c.Handle("POST /account/sessions/end", httpapi.Viewer, p.endOthers)
	c.Handle("GET /account/tokens/new", httpapi.Viewer, p.showNewToken)
	c.Handle("POST /account/tokens", httpapi.Viewer, p.createToken)
	c.Handle("GET /account/tokens/{id}/revoke", httpapi.Viewer, p.confirmRevoke)
	c.Handle("POST /account/tokens/{id}/revoke", httpapi.Viewer, p.revokeToken)

	c.Handle("GET /access", httpapi.Admin, p.showAccess)
	c.Handle("GET /access/accounts/new", httpapi.Admin, p.showNewAccount)
	c.Handle("POST /access/accounts", httpapi.Admin, p.createAccount)
	c.Handle("GET /access/accounts/{id}", httpapi.Admin, p.showAccount)
	c.Handle("POST /access/accounts/{id}", httpapi.Admin, p.changeAccount)
	c.Handle("POST /access/accounts/{id}/enable", httpapi.Admin, p.enableAccount)
	for _, verb := range []string{"disable", "delete", "password"} {
		c.Handle("GET /access/accounts/{id}/"+verb, httpapi.Admin, p.confirmAccount(verb))
	}
	c.Handle("POST /access/accounts/{id}/disable", httpapi.Admin, p.disableAccount)
	c.Handle("POST /access/accounts/{id}/delete", httpapi.Admin, p.deleteAccount)
	c.Handle("POST /access/accounts/{id}/password", httpapi.Admin, p.resetAccount)
	c.Handle("POST /access/tenants", httpapi.Admin, p.createTenant)
	c.Handle("POST /access/tenants/{id}/enter", httpapi.Admin, p.enterTenant)
}

// loginForm is what one types to sign in, but the password.
type loginForm struct{ Name, Next string }

type loginData struct {
	Form   loginForm
	Errors ui.FormErrors
}

// showLogin shows the form, or goes on when there is a session already.
func (p *pages) showLogin(w http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
	next := ui.Next(r.FormValue("next"), "/")
	if g, err := p.sessionOf(r); err == nil {
		to := next
		if g.account.MustChange {
			to = "/account/password"
		}
		http.Redirect(w, r, to, http.StatusSeeOther)
		return nil
	}
	return p.renderLogin(w, r, http.StatusOK, loginData{Form: loginForm{Next: next}})
}

func (p *pages) renderLogin(w http.ResponseWriter, r *http.Request, status int, data loginData) error {
	return p.Render(w, r, httpapi.Principal{}, "login.html", ui.View{Title: "Sign in", Status: status, Data: data})
}

// sessionOf finds the session of a request, also one whose password must be changed first.
func (p *pages) sessionOf(r *http.Request) (grant, error) {
	secret := p.sessionSecret(r)
	if secret == "" {
		return grant{}, errNoCredentials
	}
	return p.lookup(r.Context(), hashSecret(secret), readSessionGrant, errSessionOver)
}

func (p *pages) logIn(w http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
	form := loginForm{Name: r.PostFormValue("name"), Next: ui.Next(r.PostFormValue("next"), "/")}
	secret, a, err := p.SignIn(r.Context(), SignIn{
		Name: form.Name, Password: r.PostFormValue("password"), Client: p.proxies.Client(r),
		Agent: r.UserAgent(), Previous: p.sessionSecret(r),
	})
	var later *httpapi.Later
	if errors.As(err, &later) {
		w.Header().Set("Retry-After", httpapi.RetryAfter(later.After))
	}
	if errors.Is(err, fault.Unauthorized) || errors.Is(err, fault.TooMany) || errors.Is(err, fault.Unavailable) {
		return p.renderLogin(w, r, httpapi.Status(err), loginData{Form: form, Errors: ui.FormErrors{"": sentence(err.Error())}})
	}
	if err != nil {
		return err
	}
	p.setCookie(w, r, secret)
	if a.MustChange {
		form.Next = "/account/password"
	}
	http.Redirect(w, r, form.Next, http.StatusSeeOther)
	return nil
}

// sentence writes a refusal as people write.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// setCookie gives the browser its session. SameSite is Lax and not Strict, so that a link from a mail or
// a chat opens the page and not the login; what changes something is a POST, whose origin is checked.
func (s *Service) setCookie(w http.ResponseWriter, r *http.Request, secret string) {
	http.SetCookie(w, &http.Cookie{
		Name: s.cookieName(r), Value: secret, Path: "/", MaxAge: int(SessionLife / time.Second),
		HttpOnly: true, Secure: s.overTLS(r), SameSite: http.SameSiteLaxMode,
	})
}

func (s *Service) dropCookie(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{
		Name: s.cookieName(r), Path: "/", MaxAge: -1, HttpOnly: true, Secure: s.overTLS(r), SameSite: http.SameSiteLaxMode,
	})
}

func (p *pages) logOut(w http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
	if secret := p.sessionSecret(r); secret != "" {
		if err := p.SignOut(r.Context(), secret); err != nil {
			return err
		}
	}
	p.dropCookie(w, r)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}

// readSelector reads a selector from a form's field.
func readSelector(r *http.Request, e *fault.Invalid) device.Selector {
	sel, err := device.ParseSelector(r.PostFormValue("selector"))
	if err != nil {
		e.Add("selector", "%s", err)
	}
	return sel
}

// readRole reads a role from a form's field.
func readRole(r *http.Request, e *fault.Invalid) httpapi.Role {
	role, err := httpapi.ParseRole(r.PostFormValue("role"))
	if err != nil {
		e.Add("role", "%s", err)
	}
	return role
}

// roleOptions are the roles up to the highest that may be given.
func roleOptions(highest httpapi.Role) []ui.Option {
	var out []ui.Option
	for role := httpapi.Viewer; role <= highest; role++ {
		out = append(out, ui.Option{Value: role.String(), Name: role.String() + ": " + roleMeans[role]})
	}
	return out
}

// roleMeans explains the roles; each includes those before it.
var roleMeans = map[httpapi.Role]string{
	httpapi.Viewer:         "sees everything in their scope and changes nothing",
	httpapi.Operator:       "also changes devices, orders, goods-in and enrollment",
	httpapi.ReleaseManager: "also makes releases and assigns them to devices",
	httpapi.Admin:          "also manages accounts, tokens, authorities and policies",
}
