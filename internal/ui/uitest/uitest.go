// Package uitest looks at console pages in a real Chromium: whether they overflow at phone width, whether
// the browser complains, whether their structure can be read by a screen reader and their colours by
// eyes, and what they look like.
//
//	b := uitest.Start(t)
//	b.CheckPage(t, server.URL+"/orders", uitest.Options{Name: "orders", Header: map[string]string{"Authorization": "Bearer " + token}})
//
// With STEWARD_SCREENSHOTS=DIR each page is also kept as DIR/<name>-<desktop|phone|small>-<light|dark>.png.
package uitest

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

//go:embed check.js
var checkScript string

// programs are the names under which Chromium is looked for; STEWARD_TEST_CHROMIUM goes first.
var programs = []string{"chromium", "chromium-browser", "google-chrome-stable", "google-chrome"}

// Browser is a running headless Chromium.
type Browser struct{ ctx context.Context }

// Start runs a Chromium that ends with the test. Where none is installed the test is skipped, and fails
// when CI=true.
func Start(t testing.TB) *Browser {
	t.Helper()
	program := find()
	if program == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("Chromium is needed; run scripts/install-test-components")
		}
		t.Skip("Chromium is needed: apt-get install chromium")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("hide-scrollbars", false), chromedp.Flag("ignore-certificate-errors", true),
		chromedp.UserDataDir(t.TempDir()))
	alloc, stopAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // asks it to end and waits
		stop()
		stopAlloc()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	return &Browser{ctx}
}

func find() string {
	if p := os.Getenv("STEWARD_TEST_CHROMIUM"); p != "" {
		return p
	}
	for _, name := range programs {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

// Options of a tab and of CheckPage.
type Options struct {
	Name   string            // of the screenshots
	Header map[string]string // sent with each request, e.g. Authorization
	Cookie map[string]string // set before the first request
	Width  int               // CSS pixels; 0 means 1280
	Height int               // 0 means 900
	Dark   bool              // what the machine prefers
	// Allow lists parts of console messages that are no mistake, e.g. "status of 422" on a refused form.
	Allow []string
}

// Tab is an open page.
type Tab struct {
	t     testing.TB
	ctx   context.Context
	allow []string

	mu       sync.Mutex
	problems []string
}

// tabTimeout bounds everything that is done in one tab.
const tabTimeout = 2 * time.Minute

// Open opens a tab at url and waits until it has loaded. It closes with the test, or by Close.
func (b *Browser) Open(t testing.TB, url string, o Options) *Tab {
	t.Helper()
	if o.Width == 0 {
		o.Width = 1280
	}
	if o.Height == 0 {
		o.Height = 900
	}
	tab := &Tab{t: t, allow: o.Allow}
	tabCtx, closeTab := chromedp.NewContext(b.ctx, chromedp.WithListener(tab.listen))
	if err := chromedp.Do(tabCtx); err != nil { // the tab lives as long as this context, so it has no deadline
		closeTab()
		t.Fatalf("open a tab: %v", err)
	}
	ctx, cancel := context.WithTimeout(tabCtx, tabTimeout)
	t.Cleanup(func() { cancel(); closeTab() })
	tab.ctx = ctx
	headers := network.Headers{}
	for k, v := range o.Header {
		headers[k] = v
	}
	tab.Look(o.Width, o.Height, o.Dark)
	steps := []chromedp.Action[chromedp.Void]{
		command(network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: headers}),
	}
	for k, v := range o.Cookie {
		steps = append(steps, command(network.SetCookie, network.SetCookieParams{Name: k, Value: v, URL: url}))
	}
	tab.Run(append(steps, chromedp.Navigate(url))...)
	return tab
}

// Look gives the tab another size, in CSS pixels, and theme; the page stays loaded.
func (tab *Tab) Look(width, height int, dark bool) {
	tab.t.Helper()
	theme := "light"
	if dark {
		theme = "dark"
	}
	tab.Run(
		command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: int64(width), Height: int64(height), DeviceScaleFactor: 1, Mobile: width < 600}),
		command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}),
	)
}

// command makes an action of a command of the protocol.
func command[P any](c cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, c, params)
		return chromedp.Void{}, err
	}
}

