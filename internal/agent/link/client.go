// Package link is the device's end of the link: MQTT or HTTPS with mutual TLS to the one server that the
// enrollment token names. It speaks, and judges nothing but what belongs to the transport: pins, sizes,
// times and status codes. Callers need not know by which way a message travels (see Way); Client.Run keeps
// the device connected.
package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"steward/internal/wire"
)

// Bounds of one exchange.
const (
	defaultPatience = 60 * time.Second
	// stallTimeout ends a download in which no byte has arrived for that long.
	stallTimeout = 60 * time.Second
	// MaxMetadataBytes bounds one TUF metadata file.
	MaxMetadataBytes = 4 << 20
	maxESTBytes      = 256 << 10
)

// Errors of the client.
var (
	// ErrNotModified: the desired state is the one that the device has.
	ErrNotModified = errors.New("desired state is unchanged")
	// ErrNoTrust: the link's roots are not known yet; nothing but Trust can be asked.
	ErrNoTrust = errors.New("the server's certificates are not known yet: enroll first")
	// ErrPin: what the server sent is not what the enrollment token names.
	ErrPin = errors.New("the server is not the one that the enrollment token names")
	// ErrTooLarge: an answer exceeds the contract's bounds.
	ErrTooLarge = errors.New("answer is larger than the contract allows")
)

// Config of a Client.
type Config struct {
	Server  string // https://host:port
	Version string // of the agent, for the User-Agent header
	// Now is the clock that certificates are judged by; nil means time.Now. The agent passes its
	// clock that never runs backwards.
	Now func() time.Time
	// Seen is called with the server's clock after each authenticated answer, with zero when the answer
	// does not tell it; may be nil.
	Seen func(serverTime time.Time)
	// SlowRetry is how long the client keeps silent after a refusal that only people can lift (see
	// Stopped); 0 means an hour. Another identity or trust ends the silence.
	SlowRetry time.Duration
	// Dial replaces the net's dialer; nil keeps it. Simulated devices have a net of their own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Proxy replaces the proxies of the environment; nil keeps them.
	Proxy func(*http.Request) (*url.URL, error)
	// Patience bounds a whole exchange that is neither a long poll nor a download; 0 means a minute.
	Patience time.Duration

	// The following matter while Run runs.

	Mode Mode // "" means ModeAuto
	// KeepAlive is the time without a word after which an MQTT connection is tested; 0 means five minutes.
	// The server may ask for less.
	KeepAlive time.Duration
	// Retry bounds the waits between attempts to connect; zero values mean 1 s to 5 min.
	Retry Backoff
	// Better bounds the waits before a better way is tried again; zero values mean 15 min to 6 h.
	Better Backoff
	// Remembered is the way that Remember was called with before the last start; "" means none.
	Remembered string
	// Remember is called when another way turns out to work; nil forgets.
	Remember func(via string)
	// Connected is called when there is an MQTT connection, the first or another; may be nil.
	Connected func()
	// Commands gets commands that the server gives, the same ones any number of times; it returns at once.
	// nil leaves them with the server.
	Commands func([]wire.RemoteCommand)
	Log      *slog.Logger // nil discards
}

// Client talks to one server as one device. It is safe for use by several goroutines. HTTP/2 carries
// the long poll and everything else over one connection.
type Client struct {
	cfg  Config
	base *url.URL

	mu        sync.Mutex
	roots     *x509.CertPool
	identity  *tls.Certificate
	transport *http.Transport // of roots and identity; nil until there are roots
	tls       *tls.Config     // of the same; its session cache serves MQTT and HTTPS
	// generation counts identities and trusts: a stream of a former one is replaced.
	generation int

	stopped      *Problem // the refusal that is obeyed until stoppedUntil
	stoppedUntil time.Time

	way      way
	moved    chan struct{}           // closed when way has changed
	cutPoll  context.CancelCauseFunc // ends the poll that is under way
	pace     time.Duration           // between two reports; 0 while it is not known
	asked    time.Time               // when the desired state was last asked for by HTTPS
	reported bool                    // since then
	have     int64                   // the epoch that Desired was last called with; Whole while there was none
	told     int64                   // the highest epoch that an answer to a report has named
	news     chan struct{}           // closed when reported or told change
	resting  *time.Timer             // closes idle HTTPS connections

	kicked     chan struct{} // capacity 1: Run is to look again
	remembered string        // only Run's goroutine uses it
}

