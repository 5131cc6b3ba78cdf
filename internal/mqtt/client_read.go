package mqtt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// read is the client's goroutine: it reads until the connection ends, and tells everybody who waits.
func (c *Client) read() {
	err := c.receive()
	_ = c.conn.Close()
	c.mu.Lock()
	if c.closed {
		err = ErrClosed
	}
	c.err = err
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, then := range waiting {
		then(ack{}, err)
	}
	close(c.done)
}

// receive returns why the connection has ended. Until when to wait for the next packet follows from the
// keep-alive time: a ping is due when nothing was written for three quarters of it, whatever comes in,
// and its answer within half of it.
func (c *Client) receive() error {
	var first [1]byte
	var patience time.Time // of the answer to a ping; zero when none is awaited
	for {
		until := patience
		if until.IsZero() && c.hello.KeepAlive > 0 {
			until = time.Unix(0, c.wrote.Load()).Add(c.hello.KeepAlive * 3 / 4)
		}
		_ = c.conn.SetReadDeadline(until)
		_, err := io.ReadFull(c.conn, first[:])
		switch {
		case err == nil:
			patience = time.Time{}
			err = c.packet(first[0])
		case !errors.Is(err, os.ErrDeadlineExceeded):
			err = fmt.Errorf("the connection was lost: %w", err)
		case !patience.IsZero():
			err = &ReasonError{What: "the server is silent", Reason: KeepAliveTimeout}
		case time.Since(time.Unix(0, c.wrote.Load())) < c.hello.KeepAlive/2:
			err = nil // something was written meanwhile: wait again
		default:
			patience = time.Now().Add(max(c.hello.KeepAlive/2, minPatience))
			err = c.ping()
		}
		if err != nil {
			return err
		}
	}
}

// minPatience is for the answer to a ping on a slow network.
const minPatience = 5 * time.Second

func (c *Client) ping() error {
	p := Packet{ProtocolVersion: Version5}
	p.FixedHeader.Type = TypePingreq
	return c.write(&p)
}

// bodyPatience is how long the rest of a packet may take.
const bodyPatience = time.Minute

// packet reads the rest of one packet and acts on it. It isn't inlined, so that a Packet's size does
// not count for the stack of an idle client.
//
//go:noinline
func (c *Client) packet(first byte) error {
	_ = c.conn.SetReadDeadline(time.Now().Add(bodyPatience))
	h, err := ReadLength(c.conn, first, c.o.MaxPacketBytes)
	if err != nil {
		return err
	}
	var p Packet
	if err := ReadBody(c.conn, h, Version5, &p); err != nil {
		return err
	}
	switch p.FixedHeader.Type {
	case TypePublish:
		return c.message(&p)
	case TypePuback:
		c.acknowledged(p.PacketID, ack{reasons: []byte{p.ReasonCode}, text: p.Properties.ReasonString})
	case TypeSuback, TypeUnsuback:
		c.acknowledged(p.PacketID, ack{reasons: p.ReasonCodes, text: p.Properties.ReasonString})
	case TypePingresp:
	case TypeDisconnect:
		return &ReasonError{"disconnect", Reason(p.ReasonCode), p.Properties.ReasonString, p.Properties.User}
	default:
		return violation("packet type %d from a server", p.FixedHeader.Type)
	}
	return nil
}

func (c *Client) message(p *Packet) error {
	if p.FixedHeader.Qos > 1 || p.TopicName == "" {
		return violation("a message of QoS 2 or by alias, which was not asked for")
	}
	if c.o.OnMessage != nil {
		c.o.OnMessage(&Message{Topic: p.TopicName, Payload: p.Payload, QoS: p.FixedHeader.Qos, Correlation: p.Properties.CorrelationData})
	}
	if p.FixedHeader.Qos == 0 {
		return nil
	}
	a := Packet{ProtocolVersion: Version5, PacketID: p.PacketID}
	a.FixedHeader.Type = TypePuback
	return c.write(&a)
}

// acknowledged calls who waits. An identifier that nobody waits for is one whose waiting has ended.
func (c *Client) acknowledged(id uint16, a ack) {
	c.mu.Lock()
	then := c.waiting[id]
	delete(c.waiting, id)
	c.mu.Unlock()
	if then != nil {
		then(a, nil)
	}
}
