package series

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"google.golang.org/protobuf/encoding/protowire"

	"steward/internal/fault"
)

// fake takes remote writes as a store does and answers what the test wants: refuse gets the samples of a
// request and returns the status, 0 for 204.
type fake struct {
	t       *testing.T
	mu      sync.Mutex
	kept    []string // "device value"
	calls   int
	header  http.Header
	refuse  func(samples []string) int
	blocked chan struct{} // when set, each request waits until it is closed
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	blocked := f.blocked
	f.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	f.header = r.Header
	body, err := snappy.Decode(nil, raw)
	if err != nil {
		f.t.Error(err)
	}
	samples := decodeWrite(f.t, body)
	if f.refuse != nil {
		if status := f.refuse(samples); status != 0 {
			if status == http.StatusTooManyRequests {
				w.Header().Set("Retry-After", "7")
			}
			http.Error(w, "no", status)
			return
		}
	}
	f.kept = append(f.kept, samples...)
	w.WriteHeader(http.StatusNoContent)
}

func (f *fake) seen() (kept []string, calls int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.kept), f.calls
}

// decodeWrite lists the samples of a WriteRequest as "device value".
func decodeWrite(t *testing.T, body []byte) (out []string) {
	t.Helper()
	for _, series := range messages(t, body, fieldTimeSeries) {
		device := ""
		for _, l := range messages(t, series, fieldLabels) {
			if pair := append(messages(t, l, fieldLabelName), messages(t, l, fieldLabelValue)...); string(pair[0]) == LabelDevice {
				device = string(pair[1])
			}
		}
		for _, s := range messages(t, series, fieldSamples) {
			_, _, n := protowire.ConsumeTag(s)
			v, _ := protowire.ConsumeFixed64(s[n:])
			out = append(out, fmt.Sprintf("%s %g", device, math.Float64frombits(v)))
		}
	}
	return out
}

// messages returns the fields of that number of a message.
func messages(t *testing.T, b []byte, want protowire.Number) (out [][]byte) {
	t.Helper()
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(num, kind, b[n:])
		if size < 0 {
			t.Fatal(protowire.ParseError(size))
		}
		if num == want && kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			out = append(out, v)
		}
		b = b[n+size:]
	}
	return out
}

// ticking is a clock that the test moves.
type ticking struct {
	mu sync.Mutex
	t  time.Time
}

