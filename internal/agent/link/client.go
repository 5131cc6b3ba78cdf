// Package link is the device's end of the link: HTTPS with mutual TLS to the one server that the
// enrollment token names. It speaks, and judges nothing but what belongs to the transport: pins, sizes,
// times and status codes.
package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
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
	// requestTimeout bounds a whole exchange that is neither a long poll nor a download.
	requestTimeout = 60 * time.Second
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
	// Seen is called with the server's clock after each authenticated answer; may be nil.
	Seen func(serverTime time.Time)
	// SlowRetry is how long the client keeps silent after a refusal that only people can lift (see
	// Stopped); 0 means an hour. Another identity or trust ends the silence.
	SlowRetry time.Duration
	// Dial replaces the net's dialer; nil keeps it. Simulated devices have a net of their own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
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

	stopped      *Problem // the refusal that is obeyed until stoppedUntil
	stoppedUntil time.Time
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
	return &Client{cfg: cfg, base: base}, nil
}

// Server is the address that the client talks to.
func (c *Client) Server() string { return c.base.String() }

// UseTrust pins the link to the document's roots. Connections made before are closed.
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
// former one are closed when their requests end.
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
	p := &Client{cfg: c.cfg, base: c.base, roots: c.roots, identity: identity}
	p.reconnect()
	return p
}

// Close ends idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// reconnect makes the transport anew; the lock is held.
func (c *Client) reconnect() {
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	c.transport = nil
	c.stopped = nil
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
	c.transport = c.newTransport(tlsConfig)
}

func (c *Client) newTransport(tlsConfig *tls.Config) *http.Transport {
	dial := c.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
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
	timeout      time.Duration // 0 means requestTimeout
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
	timeout := r.timeout
	if timeout == 0 {
		timeout = requestTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	res, err := c.send(ctx, r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	got, err := c.read(res, r.limit)
	c.stop(err)
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
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil && c.cfg.Seen != nil {
		c.cfg.Seen(at)
	}
	return res, nil
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

// Trust fetches the trust document before anything is trusted: the connection is not verified, the
// document is, by its hash. It returns the document's bytes too, for the state directory. The server's
// clock comes back with it, unauthenticated.
func (c *Client) Trust(ctx context.Context, pin wire.Hash) (trust wire.Trust, raw []byte, serverTime time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// InsecureSkipVerify is safe here and only here: nothing secret is sent, and what comes back is
	// believed for its SHA-256 alone, which the operator handed over with the token.
	transport := c.newTransport(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer transport.CloseIdleConnections()
	req, err := c.build(ctx, request{method: http.MethodGet, path: wire.PathTrust + string(pin)})
	if err != nil {
		return trust, nil, serverTime, err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return trust, nil, serverTime, fmt.Errorf("fetch the trust document from %s: %w", c.base.Host, err)
	}
	defer func() { _ = res.Body.Close() }()
	got, err := c.read(res, wire.MaxTrustBytes)
	if err != nil {
		return trust, nil, serverTime, fmt.Errorf("fetch the trust document: %w", err)
	}
	if wire.HashOf(got.body) != pin {
		return trust, nil, serverTime, fmt.Errorf("%w: the trust document has the hash %s, the token %s", ErrPin, wire.HashOf(got.body), pin)
	}
	if err := wire.Decode(got.body, &trust); err != nil {
		return trust, nil, serverTime, fmt.Errorf("trust document: %w", err)
	}
	serverTime, _ = http.ParseTime(got.header.Get("Date"))
	return trust, got.body, serverTime, nil
}

// Desired fetches the signed envelope. With a positive epoch the server answers only when it has
// another one, after at most wait, else ErrNotModified.
func (c *Client) Desired(ctx context.Context, epoch int64, wait time.Duration) (envelope []byte, err error) {
	wait = min(wait, wire.MaxWaitSeconds*time.Second)
	r := request{method: http.MethodGet, path: wire.PathDesired, limit: wire.MaxEnvelopeBytes, timeout: requestTimeout + wait}
	if epoch > 0 {
		r.header = map[string]string{"If-None-Match": `"` + strconv.FormatInt(epoch, 10) + `"`}
		if wait >= time.Second {
			r.query = url.Values{"wait": {strconv.Itoa(int(wait / time.Second))}}
		}
	}
	got, err := c.do(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("fetch the desired state: %w", err)
	}
	if got.status == http.StatusNotModified {
		return nil, ErrNotModified
	}
	return got.body, nil
}

// Document fetches a desired section's body and verifies its hash.
func (c *Client) Document(ctx context.Context, hash wire.Hash) ([]byte, error) {
	got, err := c.do(ctx, request{method: http.MethodGet, path: wire.PathDocuments + string(hash), limit: wire.MaxDocumentBytes})
	if err != nil {
		return nil, fmt.Errorf("fetch document %.12s: %w", hash, err)
	}
	if wire.HashOf(got.body) != hash {
		return nil, fmt.Errorf("document %.12s: the server sent other bytes", hash)
	}
	return got.body, nil
}

// PutDocument uploads a reported section's body.
func (c *Client) PutDocument(ctx context.Context, hash wire.Hash, body []byte) error {
	if len(body) > wire.MaxDocumentBytes {
		return fmt.Errorf("upload document %.12s: %d bytes, at most %d", hash, len(body), wire.MaxDocumentBytes)
	}
	_, err := c.do(ctx, request{method: http.MethodPut, path: wire.PathDocuments + string(hash), body: body, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("upload document %.12s: %w", hash, err)
	}
	return nil
}

// Report sends what the device is. The answer comes after the server's commit.
func (c *Client) Report(ctx context.Context, report wire.Report) (wire.ReportAnswer, error) {
	var answer wire.ReportAnswer
	body, err := json.Marshal(report)
	if err != nil {
		return answer, err
	}
	if len(body) > wire.MaxReportBytes {
		return answer, fmt.Errorf("report of %d bytes: at most %d", len(body), wire.MaxReportBytes)
	}
	got, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathReport, body: body, contentType: "application/json", limit: wire.MaxReportBytes})
	if err != nil {
		return answer, fmt.Errorf("report: %w", err)
	}
	if err := wire.Decode(got.body, &answer); err != nil {
		return answer, fmt.Errorf("answer to the report: %w", err)
	}
	return answer, nil
}

// PostMetrics sends an OTLP/JSON ExportMetricsServiceRequest.
func (c *Client) PostMetrics(ctx context.Context, body []byte) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathMetrics, body: body, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("send metrics: %w", err)
	}
	return nil
}

// PostDisposal sends the signed statement of sanitization.
func (c *Client) PostDisposal(ctx context.Context, envelope []byte) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathDisposal, body: envelope, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("send the sanitization statement: %w", err)
	}
	return nil
}

