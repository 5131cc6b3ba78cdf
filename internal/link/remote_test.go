package link_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steward/internal/device"
	"steward/internal/link"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

func TestCommandEndsAWaitingPollAndIsFetched(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	first := m.get(wire.PathDesired)
	if first.header.Get(wire.CommandsHeader) != "" {
		t.Errorf("without commands the header says %q", first.header.Get(wire.CommandsHeader))
	}
	tag := first.header.Get("ETag")
	poll := func() <-chan *answer {
		done := make(chan *answer, 1)
		go func() {
			a, _ := try(m.client, m.request(http.MethodGet, wire.PathDesired+"?wait=60", nil, "If-None-Match", tag))
			done <- a
		}()
		return done
	}
	want := func(a *answer, err error) {
		t.Helper()
		if err != nil || a == nil || a.status != http.StatusNotModified || a.header.Get(wire.CommandsHeader) != "1" {
			t.Fatalf("the poll ended with %+v, %v", a, err)
		}
	}
	done := poll()
	m.waitForPoll(t)
	h.orders.give(m.d, "c1")
	want(within(10*time.Second, done))
	var list wire.RemoteCommands
	h.must(json.Unmarshal(m.get(wire.PathCommands).body, &list))
	if len(list.Commands) != 1 || list.Commands[0].ID != "c1" {
		t.Fatalf("%+v", list)
	}
	// It is known now, and does not end the next poll; one that comes between two polls does.
	done = poll()
	m.waitForPoll(t)
	h.orders.take(m.d)
	h.orders.give(m.d, "c2")
	want(within(10*time.Second, done))
	h.orders.take(m.d)
	eventually(t, func() bool { return h.link.Running(m.d.Num) == 0 })
	h.orders.give(m.d, "c3")
	want(within(10*time.Second, poll()))
	if got := m.send(http.MethodPost, wire.PathCommands+"/c3", []byte(`{"state":"done","at":"2026-01-01T00:00:00Z"}`)); got.status != http.StatusNoContent {
		t.Errorf("result: %d %s", got.status, got.body)
	}
	m.send(http.MethodPost, wire.PathCommands+"/c3", []byte(`{"state":`)).want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	m.send(http.MethodPost, wire.PathCommands+"/nothing", []byte(`{"state":"done"}`)).want(t, http.StatusNotFound, "")
	if got := h.orders.seen(&h.orders.results); !slices.Equal(got, []string{"c3 done"}) {
		t.Errorf("results: %q", got)
	}
}

func TestEventsAndTelemetryByHTTPS(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	for path, body := range map[string]string{wire.PathEvents: doorOpened, wire.PathTelemetry: `{"metrics":{"a":1,"b":2}}`} {
		if got := m.send(http.MethodPost, path, []byte(body)); got.status != http.StatusNoContent {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
		m.send(http.MethodPost, path, []byte(`{`)).want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
	}
	m.send(http.MethodPost, wire.PathTelemetry, []byte(`{}`)).want(t, http.StatusUnprocessableEntity, wire.CodeRequestInvalid)
	m.send(http.MethodPost, wire.PathEvents, make([]byte, 20<<10)).want(t, http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid)
	got := h.orders.seen(&h.orders.events)
	if slices.Sort(got); !slices.Equal(got, []string{"SN-1 2 metrics", "SN-1 door.opened"}) {
		t.Errorf("arrived: %q", got)
	}
}

func TestLinkWithoutCommandsAndEventsSaysSo(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.Commands, cfg.Events, cfg.Presence, cfg.MQTTListener = nil, nil, nil, nil })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	if got := m.get(wire.PathCommands); string(got.body) != `{"commands":[]}` {
		t.Errorf("commands: %d %s", got.status, got.body)
	}
	m.send(http.MethodPost, wire.PathEvents, []byte(doorOpened)).want(t, http.StatusNotFound, "")
	m.send(http.MethodPost, wire.PathCommands+"/c1", []byte(`{}`)).want(t, http.StatusNotFound, "")
	st := m.connect("agent")
	st.subscribe(down("#"))
	if got := st.send(up(wire.TopicTelemetry), wire.Telemetry{Metrics: map[string]float64{"a": 1}}); got != mqtt.TopicNameInvalid {
		t.Errorf("telemetry: %s", got)
	}
}

