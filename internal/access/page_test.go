package access

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"steward/internal/httpapi"
	"steward/internal/ui"
)

// browser is somebody at the console: it keeps cookies and follows no redirect by itself.
type browser struct {
	*http.Client
	base string
}

// console serves the room's pages; with secure over TLS.
func (h *house) console(t *testing.T, secure bool) *browser {
	t.Helper()
	c := ui.New(ui.Config{Auth: h.s, Log: slog.New(slog.NewJSONHandler(h.log, nil)), Now: h.clock.Now,
		Nav: []ui.NavItem{{Name: "Access", Path: "/access", Icon: "access"}}})
	h.s.Pages(c)
	srv := httptest.NewUnstartedServer(c)
	if secure {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := srv.Client()
	client.Jar = jar
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &browser{Client: client, base: srv.URL}
}

type page struct {
	*http.Response
	text string
}

func (b *browser) do(t *testing.T, req *http.Request) page {
	t.Helper()
	resp, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return page{resp, string(text)}
}

func (b *browser) get(t *testing.T, path string) page {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b.do(t, req)
}

func (b *browser) post(t *testing.T, path string, pairs ...string) page {
	t.Helper()
	form := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	return b.do(t, req)
}

// want checks status, where it redirects to (when that is given) and what the page says.
func (p page) want(t *testing.T, status int, location string, says ...string) page {
	t.Helper()
	if p.StatusCode != status || p.Header.Get("Location") != location {
		t.Fatalf("%s %s: %d to %q, want %d to %q: %s", p.Request.Method, p.Request.URL.Path, p.StatusCode, p.Header.Get("Location"), status, location, p.text)
	}
	for _, s := range says {
		if !strings.Contains(p.text, s) {
			t.Errorf("%s %s lacks %q: %s", p.Request.Method, p.Request.URL.Path, s, p.text)
		}
	}
	return p
}

func (h *house) signInAtConsole(t *testing.T, secure bool) *browser {
	t.Helper()
	b := h.console(t, secure)
	b.post(t, "/login", "name", firstAdmin, "password", h.password, "next", "/access").want(t, 303, "/access")
	return b
}

func TestSignInPageLeadsBackToWhereOneCameFrom(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.console(t, false)
		b.get(t, "/access?cursor=x").want(t, 303, "/login?next=%2Faccess%3Fcursor%3Dx")
		b.get(t, "/login?next=/access").want(t, 200, "", `name="next" value="/access"`, "Sign in")
		b.get(t, "/login?next=https://evil.example").want(t, 200, "", `name="next" value="/"`)
		wrong := b.post(t, "/login", "name", "admin", "password", "wrong", "next", "/access")
		wrong.want(t, 401, "", "The name or the password is wrong.", `value="admin"`, `value="/access"`)
		if len(wrong.Cookies()) != 0 {
			t.Error("a failure set a cookie")
		}
		p := b.post(t, "/login", "name", "admin", "password", h.password, "next", "//evil.example").want(t, 303, "/")
		c := p.Cookies()[0]
		if c.Name != plainCookie || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Secure {
			t.Errorf("cookie %+v", c)
		}
		b.get(t, "/login?next=/account").want(t, 303, "/account")
		b.post(t, "/logout").want(t, 303, "/login")
		b.get(t, "/account").want(t, 303, "/login?next=%2Faccount")
	})
}

func TestSessionCookieIsBoundToTheHostOverTLS(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.console(t, true)
		p := b.post(t, "/login", "name", "admin", "password", h.password).want(t, 303, "/")
		if c := p.Cookies()[0]; c.Name != secureCookie || !c.Secure || !c.HttpOnly || c.Domain != "" || c.Path != "/" {
			t.Errorf("cookie %+v", c)
		}
		b.get(t, "/account").want(t, 200, "", "Your account")
	})
}

func TestGuessingAtThePageIsToldWhenToComeBack(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.console(t, false)
		for range 5 {
			b.post(t, "/login", "name", "admin", "password", "wrong").want(t, 401, "")
		}
		p := b.post(t, "/login", "name", "admin", "password", h.password).want(t, 429, "", "Too many failed attempts")
		if p.Header.Get("Retry-After") != "30" {
			t.Errorf("Retry-After %q", p.Header.Get("Retry-After"))
		}
	})
}

