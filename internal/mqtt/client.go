package mqtt

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Message is an application message of either direction.
type Message struct {
	Topic       string
	Payload     []byte
	QoS         byte   // 0 or 1
	Correlation []byte // Correlation Data; empty means none
}

// Options of a Client. Their zero value is a client without an ID, which gets one from the server.
type Options struct {
	ClientID  string
	KeepAlive time.Duration // whole seconds; the server may give another. 0 means none.
	Will      *Message      // published by the server when the connection ends without Close; nil means none

	// MaxPacketBytes is what the server may send at most; 0 means 256 KiB and a little.
	MaxPacketBytes int
	// ReceiveMaximum is how many QoS 1 messages the server may have on their way; 0 means 32.
	ReceiveMaximum uint16
	UserProperties []UserProperty // of CONNECT

	// OnMessage gets each message that arrives, from the goroutine that reads: it may publish with
	// Send, and must not wait for an answer. A QoS 1 message is acknowledged when it returns. nil
	// drops what arrives.
	OnMessage func(*Message)

	// WriteTimeout is how long the peer may take to read a packet; 0 means 30 s.
	WriteTimeout time.Duration
}

const (
	defaultMaxPacket    = 257 << 10
	defaultReceive      = 32
	defaultWriteTimeout = 30 * time.Second
)

// Client is one connection of MQTT 5. Make it with Connect; all methods may be called by several
// goroutines. It has a single goroutine, the one that reads, and keeps nothing per message but the
// identifiers of those that wait for their acknowledgement.
type Client struct {
	conn   net.Conn
	o      Options
	hello  Connack
	done   chan struct{}
	writes sync.Mutex   // held while a packet is written
	wrote  atomic.Int64 // when a packet was last written, Unix nanoseconds; the machine's clock, as deadlines are

	mu      sync.Mutex
	waiting map[uint16]func(ack, error) // by packet identifier
	next    uint16
	open    int // QoS 1 messages on their way, at most hello.ReceiveMaximum
	err     error
	closed  bool
}

// ack is a PUBACK, SUBACK or UNSUBACK.
type ack struct {
	reasons []byte
	text    string
}

// Connack is what the server said to CONNECT.
type Connack struct {
	ClientID       string        // as it is from now on
	KeepAlive      time.Duration // as it is from now on; 0 means none
	ReceiveMaximum int           // QoS 1 messages that may be on their way at a time
	MaxPacketBytes int           // that the server takes
	UserProperties []UserProperty
}

// ReasonError is a refusal by the server.
type ReasonError struct {
	What           string // "connect", "publish", "subscribe" or "disconnect"
	Reason         Reason
	Text           string // the server's Reason String
	UserProperties []UserProperty
}

