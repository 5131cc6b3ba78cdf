package provisioning

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

// badge lets the request's own header say who asks: "viewer", "operator" or "admin".
type badge struct{ scope device.Scope }

func (b badge) Authenticate(r *http.Request) (httpapi.Principal, error) {
	role, err := httpapi.ParseRole(r.Header.Get("X-Role"))
	return httpapi.Principal{Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}, Role: role, Scope: b.scope}, err
}

// desk is API and console of the room, as a program and a person meet them.
type desk struct {
	*house
	api, console http.Handler
}

func newDesk(t *testing.T) *desk {
	h := lite(t)
	log := slog.New(slog.DiscardHandler)
	a := httpapi.New(httpapi.Config{Auth: badge{h.scope}, Log: log})
	h.s.Routes(a)
	c := ui.New(ui.Config{Auth: badge{h.scope}, Log: log})
	h.s.Pages(c)
	return &desk{house: h, api: a, console: c}
}

func (d *desk) call(role, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://steward.test/api/v1"+path, strings.NewReader(body))
	r.Header.Set("X-Role", role)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	d.api.ServeHTTP(w, r)
	return w
}

func (d *desk) page(role, path string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "http://steward.test"+path, nil)
	if form != nil {
		r = httptest.NewRequest(http.MethodPost, "http://steward.test"+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.Header.Set("X-Role", role)
	w := httptest.NewRecorder()
	d.console.ServeHTTP(w, r)
	return w
}

func decode[T any](t *testing.T, w *httptest.ResponseRecorder, status int) (v T) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return v
}

func TestOperatorManagesTokensByAPI(t *testing.T) {
	d := newDesk(t)
	dev := d.received("SN-1")
	made := decode[IssuedToken](t, d.call("operator", "POST", "/enrollment-tokens", `{"device":"`+string(dev.ID)+`","life_seconds":3600,"note":"for Berlin"}`), 201)
	if !strings.HasPrefix(made.Secret, "stw1.") || made.Serial != "SN-1" {
		t.Fatalf("made %+v", made)
	}
	list := decode[httpapi.List[Token]](t, d.call("viewer", "GET", "/enrollment-tokens?state=open&device="+string(dev.ID), ""), 200)
	if len(list.Items) != 1 || list.Items[0].ID != made.ID || list.Items[0].State != TokenOpen {
		t.Errorf("listed %+v", list.Items)
	}
	if w := d.call("viewer", "GET", "/enrollment-tokens", ""); strings.Contains(w.Body.String(), "stw1.") {
		t.Error("the list shows the secret")
	}
	if w := d.call("operator", "DELETE", "/enrollment-tokens/"+made.ID, ""); w.Code != 204 {
		t.Errorf("revoke: %d %s", w.Code, w.Body)
	}
	for _, c := range []struct {
		role, method, path, body string
		status                   int
	}{
		{"viewer", "POST", "/enrollment-tokens", `{"serial":"SN-2"}`, 403},
		{"operator", "POST", "/enrollment-tokens", `{}`, 422},
		{"operator", "POST", "/enrollment-tokens", `{"serial":"SN-2","device":"` + string(dev.ID) + `"}`, 422},
		{"operator", "POST", "/enrollment-tokens", `{"serial":"bad serial"}`, 422},
		{"operator", "POST", "/enrollment-tokens", `{"serial":"SN-2","unknown":1}`, 422},
		{"operator", "POST", "/enrollment-tokens", `{"device":"dev-0000000000000000"}`, 404},
		{"operator", "DELETE", "/enrollment-tokens/tok-nope", "", 404},
		{"viewer", "GET", "/enrollment-tokens?cursor=garbage", "", 422},
		{"operator", "PUT", "/enrollment-policy", `{"unpurchased":"refuse"}`, 403},
		{"admin", "PUT", "/enrollment-policy", `{"unpurchased":"maybe"}`, 422},
		{"admin", "PUT", "/enrollment-policy", `{"unpurchased":"refuse"}`, 200},
		{"viewer", "GET", "/enrollment-policy", "", 200},
		{"viewer", "GET", "/devices/dev-0000000000000000/certificates", "", 404},
		{"operator", "POST", "/devices/" + string(dev.ID) + "/revoke", `{"reason":""}`, 422},
	} {
		if w := d.call(c.role, c.method, c.path, c.body); w.Code != c.status {
			t.Errorf("%s %s %s as %s: %d, want %d: %s", c.method, c.path, c.body, c.role, w.Code, c.status, w.Body)
		}
	}
}