func TestFormOfAnotherSiteDoesNothing(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.signInAtConsole(t, false)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.base+"/access/accounts", strings.NewReader("name=evil&role=admin"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "cross-site")
		b.do(t, req).want(t, 403, "")
		if _, err := readAccount(t.Context(), h.db, "a.name = $1", "evil"); err == nil {
			t.Error("the account was made")
		}
	})
}

var shownSecret = regexp.MustCompile(`<code>(stp_[0-9a-z]{52}|[0-9a-z]{5}-[0-9a-z]{5}-[0-9a-z]{5}-[0-9a-z]{5})</code>`)

func (p page) secret(t *testing.T) string {
	t.Helper()
	m := shownSecret.FindStringSubmatch(p.text)
	if m == nil {
		t.Fatalf("no secret is shown: %s", p.text)
	}
	return m[1]
}

func TestNewPersonChoosesAnOwnPasswordBeforeAnythingElse(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := h.signInAtConsole(t, false)
		admin.get(t, "/access/accounts/new").want(t, 200, "", "release-manager: also makes releases")
		admin.post(t, "/access/accounts", "name", "an na", "role", "viewer", "selector", "site=").want(t, 422, "", `value="an na"`, "f-name-error")
		admin.post(t, "/access/accounts", "name", "anna", "role", "viewer", "selector", "site in").want(t, 422, "", "f-selector-error")
		password := admin.post(t, "/access/accounts", "name", "anna", "role", "viewer", "selector", "site=berlin").
			want(t, 200, "", "The account anna is made").secret(t)

		anna := h.console(t, false)
		anna.post(t, "/login", "name", "anna", "password", password, "next", "/account").want(t, 303, "/account/password")
		anna.get(t, "/account").want(t, 303, "/login?next=%2Faccount")
		anna.get(t, "/login?next=/account").want(t, 303, "/account/password")
		anna.get(t, "/account/password").want(t, 200, "", "Choose your own before you go on")
		anna.post(t, "/account/password", "current", password, "new", goodPassword, "again", "other").want(t, 422, "", "not the same")
		anna.post(t, "/account/password", "current", "wrong", "new", goodPassword, "again", goodPassword).want(t, 422, "", "not your current password")
		anna.post(t, "/account/password", "current", password, "new", "short", "again", "short").want(t, 422, "", "at least 12 characters")
		anna.post(t, "/account/password", "current", password, "new", goodPassword, "again", goodPassword).want(t, 303, "/")
		anna.get(t, "/account").want(t, 200, "", "site=berlin", "viewer: sees everything", "this one")
		anna.get(t, "/access").want(t, 403, "", "needs the role admin")
		anna.post(t, "/access/accounts", "name", "evil", "role", "admin").want(t, 403, "")
	})
}

func TestTokenIsShownOnceAndRevokedAfterAsking(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.signInAtConsole(t, false)
		b.get(t, "/account/tokens/new").want(t, 200, "", "What it is for")
		b.post(t, "/account/tokens", "name", "", "role", "viewer", "days", "30").want(t, 422, "", "f-name-error")
		b.post(t, "/account/tokens", "name", "ci", "role", "viewer", "days", "forever").want(t, 422, "", "f-days-error")
		secret := b.post(t, "/account/tokens", "name", "ci", "role", "viewer", "days", "30").want(t, 200, "", "can't be shown again").secret(t)
		h.mustCall(t, 200, "GET", "/whoami", secret, "")
		own := b.get(t, "/account").want(t, 200, "", "ci")
		if strings.Contains(own.text, secret) {
			t.Error("the secret is shown again")
		}
		path := regexp.MustCompile(`/account/tokens/tok-[0-9a-z]+/revoke`).FindString(own.text)
		b.get(t, path).want(t, 200, "", "This will hit", "cannot be undone")
		h.mustCall(t, 200, "GET", "/whoami", secret, "") // looking does nothing
		b.post(t, path).want(t, 303, "/account")
		h.mustCall(t, 401, "GET", "/whoami", secret, "")
		b.get(t, path).want(t, 404, "")
	})
}