func TestWebSocketIsRefusedWithAProblem(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	key := base64.StdEncoding.EncodeToString(make([]byte, 16))
	good := []string{"Upgrade", "websocket", "Connection", "keep-alive, Upgrade", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", key, "Sec-WebSocket-Protocol", "mqttv3.1, mqtt"}
	m.client = h.client(&m.cert, false)
	for name, change := range map[string][]string{
		"no upgrade": {"Upgrade", "h2c"}, "an old version": {"Sec-WebSocket-Version", "8"}, "a short key": {"Sec-WebSocket-Key", "abc="},
		"another protocol": {"Sec-WebSocket-Protocol", "chat"}, "a page of another origin": {"Origin", "https://evil.example"},
	} {
		got := m.get(wire.PathMQTT, append(slices.Clone(good), change...)...)
		if p := got.want(t, http.StatusBadRequest, wire.CodeRequestInvalid); p.Detail == "" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	m.client = h.client(&m.cert, true)
	m.get(wire.PathMQTT).want(t, http.StatusBadRequest, wire.CodeRequestInvalid)
}

func TestManyWhoKnockAtOnceAreAllServed(t *testing.T) {
	h := lite(t, nil)
	const devices, each = 20, 4
	var all []*machine
	for i := range devices {
		all = append(all, h.enrolled(device.DefaultTenant, "SN-"+string(rune('A'+i))))
	}
	settled := h.connected(all[0])
	var wg sync.WaitGroup
	failed := make(chan error, devices*each)
	for _, m := range all {
		for i := range each {
			wg.Go(func() {
				conn, err := m.tls(h.mqtt)
				if err == nil {
					_, err = mqtt.Connect(t.Context(), conn, mqtt.Options{ClientID: string(rune('a' + i))})
				}
				failed <- err
			})
		}
	}
	if got := settled.send(up(wire.TopicEvent), []byte(doorOpened)); got != mqtt.Success {
		t.Errorf("one who is in: %s", got)
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			t.Error(err)
		}
	}
	if c := h.link.Counts(); c.Handshakes != 0 || c.MQTT < (devices-1)*each {
		t.Errorf("%+v", c)
	}
}

// connected returns a station with a client identifier that nobody else uses.
func (h *house) connected(m *machine) *station { return m.connect("settled") }

func TestNothingRunsOnAfterShutdown(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.must(h.stop())
	m.client.CloseIdleConnections()
	before := goleak.IgnoreCurrent()
	h.cfg.Listener, h.cfg.MQTTListener = relisten(t, h.addr), relisten(t, h.mqtt)
	h.start()
	sessions := []*station{m.connect("a"), m.connect("b")}
	silent, err := net.Dial("tcp", h.mqtt)
	h.must(err)
	half, err := m.tls(h.mqtt)
	h.must(err)
	sessions[0].subscribe(down("#"))
	h.must(h.stop())
	for _, st := range sessions {
		st.reason(t)
		_ = st.Close()
	}
	_ = silent.Close()
	_ = half.Close()
	m.client.CloseIdleConnections()
	eventually(t, func() bool { return goleak.Find(before) == nil })
}

func relisten(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestHalfOpenAndSilentConnectionsAreCounted(t *testing.T) {
	h := lite(t, nil)
	silent, err := net.Dial("tcp", h.mqtt)
	h.must(err)
	defer silent.Close()
	eventually(t, func() bool { return h.link.Counts().Handshakes == 1 })
	_ = silent.Close()
	eventually(t, func() bool { return h.link.Connections() == 0 && h.link.Counts().Handshakes == 0 })
	// After TLS and without CONNECT the address pays for it, not the device.
	m := h.enrolled(device.DefaultTenant, "SN-1")
	conn, err := m.tls(h.mqtt)
	h.must(err)
	_ = conn.Close()
	eventually(t, func() bool { return h.link.Sessions(m.d.Num) == 0 })
}

func TestCertificateOfAnotherTenantSeesItsOwnOnly(t *testing.T) {
	h := lite(t, nil)
	m, other := h.enrolled(device.DefaultTenant, "SN-1"), h.enrolled("acme", "SN-1")
	h.desire(m.d, 30)
	hash := string(desiredOf(t, m.get(wire.PathDesired).body).Sections[wire.SectionMonitoring])
	st := other.connect("agent")
	if got := st.send(up(wire.TopicFetch+"/"+hash), []byte(nil)); got != mqtt.TopicNameInvalid {
		t.Errorf("another tenant's document: %s", got)
	}
	if err := st.Subscribe(t.Context(), 1, wire.Topic(string(m.d.ID), wire.TopicDown, "#")); err == nil {
		t.Error("another tenant's topics were granted")
	}
	// A certificate that somebody has made for themselves is nobody's.
	key := newKey(t)
	forged := &machine{h: h, cert: tls.Certificate{Certificate: [][]byte{selfSigned(t, key)}, PrivateKey: key}}
	_, err := forged.try(mqtt.Options{})
	if refusal, ok := errors.AsType[*mqtt.ReasonError](err); !ok || refusal.Reason != mqtt.NotAuthorized || mqtt.Property(refusal.UserProperties, wire.UserPropertyCode) != wire.CodeUnknownDevice {
		t.Errorf("%v", err)
	}
	if strings.Contains(err.Error(), "acme") {
		t.Errorf("it tells of a tenant: %v", err)
	}
}
