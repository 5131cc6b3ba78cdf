package ledger_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ui"
)

// reader is who makes every request of a test.
type reader struct{ who httpapi.Principal }

func (r reader) Authenticate(*http.Request) (httpapi.Principal, error) { return r.who, nil }

func viewer(selector string) reader {
	return reader{httpapi.Principal{
		Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}, Role: httpapi.Viewer,
		Scope: device.Scope{Tenant: "default", Selector: device.MustSelector(selector)},
	}}
}

// server serves the ledger's API and pages to one reader.
func (h house) server(as reader) http.Handler {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	api := httpapi.New(httpapi.Config{Auth: as, Log: log, DB: h.db})
	h.l.Routes(api)
	console := ui.New(ui.Config{Auth: as, Log: log, Events: h.l})
	panel := h.l.Pages(console)
	mux := http.NewServeMux()
	mux.Handle("/api/", api)
	mux.Handle("/", console)
	mux.HandleFunc("GET /panel/{id}", func(w http.ResponseWriter, r *http.Request) {
		html, err := panel.Render(r.Context(), as.who, device.Device{ID: device.ID(r.PathValue("id")), Tenant: as.who.Scope.Tenant})
		if err != nil {
			h.Error(err)
		}
		_, _ = io.WriteString(w, string(html))
	})
	return mux
}

func (h house) get(s http.Handler, url string) (status int, body string) {
	h.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, url, nil))
	return w.Code, w.Body.String()
}

func (h house) getJSON(s http.Handler, url string, to any) {
	h.Helper()
	status, body := h.get(s, url)
	if status != http.StatusOK {
		h.Fatalf("%s: %d %s", url, status, body)
	}
	if err := json.Unmarshal([]byte(body), to); err != nil {
		h.Fatalf("%s: %v: %s", url, err, body)
	}
}

const deviceA = device.ID("dev-aaaaaaaaaaaaaaaa")

// story is a small history that the tests below read.
func (h house) story() {
	h.Helper()
	moved := event("device.moved", deviceA)
	moved.Data = ledger.Facts(map[string]any{"from": "enrolled", "to": "active", "count": 3, "list": []int{1}})
	moved.Reason = "first report <script>"
	moved.Actor = device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}
	failed := event("update.rolled_back", deviceA)
	failed.Subject = "rel-1"
	foreign := event("device.moved", "dev-bbbbbbbbbbbbbbbb")
	foreign.Tenant = "other"
	h.append(event("purchase.order_placed", ""), moved, failed, foreign)
	h.sequence()
}

func TestAPIListsTheTenantsEvents(t *testing.T) {
	each(t, func(h house) {
		h.story()
		s := h.server(viewer(""))
		for url, want := range map[string]string{
			"":                               "update.rolled_back device.moved purchase.order_placed",
			"?order=oldest":                  "purchase.order_placed device.moved update.rolled_back",
			"?device=dev-aaaaaaaaaaaaaaaa":   "update.rolled_back device.moved",
			"?device=dev-bbbbbbbbbbbbbbbb":   "",
			"?kind=update,purchase":          "update.rolled_back purchase.order_placed",
			"?subject=rel-1":                 "update.rolled_back",
			"?actor=acc-1":                   "device.moved",
			"?since=2026-03-01T12:00:00Z":    "update.rolled_back device.moved purchase.order_placed",
			"?until=2026-03-01T12:00:00Z":    "",
			"?after=2&order=oldest":          "update.rolled_back",
			"?kind=device.moved&subject=x":   "",
			"?kind=nonsense":                 "",
			"?since=2026-03-01T12:00:00.13Z": "",
		} {
			var list httpapi.List[ledger.EventItem]
			h.getJSON(s, "/api/v1/events"+url, &list)
			var kinds []string
			for _, e := range list.Items {
				kinds = append(kinds, e.Kind)
			}
			if got := strings.Join(kinds, " "); got != want {
				t.Errorf("%s: %s, want %s", url, got, want)
			}
		}
		var first, page httpapi.List[ledger.EventItem]
		h.getJSON(s, "/api/v1/events?limit=2", &first)
		h.getJSON(s, "/api/v1/events?limit=2&cursor="+first.Next, &page)
		if len(page.Items) != 1 || page.Items[0].Kind != "purchase.order_placed" || page.Items[0].Text != "Purchase order placed" || page.Next != "" {
			t.Errorf("second page %+v", page)
		}
	})
}

