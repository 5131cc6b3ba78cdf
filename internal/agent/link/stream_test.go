package link_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent/agenttest"
	"steward/internal/agent/link"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

// quick are waits for tests.
var quick = link.Config{
	Retry:  link.Backoff{Least: 2 * time.Millisecond, Most: 20 * time.Millisecond},
	Better: link.Backoff{Least: time.Hour, Most: time.Hour},
}

// running starts Run of an enrolled client; it ends with the test.
func running(t *testing.T, s *agenttest.Server, cfg link.Config) *link.Client {
	t.Helper()
	c := enrolled(t, s, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c.Expect()
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func waitFor(t *testing.T, c *link.Client, via string) {
	t.Helper()
	agenttest.Eventually(t, "messages travel by "+via, func() bool { return c.Way().Via == via })
}

func aReport() wire.Report {
	return wire.Report{Protocol: wire.Protocol, Boot: "b", Instance: "i", Sequence: 1, Time: time.Now()}
}

func TestEveryMessageTravelsByMQTT(t *testing.T) {
	for via, doors := range map[string]agenttest.Doors{link.ViaMQTT: {MQTT: true}, link.ViaWebSocket: {WebSocket: true}} {
		t.Run(via, func(t *testing.T) {
			s := agenttest.StartWith(t, doors)
			c := running(t, s, quick)
			waitFor(t, c, via)
			ctx := t.Context()
			body := []byte(`{"a":1}`)
			_, reportErr := c.Report(ctx, aReport())
			envelope, desiredErr := c.Desired(ctx, link.Whole, 0)
			err := errors.Join(
				reportErr, desiredErr, c.PutDocument(ctx, wire.HashOf(body), body), c.PostMetrics(ctx, []byte("{}")),
				c.PostEvent(ctx, wire.DeviceEvent{Name: "door.opened", Time: time.Now()}),
				c.PostResult(ctx, "c1", wire.RemoteResult{State: wire.CommandDone, At: time.Now()}),
			)
			if err != nil || len(envelope) == 0 {
				t.Fatal(err, len(envelope))
			}
			if got, err := c.Document(ctx, wire.HashOf(body)); err != nil || string(got) != string(body) {
				t.Errorf("%q %v", got, err)
			}
			for _, name := range []string{wire.TopicReport, wire.TopicDocument, wire.TopicFetch, wire.TopicMetrics, wire.TopicEvent, wire.TopicResult} {
				agenttest.Eventually(t, name+" travelled by MQTT", func() bool { return s.Calls("message "+name) == 1 })
			}
			if _, stored := s.Result("c1"); !stored || len(s.Events()) != 1 {
				t.Error("result or event is missing")
			}
		})
	}
}

func TestLargeDocumentsTravelByHTTPS(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	body, err := json.Marshal(strings.Repeat("x", wire.MaxMQTTBytes))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PutDocument(t.Context(), wire.HashOf(body), body); err != nil {
		t.Fatal(err)
	}
	if s.Calls("message "+wire.TopicDocument) != 0 || s.Calls("PUT "+wire.PathDocuments) != 1 {
		t.Error("it travelled by MQTT")
	}
	s.Do(func() {
		s.Refuse = func(r *http.Request) *wire.Problem {
			if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, wire.PathDocuments) && r.ProtoMajor < 2 { // as a message
				return &wire.Problem{Status: http.StatusRequestEntityTooLarge, Title: "fetch it by HTTPS"}
			}
			return nil
		}
	})
	if got, err := c.Document(t.Context(), wire.HashOf(body)); err != nil || len(got) != len(body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestChangesArePushed(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	if _, err := c.Desired(t.Context(), link.Whole, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Desired(t.Context(), 1, 0); !errors.Is(err, link.ErrNotModified) {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := c.Desired(t.Context(), 1, time.Minute)
		got <- err
	}()
	s.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{})
	if err := <-got; err != nil {
		t.Error(err)
	}
	if n := s.Calls("GET " + wire.PathDesired); n != 0 {
		t.Errorf("asked %d times", n)
	}
	// What was handed out and not accepted is asked for again, not waited for.
	if _, err := c.Desired(t.Context(), 1, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestLostPushIsMadeGoodByTheNextReport(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	if _, err := c.Desired(t.Context(), link.Whole, 0); err != nil {
		t.Fatal(err)
	}
	s.Do(func() { s.HoldPush = true })
	s.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{})
	got := make(chan error, 1)
	go func() {
		_, err := c.Desired(t.Context(), 1, time.Minute)
		got <- err
	}()
	if answer, err := c.Report(t.Context(), aReport()); err != nil || answer.Epoch != 2 {
		t.Fatal(answer, err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestDeviceSaysWhichDesiredStateItHasWhenItConnectsAgain(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	_, _ = c.Desired(t.Context(), 7, 0) // epoch 7 is what it has; the server's is another
	s.DropStreams()
	agenttest.Eventually(t, "a connection with the epoch", func() bool { return s.EpochsAtConnect()[7] })
}

func TestWaysThatDoNotWorkAreLeftForTheNextBest(t *testing.T) {
	cases := []struct {
		name  string
		doors agenttest.Doors
		want  string
		why   string
	}{
		{"all", agenttest.Doors{MQTT: true, WebSocket: true}, link.ViaMQTT, ""},
		{"no ALPN", agenttest.Doors{WebSocket: true}, link.ViaWebSocket, "without WebSocket"},
		{"HTTPS only", agenttest.Doors{}, link.ViaHTTPS, "no application protocol; MQTT in a WebSocket: the server refuses (404)"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			var mu sync.Mutex
			var remembered string
			cfg := quick
			cfg.Remember = func(via string) { mu.Lock(); defer mu.Unlock(); remembered = via }
			s := agenttest.StartWith(t, tc.doors)
			c := running(t, s, cfg)
			waitFor(t, c, tc.want)
			if why := c.Way().Why; !strings.Contains(why, tc.why) || tc.why == "" && why != "" {
				t.Errorf("why: %s", why)
			}
			agenttest.Eventually(t, "remembered", func() bool { mu.Lock(); defer mu.Unlock(); return remembered == tc.want })
			if _, err := c.Report(t.Context(), aReport()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatDidNotWorkIsNotTriedFirstAfterARestart(t *testing.T) {
	s := agenttest.Start(t)
	s.Do(func() { s.ManyKeys = true })
	cfg := quick
	cfg.Remembered = link.ViaHTTPS
	c := running(t, s, cfg)
	if _, err := c.Report(t.Context(), aReport()); err != nil {
		t.Fatal(err)
	}
	if c.Way().Via != link.ViaHTTPS || s.Calls("CONNECT "+wire.PathMQTT) != 0 {
		t.Errorf("%+v", c.Way())
	}
	cfg.Remembered = link.ViaWebSocket
	waitFor(t, running(t, s, cfg), link.ViaWebSocket)
}

func TestBetterWayIsFoundLater(t *testing.T) {
	t.Parallel() // it waits for seconds
	s := agenttest.Start(t)
	var closed atomic.Bool
	closed.Store(true)
	s.Do(func() {
		s.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path == wire.PathMQTT && closed.Load() {
				return &wire.Problem{Status: 403, Title: "no MQTT for this device"}
			}
			return nil
		}
	})
	cfg := quick
	cfg.Better = link.Backoff{Least: 20 * time.Millisecond, Most: 40 * time.Millisecond}
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaHTTPS)
	if why := c.Way().Why; !strings.Contains(why, "not authorized") {
		t.Errorf("why: %s", why)
	}
	// A long poll that is under way goes over to the better way.
	got := make(chan error, 1)
	go func() {
		_, err := c.Desired(t.Context(), 1, time.Minute)
		got <- err
	}()
	agenttest.Eventually(t, "the poll arrives", func() bool { return s.Calls("GET "+wire.PathDesired) > 1 })
	closed.Store(false)
	waitFor(t, c, link.ViaMQTT)
	s.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{})
	if err := <-got; err != nil {
		t.Error(err)
	}
	agenttest.Eventually(t, "idle HTTPS connections end", func() bool { return s.HTTPConnections() == 0 })
}

// An outage must not move a fleet to HTTPS, which costs the server more.
func TestOutageMovesNobodyToAnotherWay(t *testing.T) {
	s := agenttest.Start(t)
	cfg := quick
	var down atomic.Bool
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil && down.Load() {
			_ = conn.Close() // as a load balancer does that has nobody behind it
		}
		return conn, err
	}
	var seen sync.Map
	cfg.Remember = func(via string) { seen.Store(via, true) }
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaMQTT)
	down.Store(true)
	s.DropConnections()
	agenttest.Eventually(t, "many attempts have failed", func() bool {
		_, err := c.Report(t.Context(), aReport())
		return err != nil && strings.Contains(err.Error(), "not connected")
	})
	deadline := time.Now().Add(200 * time.Millisecond)
	agenttest.Eventually(t, "a while", func() bool {
		if via := c.Way().Via; via == link.ViaHTTPS || via == link.ViaWebSocket {
			t.Fatalf("went over to %s", via)
		}
		return time.Now().After(deadline)
	})
	down.Store(false)
	waitFor(t, c, link.ViaMQTT)
	if _, has := seen.Load(link.ViaHTTPS); has {
		t.Error("HTTPS is remembered")
	}
}

func TestRefusedDeviceAsksOnceByHTTPSAndIsSilent(t *testing.T) {
	s := agenttest.Start(t)
	cfg := quick
	cfg.SlowRetry = time.Hour
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaMQTT)
	s.RevokeAll()
	s.Disconnect(mqtt.NotAuthorized)
	agenttest.Eventually(t, "stopped", func() bool {
		_, err := c.Report(t.Context(), aReport())
		return link.CodeOf(err) == wire.CodeRevoked && link.Stopped(err)
	})
	if n := s.Calls("GET " + wire.PathDesired); n != 1 {
		t.Errorf("asked %d times by HTTPS", n)
	}
	connects := s.Calls("CONNECT " + wire.PathMQTT)
	for range 20 {
		_, _ = c.Report(t.Context(), aReport())
		_, _ = c.Desired(t.Context(), 1, 0)
	}
	if s.Calls("CONNECT "+wire.PathMQTT) != connects || s.Calls("GET "+wire.PathDesired) != 1 {
		t.Error("it went on asking")
	}
}

// The same when the connection was gone before: CONNECT is what is refused.
func TestRefusedConnectIsExplainedByHTTPS(t *testing.T) {
	s := agenttest.Start(t)
	cfg := quick
	cfg.SlowRetry = time.Hour
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaMQTT)
	s.RevokeAll()
	s.DropConnections()
	agenttest.Eventually(t, "stopped", func() bool {
		_, err := c.Report(t.Context(), aReport())
		return link.CodeOf(err) == wire.CodeRevoked
	})
}

func TestBusyServerIsComeBackToWithinItsWindow(t *testing.T) {
	s := agenttest.Start(t)
	s.Do(func() { s.ManyKeys = true })
	s.Do(func() {
		s.Connack = mqtt.ServerBusy
		s.Properties = []mqtt.UserProperty{{Key: wire.UserPropertyReconnect, Val: "3600"}}
	})
	// Twenty clients spread over the hour: that none has to wait for more than six minutes would be a
	// matter of 1 in 10^20.
	var longest time.Duration
	for range 20 {
		c := running(t, s, quick)
		agenttest.Eventually(t, "refused", func() bool {
			_, err := c.Report(t.Context(), aReport())
			longest = max(longest, link.RetryAfter(err))
			if err != nil && link.RetryAfter(err) > time.Hour {
				t.Fatalf("waits %s", link.RetryAfter(err))
			}
			return err != nil
		})
	}
	if longest < 6*time.Minute {
		t.Errorf("the longest wait is %s", longest)
	}
	if n := s.Calls("GET " + wire.PathDesired); n != 0 {
		t.Errorf("the busy server was asked %d times by HTTPS", n)
	}
}

func TestSecondAgentWithTheIdentityGivesWay(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	s.Disconnect(mqtt.SessionTakenOver)
	waitFor(t, c, link.ViaHTTPS)
	if why := c.Way().Why; !strings.Contains(why, "another agent") {
		t.Errorf("why: %s", why)
	}
}

func TestRenewedIdentityConnectsBeforeTheOldConnectionEnds(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	if _, err := c.Report(t.Context(), aReport()); err != nil {
		t.Fatal(err)
	}
	next := newIdentity(t, func(csr []byte) ([][]byte, error) {
		certs, err := c.Reenroll(t.Context(), csr)
		if err != nil {
			return nil, err
		}
		return [][]byte{certs[0].Raw}, nil
	})
	c.UseIdentity(next)
	agenttest.Eventually(t, "the new connection is the only one", func() bool {
		if s.Streams() == 0 {
			t.Fatal("for a moment there was none")
		}
		return s.Calls("CONNECT "+wire.PathMQTT) == 2 && s.Streams() == 1
	})
	if _, err := c.Report(t.Context(), aReport()); err != nil {
		t.Error(err)
	}
	if n := s.Certificates("superseded"); n != 1 {
		t.Errorf("%d certificates are superseded", n)
	}
}

func TestReportThatWasCutOffIsAnErrorAndTheNextOneIsTaken(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	var cut atomic.Bool
	s.Do(func() {
		s.Cut = func(r *http.Request) bool { return r.URL.Path == wire.PathReport && !cut.Swap(true) }
	})
	_, err := c.Report(t.Context(), aReport())
	if err == nil {
		t.Error("no error though there was no acknowledgement")
	}
	began := time.Now()
	if !c.Rest(t.Context(), time.Minute, err) || time.Since(began) > 30*time.Second {
		t.Fatal("the new connection does not end the rest")
	}
	agenttest.Eventually(t, "taken", func() bool { _, err := c.Report(t.Context(), aReport()); return err == nil })
	if n := len(s.Reports()); n != 2 {
		t.Errorf("%d reports", n)
	}
}

func TestHalfOpenConnectionIsFoundByTheNextMessage(t *testing.T) {
	t.Parallel() // it waits for seconds
	s := agenttest.Start(t)
	cfg := quick
	cfg.Patience = 2 * time.Second // enrolling is to fit in, also on a busy machine
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaMQTT)
	s.Do(func() { s.Mute = true })
	agenttest.Eventually(t, "found dead", func() bool { // what was on its way at first is a sign of life
		_, err := c.Report(t.Context(), aReport())
		return err != nil && strings.Contains(err.Error(), "dead")
	})
	s.Do(func() { s.Mute = false })
	agenttest.Eventually(t, "a new connection", func() bool {
		_, err := c.Report(t.Context(), aReport())
		return err == nil && c.Way().Via == link.ViaMQTT
	})
}

func TestHalfOpenConnectionIsFoundByKeepAlive(t *testing.T) {
	t.Parallel() // it waits for seconds
	s := agenttest.Start(t)
	cfg := quick
	cfg.KeepAlive = time.Second
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaMQTT)
	agenttest.Eventually(t, "a ping", func() bool { return s.Calls("PINGREQ") > 0 })
	connects := s.Calls("CONNECT " + wire.PathMQTT)
	if connects != 1 {
		t.Fatalf("%d connections though pings are answered", connects)
	}
	s.Do(func() { s.Mute = true })
	agenttest.Eventually(t, "another attempt", func() bool { return s.Calls("CONNECT "+wire.PathMQTT) > connects })
}

func TestMessagesThatAreRefusedCarryTheProblem(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	s.Do(func() {
		s.Refuse = func(r *http.Request) *wire.Problem {
			if r.URL.Path == wire.PathMetrics {
				return &wire.Problem{Status: 429, Title: "slow", Code: wire.CodeTooMany, RetryAfterSeconds: 7}
			}
			return nil
		}
	})
	err := c.PostMetrics(t.Context(), []byte("{}"))
	if link.CodeOf(err) != wire.CodeTooMany || link.StatusOf(err) != 429 || link.RetryAfter(err) != 7*time.Second {
		t.Errorf("%v", err)
	}
	if c.Way().Via != link.ViaMQTT {
		t.Error("the refusal of a message ended the connection")
	}
}

func TestCommandsComeByEachWay(t *testing.T) {
	for _, mode := range []link.Mode{link.ModeMQTT, link.ModeHTTPS} {
		t.Run(string(mode), func(t *testing.T) {
			got := make(chan string, 10)
			cfg := quick
			cfg.Mode = mode
			cfg.Commands = func(list []wire.RemoteCommand) {
				for _, c := range list {
					got <- c.ID
				}
			}
			s := agenttest.Start(t)
			c := running(t, s, cfg)
			s.Command(wire.RemoteCommand{ID: "c1", Name: "ping", Deadline: time.Now().Add(time.Minute)})
			if mode == link.ModeHTTPS { // an answer to any question for the desired state names them
				if _, err := c.Desired(t.Context(), 1, 0); !errors.Is(err, link.ErrNotModified) {
					t.Fatal(err)
				}
			}
			select {
			case id := <-got:
				if id != "c1" {
					t.Error(id)
				}
			case <-time.After(10 * time.Second):
				t.Error("it did not come")
			}
		})
	}
}

func TestDeviceThatReportsSeldomIsNotConnectedInBetween(t *testing.T) {
	t.Parallel() // it waits for seconds
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	c.Pace(link.LongPace)
	waitFor(t, c, link.ViaHTTPS)
	if why := c.Way().Why; !strings.Contains(why, "so seldom") {
		t.Errorf("why: %s", why)
	}
	if _, err := c.Desired(t.Context(), link.Whole, time.Minute); err != nil {
		t.Fatal(err)
	}
	asked := s.Calls("GET " + wire.PathDesired)
	if _, err := c.Desired(t.Context(), 1, 20*time.Millisecond); !errors.Is(err, link.ErrUnasked) || s.Calls("GET "+wire.PathDesired) != asked {
		t.Errorf("%v, asked %d times", err, s.Calls("GET "+wire.PathDesired)-asked)
	}
	got := make(chan error, 1)
	go func() {
		_, err := c.Desired(t.Context(), 1, time.Minute)
		got <- err
	}()
	if _, err := c.Report(t.Context(), aReport()); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, link.ErrNotModified) { // asked with the report, not held
		t.Errorf("%v", err)
	}
	agenttest.Eventually(t, "all connections end", func() bool { return s.HTTPConnections() == 0 && s.Streams() == 0 })
	c.Pace(time.Minute)
	waitFor(t, c, link.ViaMQTT)
}

func TestModesAreObeyed(t *testing.T) {
	if _, err := link.New(link.Config{Server: "https://x", Mode: "pigeon"}); err == nil {
		t.Error("a mode that there isn't was taken")
	}
	s := agenttest.Start(t)
	s.Do(func() { s.ManyKeys = true })
	cfg := quick
	cfg.Mode = link.ModeHTTPS
	c := running(t, s, cfg)
	if _, err := c.Report(t.Context(), aReport()); err != nil || c.Way().Via != link.ViaHTTPS || s.Streams() != 0 {
		t.Errorf("https: %v %+v", err, c.Way())
	}
	cfg.Mode = link.ModeMQTT
	c = running(t, agenttest.StartWith(t, agenttest.Doors{}), cfg)
	agenttest.Eventually(t, "mqtt does without HTTPS", func() bool {
		_, err := c.Report(t.Context(), aReport())
		return err != nil && strings.Contains(err.Error(), "not connected")
	})
	c = running(t, s, cfg)
	c.Pace(24 * time.Hour)
	waitFor(t, c, link.ViaMQTT)
}

// tunnels is a proxy that knows CONNECT only.
func tunnels(t *testing.T) (address *url.URL, count *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	count = new(atomic.Int32)
	var all sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { tunnel(conn, count) })
		}
	})
	return &url.URL{Scheme: "http", Host: l.Addr().String(), User: url.UserPassword("u", "p")}, count
}

