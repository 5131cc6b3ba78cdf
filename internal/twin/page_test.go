package twin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/ui"
	"steward/internal/wire"
)

// viewer signs everybody in with a scope.
type viewer struct{ scope device.Scope }

func (v viewer) Authenticate(*http.Request) (httpapi.Principal, error) {
	return httpapi.Principal{Actor: device.System("test"), Role: httpapi.Viewer, Scope: v.scope}, nil
}

// fleet knows the devices of a test.
type fleet []device.Device

func (f fleet) ByID(_ context.Context, _ sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error) {
	for _, d := range f {
		if d.ID == id && d.Tenant == tenant {
			return d, nil
		}
	}
	return device.Device{}, fault.New(fault.NotFound, "no device %s", id)
}

// site is a house with API and console over two devices, of which the reader sees the first.
func site(t *testing.T) (h *house, get func(path string) (int, string), panels []ui.Panel) {
	t.Helper()
	mine, hidden := unit(1), unit(2)
	mine.Labels = map[string]string{"site": "berlin"}
	mine.Name = "<b>Pump</b>"
	h = newHouse(t, sqldbtest.SQLite(t, tables...), twin.Config{Devices: fleet{mine, hidden}})
	auth := viewer{device.Scope{Tenant: "default", Selector: device.MustSelector("site=berlin")}}
	api := httpapi.New(httpapi.Config{Version: "test", Auth: auth, Log: slog.New(slog.DiscardHandler)})
	console := ui.New(ui.Config{Auth: auth, Log: slog.New(slog.DiscardHandler), Now: h.clock})
	h.s.Routes(api)
	panels = h.s.Pages(console)
	return h, func(path string) (int, string) {
		t.Helper()
		var handler http.Handler = console
		if strings.HasPrefix(path, "/api/") {
			handler = api
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}, panels
}

func document(t testing.TB, v any) string {
	t.Helper()
	b, err := wire.Canonical(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// talk lets device 1 report one document of each kind.
func talk(h *house) {
	h.Helper()
	many := wire.Packages{}
	for i := range 250 {
		many.Packages = append(many.Packages, wire.Package{Manager: "dpkg", Name: fmt.Sprintf("lib%03d", i), Version: "1"})
	}
	docs := map[wire.Section]string{
		wire.SectionInventory: document(h.TB, wire.Inventory{Hostname: "<script>", Architecture: "arm64", Disks: []wire.Disk{{Device: "/dev/sda", SizeBytes: 1 << 30}},
			Interfaces: []wire.Interface{{Name: "eth0", Up: true, Addresses: []string{"10.0.0.1/24", "fe80::1/64"}}}, Unavailable: []wire.Missing{{What: "TPM", Reason: "not root"}}}),
		wire.SectionPackages: document(h.TB, many),
		wire.SectionServices: document(h.TB, wire.Services{Manager: "systemd", Services: []wire.Service{{Name: "zz", State: "running"}, {Name: "sshd", State: "failed"}}}),
		wire.SectionAgent:    document(h.TB, wire.AgentReported{Version: "1.2.3", User: "steward", Problems: []string{"envelope refused"}}),
		wire.SectionUpdate:   document(h.TB, wire.UpdateReported{}),
	}
	h.set(1, wire.SectionUpdate, wire.UpdateDesired{})
	h.report(unit(1), (&agent{boot: "b", instance: "i"}).next(true, docs))
	for _, body := range docs {
		h.upload(unit(1), body)
	}
}

func TestAPIShowsStateAndDocumentsOfDevicesInScopeOnly(t *testing.T) {
	h, get, _ := site(t)
	talk(h)
	mine, hidden := "/api/v1/devices/"+string(unit(1).ID), "/api/v1/devices/"+string(unit(2).ID)
	code, body := get(mine + "/twin")
	var st twin.State
	if err := json.Unmarshal([]byte(body), &st); code != 200 || err != nil || st.Epoch != 1 || st.Accepted != 0 || len(st.Known) != 5 || len(st.Desired) != 1 {
		t.Errorf("twin: %d %s, %v", code, body, err)
	}
	if code, body = get(mine + "/reported/agent"); code != 200 || !strings.Contains(body, `"1.2.3"`) {
		t.Errorf("reported document: %d %s", code, body)
	}
	if code, body = get(mine + "/desired/update"); code != 200 || !strings.Contains(body, `"releases"`) {
		t.Errorf("desired document: %d %s", code, body)
	}
	for _, path := range []string{hidden + "/twin", hidden + "/reported/agent", mine + "/reported/nothing", mine + "/desired/agent", "/api/v1/devices/dev-x/twin"} {
		if code, body := get(path); code != 404 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestPanelsShowWhatTheDeviceReportsAndEscapeIt(t *testing.T) {
	h, _, panels := site(t)
	render := func(d device.Device) string {
		t.Helper()
		var all strings.Builder
		for _, p := range panels {
			part, err := p.Render(t.Context(), httpapi.Principal{}, d)
			if err != nil {
				t.Fatalf("panel %s: %v", p.ID, err)
			}
			all.WriteString(string(part))
		}
		return all.String()
	}
	if got := render(unit(1)); got != "" {
		t.Errorf("a device that never spoke has panels: %s", got)
	}
	talk(h)
	got := render(unit(1))
	for _, want := range []string{"&lt;script&gt;", "10.0.0.1/24, fe80::1/64", "not root", "250 packages", "sshd", "failed", "1.2.3",
		"envelope refused", "waiting", "/documents/reported/packages"} {
		if !strings.Contains(got, want) {
			t.Errorf("panels don't show %q", want)
		}
	}
	if strings.Contains(got, "<script>") {
		t.Error("the device's text is not escaped")
	}
	if strings.Index(got, "sshd") > strings.Index(got, ">zz<") {
		t.Error("the failed service does not stand first")
	}
}

func TestDocumentOfTheWrongFormLeavesItsPanelOut(t *testing.T) {
	h, _, panels := site(t)
	h.report(unit(1), (&agent{boot: "b", instance: "i"}).next(true, map[wire.Section]string{"packages": `{"packages":7}`, "agent": `[]`}))
	h.upload(unit(1), `{"packages":7}`)
	h.upload(unit(1), `[]`)
	for _, p := range panels {
		part, err := p.Render(t.Context(), httpapi.Principal{}, unit(1))
		if err != nil || p.ID != "state" && part != "" {
			t.Errorf("panel %s: %q, %v", p.ID, part, err)
		}
	}
}

func TestPackagesPageSearchesAndPages(t *testing.T) {
	h, get, _ := site(t)
	path := "/devices/" + string(unit(1).ID) + "/packages"
	if code, body := get(path); code != 200 || !strings.Contains(body, "No packages reported") {
		t.Errorf("before a report: %d", code)
	}
	talk(h)
	for query, want := range map[string][2]string{ // shown, not shown
		"":            {"lib099", "lib100"},
		"?cursor=100": {"lib199", "lib099"},
		"?cursor=200": {"lib249", `rel="next"`},
		"?cursor=-7":  {"lib000", "lib100"},
		"?q=LIB10":    {"lib109", "lib110"},
		"?q=nothing":  {"No such package", "lib000"},
	} {
		code, body := get(path + query)
		if code != 200 || !strings.Contains(body, want[0]) || strings.Contains(body, want[1]) {
			t.Errorf("%q: %d, want %q and not %q", query, code, want[0], want[1])
		}
	}
	if code, _ := get("/devices/" + string(unit(2).ID) + "/packages"); code != 404 {
		t.Errorf("a device out of scope: %d", code)
	}
}

func TestDocumentPageShowsOneDocument(t *testing.T) {
	h, get, _ := site(t)
	talk(h)
	base := "/devices/" + string(unit(1).ID) + "/documents/"
	if code, body := get(base + "reported/agent"); code != 200 || !strings.Contains(body, "1.2.3") || strings.Contains(body, "<b>Pump") {
		t.Errorf("page: %d %s", code, body)
	}
	for _, path := range []string{base + "reported/nothing", base + "other/agent"} {
		if code, _ := get(path); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
}