func (e *ReasonError) Error() string {
	s := fmt.Sprintf("%s: refused by the server: %s (0x%02x)", e.What, e.Reason, byte(e.Reason))
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// Property returns the first user property of that name, or "".
func Property(list []UserProperty, name string) string {
	for _, p := range list {
		if p.Key == name {
			return p.Val
		}
	}
	return ""
}

// Errors of a Client.
var (
	ErrClosed = errors.New("mqtt: the connection is closed")
	ErrFull   = errors.New("mqtt: as many messages as the server allows wait for their acknowledgement")
)

// Connect speaks CONNECT over conn, which the Client owns from here on, also when this fails. The
// context bounds the waiting for CONNACK only. It returns a *ReasonError when the server refuses.
func Connect(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	if o.MaxPacketBytes == 0 {
		o.MaxPacketBytes = defaultMaxPacket
	}
	if o.ReceiveMaximum == 0 {
		o.ReceiveMaximum = defaultReceive
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = defaultWriteTimeout
	}
	c := &Client{conn: conn, o: o, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := c.connect()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline above may come at any moment, or has
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	go c.read()
	return c, nil
}

func (c *Client) connect() error {
	p := Packet{ProtocolVersion: Version5}
	p.FixedHeader.Type = TypeConnect
	p.Connect.ProtocolName = []byte("MQTT")
	p.Connect.Clean = true
	p.Connect.ClientIdentifier = c.o.ClientID
	p.Connect.Keepalive = uint16(min(c.o.KeepAlive/time.Second, math.MaxUint16))
	p.Properties.MaximumPacketSize = uint32(c.o.MaxPacketBytes)
	p.Properties.ReceiveMaximum = c.o.ReceiveMaximum
	p.Properties.User = c.o.UserProperties
	if w := c.o.Will; w != nil {
		p.Connect.WillFlag, p.Connect.WillQos, p.Connect.WillTopic, p.Connect.WillPayload = true, w.QoS, w.Topic, w.Payload
	}
	if err := c.write(&p); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := Read(c.conn, Version5, c.o.MaxPacketBytes, &p); err != nil {
		return fmt.Errorf("wait for CONNACK: %w", unexpected(err))
	}
	if p.FixedHeader.Type != TypeConnack {
		return violation("packet type %d in the place of CONNACK", p.FixedHeader.Type)
	}
	if Reason(p.ReasonCode).Failed() {
		return &ReasonError{"connect", Reason(p.ReasonCode), p.Properties.ReasonString, p.Properties.User}
	}
	c.hello = Connack{
		ClientID: c.o.ClientID, KeepAlive: c.o.KeepAlive.Truncate(time.Second),
		ReceiveMaximum: math.MaxUint16, MaxPacketBytes: math.MaxInt32, UserProperties: p.Properties.User,
	}
	if p.Properties.ServerKeepAliveFlag {
		c.hello.KeepAlive = time.Duration(p.Properties.ServerKeepAlive) * time.Second
	}
	if p.Properties.AssignedClientID != "" {
		c.hello.ClientID = p.Properties.AssignedClientID
	}
	if p.Properties.ReceiveMaximum > 0 {
		c.hello.ReceiveMaximum = int(p.Properties.ReceiveMaximum)
	}
	if p.Properties.MaximumPacketSize > 0 {
		c.hello.MaxPacketBytes = int(p.Properties.MaximumPacketSize)
	}
	return nil
}

// Connack is what the server said to CONNECT.
func (c *Client) Connack() Connack { return c.hello }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection has ended, nil before Done. It is a *ReasonError when the server has
// said so, and ErrClosed after Close.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Publish sends a message and, with QoS 1, waits for its acknowledgement; a refusal is a *ReasonError.
// When ctx ends first the message may or may not have been taken.
func (c *Client) Publish(ctx context.Context, m Message) error {
	if m.QoS == 0 {
		return c.Send(m, nil)
	}
	acked := make(chan error, 1)
	if err := c.Send(m, func(err error) { acked <- err }); err != nil {
		return err
	}
	select {
	case err := <-acked:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Send sends a message without waiting. With QoS 1 acked is called once, from the goroutine that
// reads, when the acknowledgement has come (nil, or a *ReasonError) or when the connection has ended;
// it isn't called when Send returns an error. ErrFull says to wait for an acknowledgement first.
func (c *Client) Send(m Message, acked func(error)) error {
	p := Packet{ProtocolVersion: Version5, TopicName: m.Topic, Payload: m.Payload}
	p.FixedHeader.Type, p.FixedHeader.Qos = TypePublish, min(m.QoS, 1)
	p.Properties.CorrelationData = m.Correlation
	if size := len(m.Topic) + len(m.Payload) + len(m.Correlation) + 16; size > c.hello.MaxPacketBytes {
		return fmt.Errorf("publish %.80s: %d bytes, the server takes %d", m.Topic, size, c.hello.MaxPacketBytes)
	}
	if len(m.Topic) == 0 || len(m.Topic) > math.MaxUint16 || len(m.Correlation) > math.MaxUint16 {
		return fmt.Errorf("publish %.80q: topic or correlation data of a length that MQTT doesn't have", m.Topic)
	}
	if m.QoS == 0 {
		return c.write(&p)
	}
	id, err := c.expect(true, func(a ack, err error) {
		if err == nil && len(a.reasons) == 1 && Reason(a.reasons[0]).Failed() {
			err = &ReasonError{What: "publish " + m.Topic, Reason: Reason(a.reasons[0]), Text: a.text}
		}
		if acked != nil {
			acked(err)
		}
	})
	if err != nil {
		return err
	}
	p.PacketID = id
	return c.request(&p)
}

// Subscribe asks for messages of the filters and returns when the server has granted all of them.
func (c *Client) Subscribe(ctx context.Context, qos byte, filters ...string) error {
	p := Packet{ProtocolVersion: Version5}
	p.FixedHeader.Type = TypeSubscribe
	for _, f := range filters {
		p.Filters = append(p.Filters, Subscription{Filter: f, Qos: qos})
	}
	granted := make(chan error, 1)
	id, err := c.expect(false, func(a ack, err error) {
		for i, r := range a.reasons {
			if Reason(r).Failed() && i < len(filters) {
				err = &ReasonError{What: "subscribe to " + filters[i], Reason: Reason(r), Text: a.text}
			}
		}
		if err == nil && len(a.reasons) != len(filters) {
			err = violation("%d answers to %d filters", len(a.reasons), len(filters))
		}
		granted <- err
	})
	if err != nil {
		return err
	}
	p.PacketID = id
	if err := c.request(&p); err != nil {
		return err
	}
	select {
	case err := <-granted:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// expect notes who waits for the acknowledgement of a new packet identifier.
func (c *Client) expect(message bool, then func(ack, error)) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return 0, c.err
	case message && c.open >= c.hello.ReceiveMaximum, len(c.waiting) >= math.MaxUint16/2:
		return 0, ErrFull
	}
	for c.next++; c.next == 0 || c.waiting[c.next] != nil; {
		c.next++
	}
	if c.waiting == nil {
		c.waiting = map[uint16]func(ack, error){}
	}
	if message {
		c.open++
		whole := then
		then = func(a ack, err error) {
			c.mu.Lock()
			c.open--
			c.mu.Unlock()
			whole(a, err)
		}
	}
	c.waiting[c.next] = then
	return c.next, nil
}

// request writes a packet whose acknowledgement is expected. An error of writing ends the connection,
// and the waiting is told by that; so here it is only an error when nobody else says so.
func (c *Client) request(p *Packet) error {
	err := c.write(p)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	_, still := c.waiting[p.PacketID]
	if still && p.FixedHeader.Type == TypePublish {
		c.open--
	}
	delete(c.waiting, p.PacketID)
	c.mu.Unlock()
	if !still {
		return nil // who waits has been told
	}
	return err
}

// write sends one packet; when that fails the connection can't be used any more.
func (c *Client) write(p *Packet) error {
	c.writes.Lock()
	defer c.writes.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.o.WriteTimeout))
	err := Write(c.conn, p)
	if err != nil {
		_ = c.conn.Close() // the reader notices
		return errors.Join(c.Err(), err)
	}
	c.wrote.Store(time.Now().UnixNano())
	return nil
}

// Close says goodbye, so that the server does not publish the will, and waits for the reading
// goroutine's end. It may be called several times; not from OnMessage.
func (c *Client) Close() error {
	c.mu.Lock()
	again := c.closed || c.err != nil
	c.closed = true
	c.mu.Unlock()
	if !again {
		p := Packet{ProtocolVersion: Version5}
		p.FixedHeader.Type = TypeDisconnect
		_ = c.write(&p) // a server that has gone knows
		_ = c.conn.Close()
	}
	<-c.done
	return nil
}
