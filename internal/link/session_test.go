package link_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"steward/internal/device"
	"steward/internal/link"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

// rawClient speaks packets one by one.
type rawClient struct {
	*testing.T
	conn    net.Conn
	version byte
}

// raw opens a connection and sends CONNECT; change, when not nil, changes it first. The answer is read.
func (m *machine) packets(t *testing.T, version byte, change func(*mqtt.Packet)) (*rawClient, *mqtt.Packet) {
	t.Helper()
	conn, err := m.tls(m.h.mqtt)
	m.h.must(err)
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawClient{t, conn, version}
	c.send(mqtt.TypeConnect, func(p *mqtt.Packet) {
		p.Connect.ProtocolName, p.Connect.Clean, p.Connect.Keepalive, p.Connect.ClientIdentifier = []byte("MQTT"), true, 60, "raw"
		if change != nil {
			change(p)
		}
	})
	return c, c.read()
}

func (c *rawClient) send(kind mqtt.Type, fill func(*mqtt.Packet)) {
	c.Helper()
	p := mqtt.Packet{ProtocolVersion: c.version}
	p.FixedHeader.Type = kind
	if fill != nil {
		fill(&p)
	}
	if err := mqtt.Write(c.conn, &p); err != nil {
		c.Fatal(err)
	}
}

// next reads a packet, or returns the error that the connection ended with.
func (c *rawClient) next() (*mqtt.Packet, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	var p mqtt.Packet
	err := mqtt.Read(c.conn, c.version, 1<<20, &p)
	return &p, err
}

func (c *rawClient) read() *mqtt.Packet {
	c.Helper()
	p, err := c.next()
	if err != nil {
		c.Fatal(err)
	}
	return p
}

func (c *rawClient) want(kind mqtt.Type, id uint16) *mqtt.Packet {
	c.Helper()
	p := c.read()
	if p.FixedHeader.Type != kind || p.PacketID != id {
		c.Fatalf("packet type %d with identifier %d, want %d with %d: %.200s", p.FixedHeader.Type, p.PacketID, kind, id, p.Payload)
	}
	return p
}

// ended fails when anything but the end of the connection comes.
func (c *rawClient) ended() {
	c.Helper()
	p, err := c.next()
	if late, ok := errors.AsType[net.Error](err); err == nil || (ok && late.Timeout()) {
		c.Fatalf("instead of the end: %+v, %v", p.FixedHeader, err)
	}
}

func (c *rawClient) publish(qos byte, id uint16, topic, payload string) {
	c.Helper()
	c.send(mqtt.TypePublish, func(p *mqtt.Packet) {
		p.FixedHeader.Qos, p.PacketID, p.TopicName, p.Payload = qos, id, topic, []byte(payload)
	})
}

func (c *rawClient) subscribe(qos byte, filter string) {
	c.Helper()
	c.send(mqtt.TypeSubscribe, func(p *mqtt.Packet) {
		p.PacketID, p.Filters = 900, []mqtt.Subscription{{Filter: filter, Qos: qos}}
	})
	if ack := c.want(mqtt.TypeSuback, 900); len(ack.ReasonCodes) != 1 || ack.ReasonCodes[0] > 1 {
		c.Fatalf("subscribe to %s: %x", filter, ack.ReasonCodes)
	}
}

const doorOpened = `{"name":"door.opened"}`

func TestAcknowledgementComesAfterTheCommit(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	for _, version := range []byte{mqtt.Version311, mqtt.Version5} {
		for qos, kind := range map[byte]mqtt.Type{1: mqtt.TypePuback, 2: mqtt.TypePubrec} {
			held, entered := make(chan struct{}), make(chan struct{})
			h.orders.hold(held, entered)
			c, _ := m.packets(t, version, nil)
			var committed atomic.Bool
			c.publish(qos, 7, up(wire.TopicEvent), doorOpened)
			<-entered
			go func() {
				committed.Store(true)
				close(held)
			}()
			c.want(kind, 7)
			if !committed.Load() {
				t.Errorf("version %d, QoS %d: acknowledged before the commit", version, qos)
			}
			h.orders.hold(nil, nil)
		}
	}
}

