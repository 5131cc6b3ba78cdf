package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/ui"
)

// signedIn is the authenticator of tests: everybody is this principal.
type signedIn struct{ who httpapi.Principal }

func (s signedIn) Authenticate(*http.Request) (httpapi.Principal, error) { return s.who, nil }

// site is a registry with its API and console.
type site struct {
	*house
	api     *httpapi.API
	console *ui.Console
	dk      *registry.Desk
}

func newSite(t *testing.T, who httpapi.Principal, cfg registry.DeskConfig) *site {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	cfg.Registry, cfg.Log, cfg.Recent = h.s, slog.New(slog.DiscardHandler), h.l
	if cfg.Presence == nil {
		cfg.Presence = newSeen(h)
	}
	s := &site{house: h, dk: registry.NewDesk(cfg)}
	s.api = httpapi.New(httpapi.Config{Version: "test", Auth: signedIn{who}, Log: cfg.Log})
	s.console = ui.New(ui.Config{Auth: signedIn{who}, Log: cfg.Log})
	s.dk.Routes(s.api)
	s.dk.Pages(s.console)
	return s
}

func (s *site) send(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	if strings.HasPrefix(r.URL.Path, "/api/") {
		s.api.ServeHTTP(w, r)
	} else {
		s.console.ServeHTTP(w, r)
	}
	return w
}

func (s *site) get(path string) *httptest.ResponseRecorder {
	return s.send(httptest.NewRequest(http.MethodGet, path, nil))
}

func (s *site) call(method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/api/v1"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return s.send(r)
}

func (s *site) post(path string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return s.send(r)
}

// want checks status and texts of an answer; a text that begins with "!" must not be there.
func (s *site) want(w *httptest.ResponseRecorder, status int, texts ...string) {
	s.Helper()
	body := w.Body.String()
	if w.Code != status {
		s.Fatalf("status %d, want %d: %.600s", w.Code, status, body)
	}
	for _, text := range texts {
		if not, ok := strings.CutPrefix(text, "!"); ok == strings.Contains(body, strings.TrimPrefix(not, "!")) {
			s.Errorf("text %q: in the page: %v", text, ok)
		}
	}
}

func TestAPITakesADeviceThroughCreationChangeAndMove(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{})
	w := s.call("POST", "/devices", `{"serial":"SN-1","name":"Pump","labels":{"site":"berlin","old":"1"},"reason":"found in the field"}`)
	s.want(w, 201, `"stage":"received"`)
	var d registry.Row
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	path := "/devices/" + string(d.ID)
	w = s.get("/api/v1" + path)
	s.want(w, 200, `"serial":"SN-1"`)
	tag := w.Header().Get("ETag")
	s.want(s.call("POST", "/devices", `{"serial":"SN-1","reason":"again"}`), 409, string(d.ID))
	s.want(s.call("POST", "/devices", `{"serial":"SN 1","reason":"again"}`), 422, "body.serial")
	s.want(s.call("PATCH", path, `{"name":"Pump 2","labels":{"ring":"canary","old":null}}`, "If-Match", tag), 200, `"ring":"canary"`, `!"old"`)
	s.want(s.call("PATCH", path, `{"name":"Pump 3"}`, "If-Match", tag), 412, "revision 2")
	s.want(s.call("POST", path+"/move", `{"to":"staged","reason":"ready"}`), 200, `"stage":"staged"`)
	s.want(s.call("POST", path+"/move", `{"to":"active","reason":"now"}`), 409, "staged")
	s.want(s.call("POST", path+"/move", `{"to":"moon","reason":"now"}`), 422, "ordered, received")
	s.want(s.call("GET", "/devices/dev-0000000000000000", ""), 404)
	s.want(s.call("GET", "/devices?stage=staged&selector=ring%3Dcanary&q=pump&limit=1", ""), 200, string(d.ID))
	s.want(s.call("GET", "/devices?stage=received", ""), 200, `"items":[]`)
	s.want(s.call("GET", "/devices?selector=a%20b&stage=moon&presence=often", ""), 422, "query.selector", "query.stage", "query.presence")
	s.want(s.call("GET", "/fleet", ""), 200, `"total":1`, `"staged":1`)
	s.want(s.call("GET", "/labels", ""), 200, `["ring","site"]`)
	s.want(s.call("GET", "/labels/values?key=site", ""), 200, `"berlin"`, `"devices":1`)
}

func TestBulkChangeByAPINeedsThePreviewsToken(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{})
	s.create(device.New{Serial: "1", Labels: map[string]string{"site": "berlin"}})
	wish := `{"action":"move","to":"staged","reason":"go","filter":{"selector":"site=berlin"}`
	w := s.call("POST", "/devices/bulk/preview", wish+"}")
	s.want(w, 200, `"total":1`, `"willing":1`)
	var p registry.Preview
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	s.want(s.call("POST", "/devices/bulk", wish+`,"token":"guessed"}`), 409)
	s.want(s.call("POST", "/devices/bulk", wish+"}"), 422)
	s.want(s.call("POST", "/devices/bulk", wish+`,"token":"`+p.Token+`"}`), 200, `"done":1`)
}