// New checks the server's address. Plain http is refused.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(strings.TrimSuffix(cfg.Server, "/"))
	if err != nil {
		return nil, fmt.Errorf("server address: %w", err)
	}
	if base.Scheme != "https" || base.Host == "" || base.Path != "" {
		return nil, fmt.Errorf("server address %q: want https://host[:port]", cfg.Server)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Proxy == nil {
		cfg.Proxy = http.ProxyFromEnvironment
	}
	if cfg.Patience == 0 {
		cfg.Patience = defaultPatience
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Mode, err = ParseMode(string(cfg.Mode)); err != nil {
		return nil, err
	}
	return newClient(cfg, base), nil
}

func newClient(cfg Config, base *url.URL) *Client {
	return &Client{
		cfg: cfg, base: base, way: way{off: true}, have: Whole, told: Whole, remembered: cfg.Remembered,
		moved: make(chan struct{}), news: make(chan struct{}), kicked: make(chan struct{}, 1),
	}
}

// Server is the address that the client talks to.
func (c *Client) Server() string { return c.base.String() }

// UseTrust pins the link to the document's roots. Connections made before are closed; an MQTT connection
// once there is a new one.
func (c *Client) UseTrust(trust wire.Trust) error {
	pool := x509.NewCertPool()
	for i, text := range trust.LinkRoots {
		if !pool.AppendCertsFromPEM([]byte(text)) {
			return fmt.Errorf("link root %d is no PEM certificate", i+1)
		}
	}
	if len(trust.LinkRoots) == 0 {
		return errors.New("trust document without link roots")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roots = pool
	c.reconnect()
	return nil
}

// UseIdentity presents the certificate from now on; nil presents none. Connections made with the
// former one are closed when their requests end; an MQTT connection once there is a new one.
func (c *Client) UseIdentity(identity *tls.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.identity = identity
	c.reconnect()
}

// Probe returns a client of its own for the same server with another certificate, to try it before it
// is switched to. Close it.
func (c *Client) Probe(identity *tls.Certificate) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg := c.cfg
	cfg.Commands, cfg.Remember, cfg.Connected = nil, nil, nil
	p := newClient(cfg, c.base)
	p.roots, p.identity = c.roots, identity
	p.reconnect()
	return p
}

// Close ends idle connections. Run has ended before.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resting != nil {
		c.resting.Stop()
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// reconnect makes the transport anew; the lock is held.
func (c *Client) reconnect() {
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	c.transport, c.tls = nil, nil
	c.stopped = nil
	c.generation++
	defer c.kick()
	if c.roots == nil {
		return
	}
	tlsConfig := &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    c.roots,
		Time:       c.cfg.Now,
		// One server, so one ticket: a reconnect costs half of a full handshake.
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	if identity := c.identity; identity != nil {
		// Always the one that we have: the default drops it when the issuer is not among the
		// authorities that the server names, and the refusal would then hide the cause.
		tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return identity, nil }
	}
	c.tls = tlsConfig
	c.transport = c.newTransport(tlsConfig.Clone()) // which adds its own protocols
}

func (c *Client) newTransport(tlsConfig *tls.Config) *http.Transport {
	dial := c.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy:                 c.cfg.Proxy,
		DialContext:           dial,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   20 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   2,
		IdleConnTimeout:       2 * time.Minute,
		ExpectContinueTimeout: time.Second,
		// A dead NAT entry must not hold a long poll for ever.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 45 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// request is one exchange.
type request struct {
	method, path string
	query        url.Values
	header       map[string]string
	body         []byte
	contentType  string
	limit        int64         // of the answer's body
	wait         time.Duration // for which the server may hold the request
	basic        *url.Userinfo // HTTP Basic authentication, for EST
}

// answer is what came back with a status below 300, or 304.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends the request over the pinned connection and reads the bounded answer. Refusals are *Problem.
func (c *Client) do(ctx context.Context, r request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Patience+r.wait)
	defer cancel()
	defer c.rest()
	generation := c.currentGeneration()
	res, err := c.send(ctx, r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	got, err := c.read(res, r.limit)
	c.stop(err, generation)
	return got, err
}

// read takes the bounded body and turns refusals into *Problem.
func (c *Client) read(res *http.Response, limit int64) (answer, error) {
	if refused(res.StatusCode) {
		limit = maxProblemBytes
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return answer{}, fmt.Errorf("read the answer: %w", err)
	}
	if refused(res.StatusCode) {
		return answer{}, problemOf(res, body[:min(len(body), maxProblemBytes)], c.cfg.Now())
	}
	if int64(len(body)) > limit {
		return answer{}, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return answer{status: res.StatusCode, header: res.Header, body: body}, nil
}

func refused(status int) bool { return status >= 300 && status != http.StatusNotModified }

// send starts the exchange; the caller closes the body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	if err := c.silence(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	transport := c.transport
	c.mu.Unlock()
	if transport == nil {
		return nil, ErrNoTrust
	}
	req, err := c.build(ctx, r)
	if err != nil {
		return nil, err
	}
	res, err := transport.RoundTrip(req) // no redirects: the pinned server is the only one
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.method, c.base.Host, err)
	}
	at, _ := http.ParseTime(res.Header.Get("Date")) // zero when it does not tell
	c.seen(at)
	return res, nil
}

func (c *Client) seen(at time.Time) {
	if c.cfg.Seen != nil {
		c.cfg.Seen(at)
	}
}

func (c *Client) build(ctx context.Context, r request) (*http.Request, error) {
	target := *c.base
	target.Path = r.path
	target.RawQuery = r.query.Encode()
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set(wire.ProtocolHeader, strconv.Itoa(wire.Protocol))
	req.Header.Set("User-Agent", "steward-agent/"+c.cfg.Version)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.basic != nil {
		password, _ := r.basic.Password()
		req.SetBasicAuth(r.basic.Username(), password)
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	return req, nil
}