func TestPassingFailureIsNeverAcknowledgedAsSuccess(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	full := fmt.Errorf("write: %w", &pgconn.PgError{Code: "53100"})
	for _, row := range []struct {
		err  error
		want mqtt.Reason
	}{{errDatabaseAway, mqtt.ImplementationError}, {full, mqtt.QuotaExceeded}} {
		h.orders.fail(row.err)
		for _, qos := range []byte{1, 2} {
			c, _ := m.packets(t, mqtt.Version311, nil)
			c.publish(qos, 7, up(wire.TopicEvent), doorOpened)
			c.ended() // without an acknowledgement
			c, _ = m.packets(t, mqtt.Version5, nil)
			c.publish(qos, 7, up(wire.TopicEvent), doorOpened)
			if p := c.read(); p.PacketID != 7 || mqtt.Reason(p.ReasonCode) != row.want {
				t.Errorf("QoS %d, %v: %s", qos, row.err, mqtt.Reason(p.ReasonCode))
			}
			h.orders.fail(nil)
			c.publish(qos, 7, up(wire.TopicEvent), doorOpened) // the same again, once the database is back
			if p := c.read(); p.ReasonCode != 0 {
				t.Errorf("afterwards: %s", mqtt.Reason(p.ReasonCode))
			}
			h.orders.fail(row.err)
		}
	}
	if got := h.orders.seen(&h.orders.events); len(got) != 4 {
		t.Errorf("taken: %q", got)
	}
}

func TestRefusalForGoodIsAcknowledgedIn311AndTold(t *testing.T) {
	h := lite(t, nil)
	m, other := h.enrolled(device.DefaultTenant, "SN-1"), h.enrolled("acme", "SN-2")
	c, _ := m.packets(t, mqtt.Version311, nil)
	c.subscribe(0, down(wire.TopicProblem))
	c.publish(1, 7, up(wire.TopicReport), "{")
	c.want(mqtt.TypePuback, 7)
	var p wire.MessageProblem
	h.must(json.Unmarshal(c.want(mqtt.TypePublish, 0).Payload, &p))
	if p.Code != wire.CodeRequestInvalid || p.Topic != up(wire.TopicReport) {
		t.Errorf("%+v", p)
	}
	c.publish(1, 8, wire.Topic(string(other.d.ID), wire.TopicUp, wire.TopicEvent), doorOpened)
	c.ended()
	if got := h.orders.seen(&h.orders.events); len(got) != 0 {
		t.Errorf("taken: %q", got)
	}
}

func TestQoS2MessageIsTakenOnce(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	for _, version := range []byte{mqtt.Version311, mqtt.Version5} {
		c, _ := m.packets(t, version, nil)
		for range 3 {
			c.publish(2, 7, up(wire.TopicEvent), doorOpened)
			c.want(mqtt.TypePubrec, 7)
		}
		for range 2 {
			c.send(mqtt.TypePubrel, func(p *mqtt.Packet) { p.PacketID = 7 })
			c.want(mqtt.TypePubcomp, 7)
		}
		c.publish(2, 7, up(wire.TopicEvent), doorOpened)
		c.want(mqtt.TypePubrec, 7)
	}
	if got := h.orders.seen(&h.orders.events); len(got) != 4 {
		t.Errorf("taken: %q", got)
	}
}

func TestForbiddenPacketsEndTheConnectionWithTheirReason(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	publish := func(change func(*mqtt.Packet)) func(*rawClient) {
		return func(c *rawClient) {
			c.send(mqtt.TypePublish, func(p *mqtt.Packet) {
				p.TopicName, p.Payload = up(wire.TopicEvent), []byte(doorOpened)
				change(p)
			})
		}
	}
	bytesOf := func(raw ...byte) func(*rawClient) {
		return func(c *rawClient) { _, _ = c.conn.Write(raw) }
	}
	for name, row := range map[string]struct {
		do   func(*rawClient)
		want mqtt.Reason
	}{
		"a retained message": {publish(func(p *mqtt.Packet) { p.FixedHeader.Retain = true }), mqtt.RetainNotSupported},
		"a topic alias":      {publish(func(p *mqtt.Packet) { p.Properties.TopicAlias, p.Properties.TopicAliasFlag = 1, true }), mqtt.TopicAliasInvalid},
		"a second CONNECT": {func(c *rawClient) {
			c.send(mqtt.TypeConnect, func(p *mqtt.Packet) { p.Connect.ProtocolName = []byte("MQTT") })
		}, mqtt.ProtocolError},
		"a server's packet":         {func(c *rawClient) { c.send(mqtt.TypePingresp, nil) }, mqtt.ProtocolError},
		"AUTH":                      {bytesOf(0xf0, 2, 0x18, 0), mqtt.ProtocolError},
		"an empty packet":           {bytesOf(0, 0), mqtt.MalformedPacket},
		"QoS 3":                     {bytesOf(0x36, 6, 0, 1, 'a', 0, 1, 0), mqtt.MalformedPacket},
		"a packet that is too long": {bytesOf(0x30, 0xff, 0xff, 0xff, 0x7f), mqtt.PacketTooLarge},
		"a wildcard as a topic":     {publish(func(p *mqtt.Packet) { p.TopicName = "steward/v1/me/up/#" }), mqtt.TopicNameInvalid},
		"a subscription identifier": {func(c *rawClient) {
			c.send(mqtt.TypeSubscribe, func(p *mqtt.Packet) {
				p.PacketID, p.Filters, p.Properties.SubscriptionIdentifier = 1, []mqtt.Subscription{{Filter: down("#")}}, []int{5}
			})
		}, mqtt.SubscriptionIDsRefused},
	} {
		c, _ := m.packets(t, mqtt.Version5, nil)
		row.do(c)
		if p, err := c.next(); err != nil || p.FixedHeader.Type != mqtt.TypeDisconnect || mqtt.Reason(p.ReasonCode) != row.want {
			t.Errorf("%s: %+v %s, %v", name, p.FixedHeader, mqtt.Reason(p.ReasonCode), err)
			continue
		}
		c.ended()
	}
	// In 3.1.1 a message that asks to be retained is one like any other.
	c, _ := m.packets(t, mqtt.Version311, nil)
	publish(func(p *mqtt.Packet) { p.FixedHeader.Retain, p.FixedHeader.Qos, p.PacketID = true, 1, 3 })(c)
	c.want(mqtt.TypePuback, 3)
}