func TestViewerSeesDevicesAndChangesNothing(t *testing.T) {
	viewer := boss
	viewer.Role = httpapi.Viewer
	s := newSite(t, viewer, registry.DeskConfig{})
	d := s.create(device.New{Serial: "1"})
	s.want(s.get("/devices"), 200, string(d.ID), "!Register a device", "!checkbox\" name=\"id")
	s.want(s.get("/devices/"+string(d.ID)), 200, "!Change name", "!/move")
	s.want(s.get("/devices/new"), 403)
	s.want(s.post("/devices", url.Values{"serial": {"2"}, "reason": {"x"}}), 403)
	s.want(s.call("POST", "/devices", `{"serial":"2","reason":"x"}`), 403)
	s.want(s.call("POST", "/devices/bulk/preview", `{"action":"move","to":"staged","filter":{}}`), 403)
}

func TestHomeSaysWhatNeedsSomebodyAndLinksEveryNumber(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{
		Notices: []func(context.Context, device.Scope) ([]ui.Notice, error){
			func(context.Context, device.Scope) ([]ui.Notice, error) {
				return []ui.Notice{{Level: ui.Info, Title: "Something <small>"}}, nil
			},
			func(context.Context, device.Scope) ([]ui.Notice, error) {
				return []ui.Notice{{Level: ui.Bad, Title: "3 devices are offline", Href: "/devices?presence=offline"}}, nil
			},
			func(context.Context, device.Scope) ([]ui.Notice, error) { return nil, errors.New("database is gone") },
		},
		Sentence: func(e ledger.Event) string {
			if e.Kind == "device.created" {
				return "A device was found"
			}
			return ""
		},
	})
	s.want(s.get("/"), 200, "No devices yet", "!by stage")
	d := s.create(device.New{Serial: "1"})
	s.move(d.Num, device.Staged)
	ledgertest.Events(t, s.l, ledger.Filter{})
	w := s.get("/")
	s.want(w, 200, `href="/devices?stage=staged"`, `href="/devices?presence=offline"`, "3 devices are offline", "A device was found",
		"device: moved", "because of staged", "Not every part", "Something &lt;small&gt;", "!database is gone", "!No devices yet")
	if body := w.Body.String(); strings.Index(body, "3 devices are offline") > strings.Index(body, "Something") {
		t.Error("the worst notice does not stand first")
	}
}

func TestHomeTellsOnceWhatHappenedToManyDevices(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{Sentence: func(e ledger.Event) string { return "Did " + e.Kind }})
	for _, serial := range []string{"1", "2", "3"} {
		s.create(device.New{Serial: serial})
	}
	d := s.create(device.New{Serial: "4"})
	s.move(d.Num, device.Staged)
	ledgertest.Events(t, s.l, ledger.Filter{})
	w := s.get("/")
	s.want(w, 200, `href="/ledger?kind=device.created">4 devices</a>`, `href="/devices/`+string(d.ID)+`">4</a>`,
		`<span class="life-count">3</span><span class="life-name">received`, `class="life-idle none"`)
	if n := strings.Count(w.Body.String(), "Did device.created"); n != 1 {
		t.Errorf("four events of a kind are told in %d lines", n)
	}
}

func TestListKeepsItsFilterInTheURLAndPages(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{
		Facts: func(_ context.Context, nums []int64) (map[int64][]string, error) {
			return map[int64][]string{nums[0]: {"app 1.2 committed"}}, nil
		},
		ModelNames: func(context.Context, device.TenantID, []string) (map[string]string, error) {
			return map[string]string{"mod-1": "Edge Box"}, nil
		},
	})
	s.want(s.get("/devices"), 200, "No devices yet")
	for i := range 60 {
		s.create(device.New{Serial: "S" + string(rune('A'+i%26)) + strings.Repeat("x", i/26), Model: "mod-1", Labels: map[string]string{"site": "berlin"}})
	}
	w := s.get("/devices?stage=received&selector=site%3Dberlin")
	s.want(w, 200, "SA", `value="received" selected`, `value="site=berlin"`, "app 1.2 committed", "Edge Box", "Change all that the filter picks")
	next := regexp.MustCompile(`href="([^"]+)" rel="next"`).FindStringSubmatch(w.Body.String())
	if next == nil {
		t.Fatal("no next page")
	}
	s.want(s.get(strings.ReplaceAll(next[1], "&amp;", "&")), 200, "SHxx", "First page", "!rel=\"next\"")
	s.want(s.get("/devices?q=nothing"), 200, "No device passes this filter")
	s.want(s.get("/devices?selector=a+b"), 422, "selector", "!No device passes")
	s.want(s.get("/devices?cursor=nonsense"), 422, "cursor")
}

