package mqtt_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steward/internal/mqtt"
)

// peer is the server's end of a connection, played by a test.
type peer struct {
	*testing.T
	conn net.Conn
}

// connected returns a client and its server after CONNECT, which grant answers.
func connected(t *testing.T, o mqtt.Options, grant func(*mqtt.Packet)) (*mqtt.Client, *peer) {
	t.Helper()
	s, ended := dial(t, o, grant)
	got := <-ended
	if got.err != nil {
		t.Fatal(got.err)
	}
	t.Cleanup(func() { _ = s.conn.Close(); _ = got.client.Close() })
	return got.client, s
}

type outcome struct {
	client *mqtt.Client
	err    error
}

func dial(t *testing.T, o mqtt.Options, grant func(*mqtt.Packet)) (*peer, <-chan outcome) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = far.SetDeadline(time.Now().Add(20 * time.Second))
	s := &peer{t, far}
	ended := make(chan outcome, 1)
	go func() {
		c, err := mqtt.Connect(context.Background(), near, o)
		ended <- outcome{c, err}
	}()
	if p := s.read(); p.FixedHeader.Type != mqtt.TypeConnect {
		t.Fatalf("the client begins with %d", p.FixedHeader.Type)
	}
	s.write(mqtt.TypeConnack, grant)
	return s, ended
}

func (s *peer) read() *mqtt.Packet {
	s.Helper()
	var p mqtt.Packet
	if err := mqtt.Read(s.conn, mqtt.Version5, limit, &p); err != nil {
		s.Fatal(err)
	}
	return &p
}

func (s *peer) write(kind mqtt.Type, fill func(*mqtt.Packet)) {
	s.Helper()
	if _, err := s.conn.Write(bytesOf(s, kind, mqtt.Version5, fill)); err != nil {
		s.Fatal(err)
	}
}

func TestPublishReturnsWithTheServersReason(t *testing.T) {
	c, s := connected(t, mqtt.Options{ClientID: "pump-1"}, nil)
	for _, row := range []struct {
		code mqtt.Reason
		text string
	}{{mqtt.Success, ""}, {mqtt.QuotaExceeded, "slow down"}} {
		done := make(chan error, 1)
		go func() {
			done <- c.Publish(context.Background(), mqtt.Message{Topic: "t", Payload: []byte("p"), QoS: 1, Correlation: []byte("c")})
		}()
		got := s.read()
		if got.TopicName != "t" || string(got.Payload) != "p" || string(got.Properties.CorrelationData) != "c" {
			t.Fatalf("arrived: %+v", got)
		}
		s.write(mqtt.TypePuback, func(p *mqtt.Packet) {
			p.PacketID, p.ReasonCode, p.Properties.ReasonString = got.PacketID, byte(row.code), row.text
		})
		err := <-done
		refusal, refused := errors.AsType[*mqtt.ReasonError](err)
		if refused != row.code.Failed() || (refused && (refusal.Reason != row.code || !strings.Contains(err.Error(), row.text))) {
			t.Errorf("%s: %v", row.code, err)
		}
	}
}

func TestSubscribeFailsWhenOneFilterIsRefused(t *testing.T) {
	c, s := connected(t, mqtt.Options{}, func(p *mqtt.Packet) { p.Properties.AssignedClientID = "given" })
	if c.Connack().ClientID != "given" {
		t.Errorf("client ID %q", c.Connack().ClientID)
	}
	done := make(chan error, 1)
	go func() { done <- c.Subscribe(context.Background(), 1, "a", "b") }()
	got := s.read()
	s.write(mqtt.TypeSuback, func(p *mqtt.Packet) {
		p.PacketID, p.ReasonCodes = got.PacketID, []byte{1, byte(mqtt.NotAuthorized)}
	})
	if err := <-done; err == nil || !strings.Contains(err.Error(), "subscribe to b") {
		t.Errorf("%v", err)
	}
}

func TestMessagesAreAcknowledgedAfterTheHandler(t *testing.T) {
	var handled []string
	c, s := connected(t, mqtt.Options{OnMessage: func(m *mqtt.Message) { handled = append(handled, m.Topic) }}, nil)
	for i, topic := range []string{"first", "second"} {
		s.write(mqtt.TypePublish, func(p *mqtt.Packet) { p.TopicName, p.PacketID, p.FixedHeader.Qos = topic, uint16(i+1), 1 })
		if got := s.read(); got.FixedHeader.Type != mqtt.TypePuback || got.PacketID != uint16(i+1) {
			t.Fatalf("answer: %+v", got)
		}
	}
	s.conn.Close()
	<-c.Done()
	if len(handled) != 2 || handled[1] != "second" {
		t.Errorf("handled: %q", handled)
	}
}

