package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"steward/internal/wire"
)

// connectTimeout bounds name resolution, TCP, proxy, TLS and MQTT's handshake together.
const connectTimeout = 40 * time.Second

// errNoPath is for proxies that this program can't go through with MQTT.
var errNoPath = errors.New("the proxy carries HTTPS only")

// open connects to the server by the way, up to where MQTT begins.
func (c *Client) open(ctx context.Context, via string) (*listened, error) {
	raw, err := c.dialServer(ctx)
	if err != nil {
		return nil, &unreachableError{err}
	}
	c.mu.Lock()
	cfg := c.tls.Clone()
	c.mu.Unlock()
	cfg.ServerName = c.base.Hostname()
	cfg.NextProtos = []string{wire.ALPNMQTT}
	if via == ViaWebSocket {
		cfg.NextProtos = []string{"http/1.1"}
	}
	heard := &heardConn{Conn: raw}
	conn := tls.Client(heard, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if via == ViaMQTT {
		if got := conn.ConnectionState().NegotiatedProtocol; got != wire.ALPNMQTT {
			_ = raw.Close()
			return nil, fmt.Errorf("%w: the server speaks no MQTT on this port", errUnfit)
		}
		return heard.over(conn), nil
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s, err := openSocket(conn, c.base.Host, "steward-agent/"+c.cfg.Version, c.cfg.Now())
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return heard.over(s), nil
}

// dialServer opens a TCP connection to the server, through the environment's proxy if there is one.
func (c *Client) dialServer(ctx context.Context) (net.Conn, error) {
	address := net.JoinHostPort(c.base.Hostname(), orElse(c.base.Port(), "443"))
	proxy, err := c.cfg.Proxy(&http.Request{URL: c.base})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	dial := c.cfg.Dial
	if dial == nil {
		// No TCP keep-alive: each costs a metered network as much as MQTT's own, which finds dead
		// connections too.
		dial = (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: -1}).DialContext
	}
	if proxy == nil {
		return dial(ctx, "tcp", address)
	}
	if proxy.Scheme != "http" && proxy.Scheme != "https" {
		return nil, fmt.Errorf("%w: %s", errNoPath, proxy.Scheme)
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), orElse(proxy.Port(), map[string]string{"http": "80", "https": "443"}[proxy.Scheme])))
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	through, err := connectThrough(ctx, conn, proxy, address)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return through, nil
}

// connectThrough asks the proxy for a tunnel (RFC 9110, section 9.3.6).
func connectThrough(ctx context.Context, conn net.Conn, proxy *url.URL, address string) (net.Conn, error) {
	if proxy.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secure
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if user := proxy.User; user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(conn, 4<<10)
	res, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("refuses CONNECT with %s", res.Status)
	}
	if in.Buffered() > 0 { // in TLS the client speaks first
		return nil, errors.New("sends something before TLS has begun")
	}
	return conn, nil
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// unreachableError says that the network, not the way through it, is what fails.
type unreachableError struct{ error }

func (e *unreachableError) Unwrap() error { return e.error }

// heardConn notes when something has last come from the server.
type heardConn struct {
	net.Conn
	heard atomic.Int64 // UnixNano
}

func (c *heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// listened is a connection over a heardConn.
type listened struct {
	net.Conn
	below *heardConn
}

func (c *heardConn) over(conn net.Conn) *listened { return &listened{conn, c} }

// heardSince tells whether anything has come since the time.
func (l *listened) heardSince(t time.Time) bool { return l.below.heard.Load() >= t.UnixNano() }