func TestAPIProvesWhatTheReaderMaySee(t *testing.T) {
	each(t, func(h house) {
		h.story()
		all := h.events(ledger.Filter{})
		s := h.server(viewer(""))
		var head ledger.HeadInfo
		h.getJSON(s, "/api/v1/ledger/checkpoint", &head)
		var p ledger.Proof
		h.getJSON(s, "/api/v1/events/"+all[1].ID+"/proof", &p)
		e, c, err := ledger.VerifyProof(p, head.Verifier)
		if err != nil || e.Kind != "device.moved" || c.Size != 4 || head.Size != 4 || c.Root.String() != head.Root {
			t.Errorf("event %v, checkpoint %v, head %v, error %v", e, c, head, err)
		}
		var item ledger.EventItem
		h.getJSON(s, "/api/v1/events/"+all[1].ID, &item)
		if item.Text != "Device moved from enrolled to active" || item.Sequence != 1 {
			t.Errorf("item %+v", item)
		}
		var grown ledger.ConsistencyProof
		h.getJSON(s, "/api/v1/ledger/consistency?from=2", &grown)
		if grown.From != 2 || grown.To != 4 || len(grown.Hashes) == 0 {
			t.Errorf("consistency %+v", grown)
		}
		for url, want := range map[string]int{
			"/events/" + all[3].ID:            http.StatusNotFound, // another tenant's
			"/events/" + all[3].ID + "/proof": http.StatusNotFound,
			"/events/evt-none":                http.StatusNotFound,
			"/events?cursor=x":                http.StatusUnprocessableEntity,
			"/events?limit=0":                 http.StatusUnprocessableEntity,
			"/events?since=yesterday":         http.StatusUnprocessableEntity,
			"/ledger/consistency?from=9":      http.StatusUnprocessableEntity,
			"/ledger/consistency":             http.StatusUnprocessableEntity,
		} {
			if status, body := h.get(s, "/api/v1"+url); status != want {
				t.Errorf("%s: %d, want %d: %s", url, status, want, body)
			}
		}
		if status, _ := h.get(h.server(viewer("site=berlin")), "/api/v1/events/"+all[1].ID+"/proof"); status != http.StatusNotFound {
			t.Errorf("outside of the reader's selector: %d", status)
		}
	})
}

func TestAuditViewKeepsItsFilterInTheURL(t *testing.T) {
	each(t, func(h house) {
		h.story()
		s := h.server(viewer(""))
		status, body := h.get(s, "/ledger")
		for _, want := range []string{"Device moved from enrolled to active", "first report &lt;script&gt;", "/devices/dev-aaaaaaaaaaaaaaaa", "Steward (test)", "steward.test/ledger"} {
			if status != http.StatusOK || !strings.Contains(body, want) {
				t.Errorf("status %d, no %q in %d bytes", status, want, len(body))
			}
		}
		if strings.Contains(body, "dev-bbbbbbbbbbbbbbbb") {
			t.Error("another tenant's event is shown")
		}
		_, body = h.get(s, "/ledger?kind=update&since=2026-03-01&until=2026-03-01")
		for _, want := range []string{`value="update"`, `value="2026-03-01"`, "Update rolled back", "kind=update&amp;since=2026-03-01&amp;subject=rel-1&amp;until=2026-03-01"} {
			if !strings.Contains(body, want) {
				t.Errorf("no %q in %s", want, body)
			}
		}
		if strings.Contains(body, "Device moved") {
			t.Error("the filter is ignored")
		}
		if status, body := h.get(s, "/ledger?since=yesterday"); status != http.StatusUnprocessableEntity || !strings.Contains(body, "is not a day") {
			t.Errorf("wrong day: %d %s", status, body)
		}
		if status, body := h.get(s, "/ledger?cursor=x"); status != http.StatusUnprocessableEntity || !strings.Contains(body, "not a cursor") {
			t.Errorf("wrong cursor: %d %s", status, body)
		}
		if _, body := h.get(s, "/ledger?device=dev-none"); !strings.Contains(body, "Nothing like this happened") {
			t.Error("no empty state")
		}
	})
}