func TestClientHoldsBackWhatTheServerHasNoRoomFor(t *testing.T) {
	c, s := connected(t, mqtt.Options{}, func(p *mqtt.Packet) { p.Properties.ReceiveMaximum, p.Properties.MaximumPacketSize = 1, 100 })
	acked := make(chan error, 1)
	if err := c.Send(mqtt.Message{Topic: "t", QoS: 1}, func(err error) { acked <- err }); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(mqtt.Message{Topic: "t", QoS: 1}, nil); !errors.Is(err, mqtt.ErrFull) {
		t.Errorf("the second message: %v", err)
	}
	if err := c.Send(mqtt.Message{Topic: "t", Payload: make([]byte, 200)}, nil); err == nil {
		t.Error("a message too large for the server was sent")
	}
	got := s.read()
	s.write(mqtt.TypePuback, func(p *mqtt.Packet) { p.PacketID = got.PacketID })
	if err := <-acked; err != nil {
		t.Error(err)
	}
	if err := c.Send(mqtt.Message{Topic: "t", QoS: 1}, nil); err != nil {
		t.Errorf("after the acknowledgement: %v", err)
	}
}

func TestWaitersLearnThatTheServerSaidGoodbye(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c, s := connected(t, mqtt.Options{}, nil)
	done := make(chan error, 1)
	go func() { done <- c.Publish(context.Background(), mqtt.Message{Topic: "t", QoS: 1}) }()
	s.read()
	s.write(mqtt.TypeDisconnect, func(p *mqtt.Packet) {
		p.ReasonCode, p.Properties.User = byte(mqtt.ServerShuttingDown), []mqtt.UserProperty{{Key: "wait", Val: "30"}}
	})
	<-c.Done()
	for _, err := range []error{<-done, c.Err(), c.Publish(context.Background(), mqtt.Message{Topic: "t", QoS: 1})} {
		refusal, ok := errors.AsType[*mqtt.ReasonError](err)
		if !ok || refusal.Reason != mqtt.ServerShuttingDown || mqtt.Property(refusal.UserProperties, "wait") != "30" {
			t.Errorf("%v", err)
		}
	}
	_ = c.Close()
}

func TestRefusedConnectTellsWhy(t *testing.T) {
	_, ended := dial(t, mqtt.Options{}, func(p *mqtt.Packet) { p.ReasonCode, p.Properties.ReasonString = byte(mqtt.NotAuthorized), "revoked" })
	got := <-ended
	refusal, ok := errors.AsType[*mqtt.ReasonError](got.err)
	if !ok || refusal.Reason != mqtt.NotAuthorized || refusal.Text != "revoked" {
		t.Errorf("%v", got.err)
	}
}

func TestSilentServerIsFoundByThePing(t *testing.T) {
	c, s := connected(t, mqtt.Options{KeepAlive: time.Hour}, func(p *mqtt.Packet) { p.Properties.ServerKeepAlive, p.Properties.ServerKeepAliveFlag = 1, true })
	if c.Connack().KeepAlive != time.Second {
		t.Fatalf("keep-alive %s", c.Connack().KeepAlive)
	}
	for range 2 { // answered, the connection lives on
		if got := s.read(); got.FixedHeader.Type != mqtt.TypePingreq {
			t.Fatalf("instead of a ping: %+v", got)
		}
		s.write(mqtt.TypePingresp, nil)
	}
	s.read()
	<-c.Done()
	if refusal, ok := errors.AsType[*mqtt.ReasonError](c.Err()); !ok || refusal.Reason != mqtt.KeepAliveTimeout {
		t.Errorf("%v", c.Err())
	}
}

func TestCloseSaysGoodbyeAndEndsTheGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c, s := connected(t, mqtt.Options{}, nil)
	if err := c.Close(); err != nil || !errors.Is(c.Err(), mqtt.ErrClosed) {
		t.Errorf("%v, %v", err, c.Err())
	}
	if got := s.read(); got.FixedHeader.Type != mqtt.TypeDisconnect || got.ReasonCode != 0 {
		t.Errorf("goodbye: %+v", got)
	}
	if _, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the goodbye: %v", err)
	}
	_ = c.Close()
}

func TestConnectEndsWithItsContext(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.CopyN(io.Discard, far, 10)
		cancel()
		_, _ = io.Copy(io.Discard, far)
	}()
	if _, err := mqtt.Connect(ctx, near, mqtt.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