func TestDeviceGetsNoMoreThanItHasRoomFor(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	c, _ := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Properties.ReceiveMaximum = 1 })
	c.subscribe(1, down("#"))
	first := c.read()
	if first.FixedHeader.Type != mqtt.TypePublish || first.FixedHeader.Qos != 1 {
		t.Fatalf("%+v", first.FixedHeader)
	}
	for seconds := 31; seconds < 40; seconds++ { // while the first is on its way; only the last of these counts
		h.desire(m.d, seconds)
	}
	h.orders.give(m.d, "c1")
	c.send(mqtt.TypePingreq, nil)
	c.want(mqtt.TypePingresp, 0) // and none of them before
	epoch, err := h.twin.Epoch(t.Context(), m.d.Num)
	h.must(err)
	newest, commanded := int64(1), false
	for last := first; newest < epoch || !commanded; {
		c.send(mqtt.TypePuback, func(p *mqtt.Packet) { p.PacketID = last.PacketID })
		last = c.read()
		if last.TopicName == down(wire.TopicCommand) {
			commanded = true
			continue
		}
		if got := desiredOf(t, last.Payload).Epoch; got <= newest {
			t.Fatalf("after epoch %d came %d", newest, got)
		} else {
			newest = got
		}
	}
}

func TestAnswersComeWhileAMessageIsNotAcknowledged(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	c, _ := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Properties.ReceiveMaximum = 1 })
	c.subscribe(1, down("#"))
	first := c.read()
	hash := string(desiredOf(t, first.Payload).Sections[wire.SectionMonitoring])
	for id := uint16(1); id < 50; id++ { // as a device does that acknowledges when it has done all
		c.publish(1, id, up(wire.TopicFetch+"/"+hash), "")
		c.want(mqtt.TypePuback, id)
		if got := c.want(mqtt.TypePublish, 0); got.TopicName != down(wire.TopicDocument+"/"+hash) || got.FixedHeader.Qos != 0 {
			t.Fatalf("%+v %s", got.FixedHeader, got.TopicName)
		}
	}
}

func TestDeviceThatSendsAndDoesNotReadIsCutOff(t *testing.T) {
	h := lite(t, func(cfg *link.Config) { cfg.Rate, cfg.Burst, cfg.BodyTimeout = 1e9, 1e9, 200*time.Millisecond })
	m := h.enrolled(device.DefaultTenant, "SN-1")
	c, _ := m.packets(t, mqtt.Version5, nil)
	c.subscribe(1, down("#"))
	long := up(wire.TopicTelemetry + "/" + strings.Repeat("x", 60_000))
	for { // each is told to be no topic, in as many words
		p := mqtt.Packet{ProtocolVersion: mqtt.Version5, TopicName: long}
		p.FixedHeader.Type = mqtt.TypePublish
		_ = c.conn.SetWriteDeadline(time.Now().Add(15 * time.Second))
		if err := mqtt.Write(c.conn, &p); err != nil {
			if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
				t.Fatal("the connection lives on")
			}
			break
		}
	}
	eventually(t, func() bool { return h.link.Sessions(m.d.Num) == 0 })
}

