package access

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// witness is the real ledger that also remembers what was committed.
type witness struct {
	*ledger.Ledger
	mu   sync.Mutex
	seen []ledger.Event
}

func (w *witness) Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error {
	tx.AfterCommit(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen = append(w.seen, events...)
	})
	return w.Ledger.Append(ctx, tx, events...)
}

// kinds lists the kinds of events since the last call.
func (w *witness) kinds() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.seen {
		out = append(out, e.Kind)
	}
	w.seen = nil
	return out
}

func (w *witness) events() []ledger.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// safeBuffer is a log that several requests write.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// house is the room with its API over real HTTP.
type house struct {
	*httptest.Server
	s        *Service
	db       *sqldb.DB
	clock    *clock
	ledger   *witness
	log      *safeBuffer
	password string // of the first administrator
}

func eachEngine(t *testing.T, test func(t *testing.T, h *house)) {
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration(), httpapi.Migration(), Migration()}, func(t *testing.T, db *sqldb.DB) {
		test(t, newHouse(t, db))
	})
}

func newHouse(t *testing.T, db *sqldb.DB) *house {
	t.Helper()
	h := &house{db: db, clock: &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}, log: &safeBuffer{}}
	log := slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.ledger = &witness{Ledger: ledger.New(ledger.Config{DB: db, Now: h.clock.Now, Log: log})}
	h.s = New(Config{DB: db, Ledger: h.ledger, Now: h.clock.Now, Log: log})
	var err error
	if _, h.password, _, err = h.s.EnsureAdmin(t.Context()); err != nil {
		t.Fatal(err)
	}
	api := httpapi.New(httpapi.Config{Auth: h.s, Log: log, DB: db, Now: h.clock.Now})
	h.s.Routes(api)
	h.Server = httptest.NewServer(api)
	t.Cleanup(h.Close)
	h.ledger.kinds()
	return h
}

// admin is the first administrator, as who signed in.
func (h *house) admin(t *testing.T) httpapi.Principal {
	t.Helper()
	a, err := readAccount(t.Context(), h.db, "a.name = $1", firstAdmin)
	if err != nil {
		t.Fatal(err)
	}
	return principalOf(a)
}

func principalOf(a Account) httpapi.Principal {
	return httpapi.Principal{Actor: actorOf(a), Role: a.Role,
		Scope:        device.Scope{Tenant: a.Tenant, Selector: a.Selector},
		Installation: a.Tenant == device.DefaultTenant && a.Role == httpapi.Admin}
}

// in returns who in another tenant.
func in(who httpapi.Principal, tenant device.TenantID) httpapi.Principal {
	who.Scope.Tenant = tenant
	return who
}

const goodPassword = "horse battery staple"

// person makes an account with goodPassword that need not be changed.
func (h *house) person(t *testing.T, who httpapi.Principal, n NewAccount) Account {
	t.Helper()
	n.Password = goodPassword
	if n.Program {
		n.Password = ""
	}
	a, _, err := h.s.CreateAccount(t.Context(), who, n)
	if err != nil {
		t.Fatalf("make account %s: %v", n.Name, err)
	}
	h.exec(t, "UPDATE access_account SET must_change = 0 WHERE id = $1", a.ID)
	return a
}

func (h *house) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	h.s.cache.clear()
}

// token makes a token for an account that it may use for everything.
func (h *house) token(t *testing.T, a Account) string {
	t.Helper()
	_, secret, err := h.s.IssueToken(t.Context(), principalOf(a), NewToken{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func (h *house) signIn(t *testing.T, name, password string) (cookie string) {
	t.Helper()
	secret, _, err := h.s.SignIn(t.Context(), SignIn{Name: name, Password: password, Client: netip.MustParseAddr("192.0.2.1"), Agent: "test"})
	if err != nil {
		t.Fatalf("sign in as %s: %v", name, err)
	}
	return secret
}

// reply is an answer of the API.
type reply struct {
	*http.Response
	text string
	json map[string]any
}

// call sends a request: secret is a token, or, when it isn't one, a session's cookie.
func (h *house) call(t *testing.T, method, path, secret, body string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.URL+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case strings.HasPrefix(secret, tokenPrefix):
		req.Header.Set("Authorization", "Bearer "+secret)
	case secret != "":
		req.AddCookie(&http.Cookie{Name: plainCookie, Value: secret})
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{Response: resp, text: string(text)}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &r.json); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return r
}

func (h *house) mustCall(t *testing.T, status int, method, path, secret, body string, headers ...string) reply {
	t.Helper()
	r := h.call(t, method, path, secret, body, headers...)
	if r.StatusCode != status {
		t.Fatalf("%s %s: got %d %s, want %d", method, path, r.StatusCode, r.text, status)
	}
	return r
}
