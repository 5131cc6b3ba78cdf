package ui

import (
	"fmt"
	"html/template"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui/chart"
	"steward/internal/ui/uitest"
)

type sampleRow struct {
	ID, Stage string
	Labels    map[string]string
	Spark     template.HTML
	At        time.Time
}

func sampleCharts(now time.Time) []template.HTML {
	wave := func(f func(i int) float64) (points []chart.Point) {
		for i := range 289 {
			if i > 100 && i < 130 {
				continue
			}
			points = append(points, chart.Point{T: now.Add(time.Duration(i-288) * 5 * time.Minute), V: f(i)})
		}
		return points
	}
	base := chart.TimeSeries{From: now.Add(-24 * time.Hour), To: now, Step: 5 * time.Minute}
	cpu, net, group := base, base, base
	cpu.ID, cpu.Title, cpu.Unit, cpu.Top = "cpu", "CPU in use", chart.Ratio, 1
	cpu.Series = []chart.Series{{Name: "CPU", Points: wave(func(i int) float64 { return .4 + .3*math.Sin(float64(i)/20) })}}
	net.ID, net.Title, net.Unit = "net", "Network", chart.BytesPerSecond
	net.Series = []chart.Series{{Name: "receive", Points: wave(func(i int) float64 { return 2e5 + 1e5*math.Sin(float64(i)/9) })}, {Name: "transmit", Points: wave(func(i int) float64 { return 6e4 })}}
	group.ID, group.Title, group.Unit = "grp", "Temperature", chart.Celsius
	group.Series = []chart.Series{{Name: "mean", Points: wave(func(i int) float64 { return 45 + 3*math.Sin(float64(i)/30) })}}
	group.Band = &chart.Band{Name: "5th to 95th percentile", Low: wave(func(i int) float64 { return 38 }), High: wave(func(i int) float64 { return 60 })}
	return []template.HTML{cpu.HTML(), net.HTML(), group.HTML()}
}

// sampleServer shows one page with every component; revision is a number that tests change.
func sampleServer(t *testing.T, events Events, revision *atomic.Int64) *httptest.Server {
	t.Helper()
	c := New(Config{Auth: whoIs{}, Log: slog.New(slog.DiscardHandler), Events: events, Version: "v0.1.0", Nav: []NavItem{
		{"Fleet", "/", "fleet"}, {"Devices", "/list", "devices"}, {"Groups", "/groups", "groups"}, {"Orders", "/orders", "orders"},
		{"Enrollment", "/enrollment", "key"}, {"Releases", "/releases", "release"}, {"Ledger", "/ledger", "ledger"}, {"Access", "/access", "access"}}})
	pages := c.Parse(os.DirFS("testdata"))
	c.Handle("GET /list", httpapi.Viewer, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
		now := time.Now()
		points := []chart.Point{{T: now.Add(-time.Hour), V: .2}, {T: now.Add(-30 * time.Minute), V: .7}, {T: now, V: .4}}
		var rows []sampleRow
		for i, stage := range []string{"active", "enrolled", "in_transfer", "quarantined", "disposed"} {
			rows = append(rows, sampleRow{fmt.Sprintf("dev-0k3v9m2xq7ah5pt%d", i), stage, map[string]string{"site": "berlin", "ring": "canary", "customer": "a-rather-long-name-of-a-customer"},
				chart.Sparkline("CPU", chart.Ratio, time.Hour, points), now.Add(-time.Duration(i*i*i*400) * time.Second)})
		}
		return pages.Render(w, r, who, "sample.html", View{Title: "Devices", Nav: "/list", Crumbs: []NavItem{{Name: "Fleet", Path: "/"}}, Live: "device", Data: map[string]any{
			"Notices": []Notice{{Bad, "12 devices are offline", "Silent for more than five of their intervals.", "/list", 12}, {Warn, "A release is not signed", "Sign it with steward release sign.", "/list", 0}, {Info, "Version 0.2 is out", "", "", 0}},
			"Rows":    rows, "Charts": sampleCharts(now), "At": now.Add(-3 * time.Minute), "Revision": revision.Load(),
			"Errors": FormErrorsFrom(fault.Bad("body.serial", "spaces are not allowed")), "Options": []Option{{"a", "One"}, {"b", "Two"}},
			"JSON": map[string]any{"releases": []string{"app 1.2"}, "epoch": 7},
			"Bar": chart.StackBar{Title: "Devices by stage", Parts: []chart.Part{{Name: "active", Value: 1201, Class: "good", Href: "/list"}, {Name: "late", Value: 60, Class: "warn", Href: "/list"},
				{Name: "quarantined", Value: 3, Class: "bad", Href: "/list"}, {Name: "in stock", Value: 20, Class: "idle", Href: "/list"}}}.HTML(),
		}})
	})
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	return srv
}