func (c *ticking) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *ticking) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func fakeStore(t *testing.T, f *fake, path string) (*Remote, *ticking) {
	t.Helper()
	f.t = t
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	clock := &ticking{t: noon}
	r, err := NewRemote(RemoteConfig{URL: strings.Replace(srv.URL, "://", "://ada:secret@", 1) + path, Header: http.Header{"X-Scope-OrgID": {"acme"}},
		Log: slog.New(slog.DiscardHandler), Now: clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, clock
}

func up(v float64) Sample { return sample(noon, v, "__name__", "up") }

func TestWritesFollowTheSpecification(t *testing.T) {
	f := &fake{}
	r, _ := fakeStore(t, f, "/prom/")
	if refused := write(t, r, "acme", "dev-a", up(1)); refused.Any() {
		t.Errorf("%+v", refused)
	}
	user, password, _ := (&http.Request{Header: f.header}).BasicAuth()
	for name, want := range map[string]string{
		"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf", "X-Prometheus-Remote-Write-Version": "0.1.0", "X-Scope-OrgID": "acme",
	} {
		if got := f.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if kept, _ := f.seen(); user != "ada" || password != "secret" || !slices.Equal(kept, []string{"dev-a 1"}) {
		t.Errorf("%s:%s %q", user, password, kept)
	}
}

func TestStoreThatIsAwayIsLeftAloneForAWhile(t *testing.T) {
	for name, status := range map[string]int{"overloaded": 503, "too many": 429, "wrong password": 401} {
		t.Run(name, func(t *testing.T) {
			f := &fake{}
			r, clock := fakeStore(t, f, "")
			f.refuse = func([]string) int { return status }
			_, err := r.Write(t.Context(), "acme", "dev-a", []Sample{up(1)})
			var refused *fault.Error
			if !errors.As(err, &refused) || !errors.Is(err, fault.Unavailable) || refused.RetryAfter < downMin {
				t.Fatalf("%v", err)
			}
			_, calls := f.seen()
			if _, err := r.Write(t.Context(), "acme", "dev-b", []Sample{up(2)}); !errors.Is(err, fault.Unavailable) {
				t.Errorf("soon after: %v", err)
			}
			if _, after := f.seen(); after != calls {
				t.Errorf("asked again at once")
			}
			f.mu.Lock()
			f.refuse = nil
			f.mu.Unlock()
			clock.pass(refused.RetryAfter)
			write(t, r, "acme", "dev-a", up(1))
			if kept, _ := f.seen(); !slices.Equal(kept, []string{"dev-a 1"}) || r.Stats().Waiting != 0 || r.Stats().Failures == 0 {
				t.Errorf("%q, %+v", kept, r.Stats())
			}
		})
	}
}

func TestShortFailureIsNotTold(t *testing.T) {
	f := &fake{}
	r, _ := fakeStore(t, f, "")
	var n atomic.Int64
	f.refuse = func([]string) int {
		if n.Add(1) < writeTries {
			return 502
		}
		return 0
	}
	write(t, r, "acme", "dev-a", up(1))
	if kept, calls := f.seen(); len(kept) != 1 || calls != writeTries {
		t.Errorf("%q after %d requests", kept, calls)
	}
}

func TestOneBadSampleSpoilsNobodyElses(t *testing.T) {
	f := &fake{}
	r, _ := fakeStore(t, f, "")
	bad := func(samples []string) int {
		if slices.Contains(samples, "dev-3 13") {
			return 400
		}
		return 0
	}
	block := make(chan struct{})
	f.refuse, f.blocked = bad, block
	var all sync.WaitGroup
	refused := make([]Refused, 8)
	for i := range refused { // they wait for the first request and share the next
		all.Go(func() {
			samples := []Sample{up(1), sample(noon, float64(10+i), "__name__", "down")}
			var err error
			if refused[i], err = r.Write(t.Context(), "acme", fmt.Sprintf("dev-%d", i), samples); err != nil {
				t.Error(err)
			}
		})
	}
	f.mu.Lock()
	f.blocked = nil
	f.mu.Unlock()
	close(block)
	all.Wait()
	for i, got := range refused {
		if want := i == 3; (got.Old == 1) != want || got.Count() > 1 {
			t.Errorf("device %d: %+v", i, got)
		}
	}
	kept, _ := f.seen()
	slices.Sort(kept)
	if kept = slices.Compact(kept); len(kept) != 15 || slices.Contains(kept, "dev-3 13") || !slices.Contains(kept, "dev-3 1") {
		t.Errorf("%q", kept)
	}
	if s := r.Stats(); s.Refused != 1 || s.Stored != 15 {
		t.Errorf("%+v", s)
	}
}

func TestManyDevicesShareRequests(t *testing.T) {
	f := &fake{blocked: make(chan struct{})}
	r, _ := fakeStore(t, f, "")
	const devices = 400
	var all sync.WaitGroup
	for i := range devices {
		all.Go(func() {
			if _, err := r.Write(t.Context(), "acme", fmt.Sprintf("dev-%d", i), []Sample{up(float64(i))}); err != nil {
				t.Error(err)
			}
		})
	}
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for range look.C { // until all are on their way
		if r.Stats().Waiting == devices {
			break
		}
	}
	close(f.blocked)
	all.Wait()
	kept, calls := f.seen()
	slices.Sort(kept)
	if kept = slices.Compact(kept); len(kept) != devices || calls > 5*writeShards {
		t.Errorf("%d samples in %d requests", len(kept), calls)
	}
}

func TestTooMuchOnItsWayIsRefusedAtOnce(t *testing.T) {
	f := &fake{blocked: make(chan struct{})}
	r, _ := fakeStore(t, f, "")
	r.waiting.Add(maxWaiting)
	if _, err := r.Write(t.Context(), "acme", "dev-a", []Sample{up(1)}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	if got := r.Stats().Waiting; got != maxWaiting {
		t.Errorf("%d are counted", got)
	}
}

func TestSamplesOfOneSeriesAreSentInTheirOrder(t *testing.T) {
	f := &fake{}
	r, _ := fakeStore(t, f, "")
	refused := write(t, r, "acme", "dev-a", up(2), sample(noon.Add(-time.Hour), 1, "__name__", "up"), sample(noon.Add(time.Minute), 3, "__name__", "up"), up(9))
	if kept, _ := f.seen(); !slices.Equal(kept, []string{"dev-a 1", "dev-a 2", "dev-a 3"}) || refused.Conflict != 1 {
		t.Errorf("%q, %+v", kept, refused)
	}
}

func TestScopeIsWrittenIntoEverySelector(t *testing.T) {
	r := remote(t, "http://127.0.0.1:1", noon)
	scope := Scope{Tenant: "acme", Only: true, Devices: []string{"dev-a", "dev-b"}}
	const in = `device=~"dev-a|dev-b",tenant="acme"` // the parser sorts them
	for expr, want := range map[string]string{
		`up`:                                             `up{` + in + `}`,
		`up{tenant="other"}`:                             `up{` + in + `,tenant="other"}`,
		`{__name__!=""}`:                                 `{__name__!="",` + in + `}`,
		`rate(x[5m]) / on (device) y offset 1h`:          `rate(x{` + in + `}[5m]) / on (device) y{` + in + `} offset 1h`,
		`max_over_time(up[5m:1m] @ end())`:               `max_over_time(up{` + in + `}[5m:1m] @ end())`,
		`topk(3, sum by (a) ({b="c"}) or vector(1))`:     `topk(3, sum by (a) ({b="c",` + in + `}) or vector(1))`,
		`absent(up) + count_values("v", z{q=~"tenant"})`: `absent(up{` + in + `}) + count_values("v", z{device=~"dev-a|dev-b",q=~"tenant",tenant="acme"})`,
	} {
		got, err := r.narrow(scope, expr)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", expr, got, err, want)
		}
	}
}

func TestStoresAddressIsChecked(t *testing.T) {
	for _, bad := range []string{"", "prometheus:9090", "ftp://host", "http://", "http://host?x=y", "http://host#f", "::"} {
		if _, err := NewRemote(RemoteConfig{URL: bad}); err == nil || strings.Contains(err.Error(), "host?") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestQueriesSayWhenTheStoreIsAway(t *testing.T) {
	answers := map[string]func(http.ResponseWriter){
		"not a store": func(w http.ResponseWriter) { http.Error(w, "<html>", http.StatusBadGateway) },
		"too slow": func(w http.ResponseWriter) {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, `{"status":"error","errorType":"timeout","error":"t"}`)
		},
	}
	for name, answer := range answers {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
		r := remote(t, srv.URL, noon)
		if _, err := r.Instant(t.Context(), Scope{Tenant: "acme"}, "up", noon); !errors.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
		srv.Close()
		if _, err := r.Instant(t.Context(), Scope{Tenant: "acme"}, "up", noon); !errors.Is(err, fault.Unavailable) {
			t.Errorf("gone: %v", err)
		}
	}
}

func TestValuesOfEveryFormAreRead(t *testing.T) {
	both(t, func(t *testing.T, s keeper, now time.Time) {
		write(t, s, "acme", "dev-a", sample(now.Add(-time.Minute), 1.5, "__name__", "up", "zone", `a"b\c`), sample(now, 2.5, "__name__", "up", "zone", `a"b\c`))
		for expr, want := range map[string]float64{`up`: 2.5, `up * Inf`: math.Inf(1), `scalar(up)`: 2.5, `up{zone="a\"b\\c"}`: 2.5, `-Inf`: math.Inf(-1)} {
			if got := query(t, s, now, Scope{Tenant: "acme"}, expr); len(got) != 1 || got[0].Points[0].Value != want || !got[0].Points[0].At.Equal(now) {
				t.Errorf("%s: %v, want %v", expr, got, want)
			}
		}
		if got := query(t, s, now, Scope{Tenant: "acme"}, `up / 0 - Inf`); len(got) != 1 || !math.IsNaN(got[0].Points[0].Value) {
			t.Errorf("no number: %v", got)
		}
		if got := query(t, s, now, Scope{Tenant: "acme"}, `up[5m]`); len(got) != 1 || len(got[0].Points) != 2 {
			t.Errorf("a range: %v", got)
		}
		lines, err := s.Range(t.Context(), Scope{Tenant: "acme"}, `up`, Range{From: now.Add(-2 * time.Minute), To: now, Step: 30 * time.Second})
		if err != nil || len(lines) != 1 || len(lines[0].Points) != 3 || lines[0].Labels["zone"] != `a"b\c` {
			t.Errorf("%v, %v", lines, err)
		}
		if _, err := s.Instant(t.Context(), Scope{Tenant: "acme"}, `"text"`, now); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("a text: %v", err)
		}
	})
}
