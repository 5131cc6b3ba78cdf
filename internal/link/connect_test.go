package link_test

import (
	"crypto/tls"
	"io"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/link"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

func TestConnectIsRefusedInTheWordsOfItsVersion(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	revoked := h.enrolled(device.DefaultTenant, "SN-2")
	h.revoke(revoked.d)
	nobody := &machine{h: h}
	set := func(f func(*mqtt.Packet)) func(*mqtt.Packet) { return f }
	for name, row := range map[string]struct {
		m      *machine
		change func(*mqtt.Packet)
		v5, v3 byte // 255: not asked
	}{
		"another authentication":   {m, set(func(p *mqtt.Packet) { p.Properties.AuthenticationMethod = "GS2" }), byte(mqtt.BadAuthentication), 255},
		"a long client identifier": {m, set(func(p *mqtt.Packet) { p.Connect.ClientIdentifier = strings.Repeat("x", 300) }), byte(mqtt.ClientIDInvalid), 2},
		"a session without a name": {m, set(func(p *mqtt.Packet) { p.Connect.ClientIdentifier, p.Connect.Clean = "", false }), 0, 2},
		"a will that is no topic of the device": {m, set(func(p *mqtt.Packet) {
			p.Connect.WillFlag, p.Connect.WillTopic, p.Connect.WillPayload = true, "a/b", []byte("x")
		}), byte(mqtt.TopicNameInvalid), 5},
		"a revoked certificate": {revoked, nil, byte(mqtt.NotAuthorized), 5},
		"no certificate":        {nobody, nil, byte(mqtt.NotAuthorized), 5},
	} {
		for version, want := range map[byte]byte{mqtt.Version5: row.v5, mqtt.Version311: row.v3} {
			if want == 255 {
				continue
			}
			c, ack := row.m.packets(t, version, row.change)
			if ack.FixedHeader.Type != mqtt.TypeConnack || ack.ReasonCode != want || ack.SessionPresent {
				t.Errorf("%s, version %d: 0x%02x, want 0x%02x", name, version, ack.ReasonCode, want)
			}
			if want != 0 {
				c.ended()
			}
		}
	}
	for name, raw := range map[string]string{"MQTT 3.1": "\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a", "MQTT 6": "\x10\x0d\x00\x04MQTT\x06\x02\x00\x3c\x00\x01a"} {
		conn, err := m.tls(h.mqtt)
		h.must(err)
		_, _ = conn.Write([]byte(raw))
		c := &rawClient{t, conn, mqtt.Version311}
		if p := c.read(); p.FixedHeader.Type != mqtt.TypeConnack || p.ReasonCode != 1 {
			t.Errorf("%s: %+v", name, p)
		}
		c.ended()
	}
	for name, raw := range map[string]string{"a ping first": "\xc0\x00", "HTTP": "GET / HTTP/1.1\r\nHost: link\r\n\r\n", "a large CONNECT": "\x10\xff\xff\x7f"} {
		conn, err := m.tls(h.mqtt)
		h.must(err)
		_, _ = conn.Write([]byte(raw))
		t.Log(name)
		(&rawClient{t, conn, mqtt.Version311}).ended()
	}
}

func TestSilentSessionEndsAfterItsKeepAliveTime(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.BodyTimeout = 200 * time.Millisecond })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	c, _ := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Connect.Keepalive = 1 })
	for range 2 { // a sign of life puts it off
		c.send(mqtt.TypePingreq, nil)
		c.want(mqtt.TypePingresp, 0)
	}
	if p := c.read(); p.FixedHeader.Type != mqtt.TypeDisconnect || mqtt.Reason(p.ReasonCode) != mqtt.KeepAliveTimeout {
		t.Errorf("%+v", p)
	}
	// A packet that begins and does not go on is no sign of life.
	c, _ = m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Connect.Keepalive = 1 })
	_, _ = c.conn.Write([]byte{0x30})
	if p := c.read(); p.FixedHeader.Type != mqtt.TypeDisconnect {
		t.Errorf("%+v", p)
	}
	c.ended()
	_, ack := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Connect.Keepalive = 0 })
	if ack.Properties.ServerKeepAlive != wire.MaxMQTTKeepAlive {
		t.Errorf("for a device that wants none the keep-alive time is %d", ack.Properties.ServerKeepAlive)
	}
}

func TestProtocolsAreToldApartOnBothPorts(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	for _, row := range []struct {
		addr, offer, want string
		refused           bool
	}{
		{h.addr, "h2", "h2", false}, {h.addr, "http/1.1", "http/1.1", false}, {h.addr, "mqtt", "mqtt", false}, {h.addr, "", "", false},
		{h.mqtt, "mqtt", "mqtt", false}, {h.mqtt, "", "", false}, {h.mqtt, "h2", "", true}, {h.addr, "spdy", "", true},
	} {
		var offer []string
		if row.offer != "" {
			offer = []string{row.offer}
		}
		conn, err := m.tls(row.addr, offer...)
		if (err != nil) != row.refused {
			t.Errorf("%q: %v", row.offer, err)
			continue
		}
		if err != nil {
			continue
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != row.want {
			t.Errorf("%q became %q", row.offer, got)
		}
		if row.offer == "" && row.addr == h.addr { // HTTP/1.1
			_, _ = io.WriteString(conn, "GET /v1/desired HTTP/1.1\r\nHost: link\r\n\r\n")
			head := make([]byte, 15)
			if _, err := io.ReadFull(conn, head); err != nil || string(head) != "HTTP/1.1 200 OK" {
				t.Errorf("without ALPN: %q %v", head, err)
			}
		}
		_ = conn.Close()
	}
}

func TestResumedConnectionIsJudgedAnewAlsoAfterARestart(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	h := lite(t, func(cfg *link.Config) { cfg.TicketSecret = secret })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	cache := tls.NewLRUClientSessionCache(4)
	dial := func() (*rawClient, *mqtt.Packet, bool) {
		conn, err := tls.Dial("tcp", h.mqtt, &tls.Config{RootCAs: h.roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{m.cert}, ClientSessionCache: cache})
		h.must(err)
		t.Cleanup(func() { _ = conn.Close() })
		c := &rawClient{t, conn, mqtt.Version5}
		c.send(mqtt.TypeConnect, func(p *mqtt.Packet) {
			p.Connect.ProtocolName, p.Connect.Clean, p.Connect.ClientIdentifier = []byte("MQTT"), true, "raw"
		})
		return c, c.read(), conn.ConnectionState().DidResume
	}
	if _, ack, resumed := dial(); resumed || ack.ReasonCode != 0 {
		t.Fatalf("the first: resumed %t, %s", resumed, mqtt.Reason(ack.ReasonCode))
	}
	h.restart()
	c, ack, resumed := dial()
	if !resumed || ack.ReasonCode != 0 {
		t.Fatalf("after the restart: resumed %t, %s", resumed, mqtt.Reason(ack.ReasonCode))
	}
	c.publish(1, 7, up(wire.TopicEvent), doorOpened)
	c.want(mqtt.TypePuback, 7)
	h.revoke(m.d)
	if _, ack, resumed := dial(); !resumed || mqtt.Reason(ack.ReasonCode) != mqtt.NotAuthorized {
		t.Errorf("revoked: resumed %t, %s", resumed, mqtt.Reason(ack.ReasonCode))
	}
}