func TestEventPageShowsFactsAndProof(t *testing.T) {
	each(t, func(h house) {
		h.story()
		all := h.events(ledger.Filter{})
		s := h.server(viewer(""))
		status, body := h.get(s, "/ledger/"+all[1].ID)
		for _, want := range []string{"&#34;from&#34;: &#34;enrolled&#34;", "/api/v1/events/" + all[1].ID + "/proof", "first report", h.key.Verifier()} {
			if status != http.StatusOK || !strings.Contains(body, want) {
				t.Errorf("status %d, no %q in %d bytes", status, want, len(body))
			}
		}
		if status, _ := h.get(s, "/ledger/"+all[3].ID); status != http.StatusNotFound {
			t.Errorf("another tenant's event: %d", status)
		}
		status, body = h.get(s, "/panel/"+string(deviceA))
		at := strings.Index(body, "Update rolled back")
		if at < 0 || at > strings.Index(body, "Device moved from enrolled to active") || !strings.Contains(body, `<li class="bad">`) {
			t.Errorf("passport: %d %s", status, body)
		}
	})
}

func TestRoomTellsItsOwnEvents(t *testing.T) {
	l := ledger.New(ledger.Config{Describe: map[string]func(ledger.Event) string{
		"update.committed": func(e ledger.Event) string { return "Runs " + e.Subject },
		"update.started":   func(ledger.Event) string { return "" },
	}})
	for _, c := range []struct {
		e    ledger.Event
		want string
	}{
		{ledger.Event{Kind: "update.committed", Subject: "2.1"}, "Runs 2.1"},
		{ledger.Event{Kind: "update.started"}, "Update started"},
		{ledger.Event{Kind: "access.token_issued"}, "Access token issued"},
		{ledger.Event{Kind: "device.moved", Data: []byte(`{"from":"a","to":"b"}`)}, "Device moved from a to b"},
		{ledger.Event{Kind: "device.moved", Data: []byte(`{"from":1`)}, "Device moved"},
	} {
		if got := l.Sentence(c.e); got != c.want {
			t.Errorf("%s: %q, want %q", c.e.Kind, got, c.want)
		}
	}
	if got := (ledger.Event{Kind: "update.rolled_back"}).Tone(); got != "bad" {
		t.Errorf("tone %s", got)
	}
}

func TestLivePagesLearnWhichTopicsChanged(t *testing.T) {
	each(t, func(h house) {
		if head, err := h.l.Wait(t.Context(), -1); err != nil || head != 0 {
			t.Fatalf("head %d, error %v", head, err)
		}
		h.story()
		if head, err := h.open(ledger.Config{}).Wait(t.Context(), -1); err != nil || head != 4 {
			t.Fatalf("head %d, error %v", head, err)
		}
		got, err := h.l.TopicsSince(t.Context(), "default", 1, 4)
		if err != nil || strings.Join(got, " ") != "device update" {
			t.Errorf("topics %v, error %v", got, err)
		}
	})
}

// TestReadsStayQuickInALargeLedger guards the indexes: without the right one each of these would read
// the whole tenant.
func TestReadsStayQuickInALargeLedger(t *testing.T) {
	each(t, func(h house) {
		for range 10 {
			events := make([]ledger.Event, 2000)
			for i := range events {
				events[i] = event("test.noise", device.NewID())
			}
			h.append(events...)
		}
		h.append(event("rare.mine", deviceA))
		h.sequence()
		// the quickest of many, since what else the machine does only adds to it
		took := func(f ledger.Filter, want int) time.Duration {
			quickest := time.Hour
			for range 30 {
				begin := time.Now()
				if got := h.events(f); len(got) != want {
					t.Fatalf("%+v: %d events, want %d", f, len(got), want)
				}
				quickest = min(quickest, time.Since(begin))
			}
			return quickest
		}
		whole := took(ledger.Filter{Tenant: "default", Actor: "nobody"}, 0) // has to read every row
		for name, d := range map[string]time.Duration{
			"passport": took(ledger.Filter{Tenant: "default", Device: deviceA, Newest: true}, 1),
			"room":     took(ledger.Filter{Tenant: "default", Kinds: []string{"rare"}, Newest: true}, 1),
			"kind":     took(ledger.Filter{Tenant: "default", Kinds: []string{"rare.mine"}, Newest: true}, 1),
			"newest":   took(ledger.Filter{Tenant: "default", Newest: true, Limit: 1}, 1),
		} {
			if d > whole/3 {
				t.Errorf("%s took %v, and reading everything %v", name, d, whole)
			}
		}
	})
}
