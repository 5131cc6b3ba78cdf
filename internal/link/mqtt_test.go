package link_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/link"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

// station is a client of MQTT 5 that is connected as a machine.
type station struct {
	*mqtt.Client
	m   *machine
	got chan *mqtt.Message
}

// tls opens a TLS connection to a listener.
func (m *machine) tls(addr string, protocols ...string) (*tls.Conn, error) {
	return tls.Dial("tcp", addr, &tls.Config{RootCAs: m.h.roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{m.cert}, NextProtos: protocols, Time: m.h.now})
}

// try connects by ALPN.
func (m *machine) try(o mqtt.Options) (*station, error) {
	m.h.Helper()
	conn, err := m.tls(m.h.addr, wire.ALPNMQTT)
	m.h.must(err)
	st := &station{m: m, got: make(chan *mqtt.Message, 100)}
	o.OnMessage = func(msg *mqtt.Message) { st.got <- msg }
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if st.Client, err = mqtt.Connect(ctx, conn, o); err != nil {
		return nil, err
	}
	m.h.Cleanup(func() { _ = st.Close() })
	return st, nil
}

func (m *machine) connect(client string) *station {
	m.h.Helper()
	st, err := m.try(mqtt.Options{ClientID: client})
	m.h.must(err)
	return st
}

func up(name string) string   { return wire.Topic(wire.Me, wire.TopicUp, name) }
func down(name string) string { return wire.Topic(wire.Me, wire.TopicDown, name) }

