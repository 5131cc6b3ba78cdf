package stewardtest

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"
)

// Page is the text of a console page, with the API token as the reader's credential.
func (a *API) Page(path string) string {
	a.t.Helper()
	status, body := a.Fetch(path)
	if status != http.StatusOK {
		a.t.Errorf("page %s: status %d", path, status)
	}
	return body
}

// Fetch reads anything below the console's address.
func (a *API) Fetch(path string) (status int, body string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, a.settings.URL+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.settings.Token)
	if a.settings.Tenant != "" {
		req.Header.Set("Steward-Tenant", a.settings.Tenant)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		a.t.Fatalf("GET %s: %v", path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatalf("GET %s: %v", path, err)
	}
	return resp.StatusCode, string(data)
}

// SignIn signs the first administrator in by the console's form and returns the session's cookies.
func (h *House) SignIn() []*http.Cookie {
	h.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	login := h.Boot.Console + "/login"
	form := url.Values{"name": {h.Boot.Admin.Name}, "password": {h.Boot.Admin.Password}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, login, strings.NewReader(form.Encode()))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", h.Boot.Console)
	resp, err := browser.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	_ = resp.Body.Close()
	u, err := url.Parse(h.Boot.Console)
	if err != nil {
		h.t.Fatal(err)
	}
	cookies := jar.Cookies(u)
	if resp.StatusCode != http.StatusOK || len(cookies) == 0 {
		h.t.Fatalf("signing in: status %d, %d cookies", resp.StatusCode, len(cookies))
	}
	return cookies
}