var asOperator = map[string]string{"X-Role": "operator"}

func TestEveryComponentReadsWellOnDesktopAndPhoneInBothThemes(t *testing.T) {
	srv := sampleServer(t, nil, new(atomic.Int64))
	b := uitest.Start(t)
	b.CheckPage(t, srv.URL+"/list", uitest.Options{Name: "sample", Header: asOperator})
	b.CheckPage(t, srv.URL+"/nowhere", uitest.Options{Name: "error", Header: asOperator, Allow: []string{"404"}})
}

func TestLivePageRefreshesAndKeepsWhatTheReaderDoes(t *testing.T) {
	events, revision := newFeed(), new(atomic.Int64)
	srv := sampleServer(t, events, revision)
	b := uitest.Start(t)
	tab := b.Open(t, srv.URL+"/list", uitest.Options{Header: asOperator})
	tab.Do(`document.getElementById("more").open = true;
		const n = document.getElementById("note"); n.focus(); n.value = "half a sent"; n.setSelectionRange(4, 4);
		const box = document.querySelector("input[name=device]"); box.click(); n.focus(); window.scrollTo(0, 200)`)
	revision.Store(7)
	events.add("purchase") // not this page's topic
	events.add("device")
	tab.WaitFor(`document.getElementById("revision").textContent === "7"`)
	var kept []bool
	tab.Eval(`(() => { const n = document.getElementById("note"); return [document.getElementById("more").open, document.activeElement === n, n.value === "half a sent",
		n.selectionStart === 4, document.querySelector("input[name=device]").checked, !document.querySelector("[data-selected-bar]").hidden, window.scrollY === 200] })()`, &kept)
	for i, what := range []string{"open details", "focus", "typed text", "caret", "checked box", "bar of the selection", "scroll position"} {
		if !kept[i] {
			t.Errorf("lost: %s", what)
		}
	}
	revision.Store(8)
	events.add("device")
	tab.WaitFor(`document.getElementById("revision").textContent === "8"`)
	if p := tab.Problems(); len(p) > 0 {
		t.Errorf("the browser complains: %v", p)
	}
}

func TestConsoleIsUsableByKeyboardAndRemembersTheTheme(t *testing.T) {
	srv := sampleServer(t, nil, new(atomic.Int64))
	b := uitest.Start(t)
	tab := b.Open(t, srv.URL+"/list", uitest.Options{Header: asOperator, Allow: []string{"404"}})
	key := func(k string) {
		tab.Do(fmt.Sprintf(`document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: %q, bubbles: true, cancelable: true}))`, k))
	}
	tab.WaitFor(`document.querySelector("[data-copy]").hidden === false`) // the module has run
	key("/")
	tab.WaitFor(`document.activeElement.id === "q"`)
	key("g") // typed into the field, goes nowhere
	key("o")
	key("Escape")
	key("?")
	tab.WaitFor(`document.getElementById("help").open`)
	tab.Do(`document.getElementById("help").close()`)
	tab.Do(`document.querySelector("button[name=theme][value=dark]").click()`)
	tab.WaitFor(`document.documentElement.dataset.theme === "dark" && document.cookie.includes("steward_theme=dark")`)
	tab.Do(`document.querySelector("[data-select-all]").click()`)
	tab.WaitFor(`document.querySelector("[data-selected-bar] output").textContent === "5 selected"`)
	tab.Do(`document.querySelector("[data-confirm]").click()`)
	tab.WaitFor(`document.getElementById("confirm").open && document.getElementById("confirm-text").textContent === "Retire the selected devices?"`)
	tab.Do(`document.querySelector("#confirm button[value=no]").click()`)
	tab.WaitFor(`!document.getElementById("confirm").open && location.pathname === "/list"`)
	key("g")
	key("o")
	tab.WaitFor(`location.pathname === "/orders" && document.documentElement.dataset.theme === "dark"`)
}

func TestPhoneMenuOpensWithoutScript(t *testing.T) {
	srv := sampleServer(t, nil, new(atomic.Int64))
	b := uitest.Start(t)
	tab := b.Open(t, srv.URL+"/list", uitest.Options{Header: asOperator, Width: 360, Height: 640})
	var shown bool
	tab.Eval(`document.querySelector(".nav").checkVisibility()`, &shown)
	if shown {
		t.Error("the navigation covers the phone's page")
	}
	tab.Do(`document.getElementById("menu").click()`)
	tab.Eval(`document.querySelector(".nav").checkVisibility()`, &shown)
	if !shown {
		t.Error("the menu doesn't open")
	}
	tab.Check("open menu")
}