// Metadata fetches a file of the tenant's TUF repository, "timestamp.json" or "3.root.json". The bytes
// are verified by TUF, not here. NotFound tells that there is none of that name.
func (c *Client) Metadata(ctx context.Context, name string) ([]byte, error) {
	got, err := c.do(ctx, request{method: http.MethodGet, path: wire.PathTUF + name, limit: MaxMetadataBytes})
	if err != nil {
		return nil, fmt.Errorf("fetch TUF metadata %s: %w", name, err)
	}
	return got.body, nil
}

// Artifact writes the artifact's bytes from offset on to w and returns how many it wrote. After an
// error the caller goes on from offset+n. The hash is the caller's to verify, over all parts.
func (c *Client) Artifact(ctx context.Context, sha256Hex string, offset int64, w io.Writer) (n int64, err error) {
	if raw, err := hex.DecodeString(sha256Hex); err != nil || len(raw) != sha256.Size {
		return 0, fmt.Errorf("artifact %.80q: want the SHA-256 in hex", sha256Hex)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	r := request{method: http.MethodGet, path: wire.PathArtifacts + sha256Hex}
	if offset > 0 {
		r.header = map[string]string{"Range": fmt.Sprintf("bytes=%d-", offset)}
	}
	res, err := c.send(ctx, r)
	if err != nil {
		return 0, fmt.Errorf("fetch artifact %.12s: %w", sha256Hex, orCause(ctx, err))
	}
	defer func() { _ = res.Body.Close() }()
	if refused(res.StatusCode) {
		_, err := c.read(res, maxProblemBytes)
		return 0, fmt.Errorf("fetch artifact %.12s: %w", sha256Hex, err)
	}
	body := progressReader{res.Body, stall}
	if err := seekTo(res, body, offset); err != nil {
		return 0, fmt.Errorf("fetch artifact %.12s: %w", sha256Hex, orCause(ctx, err))
	}
	n, err = io.Copy(w, body)
	if err != nil {
		return n, fmt.Errorf("fetch artifact %.12s at byte %d: %w", sha256Hex, offset+n, orCause(ctx, err))
	}
	return n, nil
}

var errStalled = fmt.Errorf("no byte for %s", stallTimeout)

func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// seekTo makes the body begin at offset: the server may have ignored the range.
func seekTo(res *http.Response, body io.Reader, offset int64) error {
	if offset == 0 {
		return nil
	}
	if res.StatusCode == http.StatusPartialContent {
		want := "bytes " + strconv.FormatInt(offset, 10) + "-"
		if got := res.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
			return fmt.Errorf("asked for %s, got the range %.80q", want, got)
		}
		return nil
	}
	_, err := io.CopyN(io.Discard, body, offset)
	return err
}

// progressReader puts the stall timer back with each read that brings something.
type progressReader struct {
	r     io.Reader
	stall *time.Timer
}

func (p progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.stall.Reset(stallTimeout)
	}
	return n, err
}

// RootsOf reads a trust document's link roots, for diagnosis.
func RootsOf(trust wire.Trust) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for _, text := range trust.LinkRoots {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("a link root is no PEM certificate")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("link root: %w", err)
		}
		roots = append(roots, cert)
	}
	return roots, nil
}