func TestBulkTokensComeAsJSONAndCSV(t *testing.T) {
	d := newDesk(t)
	body := `{"tokens":[{"device":"` + string(d.received("SN-1").ID) + `"},{"serial":"SN-2"}]}`
	list := decode[httpapi.List[IssuedToken]](t, d.call("operator", "POST", "/enrollment-tokens/bulk", body), 201)
	if len(list.Items) != 2 {
		t.Fatalf("made %+v", list.Items)
	}
	w := d.call("operator", "POST", "/enrollment-tokens/bulk.csv", body)
	rows, err := csv.NewReader(w.Body).ReadAll()
	if w.Code != 201 || err != nil || len(rows) != 3 || strings.Join(rows[0], ",") != "device,serial,token,expires" || !strings.HasPrefix(rows[2][2], "stw1.") {
		t.Errorf("CSV: %d %v %q", w.Code, err, rows)
	}
	for _, bad := range []string{`{"tokens":`, `{"tokens":[]}`, `{"token":[]}`, `[]`, `{"tokens":[{"serial":"SN-3"}]} x`} {
		if w := d.call("operator", "POST", "/enrollment-tokens/bulk.csv", bad); w.Code != 422 && w.Code != 400 {
			t.Errorf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
}

func TestCertificatesByAPI(t *testing.T) {
	d := newDesk(t)
	dev, _, cert := d.enrolled("SN-1")
	path := "/devices/" + string(dev.ID)
	type listed struct {
		Items []Certificate
		Clone *CloneFlag
	}
	got := decode[listed](t, d.call("viewer", "GET", path+"/certificates", ""), 200)
	if len(got.Items) != 1 || got.Items[0].State != CertificateIssued || got.Items[0].Serial != serialText(cert) || got.Clone != nil {
		t.Fatalf("listed %+v", got)
	}
	soon := decode[httpapi.List[Certificate]](t, d.call("viewer", "GET", "/certificates/expiring?within_seconds=31536000&limit=1", ""), 200)
	if len(soon.Items) != 1 || soon.Next != "" {
		t.Errorf("expiring %+v", soon)
	}
	if w := d.call("operator", "POST", path+"/revoke", `{"reason":"stolen"}`); w.Code != 204 {
		t.Errorf("revoke: %d %s", w.Code, w.Body)
	}
	if got = decode[listed](t, d.call("viewer", "GET", path+"/certificates", ""), 200); got.Items[0].State != CertificateRevoked || got.Items[0].Reason != "stolen" {
		t.Errorf("after the revocation %+v", got)
	}
	cas := decode[httpapi.List[Authority]](t, d.call("viewer", "GET", "/authorities", ""), 200)
	if len(cas.Items) != 4 {
		t.Errorf("%d authorities", len(cas.Items))
	}
}

func TestPagesShowWhatAnOperatorNeeds(t *testing.T) {
	d := newDesk(t)
	ctx := context.Background()
	expect := func(w *httptest.ResponseRecorder, status int, parts ...string) {
		t.Helper()
		if w.Code != status {
			t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
		}
		for _, p := range parts {
			if !strings.Contains(w.Body.String(), p) {
				t.Errorf("the page lacks %q", p)
			}
		}
	}
	expect(d.page("operator", "/enrollment", nil), 200, "No tokens here", "steward-agent --state", "No device has enrolled yet")
	dev := d.received("SN-1")
	expect(d.page("operator", "/enrollment/new?device="+string(dev.ID), nil), 200, string(dev.ID), "https://link.test:8443")
	w := d.page("operator", "/enrollment/tokens", url.Values{"device": {string(dev.ID)}, "life": {"24h"}})
	expect(w, 200, "steward-agent --state", "--server https://link.test:8443 --serial SN-1 --token stw1.", "Copy it now")
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Error("the token may be kept by caches")
	}
	expect(d.page("operator", "/enrollment/tokens", url.Values{"serial": {"no good"}, "life": {"24h"}}), 422, "serial number")
	expect(d.page("operator", "/enrollment/tokens", url.Values{"device": {"dev-0000000000000000"}, "life": {"24h"}}), 422, "no such device")
	expect(d.page("viewer", "/enrollment/new", nil), 403)
	made := d.token(NewToken{Device: dev.ID})
	cert, err := d.enroll("SN-1", made.Secret, csrOf(t, newKeyPair(t), nil))
	d.must(err)
	open := d.token(NewToken{Serial: "SN-77"})
	expect(d.page("viewer", "/enrollment?state=open", nil), 200, "SN-77", "not in stock")
	expect(d.page("operator", "/enrollment/tokens/"+open.ID+"/revoke", url.Values{}), 303)
	expect(d.page("admin", "/enrollment/policy", url.Values{"unpurchased": {"accept"}}), 303)
	expect(d.page("viewer", "/enrollment", nil), 200, "<strong>accept</strong>", "device root of default")
	expect(d.page("viewer", "/enrollment/certificates", nil), 200, string(dev.ID))
	expect(d.page("viewer", "/enrollment/certificates?late=1", nil), 200, "renewed in time")
	expect(d.page("viewer", "/enrollment/clones", nil), 200, "No identity is used twice")
	_, err = d.identify(cert)
	d.must(err)
	d.must(d.db.Write(ctx, func(tx *sqldb.Tx) error { return d.s.Clone(ctx, tx, dev, "inst-a", "inst-b") }))
	expect(d.page("viewer", "/enrollment/clones", nil), 200, string(dev.ID), "inst-a")
	panel := func(role httpapi.Role) template.HTML {
		t.Helper()
		html, err := d.s.Panel().Render(ctx, httpapi.Principal{Role: role, Scope: d.scope}, d.get(dev))
		d.must(err)
		return html
	}
	for _, part := range []string{"in use", "clone suspected", "Clear the flag", "Revoke…"} {
		if !strings.Contains(string(panel(httpapi.Operator)), part) {
			t.Errorf("the panel lacks %q", part)
		}
	}
	if strings.Contains(string(panel(httpapi.Viewer)), "<form") {
		t.Error("a viewer is offered what they may not do")
	}
	expect(d.page("operator", "/devices/"+string(dev.ID)+"/revoke", nil), 200, "This will hit", "1 valid certificate")
	expect(d.page("operator", "/devices/"+string(dev.ID)+"/revoke", url.Values{"reason": {""}}), 422, "kept in the ledger")
	expect(d.page("operator", "/devices/"+string(dev.ID)+"/revoke", url.Values{"reason": {"stolen"}}), 303)
	expect(d.page("operator", "/devices/"+string(dev.ID)+"/clear-clone-flag", url.Values{}), 303)
}

func TestEventsReadAsSentences(t *testing.T) {
	h := lite(t)
	h.enrolled("SN-1")
	sentences := Describe()
	for _, kind := range []string{"provisioning.enrolled", "provisioning.token_issued", "provisioning.authority_created"} {
		events := h.events(kind)
		if len(events) == 0 {
			t.Fatalf("no %s", kind)
		}
		if got := sentences[kind](events[0]); got == "" || strings.Contains(got, "%!") {
			t.Errorf("%s: %q", kind, got)
		}
	}
}