func tunnel(conn net.Conn, count *atomic.Int32) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect || req.Header.Get("Proxy-Authorization") != "Basic dTpw" {
		_, _ = io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
		return
	}
	out, err := net.Dial("tcp", req.Host)
	if err != nil {
		return
	}
	count.Add(1)
	defer func() { _ = out.Close() }()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(conn, out)
		_ = conn.Close()
	}()
	_, _ = io.Copy(out, in)
}

func TestMQTTGoesThroughAProxy(t *testing.T) {
	s := agenttest.Start(t)
	proxy, count := tunnels(t)
	cfg := quick
	cfg.Proxy = func(*http.Request) (*url.URL, error) { return proxy, nil }
	c := running(t, s, cfg)
	waitFor(t, c, link.ViaMQTT)
	if _, err := c.Report(t.Context(), aReport()); err != nil || count.Load() < 2 {
		t.Errorf("%v, %d tunnels", err, count.Load())
	}
	// One that wants a password that it isn't given fails as the network does, with the reason.
	wrong := *proxy
	wrong.User = nil
	cfg.Proxy = func(r *http.Request) (*url.URL, error) { return &wrong, nil }
	c, err := link.New(withServer(cfg, s.URL))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.UseTrust(s.Trust); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Try(t.Context()); err == nil || !strings.Contains(err.Error(), "407") {
		t.Errorf("%v", err)
	}
	socks := &url.URL{Scheme: "socks5", Host: proxy.Host}
	cfg.Proxy = func(*http.Request) (*url.URL, error) { return socks, nil }
	if c, err = link.New(withServer(cfg, s.URL)); err != nil {
		t.Fatal(err)
	}
	if err := c.UseTrust(s.Trust); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Try(t.Context()); err == nil || !strings.Contains(err.Error(), "carries HTTPS only") {
		t.Errorf("%v", err)
	}
}

func withServer(cfg link.Config, server string) link.Config {
	cfg.Server = server
	return cfg
}

func TestReconnectResumesTheTLSSession(t *testing.T) {
	s := agenttest.Start(t)
	c := running(t, s, quick)
	waitFor(t, c, link.ViaMQTT)
	if _, err := c.Report(t.Context(), aReport()); err != nil {
		t.Fatal(err)
	}
	full := s.Calls("full handshake")
	for range 3 {
		before := s.Calls("CONNECT " + wire.PathMQTT)
		s.DropStreams()
		agenttest.Eventually(t, "again", func() bool { return s.Calls("CONNECT "+wire.PathMQTT) > before && c.Way().Via == link.ViaMQTT })
		if _, err := c.Metadata(t.Context(), "none.json"); !link.NotFound(err) { // HTTPS shares the tickets
			t.Error(err)
		}
		c.Close()
	}
	if n := s.Calls("full handshake") - full; n != 0 || s.Calls("resumption") < 3 {
		t.Errorf("%d full handshakes, %d resumptions", n, s.Calls("resumption"))
	}
}
