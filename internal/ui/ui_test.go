package ui

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// whoIs answers by the header X-Role, so that a request says who sends it.
type whoIs struct{}

func (whoIs) Authenticate(r *http.Request) (httpapi.Principal, error) {
	role, err := httpapi.ParseRole(r.Header.Get("X-Role"))
	if err != nil {
		return httpapi.Principal{}, fault.New(fault.Unauthorized, "sign in")
	}
	return httpapi.Principal{Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-" + role.String(), Name: "Ada"}, Role: role, Scope: device.Scope{Tenant: "default"}}, nil
}

// feed is a ledger in memory: topics in the order in which they happened.
type feed struct {
	mu      sync.Mutex
	topics  []string
	changed chan struct{}
}

func newFeed() *feed { return &feed{changed: make(chan struct{})} }

func (f *feed) add(topic string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.topics = append(f.topics, topic)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed) Wait(ctx context.Context, after int64) (int64, error) {
	for {
		f.mu.Lock()
		n, changed := int64(len(f.topics)), f.changed
		f.mu.Unlock()
		if n > after {
			return n, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (f *feed) TopicsSince(_ context.Context, _ device.TenantID, after, to int64) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.topics[after:to]...), nil
}

const listPage = `{{define "actions"}}<a class="button" href="/new">New</a>{{end}}{{define "content"}}<p>{{.Data}}</p>
<a id="with" href="{{.With "q" "a&b" "state" ""}}">x</a>{{template "pager" (.Pager "next1")}}{{if .Can "operator"}}<i>may change</i>{{end}}{{end}}`

func newConsole(log *strings.Builder, events Events) *Console {
	c := New(Config{Auth: whoIs{}, Log: slog.New(slog.NewTextHandler(log, nil)), Events: events, Now: func() time.Time { return noon },
		Nav: []NavItem{{"Fleet", "/", "fleet"}, {"Devices", "/devices", "devices"}, {"Disposal", "/disposal", "trash"}}})
	pages := c.Parse(fstest.MapFS{"page/list.html": {Data: []byte(listPage)}})
	c.Handle("GET /list", httpapi.Viewer, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
		return pages.Render(w, r, who, "list.html", View{Title: "List <b>", Nav: "/devices", Live: "device update", Data: `<script>alert(1)</script>`})
	})
	c.Handle("POST /list", httpapi.Operator, func(w http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
		if err := r.ParseForm(); err != nil {
			return err
		}
		Flash(w, r, "Done & <saved>")
		http.Redirect(w, r, Next(r.PostFormValue("next"), "/list"), http.StatusSeeOther)
		return nil
	})
	for name, err := range map[string]error{
		"internal": errors.New("secret: pq says no"), "missing": fault.New(fault.NotFound, "there is no order 7"),
		"conflict": fault.New(fault.Conflict, "the order is closed"), "invalid": fault.Bad("body.quantity", "must be positive"),
	} {
		c.Handle("GET /err/"+name, httpapi.Viewer, func(http.ResponseWriter, *http.Request, httpapi.Principal) error { return err })
	}
	return c
}

// ask sends a request; header is pairs.
func ask(c http.Handler, method, target, body string, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w.Result()
}

func text(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryAnswerHasTheSecurityHeaders(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	for _, path := range []string{"/list", "/nowhere", "/err/internal", "/static/none.css", c.assets.urls["ui.js"]} {
		h := ask(c, "GET", path, "", "X-Role", "viewer").Header
		policy := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'self';") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, policy)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") == "" || h.Get("Cache-Control") == "" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
}

func TestFormsFromOtherSitesAreRefused(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	for _, k := range []struct {
		name   string
		header []string
		want   int
	}{
		{"same origin", []string{"Sec-Fetch-Site", "same-origin"}, 303}, {"other site", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"sister site", []string{"Sec-Fetch-Site", "same-site"}, 403}, {"old browser, other origin", []string{"Origin", "https://evil.example"}, 403},
		{"old browser, own origin", []string{"Origin", "http://example.com"}, 303},
	} {
		res := ask(c, "POST", "/list", "a=b", append(k.header, "X-Role", "operator")...)
		if res.StatusCode != k.want {
			t.Errorf("%s: %d, want %d", k.name, res.StatusCode, k.want)
		}
	}
}

func TestPagesAreAdmittedByRole(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	if res := ask(c, "GET", "/list?q=1", ""); res.StatusCode != 303 || res.Header.Get("Location") != "/login?next=%2Flist%3Fq%3D1" {
		t.Errorf("nobody: %d to %s", res.StatusCode, res.Header.Get("Location"))
	}
	if res := ask(c, "POST", "/list", "a=b"); res.StatusCode != 401 {
		t.Errorf("nobody posts: %d", res.StatusCode)
	}
	if res := ask(c, "POST", "/list", "a=b", "X-Role", "viewer"); res.StatusCode != 403 || !strings.Contains(text(t, res), "operator") {
		t.Errorf("viewer posts: %d", res.StatusCode)
	}
	if body := text(t, ask(c, "GET", "/list", "", "X-Role", "viewer")); strings.Contains(body, "may change") {
		t.Error("a viewer sees what an operator may do")
	}
}

func TestWhatPeopleWroteIsEscaped(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	body := text(t, ask(c, "GET", "/list?x=%22%3E%3Cscript%3E", "", "X-Role", "operator"))
	for _, bad := range []string{"<script>alert", "List <b>", `"><script>`} {
		if strings.Contains(body, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	for _, want := range []string{"&lt;script&gt;alert(1)", "List &lt;b&gt;", "may change", `aria-current="page"`, `rel="next"`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestErrorsSayWhatHappenedAndHideInternals(t *testing.T) {
	var log strings.Builder
	c := newConsole(&log, nil)
	for path, want := range map[string]struct {
		status int
		words  []string
	}{
		"/err/internal": {500, []string{"Something went wrong on the server"}}, "/err/missing": {404, []string{"there is no order 7", "Go back"}},
		"/err/conflict": {409, []string{"the order is closed", "Nothing was changed"}}, "/err/invalid": {422, []string{"body.quantity", "must be positive"}},
		"/nowhere": {404, []string{"There is no page at /nowhere."}},
	} {
		res := ask(c, "GET", path, "", "X-Role", "viewer")
		body := text(t, res)
		if res.StatusCode != want.status || strings.Contains(body, "secret") {
			t.Errorf("%s: status %d, %s", path, res.StatusCode, body)
		}
		for _, w := range want.words {
			if !strings.Contains(body, w) {
				t.Errorf("%s lacks %q", path, w)
			}
		}
	}
	if !strings.Contains(log.String(), "secret: pq says no") {
		t.Error("the log lacks the internal error")
	}
}

func TestTooLargeAFormIsRefused(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	res := ask(c, "POST", "/list", "a="+strings.Repeat("x", maxFormBytes), "X-Role", "operator")
	if res.StatusCode != 413 || !strings.Contains(text(t, res), "1.0 MiB") {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestFlashIsShownOnceAfterTheRedirect(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	res := ask(c, "POST", "/list", "a=b", "X-Role", "operator")
	var cookie *http.Cookie
	for _, ck := range res.Cookies() {
		if ck.Name == flashCookie {
			cookie = ck
		}
	}
	if cookie == nil || !cookie.HttpOnly {
		t.Fatalf("cookies %v", res.Cookies())
	}
	res = ask(c, "GET", "/list", "", "X-Role", "operator", "Cookie", cookie.String())
	if !strings.Contains(text(t, res), "Done &amp; &lt;saved&gt;") {
		t.Error("the message is not shown")
	}
	if len(res.Cookies()) != 1 || res.Cookies()[0].MaxAge >= 0 {
		t.Errorf("it would be shown again: %v", res.Cookies())
	}
}

func TestFormsLeadToLocalPlacesOnly(t *testing.T) {
	for next, want := range map[string]string{
		"/devices?x=1": "/devices?x=1", "https://evil.example/": "/home", "//evil.example": "/home", `/\evil.example`: "/home",
		"javascript:alert(1)": "/home", "": "/home", "devices": "/home", "/a\r\nSet-Cookie: x": "/home",
	} {
		if got := Next(next, "/home"); got != want {
			t.Errorf("%q leads to %q, want %q", next, got, want)
		}
	}
}

func TestThemeIsRememberedWithoutScript(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	res := ask(c, "POST", "/theme", "theme=dark&next=/list")
	if res.StatusCode != 303 || len(res.Cookies()) != 1 || res.Header.Get("Location") != "/list" {
		t.Fatal(res.StatusCode, res.Cookies())
	}
	if body := text(t, ask(c, "GET", "/list", "", "X-Role", "viewer", "Cookie", res.Cookies()[0].String())); !strings.Contains(body, `<html lang="en" data-theme="dark">`) {
		t.Error("the page is not dark")
	}
	if body := text(t, ask(c, "GET", "/list", "", "X-Role", "viewer", "Cookie", themeCookie+`="><script>`)); strings.Contains(body, "data-theme=") {
		t.Error("a wrong cookie reaches the page")
	}
	if res := ask(c, "POST", "/theme", "theme=pink"); res.StatusCode != 422 {
		t.Errorf("unknown theme: %d", res.StatusCode)
	}
}

func TestStaticFilesAreKeptForEver(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	for name, path := range c.assets.urls {
		plain := ask(c, "GET", path, "")
		zipped := ask(c, "GET", path, "", "Accept-Encoding", "gzip")
		if plain.StatusCode != 200 || !strings.Contains(plain.Header.Get("Cache-Control"), "immutable") || plain.Header.Get("Content-Type") == "" {
			t.Errorf("%s: %d %v", name, plain.StatusCode, plain.Header)
		}
		if strings.HasSuffix(name, "css") && zipped.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s is not compressed", name)
		}
		body := text(t, plain)
		if strings.Contains(body, "http://") && !strings.Contains(body, "www.w3.org/2000/svg") || strings.Contains(body, "https://") {
			t.Errorf("%s asks another site", name)
		}
	}
	if res := ask(c, "GET", "/static/steward.000000000000.css", ""); res.StatusCode != 404 {
		t.Errorf("an old name: %d", res.StatusCode)
	}
}

// stream reads server-sent events of a real server, since a recorder can't be read while it is written.
func stream(t *testing.T, ctx context.Context, url string, header ...string) (next func() string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Role", "viewer")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("status %d, %v", res.StatusCode, res.Header)
	}
	buf := ""
	return func() string {
		for {
			if event, rest, whole := strings.Cut(buf, "\n\n"); whole {
				buf = rest
				return event
			}
			chunk := make([]byte, 1024)
			n, err := res.Body.Read(chunk)
			buf += string(chunk[:n])
			if err != nil && !strings.Contains(buf, "\n\n") {
				return err.Error()
			}
		}
	}
}

func TestLiveStreamTellsChangesOfItsTopicsAndMissesNone(t *testing.T) {
	events := newFeed()
	c := newConsole(new(strings.Builder), events)
	srv := httptest.NewServer(c)
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events.add("device")
	next := stream(t, ctx, srv.URL+"/live?topics=device+update")
	if got := next(); !strings.Contains(got, "event: ready") || !strings.Contains(got, "id: 1") {
		t.Fatalf("begins with %q", got)
	}
	events.add("purchase")
	events.add("update")
	if got := next(); !strings.Contains(got, "event: change\ndata: update") || !strings.Contains(got, "id: 3") {
		t.Errorf("change: %q", got)
	}
	again := stream(t, ctx, srv.URL+"/live?topics=device", "Last-Event-ID", "0")
	again()
	if got := again(); !strings.Contains(got, "data: device") {
		t.Errorf("after coming back: %q", got)
	}
	page := text(t, ask(c, "GET", "/list", "", "X-Role", "viewer"))
	if !strings.Contains(page, `data-live-url="/live?topics=device&#43;update&amp;after=3"`) {
		t.Error("the page doesn't say from where on its events count")
	}
	events.add("device") // while the page is on its way
	late := stream(t, ctx, srv.URL+"/live?topics=device&after=3")
	late()
	if got := late(); !strings.Contains(got, "data: device") || !strings.Contains(got, "id: 4") {
		t.Errorf("between page and stream: %q", got)
	}
	for _, bad := range []string{"", "?topics=", "?topics=" + strings.Repeat("a+", 40)} {
		if res := ask(c, "GET", "/live"+bad, "", "X-Role", "viewer"); res.StatusCode != 422 {
			t.Errorf("topics %q: %d", bad, res.StatusCode)
		}
	}
}

func TestLiveStreamsAreBoundedAndEndWithTheServer(t *testing.T) {
	events := newFeed()
	c := newConsole(new(strings.Builder), events)
	srv := httptest.NewServer(c)
	defer srv.Close()
	var nexts []func() string
	for range liveMaxPerReader {
		next := stream(t, t.Context(), srv.URL+"/live?topics=device")
		next()
		nexts = append(nexts, next)
	}
	if res := ask(c, "GET", "/live?topics=device", "", "X-Role", "viewer"); res.StatusCode != 429 {
		t.Errorf("one more: %d", res.StatusCode)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, next := range nexts {
		if got := next(); got != "EOF" {
			t.Fatalf("after the end: %q", got)
		}
	}
	if res := ask(c, "GET", "/live?topics=device", "", "X-Role", "viewer"); res.StatusCode != 503 {
		t.Errorf("a new one while stopping: %d", res.StatusCode)
	}
}

func TestTemplateFunctionsWriteForPeople(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	for source, want := range map[string]string{
		`{{number 1234567}} {{number -1234}} {{number 12.345}}`: "1,234,567 −1,234 12.35", `{{bytes 0}} {{bytes 1536}} {{bytes 5368709120}}`: "0 B 1.5 KiB 5.0 GiB",
		`{{percent 0.421}} {{percent 0.0312}} {{percent 1}}`: "42 % 3.1 % 100 %", `{{plural 1 "device" "devices"}} {{plural 2000 "device" "devices"}}`: "1 device 2,000 devices",
		`{{reltime .Zero}}`:                              `<span class="muted">never</span>`,
		`{{reltime .Earlier}}`:                           `<time datetime="2026-11-23T09:55:00Z" title="2026-11-23 09:55:00 UTC" data-rel>2 h 5 min ago</time>`,
		`{{duration .Long}}`:                             "12 d",
		`{{labels (dict2 "b" "<2>" "a" "")}}`:            `<span class="labels"><span class="label"><span class="label-key">a</span></span><span class="label"><span class="label-key">b</span>=&lt;2&gt;</span></span>`,
		`{{copy "a <b>"}}`:                               `<span class="copy"><code>a &lt;b&gt;</code><button type="button" class="button small" data-copy hidden>Copy</button></span>`,
		`{{short "0123456789abcdef"}}`:                   `<code title="0123456789abcdef">0123456789ab…</code>`,
		`{{bar 3 1200 "done"}}`:                          `<span class="progress"><progress value="3" max="1200" aria-label="done"></progress><span>3 of 1,200 done</span></span>`,
		`{{field "n" "Name" "a\"b" nil "hint" "h"}}`:     `<div class="form-row"><label for="f-n">Name</label><input type="text" value="a&#34;b" id="f-n" name="n" aria-describedby="f-n-hint"><p class="hint" id="f-n-hint">h</p></div>`,
		`{{field "p" "Pass" "x" nil "type" "password"}}`: `<div class="form-row"><label for="f-p">Pass</label><input type="password" id="f-p" name="p"></div>`,
	} {
		tmpl, err := template.New("t").Funcs(c.funcs()).Funcs(template.FuncMap{"dict2": func(kv ...string) map[string]string { return map[string]string{kv[0]: kv[1], kv[2]: kv[3]} }}).Parse(source)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		var b strings.Builder
		data := map[string]any{"Zero": time.Time{}, "Earlier": noon.Add(-125 * time.Minute), "Long": 12*24*time.Hour + time.Hour}
		if err := tmpl.Execute(&b, data); err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		if b.String() != want {
			t.Errorf("%s\n got %s\nwant %s", source, b.String(), want)
		}
	}
}

func TestStatusIsAWordAndAShape(t *testing.T) {
	seen := map[string]string{}
	for _, word := range []string{"active", "enrolled", "retired", "quarantined", "disposed"} {
		badge := string(Status(word))
		shape := badge[strings.Index(badge, "<svg"):strings.Index(badge, "</svg>")]
		if before, twice := seen[shape]; twice || !strings.Contains(badge, word) {
			t.Errorf("%s looks like %s: %s", word, before, badge)
		}
		seen[shape] = word
	}
	if got := string(Status("rolled_back <x>")); !strings.Contains(got, "rolled back &lt;x&gt;") {
		t.Errorf("unknown word: %s", got)
	}
}

func TestRefusedInputBelongsToItsField(t *testing.T) {
	bad := &fault.Invalid{}
	bad.Add("body.name", "is taken")
	bad.Add("line 3, column 2", "no number")
	fe := FormErrorsFrom(fmt.Errorf("place order: %w", bad))
	if fe.Of("name") != "is taken" || fe.Of("line 3, column 2") != "no number" {
		t.Errorf("%v", fe)
	}
	if fe := FormErrorsFrom(fault.New(fault.Conflict, "closed")); fe.Of("") != "closed" {
		t.Errorf("%v", fe)
	}
	for _, err := range []error{nil, errors.New("db"), fault.New(fault.NotFound, "x"), fault.New(fault.Forbidden, "x")} {
		if fe := FormErrorsFrom(err); fe != nil {
			t.Errorf("%v: %v", err, fe)
		}
	}
}

func TestNavigationLettersAreUnique(t *testing.T) {
	c := newConsole(new(strings.Builder), nil)
	var keys []string
	for _, e := range c.nav {
		keys = append(keys, e.Key)
	}
	if got := strings.Join(keys, ""); got != "fdi" {
		t.Errorf("letters %q", got)
	}
}

func TestChangedQueryKeepsTheOthers(t *testing.T) {
	u, _ := url.Parse("/devices?q=a&cursor=x&stage=active")
	p := &Page{URL: u}
	for _, k := range []struct {
		pairs []any
		want  string
	}{
		{[]any{"stage", ""}, "/devices?q=a"}, {[]any{"stage", "retired", "q", ""}, "/devices?stage=retired"}, {[]any{"q", "", "stage", ""}, "/devices"},
	} {
		if got, err := p.With(k.pairs...); err != nil || got != k.want {
			t.Errorf("%v: %s, %v, want %s", k.pairs, got, err, k.want)
		}
	}
	if links, err := p.Pager("n 1"); err != nil || links.First != "/devices?q=a&stage=active" || links.Next != "/devices?cursor=n+1&q=a&stage=active" {
		t.Errorf("pager %+v, %v", links, err)
	}
}

func TestPageThatUsesAnUnknownTemplateIsToldAtTheStart(t *testing.T) {
	c := newConsole(&strings.Builder{}, nil)
	for _, page := range []string{
		`{{define "content"}}{{template "mine" .}}{{end}}`,
		`{{define "content"}}{{range .Data}}{{if .}}a{{else}}{{with .}}{{template "mine" .}}{{end}}{{end}}{{end}}{{end}}`,
	} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, `"mine"`) {
					t.Errorf("%s: %s", page, said)
				}
			}()
			c.Parse(fstest.MapFS{"page/list.html": {Data: []byte(page)}})
		}()
	}
	c.Parse(fstest.MapFS{"page/list.html": {Data: []byte(`{{define "content"}}{{template "mine" .}}{{end}}`)}, "page/_mine.html": {Data: []byte(`{{define "mine"}}x{{end}}`)}})
}