func TestAccountPageChangesDisablesAndDeletesAfterAsking(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.signInAtConsole(t, false)
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		bot := h.person(t, h.admin(t), NewAccount{Name: "bot", Role: httpapi.Viewer, Program: true})
		token := h.token(t, anna)
		path := accountPath(anna)
		b.get(t, "/access").want(t, 200, "", "anna", "program", "API tokens", "Tenants")
		b.get(t, path).want(t, 200, "", "Role and devices", `value="&quot;1&quot;"`)
		b.post(t, path, "role", "operator", "selector", "ring=one", "email", "anna@example.com", "match", `"1"`).want(t, 303, path)
		b.post(t, path, "role", "admin", "selector", "", "match", `"1"`).want(t, 422, "", "changed meanwhile")
		b.post(t, path, "role", "god", "match", `"2"`).want(t, 422, "", "f-role-error")
		if a := mustAccount(t, h, "anna"); a.Role != httpapi.Operator || a.Selector.String() != "ring=one" {
			t.Errorf("%+v", a)
		}
		b.get(t, path+"/disable").want(t, 200, "", "1 token is deleted")
		b.post(t, path+"/disable").want(t, 303, path)
		h.mustCall(t, 401, "GET", "/whoami", token, "")
		b.get(t, path).want(t, 200, "", "disabled", "Enable")
		b.post(t, path+"/enable").want(t, 303, path)
		fresh := b.post(t, path+"/password").want(t, 200, "", "anna has a fresh password").secret(t)
		h.console(t, false).post(t, "/login", "name", "anna", "password", fresh).want(t, 303, "/account/password")
		b.get(t, path+"/delete").want(t, 200, "", "1 session ends")
		b.post(t, path+"/delete").want(t, 303, "/access")
		b.get(t, path).want(t, 404, "")

		b.get(t, accountPath(bot)+"/delete").want(t, 200, "", "0 tokens are deleted")
		b.post(t, accountPath(bot)+"/password").want(t, 409, "")
		b.get(t, "/account/tokens/new?account="+bot.ID).want(t, 200, "", "bot")
		secret := b.post(t, "/account/tokens", "account", bot.ID, "name", "ci", "role", "viewer", "days", "1").want(t, 200, "").secret(t)
		if me := h.mustCall(t, 200, "GET", "/whoami", secret, ""); me.json["account"] != bot.ID {
			t.Errorf("whoami: %s", me.text)
		}
		b.post(t, accountPath(mustAccount(t, h, firstAdmin))+"/delete").want(t, 409, "", "last administrator")
	})
}

func TestOperatorOfTheInstallationMakesAndEntersATenant(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		b := h.signInAtConsole(t, false)
		b.post(t, "/access/tenants", "id", "Not Good").want(t, 422, "", "f-id-error")
		b.post(t, "/access/tenants", "id", "acme", "name", "Acme Ltd.").want(t, 303, "/access")
		b.get(t, "/access").want(t, 200, "", "Acme Ltd.", "/access/tenants/acme/enter")
		b.post(t, "/access/tenants/nowhere/enter").want(t, 404, "")
		b.post(t, "/access/tenants/acme/enter").want(t, 303, "/access")
		p := b.get(t, "/access").want(t, 200, "", "make the first administrator")
		if strings.Contains(p.text, accountPath(mustAccount(t, h, firstAdmin))) {
			t.Error("the tenant shows accounts of another")
		}
		b.post(t, "/access/accounts", "name", "boss", "role", "admin").want(t, 200, "", "The account boss is made")
		if a := mustAccount(t, h, "boss"); a.Tenant != "acme" {
			t.Errorf("boss belongs to %s", a.Tenant)
		}
		b.get(t, "/account").want(t, 200, "", "acting in acme")
		b.post(t, "/account/sessions/end").want(t, 303, "/account")
	})
}
