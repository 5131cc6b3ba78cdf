package link_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/link"
	"steward/internal/wire"
)

func TestUnknownPathsAndNewerProtocolsAreProblems(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	m.get("/nothing").want(t, http.StatusNotFound, "")
	m.send(http.MethodDelete, wire.PathDesired, nil).want(t, http.StatusNotFound, "")
	m.get(wire.PathTrust+"xyz").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	m.get(wire.PathTrust+strings.Repeat("0", 64)).want(t, http.StatusNotFound, "")
	newer := m.get(wire.PathDesired, wire.ProtocolHeader, "99")
	newer.want(t, http.StatusBadRequest, wire.CodeProtocol)
	if newer.header.Get(wire.ProtocolHeader) != "1" {
		t.Errorf("the server speaks %q", newer.header.Get(wire.ProtocolHeader))
	}
	m.get(wire.PathDesired, wire.ProtocolHeader, "one").want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	m.send(http.MethodPost, wire.PathReport, []byte(`{"protocol":99}`)).want(t, http.StatusBadRequest, wire.CodeProtocol)
	m.send(http.MethodPost, wire.PathReport, []byte(`{"protocol":`)).want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	if got := h.do(h.client(nil, true), m.request(http.MethodGet, "/pki/default/crl", nil)); got.status != http.StatusOK {
		t.Errorf("revocation list: %d", got.status)
	}
}

func TestOversizedBodiesAreRefused(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	big := bytes.Repeat([]byte(" "), wire.MaxReportBytes+1)
	m.send(http.MethodPost, wire.PathReport, big).want(t, http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid)
	// without a Content-Length
	req := m.request(http.MethodPost, wire.PathReport, nil)
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(big)), -1
	h.do(m.client, req).want(t, http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid)
	// small on the wire, large once unpacked
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := io.CopyN(z, spaces{}, 64<<20)
	h.must(errors.Join(err, z.Close()))
	m.send(http.MethodPost, wire.PathMetrics, bomb.Bytes(), "Content-Encoding", "gzip").want(t, http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid)
	m.send(http.MethodPut, wire.PathDocuments+string(wire.HashOf([]byte("a"))), []byte("b")).want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	h.enroll("SN-1", "0000000000000000", bytes.Repeat([]byte("A"), 64<<10)).want(t, http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid)
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// raw opens a TLS connection of HTTP/1.1 with the device's certificate.
func (m *machine) raw(t *testing.T) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", m.h.addr, &tls.Config{RootCAs: m.h.roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{m.cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestDrippedBodyIsGivenUp(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.BodyTimeout = 300 * time.Millisecond })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	for _, c := range []struct {
		name, path string
		status     string
	}{
		{"a report", wire.PathReport, "HTTP/1.1 408"},
		{"an enrollment", wire.PathESTReenroll, "HTTP/1.1 408"},
		{"a body that nobody reads", "/nothing", "HTTP/1.1 404"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := m.raw(t)
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: link\r\nContent-Length: 60000\r\n\r\n", c.path)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-stop:
						return
					case <-tick.C:
						if _, err := conn.Write([]byte("x")); err != nil {
							return
						}
					}
				}
			})
			h.must(conn.SetReadDeadline(time.Now().Add(10 * time.Second)))
			began := time.Now()
			got, err := io.ReadAll(conn)
			close(stop)
			wg.Wait()
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				t.Fatalf("after %s the connection still lives: %.100s", time.Since(began), got)
			}
			if !strings.HasPrefix(string(got), c.status) {
				t.Errorf("answered %.100q", got)
			}
		})
	}
}

func TestDeviceThatRunsWildIsSlowedDown(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.Rate, cfg.Burst = 0.5, 5 })
	m, calm := h.enrolled(device.DefaultTenant, "SN-1"), h.enrolled(device.DefaultTenant, "SN-2")
	var last *answer
	for range 10 {
		if last = m.get(wire.PathDesired); last.status != http.StatusOK {
			break
		}
	}
	if p := last.want(t, http.StatusTooManyRequests, wire.CodeTooMany); p.RetryAfterSeconds < 1 || last.header.Get("Retry-After") == "" {
		t.Errorf("no time to wait: %+v", p)
	}
	if got := calm.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("another device suffers: %d", got.status)
	}
}

func TestRequestsOfOneDeviceAtATimeAreBounded(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.Concurrent = 2 })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	tag := m.get(wire.PathDesired).header.Get("ETag")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			_, _ = try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=60", nil, "If-None-Match", tag).WithContext(ctx))
		})
	}
	eventually(t, func() bool { return h.link.Running(m.d.Num) == 2 })
	m.get(wire.PathDesired).want(t, http.StatusTooManyRequests, wire.CodeTooMany)
	cancel()
	wg.Wait()
	eventually(t, func() bool { return h.link.Running(m.d.Num) == 0 })
	if got := m.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("afterwards: %d", got.status)
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	if !comes(holds) {
		t.Fatal("it did not come to pass in 15 s")
	}
}

