// Package client speaks to a server's public API: for the command line, the demo and tests.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"steward/internal/device"
)

// Client speaks to a server's API.
type Client struct {
	base   string
	token  string
	tenant string
	http   *http.Client
}

// maxAnswerBytes bounds what the client reads of one answer into memory.
const maxAnswerBytes = 64 << 20

// New returns a client of the server that the settings name.
func New(s Settings) (*Client, error) {
	u, err := url.Parse(s.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, settingsErrorf("server URL %q: want http(s)://host[:port]; give --url", s.URL)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if s.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(s.CA)) {
			return nil, settingsErrorf("the CA of the settings has no PEM certificate")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &Client{
		base: strings.TrimSuffix(s.URL, "/") + "/api/v1", token: s.Token, tenant: s.Tenant,
		http: &http.Client{Transport: transport},
	}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Problem is a refusal by the server (RFC 9457).
type Problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
		Value    any    `json:"value"`
	} `json:"errors"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	switch {
	case p.Detail != "":
		b.WriteString(p.Detail)
	case p.Title != "":
		b.WriteString(p.Title)
	default:
		fmt.Fprintf(&b, "the server answered %d", p.Status)
	}
	for _, e := range p.Errors {
		b.WriteString("\n  ")
		if e.Location != "" {
			b.WriteString(e.Location + ": ")
		}
		b.WriteString(e.Message)
	}
	return b.String()
}

// Call is one request to the API.
type Call struct {
	Method string // "" means GET
	Path   string // below /api/v1
	Query  url.Values
	Body   any // sent as JSON; an io.Reader is sent as it is with Type
	Type   string
	Header http.Header
}

// Do sends the call and decodes the answer into out unless that is nil. POSTs carry an idempotency key
// and are sent again on a broken connection.
func (c *Client) Do(ctx context.Context, call Call, out any) error {
	resp, err := c.send(ctx, call)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = data
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

// SettingsError is a mistake in the settings, not an answer of a server.
type SettingsError struct{ text string }

func (e *SettingsError) Error() string { return e.text }

func settingsErrorf(format string, args ...any) error {
	return &SettingsError{fmt.Sprintf(format, args...)}
}

// ErrUnreachable is wrapped when no answer came.
var ErrUnreachable = errors.New("server not reachable")

// send returns an answer of a 2xx status with its body open, or an error.
func (c *Client) send(ctx context.Context, call Call) (*http.Response, error) {
	if call.Method == "" {
		call.Method = http.MethodGet
	}
	var body []byte
	stream, streaming := call.Body.(io.Reader)
	if call.Body != nil && !streaming {
		var err error
		if body, err = json.Marshal(call.Body); err != nil {
			return nil, err
		}
		call.Type = "application/json"
	}
	key := "cli-" + device.RandomName(15)
	for try := 0; ; try++ {
		if !streaming {
			stream = bytes.NewReader(body)
		}
		req, err := http.NewRequestWithContext(ctx, call.Method, c.base+call.Path, stream)
		if err != nil {
			return nil, err
		}
		c.decorate(req, call, key)
		resp, err := c.http.Do(req)
		if err == nil {
			return checkAnswer(resp)
		}
		if streaming || try == 2 || ctx.Err() != nil {
			return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, c.base, err)
		}
		select {
		case <-time.After(time.Duration(try+1) * 300 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *Client) decorate(req *http.Request, call Call, key string) {
	req.URL.RawQuery = call.Query.Encode()
	for k, v := range call.Header {
		req.Header[k] = v
	}
	if call.Type != "" {
		req.Header.Set("Content-Type", call.Type)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.tenant != "" {
		req.Header.Set("Steward-Tenant", c.tenant)
	}
	if call.Method == http.MethodPost {
		req.Header.Set("Idempotency-Key", key)
	}
}

func checkAnswer(resp *http.Response) (*http.Response, error) {
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := &Problem{Status: resp.StatusCode, Title: resp.Status}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err := json.Unmarshal(data, p); err != nil {
		p.Detail = strings.TrimSpace(string(data[:min(len(data), 300)]))
	}
	p.Status = resp.StatusCode
	return nil, p
}

// Object is a JSON object as the server sent it.
type Object = map[string]any

// All reads every page of a list, at most max items (0: all).
func (c *Client) All(ctx context.Context, path string, query url.Values, max int) ([]Object, error) {
	if query == nil {
		query = url.Values{}
	}
	var items []Object
	for {
		page := 1000
		if max > 0 {
			page = min(page, max-len(items))
		}
		query.Set("limit", fmt.Sprint(page))
		var list struct {
			Items []Object `json:"items"`
			Next  string   `json:"next"`
		}
		if err := c.Do(ctx, Call{Path: path, Query: query}, &list); err != nil {
			return nil, err
		}
		items = append(items, list.Items...)
		if list.Next == "" || (max > 0 && len(items) >= max) {
			return items, nil
		}
		query.Set("cursor", list.Next)
	}
}
