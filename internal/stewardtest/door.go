package stewardtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"steward/internal/wire"
)

// Door speaks to the link by hand, as an attacker or a foreign client would.
type Door struct {
	t    testing.TB
	url  string
	http *http.Client
}

// Answer is what came through a door.
type Answer struct {
	Status  int
	Header  http.Header
	Body    []byte
	Problem wire.Problem // of a refusal
}

// Door opens the link with a device's identity (PEM of key and certificate); nil shows none.
func (h *House) Door(identity []byte) *Door {
	h.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(h.Boot.CA)) {
		h.t.Fatal("the bootstrap file has no CA")
	}
	cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if identity != nil {
		pair, err := tls.X509KeyPair(identity, identity)
		if err != nil {
			h.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: cfg}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &Door{t: h.t, url: h.Boot.Link, http: &http.Client{Transport: transport, Timeout: time.Minute}}
}

// Ask makes one request. A connection that breaks is an error.
func (d *Door) Ask(method, path string, body []byte, header ...string) (Answer, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, d.url+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	out := Answer{Status: resp.StatusCode, Header: resp.Header}
	if out.Body, err = io.ReadAll(io.LimitReader(resp.Body, 32<<20)); err != nil {
		return out, err
	}
	if out.Status >= 400 {
		if err := json.Unmarshal(out.Body, &out.Problem); err != nil {
			d.t.Errorf("%s %s: the refusal %d is no problem document: %.200s", method, path, out.Status, out.Body)
		}
	}
	return out, nil
}

// Must is Ask with an answer of the status and, when it is a refusal, of the code.
func (d *Door) Must(status int, code, method, path string, body []byte, header ...string) Answer {
	d.t.Helper()
	out, err := d.Ask(method, path, body, header...)
	if err != nil {
		d.t.Errorf("%s %s: %v", method, path, err)
		return out
	}
	if out.Status != status || out.Problem.Code != code {
		d.t.Errorf("%s %s: want %d %s, got %d %s: %.300s", method, path, status, code, out.Status, out.Problem.Code, out.Body)
	}
	if code != "" && out.Problem.Detail == "" {
		d.t.Errorf("%s %s: a refusal without a reason: %s", method, path, out.Body)
	}
	return out
}
