package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

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

// byName signs in whoever names a role: as "Bearer viewer", or with a cookie session=viewer.
type byName struct{}

func (byName) Authenticate(r *http.Request) (httpapi.Principal, error) {
	name, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if c, err := r.Cookie("session"); !isBearer && err == nil {
		name = c.Value
	}
	if name == "broken" {
		return httpapi.Principal{}, errors.New("database password is hunter2")
	}
	role, err := httpapi.ParseRole(name)
	if err != nil {
		return httpapi.Principal{}, fault.New(fault.Unauthorized, "sign in")
	}
	return httpapi.Principal{
		Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-" + name}, Role: role,
		Scope: device.Scope{Tenant: device.DefaultTenant},
	}, nil
}

// syncBuffer is a log that several requests write.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

type thing struct {
	ID       string `json:"id"`
	Name     string `json:"name" minLength:"1" maxLength:"20"`
	Quantity int    `json:"quantity" minimum:"1" maximum:"10"`
}

type newThing struct {
	Body struct {
		Name     string       `json:"name" minLength:"1" maxLength:"20"`
		Quantity int          `json:"quantity" minimum:"1" maximum:"10"`
		Password string       `json:"password,omitempty" maxLength:"8"`
		Role     httpapi.Role `json:"role,omitempty"`
	}
}

type thingOut struct{ Body thing }

type taggedThing struct {
	ETag string `header:"ETag"`
	Body thing
}

// sample is an API with one operation of each kind, over real HTTP.
type sample struct {
	*httptest.Server
	api     *httpapi.API
	log     *syncBuffer
	clock   *clock
	made    atomic.Int64  // how often create-thing ran to its end
	started chan struct{} // gets a value when create-slow begins
	release chan struct{} // create-slow ends when it is closed
	db      *sqldb.DB
	crash   atomic.Bool // create-settled panics after its commit
}

func newSample(t *testing.T, change func(*httpapi.Config)) *sample {
	t.Helper()
	s := &sample{log: &syncBuffer{}, clock: newClock(), started: make(chan struct{}, 10), release: make(chan struct{})}
	cfg := httpapi.Config{
		Version: "test", Auth: byName{}, Log: slog.New(slog.NewJSONHandler(s.log, nil)), Now: s.clock.Now,
	}
	if change != nil {
		change(&cfg)
	}
	s.db = cfg.DB
	s.api = httpapi.New(cfg)
	s.register()
	mux := http.NewServeMux()
	mux.Handle("/api/", s.api)
	mux.Handle("GET /healthz", s.api.Healthz())
	mux.Handle("GET /readyz", s.api.Readyz())
	mux.Handle("GET /metrics", s.api.Metrics())
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func (s *sample) register() {
	op := func(id, method, path string, role httpapi.Role) httpapi.Op {
		return httpapi.Op{ID: id, Method: method, Path: path, Summary: "Test " + id, Tag: "sample", Role: role, MaxBody: 4096}
	}
	httpapi.Register(s.api, op("list-things", "GET", "/things", httpapi.Viewer),
		func(_ context.Context, _ httpapi.Principal, in *struct{ httpapi.PageIn }) (*struct{ Body httpapi.List[thing] }, error) {
			var at struct{ After string }
			return &struct{ Body httpapi.List[thing] }{}, httpapi.DecodeCursor(in.Cursor, &at)
		})
	httpapi.Register(s.api, op("create-thing", "POST", "/things", httpapi.Operator),
		func(_ context.Context, _ httpapi.Principal, in *newThing) (*thingOut, error) {
			n := s.made.Add(1)
			return &thingOut{thing{ID: fmt.Sprintf("thing-%d", n), Name: in.Body.Name, Quantity: in.Body.Quantity}}, nil
		})
	httpapi.Register(s.api, op("create-slow", "POST", "/slow", httpapi.Operator),
		func(ctx context.Context, _ httpapi.Principal, _ *newThing) (*thingOut, error) {
			s.started <- struct{}{}
			<-s.release
			return &thingOut{thing{ID: fmt.Sprintf("slow-%d", s.made.Add(1))}}, ctx.Err()
		})
	httpapi.Register(s.api, op("create-settled", "POST", "/settled", httpapi.Operator),
		func(ctx context.Context, _ httpapi.Principal, in *newThing) (*thingOut, error) {
			out := &thingOut{thing{ID: fmt.Sprintf("settled-%d", s.made.Add(1)), Name: in.Body.Name}}
			err := s.db.Write(ctx, func(tx *sqldb.Tx) error { return httpapi.Settle(ctx, tx, out.Body) })
			if s.crash.Load() {
				panic("killed after the commit")
			}
			return out, err
		})
	httpapi.Register(s.api, op("fail-thing", "POST", "/fail/{how}", httpapi.Operator), s.fail)
	httpapi.Register(s.api, op("get-thing", "GET", "/things/{id}", httpapi.Viewer),
		func(_ context.Context, _ httpapi.Principal, in *struct {
			ID string `path:"id"`
		}) (*taggedThing, error) {
			if in.ID != "one" {
				return nil, fmt.Errorf("read thing in cellar: %w", fault.New(fault.NotFound, "there is no thing %s", in.ID))
			}
			return &taggedThing{httpapi.ETag(7), thing{ID: "one"}}, nil
		})
	httpapi.Register(s.api, op("change-thing", "PUT", "/things/{id}", httpapi.Operator),
		func(_ context.Context, _ httpapi.Principal, in *struct {
			ID      string `path:"id"`
			IfMatch string `header:"If-Match"`
		}) (*struct{}, error) {
			return nil, httpapi.CheckMatch(in.IfMatch, 7)
		})
	httpapi.Register(s.api, op("hello", "GET", "/hello", httpapi.Nobody),
		func(context.Context, httpapi.Principal, *struct{}) (*thingOut, error) { return &thingOut{}, nil })
	csv := op("import-things", "POST", "/import", httpapi.Operator)
	csv.Accept, csv.Produce, csv.Query = "text/csv", "text/plain", map[string]string{"order": "Where they belong"}
	s.api.Stream(csv, func(w http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return fmt.Errorf("read rows: %w", err)
		}
		if bytes.HasPrefix(body, []byte("bad")) {
			return fault.Bad("line 1, column 1", "no such model")
		}
		fmt.Fprintf(w, "%d bytes, %d imports", len(body), s.made.Add(1))
		if bytes.HasPrefix(body, []byte("half")) {
			return errors.New("broke off")
		}
		return nil
	})
}

