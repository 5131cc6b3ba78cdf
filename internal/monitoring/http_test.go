package monitoring

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
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/ui"
	"steward/internal/ui/uitest"
	"steward/internal/wire"
)

// asAda signs everybody in, with the selector of the header X-Selector.
type asAda struct{}

func (asAda) Authenticate(r *http.Request) (httpapi.Principal, error) {
	who := ada
	who.Scope.Selector = device.MustSelector(r.Header.Get("X-Selector"))
	return who, nil
}

// serve starts API and console; panel is shown at /panel/{id} as the device page does it.
func (h *house) serve() string {
	h.Helper()
	api := httpapi.New(httpapi.Config{Version: "test", Auth: asAda{}, Log: slog.New(slog.DiscardHandler), DB: h.db})
	h.room.Routes(api)
	console := ui.New(ui.Config{Auth: asAda{}, Log: slog.New(slog.DiscardHandler), Now: h.clock.now, Nav: []ui.NavItem{{Name: "Devices", Path: "/devices", Icon: "devices"}, {Name: "Groups", Path: "/groups", Icon: "groups"}}})
	h.room.Pages(console)
	frame := console.Parse(panelFrame)
	console.Handle("GET /panel/{id}", httpapi.Viewer, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
		d, err := h.room.find(r.Context(), who, r.PathValue("id"))
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

// call sends a request and decodes a JSON answer; header is pairs.
func call(t *testing.T, method, address, body string, header ...string) (status int, answer map[string]any, h http.Header) {
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
	if strings.Contains(res.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(raw, &answer); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
	}
	return res.StatusCode, answer, res.Header
}

func TestPromQLReadsOnlyTheReadersPartOfTheFleet(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	a, b := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "paris"})
	for _, d := range []device.Device{a, b} {
		h.ingest(d, gauge("system.cpu.utilization", "1", h.point(0.5)))
	}
	h.sweep()
	h.ingest(device.Device{Num: 999, ID: "dev-0123456789abcdef", Tenant: "other"}, gauge("system.cpu.utilization", "1", h.point(0.9)))
	base := h.serve() + "/api/v1/metrics/"
	count := func(path string, header ...string) int {
		status, answer, _ := call(t, "GET", base+path, "", header...)
		if status != 200 {
			t.Fatalf("%s: %d %v", path, status, answer)
		}
		return len(answer["data"].(map[string]any)["result"].([]any))
	}
	expr := url.QueryEscape(`{tenant=~".+"}`)
	if got := count("query?query=" + expr); got != 2 {
		t.Errorf("whole tenant: %d series", got)
	}
	if got := count("query?query="+expr, "X-Selector", "site=paris"); got != 1 {
		t.Errorf("one site: %d series", got)
	}
	if got := count("query?query="+expr, "X-Selector", "site=rome"); got != 0 {
		t.Errorf("no site: %d series", got)
	}
	ends := fmt.Sprintf("&start=%d&end=%s&step=30s", morning.Add(-time.Minute).Unix(), url.QueryEscape(morning.Format(time.RFC3339)))
	if got := count("query_range?query=sum(system_cpu_utilization_ratio)" + ends); got != 1 {
		t.Errorf("range: %d series", got)
	}
	for _, bad := range []string{"query", "query?query=sum(", "query?query=up&time=yesterday", "query?query=up&time=1e300", "query_range?query=up&start=x&end=y&step=-1", "query_range?query=up&start=2026-11-23T06:00:00Z&end=2026-11-22T06:00:00Z&step=60"} {
		if status, answer, _ := call(t, "GET", base+bad, ""); status != 422 {
			t.Errorf("%s: %d %v", bad, status, answer)
		}
	}
}

