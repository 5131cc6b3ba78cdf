package remote

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/ui"
	"steward/internal/ui/uitest"
	"steward/internal/wire"
)

// asAda signs everybody in as operator, with the selector and the role of the request's headers.
type asAda struct{}

func (asAda) Authenticate(r *http.Request) (httpapi.Principal, error) {
	who := ada
	who.Scope.Selector = device.MustSelector(r.Header.Get("X-Selector"))
	if r.Header.Get("X-Role") == "viewer" {
		who.Role = httpapi.Viewer
	}
	return who, nil
}

// panelFrame stands for the device page, which belongs to another room.
var panelFrame = fstest.MapFS{"panel_frame.html": {Data: []byte(
	`{{define "content"}}<section class="section" aria-labelledby="remote-title"><h2 id="remote-title">Commands</h2>{{.Data.Inside}}</section>{{end}}`)}}

// serve starts API and console; the panel is shown at /devices/{id}.
func (h *house) serve() string {
	h.Helper()
	quiet := slog.New(slog.DiscardHandler)
	api := httpapi.New(httpapi.Config{Version: "test", Auth: asAda{}, Log: quiet, DB: h.db})
	h.room.Routes(api)
	console := ui.New(ui.Config{Auth: asAda{}, Log: quiet, Now: h.clock.now, Nav: []ui.NavItem{{Name: "Devices", Path: "/devices", Icon: "devices"}, {Name: "Commands", Path: "/commands", Icon: "command"}}})
	h.room.Pages(console)
	frame := console.Parse(panelFrame)
	console.Handle("GET /devices/{id}", httpapi.Viewer, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
		d, err := h.room.find(r.Context(), h.db, who.Scope, r.PathValue("id"))
		if err != nil {
			return err
		}
		inside, err := h.room.Panel().Render(r.Context(), who, d)
		if err != nil {
			return err
		}
		return frame.Render(w, r, who, "panel_frame.html", ui.View{Title: d.DisplayName(), Nav: "/devices", Data: map[string]template.HTML{"Inside": inside}})
	})
	mux := http.NewServeMux()
	mux.Handle("/api/", api)
	mux.Handle("/", console)
	srv := httptest.NewServer(mux)
	h.Cleanup(srv.Close)
	return srv.URL
}

// call sends a request; header is pairs.
func call(t *testing.T, method, address, body string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

func TestCommandAPI(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(map[string]string{"site": "berlin"})
	base := h.serve() + "/api/v1"
	give := "/devices/" + string(d.ID) + "/commands"
	for _, s := range []struct {
		method, path, body string
		header             []string
		status             int
		want               string // part of the answer
	}{
		{"POST", give, `{"name":"ping"}`, []string{"X-Role", "viewer"}, 403, ""},
		{"POST", give, `{"name":"ping"}`, []string{"X-Selector", "site=paris"}, 404, "there is no device"},
		{"POST", give, `{"name":"ping","deadline_seconds":5}`, nil, 422, "deadline_seconds"},
		{"POST", give, `{"name":"ping","deadline_seconds":604801}`, nil, 422, "deadline_seconds"},
		{"POST", give, `{"name":"a b"}`, nil, 422, "body.name"},
		{"POST", give, `{"nam":"ping"}`, nil, 422, "nam"},
		{"POST", give, `{"name":"ping","params":{"deep":[1,null]},"deadline_seconds":60}`, nil, 201, `"state":"waiting"`},
		{"POST", "/devices/dev-0000000000000000/commands", `{"name":"ping"}`, nil, 404, ""},
		{"POST", "/devices/x/commands", `{"name":"ping"}`, nil, 404, ""},
		{"GET", give, "", nil, 200, `"name":"ping"`},
		{"GET", "/commands?state=waiting", "", nil, 200, `"by":{"kind":"account","id":"acc-1","name":"ada"}`},
		{"GET", "/commands?state=lost", "", nil, 422, "query.state"},
		{"GET", "/commands?cursor=zzz", "", nil, 422, "query.cursor"},
		{"GET", "/commands", "", []string{"X-Selector", "site=paris"}, 200, `"items":[]`},
		{"GET", "/commands/cmd-0000000000000000", "", nil, 404, "there is no command"},
		{"GET", "/commands/cmd-0000000000000000?wait=61", "", nil, 422, "wait"},
		{"POST", "/commands/preview", `{"name":"reboot","selector":"site in ("}`, nil, 422, "body.selector"},
		{"POST", "/commands/preview", `{"name":"reboot","selector":"site=berlin"}`, nil, 200, `"devices":1`},
		{"POST", "/commands", `{"name":"reboot","selector":"site=berlin","confirm":2}`, nil, 409, "not 2"},
		{"POST", "/commands", `{"name":"reboot","selector":"site=berlin"}`, nil, 422, "confirm"},
		{"POST", "/commands", `{"name":"reboot","group":"rome","confirm":1}`, nil, 404, "no group"},
		{"GET", "/command-batches/bat-0000000000000000", "", nil, 404, "no batch"},
		{"POST", "/command-batches/x/cancel", "", nil, 404, "no batch"},
	} {
		status, text := call(t, s.method, base+s.path, s.body, s.header...)
		if status != s.status || !strings.Contains(text, s.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %s", s.method, s.path, s.body, status, text, s.status, s.want)
		}
	}
}

func TestRepeatedRequestGivesOneCommand(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(nil)
	base := h.serve() + "/api/v1"
	var first string
	for range 3 {
		status, text := call(t, "POST", base+"/devices/"+string(d.ID)+"/commands", `{"name":"reboot"}`, "Idempotency-Key", "key-12345678")
		if status != 201 || first != "" && text != first {
			t.Fatalf("%d %s, first %s", status, text, first)
		}
		first = text
	}
	if got := h.waiting(d); len(got) != 1 {
		t.Errorf("%d commands wait", len(got))
	}
}

func TestLongPollAnswersWithTheResult(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		base := h.serve() + "/api/v1"
		_, text := call(t, "POST", base+"/devices/"+string(d.ID)+"/commands", `{"name":"ping"}`)
		var c Command
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		answers := make(chan string, 1)
		go func() {
			_, text := call(t, "GET", base+"/commands/"+c.ID+"?wait=60", "")
			answers <- text
		}()
		h.until("somebody waits", func() bool { h.room.results.mu.Lock(); defer h.room.results.mu.Unlock(); return h.room.results.n == 1 })
		h.answer(d, h.waiting(d)[0], wire.CommandDone)
		if text := <-answers; !strings.Contains(text, `"state":"done"`) || !strings.Contains(text, `"output":{"up":12}`) {
			t.Errorf("%s", text)
		}
		if status, text := call(t, "POST", base+"/commands/"+c.ID+"/cancel", ""); status != 409 {
			t.Errorf("cancel a finished one: %d %s", status, text)
		}
	})
}