// send publishes with QoS 1 and returns the reason of its acknowledgement.
func (st *station) send(topic string, v any, correlation ...byte) mqtt.Reason {
	st.m.h.Helper()
	payload, ok := v.([]byte)
	if !ok {
		payload, _ = json.Marshal(v)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := st.Publish(ctx, mqtt.Message{Topic: topic, Payload: payload, QoS: 1, Correlation: correlation})
	if refusal, ok := errors.AsType[*mqtt.ReasonError](err); ok {
		return refusal.Reason
	}
	st.m.h.must(err)
	return mqtt.Success
}

func (st *station) subscribe(filters ...string) {
	st.m.h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	st.m.h.must(st.Subscribe(ctx, 1, filters...))
}

// next returns the next message, which must be on the topic, and reads it into v unless that is nil.
func (st *station) next(topic string, v any) *mqtt.Message {
	st.m.h.Helper()
	msg, err := within(10*time.Second, st.got)
	if err != nil {
		st.m.h.Fatalf("no message on %s", topic)
	}
	if msg.Topic != topic {
		st.m.h.Fatalf("on %s instead of %s: %.200s", msg.Topic, topic, msg.Payload)
	}
	if v != nil {
		st.m.h.must(json.Unmarshal(msg.Payload, v))
	}
	return msg
}

func desiredOf(t testing.TB, envelope []byte) (d wire.Desired) {
	t.Helper()
	var e wire.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(e.Payload, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (st *station) reason(t testing.TB) mqtt.Reason {
	t.Helper()
	select {
	case <-st.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection lives on")
	}
	refusal, ok := errors.AsType[*mqtt.ReasonError](st.Err())
	if !ok {
		t.Fatalf("the connection ended with %v", st.Err())
	}
	return refusal.Reason
}

func TestDeviceLivesByMQTTAlone(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		m := h.enrolled(device.DefaultTenant, "SN-1")
		h.desire(m.d, 30)
		st := m.connect("agent")
		st.subscribe(down("#"))
		first := desiredOf(t, st.next(down(wire.TopicDesired), nil).Payload)
		if first.Device != string(m.d.ID) || first.Epoch != 1 {
			t.Fatalf("desired upon subscription: %+v", first)
		}
		hash := string(first.Sections[wire.SectionMonitoring])
		if got := st.send(up(wire.TopicFetch+"/"+hash), []byte(nil), 7); got != mqtt.Success {
			t.Fatalf("fetch: %s", got)
		}
		doc := st.next(down(wire.TopicDocument+"/"+hash), nil)
		if string(wire.HashOf(doc.Payload)) != hash || string(doc.Correlation) != "\x07" {
			t.Errorf("document: %+v", doc)
		}
		inventory, err := wire.Canonical(wire.Inventory{Hostname: "gw"})
		h.must(err)
		report := wire.Report{Protocol: 1, Boot: "b", Sequence: 1, Instance: "i", Time: h.now(), Epoch: 1, Sections: map[wire.Section]wire.Hash{wire.SectionInventory: wire.HashOf(inventory)}}
		var answer wire.ReportAnswer
		if got := st.send(up(wire.TopicReport), report, 1, 2); got != mqtt.Success {
			t.Fatalf("report: %s", got)
		}
		if msg := st.next(down(wire.TopicReport), &answer); len(answer.Missing) != 1 || string(msg.Correlation) != "\x01\x02" {
			t.Fatalf("answer: %+v", answer)
		}
		if got := st.send(up(wire.TopicDocument+"/"+string(answer.Missing[0])), inventory); got != mqtt.Success {
			t.Fatalf("document: %s", got)
		}
		report.Sequence = 2
		st.send(up(wire.TopicReport), report)
		answer = wire.ReportAnswer{}
		if st.next(down(wire.TopicReport), &answer); len(answer.Missing) != 0 {
			t.Errorf("still missing: %v", answer.Missing)
		}
		if body, _, err := h.twin.Reported(context.Background(), h.db, m.d.Num, wire.SectionInventory); err != nil || string(body) != string(inventory) {
			t.Errorf("reported: %s, %v", body, err)
		}
		st.send(up(wire.TopicMetrics), []byte(`{"resourceMetrics":[]}`))
		st.send(up(wire.TopicMetrics), []byte{0x0a, 0})
		st.send(up(wire.TopicTelemetry), wire.Telemetry{Metrics: map[string]float64{"t": 1}})
		st.send(up(wire.TopicEvent), wire.DeviceEvent{Name: "door.opened"})
		if got := h.orders.seen(&h.orders.events); !slices.Equal(got, []string{"SN-1 1 metrics", "SN-1 door.opened"}) || len(h.measured) != 2 ||
			!strings.Contains(h.measured[0], "application/json") || !strings.Contains(h.measured[1], "protobuf") {
			t.Errorf("arrived: %q %q", got, h.measured)
		}
		h.desire(m.d, 40)
		if second := desiredOf(t, st.next(down(wire.TopicDesired), nil).Payload); second.Epoch != 2 {
			t.Errorf("pushed: %+v", second)
		}
	})
}

func TestCommandsComeUponSubscriptionAndAsTheyAreGivenUntilTheirResult(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.orders.give(m.d, "c1")
	st := m.connect("agent")
	st.subscribe(down(wire.TopicCommand))
	var c wire.RemoteCommand
	if st.next(down(wire.TopicCommand), &c); c.ID != "c1" {
		t.Fatalf("%+v", c)
	}
	h.orders.give(m.d, "c2") // c1 still waits, and is not sent again
	if st.next(down(wire.TopicCommand), &c); c.ID != "c2" {
		t.Fatalf("%+v", c)
	}
	if got := st.send(up(wire.TopicResult+"/c1"), wire.RemoteResult{State: wire.CommandDone}); got != mqtt.Success {
		t.Errorf("result: %s", got)
	}
	if got := st.send(up(wire.TopicResult+"/unknown"), wire.RemoteResult{State: wire.CommandDone}); got != mqtt.TopicNameInvalid {
		t.Errorf("result of no command: %s", got)
	}
	_ = st.Close()
	again := m.connect("agent")
	again.subscribe(down(wire.TopicCommand))
	if again.next(down(wire.TopicCommand), &c); c.ID != "c2" {
		t.Fatalf("%+v", c)
	}
}

func TestMessagesAreRefusedWithReasonAndProblem(t *testing.T) {
	h := lite(t, nil)
	m, other := h.enrolled(device.DefaultTenant, "SN-1"), h.enrolled(device.DefaultTenant, "SN-2")
	st := m.connect("agent")
	st.subscribe(down(wire.TopicProblem))
	full := fault.Later(fault.TooMany, "", time.Minute, "too much of it")
	for _, row := range []struct {
		topic  string
		v      any
		fails  error
		reason mqtt.Reason
		status int
	}{
		{up(wire.TopicReport), []byte("{"), nil, mqtt.PayloadFormatInvalid, http.StatusBadRequest},
		{up(wire.TopicReport), []byte(`{"protocol":99}`), nil, mqtt.PayloadFormatInvalid, http.StatusBadRequest},
		{up(wire.TopicTelemetry), wire.Telemetry{}, nil, mqtt.PayloadFormatInvalid, http.StatusUnprocessableEntity},
		{up(wire.TopicDocument + "/abc"), []byte("x"), nil, mqtt.PayloadFormatInvalid, http.StatusBadRequest},
		{up(wire.TopicFetch + "/" + string(wire.HashOf(nil))), []byte(nil), nil, mqtt.TopicNameInvalid, http.StatusNotFound},
		{up("nothing"), []byte("x"), nil, mqtt.TopicNameInvalid, http.StatusBadRequest},
		{down(wire.TopicDesired), []byte("x"), nil, mqtt.TopicNameInvalid, http.StatusBadRequest},
		{"a/b", []byte("x"), nil, mqtt.TopicNameInvalid, http.StatusBadRequest},
		{wire.Topic(string(other.d.ID), wire.TopicUp, wire.TopicEvent), wire.DeviceEvent{Name: "a"}, nil, mqtt.NotAuthorized, http.StatusBadRequest},
		{up(wire.TopicEvent), wire.DeviceEvent{Name: "a"}, full, mqtt.QuotaExceeded, http.StatusTooManyRequests},
		{up(wire.TopicEvent), wire.DeviceEvent{Name: "a"}, errDatabaseAway, mqtt.ImplementationError, http.StatusInternalServerError},
	} {
		h.orders.fail(row.fails)
		if got := st.send(row.topic, row.v, 9); got != row.reason {
			t.Errorf("%s: %s, want %s", row.topic, got, row.reason)
		}
		var p wire.MessageProblem
		msg := st.next(down(wire.TopicProblem), &p)
		if p.Topic != row.topic || p.Status != row.status || p.Detail == "" || string(msg.Correlation) != "\x09" || strings.Contains(p.Detail, "database") {
			t.Errorf("%s: %s", row.topic, msg.Payload)
		}
	}
	if got := h.orders.seen(&h.orders.events); len(got) != 0 {
		t.Errorf("taken all the same: %q", got)
	}
	// Under its own ID a device may speak, too.
	h.orders.fail(nil)
	if got := st.send(wire.Topic(string(m.d.ID), wire.TopicUp, wire.TopicEvent), wire.DeviceEvent{Name: "own"}); got != mqtt.Success {
		t.Errorf("under its own ID: %s", got)
	}
}

func TestOnlyOwnTopicsAreGranted(t *testing.T) {
	h := lite(t, nil)
	m, other := h.enrolled(device.DefaultTenant, "SN-1"), h.enrolled(device.DefaultTenant, "SN-2")
	st := m.connect("agent")
	ctx := context.Background()
	for _, filter := range []string{
		"#", "+/v1/me/down/desired", "steward/v1/+/down/desired", "steward/v1/me/#", "steward/v1/me/+/desired", "steward/v1/me/up/report",
		"steward/v1/me/down", "steward/v1/me/down/desired/x", "steward/v1/me/down/nothing", "steward/v1/me/down/document/xyz", "$SYS/#",
		wire.Topic(string(other.d.ID), wire.TopicDown, "#"), "$share/g/steward/v1/me/down/desired", "steward/v1/me/down/+/+",
	} {
		err := st.Subscribe(ctx, 1, filter)
		refusal, ok := errors.AsType[*mqtt.ReasonError](err)
		want := mqtt.NotAuthorized
		if strings.HasPrefix(filter, "$share") {
			want = mqtt.SharedNotSupported
		}
		if !ok || refusal.Reason != want {
			t.Errorf("%s: %v", filter, err)
		}
	}
	for _, filter := range []string{"steward/v1/me/down/#", "steward/v1/me/down/+", wire.Topic(string(m.d.ID), wire.TopicDown, wire.TopicReport), "steward/v1/me/down/document/+", "steward/v1/me/down/document/" + string(wire.HashOf(nil))} {
		if err := st.Subscribe(ctx, 1, filter); err != nil {
			t.Errorf("%s: %v", filter, err)
		}
	}
}

// BenchmarkUnchangedReport is a device's report that changes nothing, with its acknowledgement and answer.
func BenchmarkUnchangedReport(b *testing.B) {
	h := lite(b, func(cfg *link.Config) { cfg.Rate, cfg.Burst = 1e9, 1e9 })
	st := h.enrolled(device.DefaultTenant, "SN-1").connect("agent")
	st.subscribe(down(wire.TopicReport))
	report := wire.Report{Protocol: 1, Boot: "b", Sequence: 1, Instance: "i", Time: h.now()}
	st.send(up(wire.TopicReport), report)
	st.next(down(wire.TopicReport), nil)
	b.ReportAllocs()
	for b.Loop() {
		report.Sequence++
		if got := st.send(up(wire.TopicReport), report); got != mqtt.Success {
			b.Fatal(got)
		}
		st.next(down(wire.TopicReport), nil)
	}
}