// comes waits until the condition holds, and returns false when it doesn't for long.
func comes(holds func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func TestStrangersFloodIsSlowedDown(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	stranger := h.client(nil, true)
	var last *answer
	for range 400 {
		last = h.do(stranger, m.request(http.MethodGet, wire.PathDesired, nil))
		if last.status == http.StatusTooManyRequests {
			break
		}
	}
	last.want(t, http.StatusTooManyRequests, wire.CodeTooMany)
	if got := m.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("a device of the same address suffers: %d", got.status)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.MaxConnections = 3 })
	var open []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", h.addr)
		h.must(err)
		open = append(open, c)
	}
	eventually(t, func() bool { return h.link.Connections() == 3 })
	c, err := net.Dial("tcp", h.addr)
	h.must(err)
	defer c.Close()
	h.must(c.SetReadDeadline(time.Now().Add(5 * time.Second)))
	var late net.Error
	if _, err := c.Read(make([]byte, 1)); err == nil || (errors.As(err, &late) && late.Timeout()) {
		t.Errorf("the fourth connection was not closed: %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, func() bool { return h.link.Connections() == 0 })
}

func TestOneAddressCannotTakeAllPlaces(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.MaxConnections = 100 })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 120 { // never say who they are
		c, err := from.DialContext(t.Context(), "tcp4", h.addr)
		h.must(err)
		open = append(open, c)
	}
	eventually(t, func() bool { n := h.link.Connections(); return n >= 64 && n < 70 })
	if got := m.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("a device elsewhere is refused: %d", got.status)
	}
}

func TestShutdownEndsLongPollsAndLeavesNothingOpen(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	tag := m.get(wire.PathDesired).header.Get("ETag")
	done := make(chan *answer, 1)
	go func() {
		a, _ := try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=60", nil, "If-None-Match", tag))
		done <- a
	}()
	m.waitForPoll(t)
	idle, err := net.Dial("tcp", h.addr) // within its handshake
	h.must(err)
	defer idle.Close()
	eventually(t, func() bool { return h.link.Connections() >= 2 })
	began := time.Now()
	h.must(h.stop())
	if got, err := within(time.Second, done); err != nil || got == nil || got.status != http.StatusNotModified {
		t.Errorf("the poll ended with %+v, %v", got, err)
	}
	if n := h.link.Connections(); n != 0 || time.Since(began) > 12*time.Second {
		t.Errorf("%d connections after %s", n, time.Since(began))
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	h := lite(t, nil)
	c, err := tls.Dial("tcp", h.addr, &tls.Config{RootCAs: h.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11})
	if err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 was accepted")
	}
	if got, err := tls.Dial("tcp", h.addr, &tls.Config{RootCAs: h.roots, ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS12}); err != nil {
		t.Errorf("TLS 1.2: %v", err)
	} else {
		_ = got.Close()
	}
}

func TestPanicOfARoomEndsOneRequestOnly(t *testing.T) {
	h := lite(t, func(cfg *link.Config) {
		cfg.Metrics = func(context.Context, device.Device, string, []byte) ([]byte, error) { panic("boom") }
	})
	m := h.enrolled(device.DefaultTenant, "SN-1")
	if _, err := try(m.client, m.request(http.MethodPost, wire.PathMetrics, []byte("{}"))); err == nil {
		t.Error("a panic was answered")
	}
	if got := m.get(wire.PathDesired); got.status != http.StatusOK {
		t.Errorf("afterwards: %d", got.status)
	}
}

func TestKeptConnectionSurvivesAnswersOfAllKinds(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.BodyTimeout = 300 * time.Millisecond })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	conn := m.raw(t)
	in := bufio.NewReader(conn)
	for i, line := range []string{"GET /v1/desired", "POST /v1/report", "GET /nothing", "GET /v1/desired"} {
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: link\r\nContent-Length: 0\r\n\r\n", line)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		// Longer than the deadline of a body: none of them may be left behind on the connection.
		wait := time.NewTimer(400 * time.Millisecond)
		<-wait.C
	}
}

func BenchmarkDesired(b *testing.B) {
	h := lite(b, func(cfg *link.Config) { cfg.Rate, cfg.Burst = 1e9, 1e9 })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	tag := m.get(wire.PathDesired).header.Get("ETag")
	b.ResetTimer()
	for range b.N {
		if got := m.get(wire.PathDesired, "If-None-Match", tag); got.status != http.StatusNotModified {
			b.Fatal(got.status)
		}
	}
}