func TestDeviceThatHasTheNewestStateIsNotSentItAgain(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	epoch, err := h.twin.Epoch(t.Context(), m.d.Num)
	h.must(err)
	st, err := m.try(mqtt.Options{ClientID: "agent", UserProperties: []mqtt.UserProperty{{Key: wire.UserPropertyEpoch, Val: strconv.FormatInt(epoch, 10)}}})
	h.must(err)
	st.subscribe(down(wire.TopicDesired))
	h.desire(m.d, 31)
	if got := desiredOf(t, st.next(down(wire.TopicDesired), nil).Payload); got.Epoch != epoch+1 {
		t.Errorf("epoch %d came, the device has %d", got.Epoch, epoch)
	}
	if got := st.send(up(wire.TopicDesired), []byte(nil)); got != mqtt.Success { // asked for, it comes
		t.Error(got)
	}
	st.next(down(wire.TopicDesired), nil)
}

func TestUnsubscribedTopicsStayQuiet(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	c, _ := m.packets(t, mqtt.Version5, nil)
	c.subscribe(0, down(wire.TopicProblem))
	c.send(mqtt.TypeUnsubscribe, func(p *mqtt.Packet) {
		p.PacketID, p.Filters = 5, []mqtt.Subscription{{Filter: down(wire.TopicProblem)}, {Filter: down(wire.TopicReport)}, {Filter: "#"}}
	})
	if ack := c.want(mqtt.TypeUnsuback, 5); !slices.Equal(ack.ReasonCodes, []byte{0, byte(mqtt.NoSubscriptionExisted), byte(mqtt.NoSubscriptionExisted)}) {
		t.Errorf("%x", ack.ReasonCodes)
	}
	c.publish(0, 0, up("nothing"), "")
	c.send(mqtt.TypePingreq, nil)
	c.want(mqtt.TypePingresp, 0)
}

func TestDocumentThatFitsNoPacketIsRefusedWithAWayOut(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	c, _ := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Properties.MaximumPacketSize = 900 })
	c.subscribe(0, down(wire.TopicProblem))
	c.subscribe(0, down(wire.TopicDocument+"/+"))
	_, desired := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Connect.ClientIdentifier = "other" })
	_ = desired
	hash := string(desiredOf(t, m.get(wire.PathDesired).body).Sections[wire.SectionMonitoring])
	c.publish(1, 7, up(wire.TopicFetch+"/"+hash), "")
	c.want(mqtt.TypePuback, 7)
	if p := c.want(mqtt.TypePublish, 0); p.TopicName != down(wire.TopicDocument+"/"+hash) {
		t.Errorf("%s", p.TopicName)
	}
	small, _ := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) {
		p.Properties.MaximumPacketSize, p.Connect.ClientIdentifier = 270, "small"
	})
	small.publish(1, 7, up(wire.TopicFetch+"/"+hash), "")
	if p := small.want(mqtt.TypePuback, 7); mqtt.Reason(p.ReasonCode) != mqtt.PayloadFormatInvalid || !strings.Contains(p.Properties.ReasonString, "HTTPS") {
		t.Errorf("%s %q", mqtt.Reason(p.ReasonCode), p.Properties.ReasonString)
	}
}

func TestLargeDocumentGoesUpAndLeavesNoBufferBehind(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	st := m.connect("agent")
	st.subscribe(down(wire.TopicReport))
	body := append([]byte(`{"packages":[`), slices.Repeat([]byte(" "), 200<<10)...)
	body = append(body, "]}"...)
	hash := wire.HashOf(body)
	report := wire.Report{Protocol: 1, Boot: "b", Sequence: 1, Instance: "i", Time: h.now(), Sections: map[wire.Section]wire.Hash{wire.SectionPackages: hash}}
	st.send(up(wire.TopicReport), report)
	if got := st.send(up(wire.TopicDocument+"/"+string(hash)), body); got != mqtt.Success {
		t.Fatal(got)
	}
	report.Sequence = 2
	st.send(up(wire.TopicReport), report)
	var answer wire.ReportAnswer
	st.next(down(wire.TopicReport), nil)
	if st.next(down(wire.TopicReport), &answer); len(answer.Missing) != 0 {
		t.Errorf("%+v", answer)
	}
}

func TestPanicOfARoomEndsOneSessionOnly(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	c, _ := m.packets(t, mqtt.Version5, nil)
	other, _ := m.packets(t, mqtt.Version5, func(p *mqtt.Packet) { p.Connect.ClientIdentifier = "other" })
	h.orders.hold(nil, nil)
	h.orders.fail(errPanic)
	c.publish(1, 7, up(wire.TopicEvent), doorOpened)
	if p := c.read(); p.FixedHeader.Type != mqtt.TypeDisconnect {
		t.Errorf("%+v", p.FixedHeader)
	}
	h.orders.fail(nil)
	other.publish(1, 8, up(wire.TopicEvent), doorOpened)
	other.want(mqtt.TypePuback, 8)
}