func TestMonitoringAPI(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(map[string]string{"site": "berlin"})
	h.ingest(d, gauge("system.cpu.utilization", "1", h.point(0.5)))
	h.room.Seen(d, wire.Report{Time: h.clock.now().Add(time.Hour)})
	h.sweep()
	base := h.serve() + "/api/v1"
	steps := []struct {
		method, path, body string
		header             []string
		status             int
		want               string // part of the answer
	}{
		{"GET", "/devices/" + string(d.ID) + "/presence", "", nil, 200, `"kind":"clock"`},
		{"GET", "/devices/" + string(d.ID) + "/presence", "", nil, 200, `"state":"online"`},
		{"GET", "/devices/" + string(d.ID) + "/metrics", "", nil, 200, `"name":"system_cpu_utilization_ratio"`},
		{"GET", "/devices/" + string(d.ID) + "/metrics", "", []string{"X-Selector", "site=rome"}, 404, "there is no device"},
		{"GET", "/devices/" + string(d.ID) + "/metrics?hours=0", "", nil, 422, "hours"},
		{"GET", "/devices/dev-0000000000000000/metrics", "", nil, 404, ""}, {"GET", "/devices/x/presence", "", nil, 404, ""},
		{"GET", "/presence", "", nil, 200, `"online":1`},
		{"POST", "/groups", `{"name":"berlin","selector":"site=berlin"}`, nil, 201, `"devices":1`},
		{"POST", "/groups", `{"name":"berlin","selector":"site=berlin"}`, nil, 409, "already"},
		{"POST", "/groups", `{"name":"b","selector":"site in ("}`, nil, 422, "body.selector"},
		{"POST", "/groups", `{"name":"Not So","selector":""}`, nil, 422, "body.name"},
		{"POST", "/groups", `{"name":"b","selector":"","colour":"red"}`, nil, 422, "colour"},
		{"PUT", "/groups/berlin", `{"selector":"site in (berlin,paris)","note":"both"}`, []string{"If-Match", `"1"`}, 200, `"revision":2`},
		{"PUT", "/groups/berlin", `{"selector":""}`, []string{"If-Match", `"1"`}, 412, "revision 2"},
		{"GET", "/groups?limit=1", "", nil, 200, `"name":"berlin"`}, {"GET", "/groups/berlin", "", nil, 200, `"online":1`},
		{"GET", "/groups/berlin/metrics", "", nil, 200, `"charts":[`}, {"DELETE", "/groups/berlin", "", nil, 204, ""},
		{"GET", "/groups/berlin", "", nil, 404, "there is no group"}, {"DELETE", "/groups/berlin", "", nil, 404, ""},
		{"GET", "/monitoring/policy", "", nil, 200, `"report_seconds":60`},
		{"PUT", "/monitoring/policy", `{"report_seconds":300,"metrics_seconds":120}`, nil, 200, `"revision":1`},
		{"PUT", "/monitoring/policy", `{"report_seconds":1,"metrics_seconds":120}`, nil, 422, "report_seconds"},
		// What is the whole tenant's is not changed by who sees a part of it.
		{"PUT", "/monitoring/policy", `{"report_seconds":600,"metrics_seconds":120}`, []string{"X-Selector", "site=berlin"}, 403, "whole tenant"},
		{"POST", "/groups", `{"name":"b","selector":""}`, []string{"X-Selector", "site=berlin"}, 403, "whole tenant"},
		{"DELETE", "/groups/berlin", "", []string{"X-Selector", "site=berlin"}, 403, "whole tenant"},
	}
	for _, s := range steps {
		status, answer, _ := call(t, s.method, base+s.path, s.body, s.header...)
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		if status != s.status || !strings.Contains(string(text), s.want) {
			t.Errorf("%s %s: %d %s, want %d with %s", s.method, s.path, status, text, s.status, s.want)
		}
	}
}

func TestPagesReadWellInABrowser(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	a, b, c := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "paris"})
	if _, err := h.room.SetPolicy(t.Context(), ada, Policy{ReportSeconds: 300, MetricsSeconds: 300}, ""); err != nil {
		t.Fatal(err)
	}
	h.day(a, b)
	h.room.Seen(c, wire.Report{Time: h.clock.now().Add(-26 * time.Hour)})
	h.sweep()
	base := h.serve()
	browser := uitest.Start(t)
	tab := browser.Open(t, base+"/groups", uitest.Options{})
	if got := tab.Text(".empty h2"); got != "No groups yet" {
		t.Errorf("without groups: %q", got)
	}
	tab.Do(`location.href = "/groups/new"`)
	tab.WaitFor(`document.querySelector("#f-name")`)
	tab.Do(`document.querySelector("#f-name").value = "berlin"; document.querySelector("#f-selector").value = "site in ("; document.querySelector("form.form").requestSubmit()`)
	tab.WaitFor(`document.querySelector("#f-selector-error") && document.querySelector("#f-name").value === "berlin"`)
	tab.Do(`document.querySelector("#f-selector").value = "site=berlin"; document.querySelector("form.form").requestSubmit()`)
	tab.WaitFor(`location.pathname === "/groups/berlin" && document.querySelector(".flash")`)
	tab.Close()
	for name, path := range map[string]string{"groups": "/groups", "group": "/groups/berlin", "group-form": "/groups/berlin/edit", "group-delete": "/groups/berlin/delete",
		"panel": "/panel/" + string(a.ID), "clock": "/monitoring/clock", "disk": "/monitoring/disk"} {
		browser.CheckPage(t, base+path, uitest.Options{Name: name})
	}
	tab = browser.Open(t, base+"/groups/berlin/delete", uitest.Options{})
	tab.Do(`document.querySelector("button.danger").click()`)
	tab.WaitFor(`location.pathname === "/groups" && document.querySelector(".flash").textContent.includes("deleted")`)
}