// post sends a form as a browser does and follows the redirect.
func post(t *testing.T, address string, form url.Values) (int, string) {
	t.Helper()
	res, err := http.PostForm(address, form)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

func TestFormsGiveCommandsAndKeepWhatWasTyped(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(map[string]string{"site": "berlin"})
	base := h.serve()
	status, text := post(t, base+"/devices/"+string(d.ID)+"/commands", url.Values{"name": {"set"}, "params": {`{"broken`}, "deadline": {"60"}})
	if status != 422 || !strings.Contains(text, "{&#34;broken") || !strings.Contains(text, "want a JSON value") {
		t.Errorf("broken parameters: %d", status)
	}
	if status, text = post(t, base+"/devices/"+string(d.ID)+"/commands", url.Values{"name": {"ping"}, "deadline": {"60"}}); status != 200 || !strings.Contains(text, "ping") {
		t.Errorf("ping: %d", status)
	}
	if status, _ = post(t, base+"/commands/new", url.Values{"name": {"blink"}, "selector": {"site=berlin"}, "deadline": {"60"}, "confirm": {"7"}}); status != 422 {
		t.Errorf("wrong number: %d", status)
	}
	status, text = post(t, base+"/commands/new", url.Values{"name": {"blink"}, "selector": {"site=berlin"}, "deadline": {"60"}, "confirm": {"1"}})
	if status != 200 || !strings.Contains(text, "Cancel 1 open command") {
		t.Errorf("confirmed: %d %s", status, text)
	}
	if got := h.waiting(d); len(got) != 2 {
		t.Errorf("%d commands wait", len(got))
	}
}

func TestPagesHoldInABrowser(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	busy, fresh := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "berlin"})
	quarantined := h.move(h.device(map[string]string{"site": "berlin"}), device.Quarantined)
	for i, state := range []string{wire.CommandDone, wire.CommandFailed, wire.CommandRefused, ""} {
		c := h.give(busy, fmt.Sprintf("command-%d", i))
		if state != "" {
			h.answer(busy, c.ID, state)
		}
		h.clock.pass(time.Minute)
	}
	c := h.give(busy, "set-thresholds")
	long := json.RawMessage(`{"lines":["` + strings.Repeat(`0123456789 `, 200) + `"]}`)
	if err := h.room.Result(t.Context(), busy, c.ID, wire.RemoteResult{State: wire.CommandDone, Output: long}); err != nil {
		t.Fatal(err)
	}
	b, err := h.room.GiveMany(t.Context(), ada, Selection{Group: "berlin"}, Wish{Name: "blink"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	base := h.serve()
	browser := uitest.Start(t)
	for name, path := range map[string]string{
		"list": "/commands", "none": "/commands?name=nothing", "command": "/commands/" + c.ID, "batch": "/commands/batch/" + b.ID,
		"panel": "/devices/" + string(busy.ID), "panel-fresh": "/devices/" + string(fresh.ID), "panel-quarantined": "/devices/" + string(quarantined.ID),
		"new": "/devices/" + string(busy.ID) + "/commands/new", "selection": "/commands/new",
		"preview": "/commands/new?name=reboot&selector=site%3Dberlin&deadline=3600",
	} {
		browser.CheckPage(t, base+path, uitest.Options{Name: "remote-" + name})
	}
	tab := browser.Open(t, base+"/devices/"+string(fresh.ID), uitest.Options{})
	tab.Do(`[...document.querySelectorAll("main button")].find(b => b.textContent === "ping").click()`)
	tab.WaitFor(`document.querySelector(".flash") && document.querySelector(".flash").textContent.includes("ping")`)
	tab.Close()
}