func (s *sample) fail(ctx context.Context, _ httpapi.Principal, in *struct {
	How string `path:"how"`
}) (*thingOut, error) {
	s.made.Add(1)
	switch in.How {
	case "panic":
		panic("hunter2")
	case "internal":
		return nil, errors.New("dial db: password hunter2 refused")
	case "later":
		return nil, &httpapi.Later{Err: fault.New(fault.Unavailable, "not yet"), After: 1500 * time.Millisecond}
	case "fields":
		e := &fault.Invalid{}
		e.Add("body.lines[2].quantity", "must be more than 0")
		e.Fields = append(e.Fields, fault.Field{Location: "body.secret", Message: "too short", Value: "hunter2"})
		return nil, fmt.Errorf("check the order: %w", e)
	case "timeout":
		return nil, fmt.Errorf("read rows: %w", context.DeadlineExceeded)
	}
	return nil, fault.New(fault.Conflict, "it is %s already", in.How)
}

// answer is what came back.
type answer struct {
	*http.Response
	body    string
	problem httpapi.Problem
}

func (s *sample) send(t *testing.T, method, path, as, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if as != "" {
		req.Header.Set("Authorization", "Bearer "+as)
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
	a := answer{Response: resp, body: string(text)}
	if resp.StatusCode >= 400 {
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			t.Fatalf("%s %s: %d with content type %q and body %q, want a problem document", method, path, resp.StatusCode, ct, a.body)
		}
		if err := json.Unmarshal(text, &a.problem); err != nil && method != http.MethodHead {
			t.Fatalf("%s %s: %v in %q", method, path, err, a.body)
		}
		if method != http.MethodHead && (a.problem.Status != resp.StatusCode || a.problem.Title == "" || (a.problem.RequestID != resp.Header.Get("X-Request-Id") && resp.Header.Get("Idempotent-Replayed") == "")) {
			t.Fatalf("%s %s: incomplete problem %s", method, path, a.body)
		}
	}
	return a
}
