package link_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/link"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

func TestRevocationClosesSessionsAtOnce(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		m := h.enrolled(device.DefaultTenant, "SN-1")
		st := m.connect("agent")
		h.revoke(m.d)
		if got := st.reason(t); got != mqtt.AdministrativeAction {
			t.Errorf("%s", got)
		}
		_, err := m.try(mqtt.Options{ClientID: "agent"})
		refusal, ok := errors.AsType[*mqtt.ReasonError](err)
		if !ok || refusal.Reason != mqtt.NotAuthorized || mqtt.Property(refusal.UserProperties, wire.UserPropertyCode) != wire.CodeRevoked {
			t.Errorf("%v", err)
		}
		eventually(t, func() bool { return h.link.Sessions(m.d.Num) == 0 })
		seen := h.orders.seen(&h.orders.presence)
		if len(seen) != 2 || !strings.HasPrefix(seen[0], "+ "+string(m.d.ID)+" mqtt/5") || !strings.Contains(seen[1], "revoked") {
			t.Errorf("presence: %q", seen)
		}
	})
}

func TestRenewedDeviceLosesTheSessionOfItsOldCertificate(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	st := m.connect("agent")
	h.forward(46 * 24 * time.Hour)
	key := newKey(t)
	renewed := m.send(http.MethodPost, wire.PathESTReenroll, csr(t, key))
	cert := tls.Certificate{Certificate: [][]byte{certOf(t, renewed.body)}, PrivateKey: key}
	fresh := &machine{h: h, d: m.d, cert: cert}
	fresh.connect("other") // the old certificate ends with the new one's first use
	h.changed(m.d)
	if got := st.reason(t); got != mqtt.NotAuthorized {
		t.Errorf("%s", got)
	}
}

func TestMovesReachTheSession(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	st := m.connect("agent")
	st.subscribe(down(wire.TopicDesired))
	st.next(down(wire.TopicDesired), nil)
	h.move(m.d, device.Quarantined)
	if got := desiredOf(t, st.next(down(wire.TopicDesired), nil).Payload); len(got.Sections) != 0 {
		t.Errorf("in quarantine it should be %+v", got)
	}
	h.move(m.d, device.Retired)
	h.move(m.d, device.Disposed)
	if got := st.reason(t); got != mqtt.AdministrativeAction {
		t.Errorf("%s", got)
	}
}

func TestSameClientIdentifierTakesOver(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	old, other := m.connect("agent"), m.connect("other")
	m.connect("agent")
	if got := old.reason(t); got != mqtt.SessionTakenOver {
		t.Errorf("%s", got)
	}
	if got := other.send(up(wire.TopicEvent), wire.DeviceEvent{Name: "a"}); got != mqtt.Success {
		t.Errorf("another client of the device: %s", got)
	}
	// On another node.
	eventually(t, func() bool { return h.link.Sessions(m.d.Num) == 2 })
	eventually(t, func() bool {
		h.must(h.bus.Publish("link.takeover", fmt.Appendf(nil, `{"node":"~","num":%d,"client":"other"}`, m.d.Num)))
		return h.link.Sessions(m.d.Num) == 1
	})
	if got := other.reason(t); got != mqtt.SessionTakenOver {
		t.Errorf("%s", got)
	}
}

func TestConnectionsOfOneDeviceAreBounded(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	var all []*station
	for i := range wire.MaxMQTTConnections + 2 {
		all = append(all, m.connect(fmt.Sprint("client-", i)))
	}
	for _, st := range all[:2] {
		st.reason(t)
	}
	eventually(t, func() bool { return h.link.Sessions(m.d.Num) == wire.MaxMQTTConnections })
}

func TestShutdownTellsSessionsWhenToComeBack(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	st, err := m.try(mqtt.Options{ClientID: "agent", Will: &mqtt.Message{Topic: up(wire.TopicEvent), Payload: []byte(`{"name":"gone"}`)}})
	h.must(err)
	if mqtt.Property(st.Connack().UserProperties, wire.UserPropertyReconnect) != "1" {
		t.Errorf("CONNACK: %+v", st.Connack())
	}
	h.must(h.stop())
	if got := st.reason(t); got != mqtt.ServerShuttingDown {
		t.Errorf("%s", got)
	}
	if refusal, _ := errors.AsType[*mqtt.ReasonError](st.Err()); mqtt.Property(refusal.UserProperties, wire.UserPropertyReconnect) == "" {
		t.Errorf("DISCONNECT: %+v", refusal)
	}
	if got := h.orders.seen(&h.orders.events); len(got) != 0 {
		t.Errorf("wills of devices that did nothing wrong: %q", got)
	}
}

func TestWillIsPublishedOnlyWithoutGoodbye(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	will := mqtt.Options{ClientID: "agent", Will: &mqtt.Message{Topic: up(wire.TopicEvent), Payload: []byte(`{"name":"gone"}`)}}
	st, err := m.try(will)
	h.must(err)
	_ = st.Close()
	eventually(t, func() bool { return h.link.Sessions(m.d.Num) == 0 })
	if got := h.orders.seen(&h.orders.events); len(got) != 0 {
		t.Fatalf("after a goodbye: %q", got)
	}
	conn, err := m.tls(h.addr, wire.ALPNMQTT)
	h.must(err)
	_, err = mqtt.Connect(context.Background(), conn, will)
	h.must(err)
	_ = conn.NetConn().Close()
	eventually(t, func() bool { return slices.Contains(h.orders.seen(&h.orders.events), "SN-1 gone") })
	// A will on somebody else's topic is none.
	other := h.enrolled(device.DefaultTenant, "SN-2")
	will.Will.Topic = wire.Topic(string(other.d.ID), wire.TopicUp, wire.TopicEvent)
	_, err = m.try(will)
	if refusal, ok := errors.AsType[*mqtt.ReasonError](err); !ok || refusal.Reason != mqtt.NotAuthorized {
		t.Errorf("%v", err)
	}
}

func TestFloodOfOneDeviceSlowsThatDeviceOnly(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.Rate, cfg.Burst = 0.001, 10 })
	m, calm := h.enrolled(device.DefaultTenant, "SN-1"), h.enrolled(device.DefaultTenant, "SN-2")
	wild, quiet := m.connect("wild"), calm.connect("quiet")
	acked := make(chan error, 100)
	for range 30 {
		h.must(wild.Send(mqtt.Message{Topic: up(wire.TopicEvent), Payload: []byte(`{"name":"a"}`), QoS: 1}, func(err error) { acked <- err }))
	}
	for range 9 { // CONNECT was the tenth
		if err, late := within(10*time.Second, acked); err != nil || late != nil {
			t.Fatal(err, late)
		}
	}
	for range 5 {
		if got := quiet.send(up(wire.TopicEvent), wire.DeviceEvent{Name: "b"}); got != mqtt.Success {
			t.Errorf("another device: %s", got)
		}
	}
	if len(acked) != 0 {
		t.Errorf("%d messages above the device's rate were taken", len(acked))
	}
	m.get(wire.PathDesired) // tells whose connection it is
	m.get(wire.PathDesired).want(t, http.StatusTooManyRequests, wire.CodeTooMany)
}
