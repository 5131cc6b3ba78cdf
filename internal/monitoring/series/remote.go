package series

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/promql/parser"

	"steward/internal/fault"
)

// RemoteConfig names a Prometheus-compatible store that all nodes share.
type RemoteConfig struct {
	// URL is where its HTTP API begins, https://metrics.example.com/prometheus; a user and a password in it
	// are sent as basic authentication.
	URL string
	// WriteURL takes remote writes (version 1.0); empty means URL and /api/v1/write.
	WriteURL string
	// Header goes with every request: Authorization, or a store's own tenant.
	Header http.Header
	Log    *slog.Logger     // required
	Now    func() time.Time // nil means time.Now
}

// Remote keeps metrics in a store outside; safe for concurrent use. A sample is acknowledged once the store
// has it, so nothing waits here that could be lost: while the store is away or slower than the devices, they
// are told to come back later, and the agent keeps what it has measured.
type Remote struct {
	cfg      RemoteConfig
	api      *url.URL // without user
	write    string
	user     *url.Userinfo
	writer   *url.Userinfo
	client   *http.Client
	parser   parser.Parser
	turns    chan struct{} // one element per running query
	shards   [writeShards]shard
	budget   remoteBudget
	waiting  atomic.Int64 // samples that are on their way
	down     outage
	counters RemoteStats
	statsMu  sync.Mutex
}

// RemoteStats counts since the start.
type RemoteStats struct {
	Waiting  int64 // samples on their way now
	Stored   int64 // samples that the store has taken
	Refused  int64 // samples that the store will never take: too late, or another value at the same time
	Failures int64 // requests that failed: store away, overloaded, or its answer was lost
}

// Bounds of what is on its way to the store.
const (
	writeShards     = 4        // requests at a time; a device's always go the same way, one after the other
	maxBatchSamples = 5_000    // in one request
	maxWaiting      = 200_000  // samples; then devices are told to come back
	maxAnswerBytes  = 64 << 20 // of a query
	requestTimeout  = 15 * time.Second
	writeTries      = 3
	tryPause        = 100 * time.Millisecond // doubled with each try
	downMin         = 5 * time.Second
	downMax         = time.Minute
)

// NewRemote returns a store that is reached by HTTP. It asks nothing: a store that is away now is used when
// it is there.
func NewRemote(cfg RemoteConfig) (*Remote, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	api, err := storeURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.WriteURL == "" {
		cfg.WriteURL = cfg.URL
		if cfg.WriteURL, err = url.JoinPath(cfg.URL, "api/v1/write"); err != nil {
			return nil, err
		}
	}
	write, err := storeURL(cfg.WriteURL)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = writeShards + maxQueries
	r := &Remote{
		cfg: cfg, api: api, user: api.User, writer: write.User, client: &http.Client{Transport: transport},
		parser: parser.NewParser(parser.Options{}), turns: make(chan struct{}, maxQueries),
	}
	api.User, write.User = nil, nil
	r.write = write.String()
	r.budget.of = map[string]*deviceSeries{}
	for i := range r.shards {
		r.shards[i].turn = make(chan struct{}, 1)
	}
	return r, nil
}

// storeURL reads an address; the error doesn't repeat it, as it may hold a password.
func storeURL(text string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(text, "/"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the metrics store's URL: want http(s)://[user:password@]host[:port][/path]")
	}
	return u, nil
}

// Close ends idle connections.
func (r *Remote) Close() error {
	r.client.CloseIdleConnections()
	return nil
}

// Stats returns the counts so far.
func (r *Remote) Stats() RemoteStats {
	r.statsMu.Lock()
	defer r.statsMu.Unlock()
	s := r.counters
	s.Waiting = r.waiting.Load()
	return s
}

func (r *Remote) count(stored, refused, failures int) {
	r.statsMu.Lock()
	defer r.statsMu.Unlock()
	r.counters.Stored += int64(stored)
	r.counters.Refused += int64(refused)
	r.counters.Failures += int64(failures)
}

func (r *Remote) decorate(req *http.Request, user *url.Userinfo) {
	if user != nil {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	for name, values := range r.cfg.Header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "steward")
}

// outage remembers that the store did not answer, so that not every device has to find out.
type outage struct {
	mu    sync.Mutex
	until time.Time
	pause time.Duration
}

// left is how long the store is left alone yet.
func (o *outage) left(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.until.Sub(now)
}

// begin notes a failure; after is what the store has asked for, or 0.
func (o *outage) begin(now time.Time, after time.Duration) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pause = min(max(2*o.pause, downMin, after), downMax)
	o.until = now.Add(o.pause)
	return o.pause
}

func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pause, o.until = 0, time.Time{}
}

func unavailable(after time.Duration) error {
	return fault.Later(fault.Unavailable, "", after, "the metrics store does not answer: try again in %s", after.Round(time.Second))
}

// deviceSeries are the hashes of a device's series, sorted.
type deviceSeries struct {
	hashes []uint64
	used   time.Time
}

// remoteBudget counts the series of devices that speak to this node: the store could tell only at a cost.
// It starts anew with the process, and a device that changes nodes has a budget on each.
type remoteBudget struct {
	mu    sync.Mutex
	of    map[string]*deviceSeries
	total int
}

// Bounds of what is remembered: 8 bytes per series.
const (
	maxRemembered = 4_000_000
	rememberFor   = 2 * time.Hour
)

func (b *remoteBudget) allows(device string, hash uint64, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.of[device]
	if d == nil {
		d = &deviceSeries{}
		b.of[device] = d
	}
	d.used = now
	at, known := slices.BinarySearch(d.hashes, hash)
	if known {
		return true
	}
	if len(d.hashes) >= MaxSeries {
		return false
	}
	if b.total >= maxRemembered {
		b.forgetIdle(now)
	}
	d.hashes = slices.Insert(d.hashes, at, hash)
	b.total++
	return true
}

func (b *remoteBudget) forgetIdle(now time.Time) {
	for name, d := range b.of {
		if now.Sub(d.used) > rememberFor {
			b.total -= len(d.hashes)
			delete(b.of, name)
		}
	}
}

// Forget asks the store to delete the samples of the devices up to that time. A store that can't, since its
// administration is switched off or it has none, keeps them for as long as it keeps everything; the log
// tells so.
func (r *Remote) Forget(ctx context.Context, until time.Time, devices ...string) error {
	for chunk := range slices.Chunk(devices, 500) {
		form := url.Values{"match[]": {"{" + deviceMatcher(chunk).String() + "}"}, "start": {"0"}, "end": {promTime(until)}}
		status, err := r.post(ctx, "api/v1/admin/tsdb/delete_series", form, nil)
		var refused *fault.Error
		switch {
		case err == nil:
		case status == http.StatusNotFound, status == http.StatusForbidden, status == http.StatusMethodNotAllowed,
			errors.As(err, &refused) && strings.Contains(refused.Detail, "admin APIs disabled"):
			r.cfg.Log.WarnContext(ctx, "the metrics store can't delete: what these devices measured stays for as long as it keeps everything",
				"devices", len(chunk), "status", status)
		default:
			return fmt.Errorf("forget metrics: %w", err)
		}
	}
	return nil
}