func TestDevicePageShowsPanelsAndSurvivesABrokenOne(t *testing.T) {
	panel := func(id, title string, order int, html template.HTML, err error) ui.Panel {
		return ui.Panel{ID: id, Title: title, Order: order, Render: func(context.Context, httpapi.Principal, device.Device) (template.HTML, error) { return html, err }}
	}
	s := newSite(t, boss, registry.DeskConfig{Panels: []ui.Panel{
		panel("metrics", "Metrics", 200, "<p>fine</p>", nil), panel("passport", "Passport", 100, "<p>events</p>", nil),
		panel("empty", "Empty", 300, "", nil), panel("broken", "Broken", 400, "", errors.New("secret cause")),
	}})
	d := s.create(device.New{Serial: "1", Name: "<i>x</i>", Labels: map[string]string{"site": "berlin"}})
	w := s.get("/devices/" + string(d.ID))
	s.want(w, 200, `id="passport"`, "<p>fine</p>", `href="#metrics"`, "could not be shown", "!secret cause", "!>Empty<", "&lt;i&gt;x&lt;/i&gt;",
		"/move?to=staged", "/move?to=retired", "!/move?to=enrolled", `class="now">received`)
	if body := w.Body.String(); strings.Index(body, `id="passport"`) > strings.Index(body, `id="metrics"`) {
		t.Error("panels are not in their order")
	}
	s.want(s.get("/devices/dev-0000000000000000"), 404)
}

func TestFormsSaveOrComeBackWithWhatWasTyped(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{})
	s.want(s.get("/devices/new"), 200, "Serial number")
	s.want(s.post("/devices", url.Values{"serial": {"a b"}, "name": {"typed"}, "labels": {"x y z="}}), 422, `value="typed"`, "serial")
	s.want(s.post("/devices", url.Values{"serial": {"S1"}, "labels": {"a=1,a=2"}, "reason": {"x"}}), 422, "named twice")
	w := s.post("/devices", url.Values{"serial": {"S1"}, "labels": {"site=rome\ngpu"}, "reason": {"found"}})
	s.want(w, 303)
	page := w.Header().Get("Location")
	s.want(s.get(page), 200, "rome", "gpu")

	s.want(s.post(page, url.Values{"name": {"Pump"}, "labels": {"site=paris"}, "etag": {`"1"`}}), 303)
	s.want(s.get(page), 200, "Pump", "paris", "!rome", "!gpu")
	s.want(s.post(page, url.Values{"name": {"Late"}, "labels": {""}, "etag": {`"1"`}}), 422, "changed meanwhile", `value="Late"`)

	s.want(s.get(page+"/move?to=staged"), 200, "This will hit", "Move Pump")
	s.want(s.get(page+"/move?to=active"), 200, "Not possible now")
	s.want(s.get(page+"/move?to=moon"), 422)
	s.want(s.post(page+"/move", url.Values{"to": {"staged"}, "etag": {`"2"`}}), 422, "say why")
	s.want(s.post(page+"/move", url.Values{"to": {"staged"}, "etag": {`"2"`}, "reason": {"ready"}}), 303)
	s.want(s.get(page), 200, `class="now">staged`, "ready")
}

func TestBulkPagesPreviewThenConfirm(t *testing.T) {
	s := newSite(t, boss, registry.DeskConfig{})
	a, b := s.create(device.New{Serial: "1"}), s.create(device.New{Serial: "2"})
	s.move(b.Num, device.Retired)
	pick := "id=" + string(a.ID) + "&id=" + string(b.ID)
	s.want(s.get("/devices/bulk?"+pick), 200, "What should happen to them?", string(b.ID))
	s.want(s.get("/devices/bulk?"+pick+"&action=label&labels=a+b%3D%3D"), 422, "labels")
	w := s.get("/devices/bulk?" + pick + "&action=move&to=staged")
	s.want(w, 200, "This will hit 2 devices", "1 of 2", "refused", "Do it for 1 device")
	token := regexp.MustCompile(`name="token" value="([^"]+)"`).FindStringSubmatch(w.Body.String())
	if token == nil {
		t.Fatal("no token")
	}
	form := url.Values{"id": {string(a.ID), string(b.ID)}, "action": {"move"}, "to": {"staged"}, "token": token[1:]}
	s.want(s.post("/devices/bulk", form), 422, "say why", "This will hit")
	form.Set("reason", "batch")
	s.want(s.post("/devices/bulk", form), 200, "1 device changed, 1 refused")
	s.want(s.post("/devices/bulk", form), 422, "look at the preview again")
}