func (tab *Tab) listen(event any) {
	var problem string
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			problem += " " + e.ExceptionDetails.Exception.Description
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			for _, a := range e.Args {
				problem += string(a.Value) + a.Description + " "
			}
		}
	case *log.EventEntryAdded: // Content-Security-Policy, failed requests
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			problem = fmt.Sprintf("%s %s", e.Entry.Text, e.Entry.URL)
		}
	}
	if problem == "" {
		return
	}
	for _, allowed := range tab.allow {
		if strings.Contains(problem, allowed) {
			return
		}
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.problems = append(tab.problems, problem)
}

// Run runs chromedp's actions; an error fails the test.
func (tab *Tab) Run(steps ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	if err := chromedp.Do(tab.ctx, steps...); err != nil {
		tab.t.Fatalf("browser: %v", err)
	}
}

// Close closes the tab.
func (tab *Tab) Close() { _ = chromedp.Cancel(tab.ctx) }

// Eval evaluates JavaScript into result, a pointer.
func (tab *Tab) Eval(script string, result any) {
	tab.t.Helper()
	raw, err := chromedp.Run(tab.ctx, chromedp.Evaluate[[]byte](script, chromedp.EvalAwaitPromise))
	if err == nil {
		err = json.Unmarshal(raw, result)
	}
	if err != nil {
		tab.t.Fatalf("evaluate %.200s: %v", script, err)
	}
}

// Do evaluates JavaScript for what it does.
func (tab *Tab) Do(script string) {
	tab.t.Helper()
	tab.Run(chromedp.Evaluate[chromedp.Void](script))
}

// Text returns the text of the first element that the CSS selector finds, or "".
func (tab *Tab) Text(selector string) string {
	tab.t.Helper()
	var text string
	tab.Eval(fmt.Sprintf("document.querySelector(%q)?.textContent.trim() ?? ''", selector), &text)
	return text
}

// waitLimit is how long WaitFor waits.
const waitLimit = 20 * time.Second

// WaitFor polls until the JavaScript expression is true; the page may be left meanwhile.
func (tab *Tab) WaitFor(expression string) {
	tab.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(waitLimit)
	for {
		// An error is that of a page on its way out: the next one is asked again.
		held, err := chromedp.Run(tab.ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		if err == nil && held {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			tab.t.Fatalf("never true: %s (%v)\npage: %.2000s", expression, err, tab.Text("body"))
		}
	}
}

// Problems returns what the browser has complained about: exceptions, console errors, refused resources.
func (tab *Tab) Problems() []string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	return append([]string(nil), tab.problems...)
}

// Screenshot writes the whole page to a PNG file.
func (tab *Tab) Screenshot(file string) {
	tab.t.Helper()
	tab.Do("document.activeElement?.blur(); scrollTo(0, 0)") // else what is fixed to the window lies over the page
	png, err := chromedp.Run(tab.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		tab.t.Fatalf("screenshot: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		tab.t.Fatal(err)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil {
		tab.t.Fatal(err)
	}
}

// Check reports, as errors of the test, horizontal overflow of the page, complaints of the browser, and
// what keeps people from reading it: fields without a label, pictures without a text, headings out of
// order, duplicate IDs, links and buttons without a name, text with a contrast below 4.5:1 (3:1 when
// large), targets below 24 CSS pixels (WCAG 2.2, 1.1.1, 1.3.1, 1.4.3, 2.4.6, 2.5.8, 4.1.2).
func (tab *Tab) Check(name string) {
	tab.t.Helper()
	var found []string
	tab.Eval(checkScript, &found)
	for _, f := range append(found, tab.Problems()...) {
		tab.t.Errorf("%s: %s", name, f)
	}
}

// CheckPage opens url at desktop and phone widths, light and dark, checks each and keeps screenshots.
func (b *Browser) CheckPage(t testing.TB, url string, o Options) {
	t.Helper()
	dir := os.Getenv("STEWARD_SCREENSHOTS")
	for _, size := range []struct {
		name          string
		width, height int
	}{{"desktop", 1280, 900}, {"phone", 390, 844}, {"small", 360, 640}} {
		for _, theme := range []string{"light", "dark"} {
			o.Width, o.Height, o.Dark = size.width, size.height, theme == "dark"
			tab := b.Open(t, url, o)
			name := fmt.Sprintf("%s-%s-%s", o.Name, size.name, theme)
			tab.Check(name)
			if dir != "" && size.name != "small" {
				tab.Screenshot(filepath.Join(dir, name+".png"))
			}
			tab.Close()
		}
	}
}
