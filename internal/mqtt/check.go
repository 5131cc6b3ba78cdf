package mqtt

import (
	"encoding/binary"
	"unicode/utf8"
)

// cursor walks over a packet's bytes; after the first thing that isn't there or isn't right, bad says
// what, and everything reads as nothing.
type cursor struct {
	rest []byte
	bad  error
}

func (c *cursor) fail(format string, args ...any) {
	if c.bad == nil {
		c.bad = malformed(format, args...)
	}
	c.rest = nil
}

func (c *cursor) take(n int) []byte {
	if c.bad != nil || len(c.rest) < n {
		c.fail("the packet ends before it is whole")
		return make([]byte, min(n, 4))
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) u8() byte     { return c.take(1)[0] }
func (c *cursor) u16() uint16  { return binary.BigEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32  { return binary.BigEndian.Uint32(c.take(4)) }
func (c *cursor) skip(n int)   { _ = c.take(n) }
func (c *cursor) data() []byte { return c.take(int(c.u16())) }

// text is a UTF-8 string (section 1.5.4).
func (c *cursor) text() []byte {
	b := c.data()
	if c.bad == nil && !utf8.Valid(b) {
		c.fail("a string is not UTF-8")
	}
	for _, char := range b {
		if c.bad == nil && char == 0 {
			c.fail("a string has a null character in it")
		}
	}
	return b
}

func (c *cursor) varint() int {
	n := 0
	for shift := 0; shift <= 21; shift += 7 {
		b := c.u8()
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			if shift > 0 && b == 0 {
				c.fail("a length has more bytes than it needs")
			}
			return n
		}
	}
	c.fail("a length has more than four bytes")
	return 0
}

func (c *cursor) end() {
	if c.bad == nil && len(c.rest) > 0 {
		c.fail("%d bytes behind the packet's end", len(c.rest))
	}
}

// check refuses packets whose form the standard doesn't allow. It is what keeps the decoder from
// believing lengths that aren't true.
func check(h Header, body []byte, version byte) error {
	c := &cursor{rest: body}
	v5 := version == Version5
	if want, fixed := reservedFlags(h.Type()); fixed && h.First&0x0f != want {
		return malformed("the flags of a packet of type %d are %04b", h.Type(), h.First&0x0f)
	}
	switch h.Type() {
	case TypeConnect:
		checkConnect(c)
	case TypeConnack:
		if flags := c.u8(); flags > 1 {
			c.fail("CONNACK flags 0x%02x", flags)
		}
		c.skip(1)
		c.properties(v5, TypeConnack)
	case TypePublish:
		checkPublish(c, h, v5)
	case TypePuback, TypePubrec, TypePubrel, TypePubcomp:
		c.packetID()
		c.reasonAndProperties(v5, h.Type())
	case TypeSubscribe, TypeUnsubscribe:
		checkFilters(c, h.Type(), v5)
	case TypeSuback:
		c.packetID()
		c.properties(v5, TypeSuback)
		c.rest = nil // reason codes, one byte each
	case TypeUnsuback:
		c.packetID()
		c.properties(v5, TypeUnsuback)
		if v5 {
			c.rest = nil
		}
	case TypePingreq, TypePingresp:
	case TypeDisconnect:
		c.reasonAndProperties(v5, TypeDisconnect)
	case TypeAuth:
		if !v5 {
			return violation("AUTH is not part of MQTT 3.1.1")
		}
		c.reasonAndProperties(true, TypeAuth)
		if len(body) == 0 {
			return malformed("AUTH without content") // allowed by section 3.15.2.1; of no use without authentication
		}
	default:
		return malformed("packet type %d", h.Type())
	}
	c.end()
	return c.bad
}

// reservedFlags are the low bits of the first byte (section 2.1.3).
func reservedFlags(t Type) (flags byte, fixed bool) {
	switch t {
	case TypePublish:
		return 0, false
	case TypePubrel, TypeSubscribe, TypeUnsubscribe:
		return 2, true
	}
	return 0, true
}

func (c *cursor) packetID() {
	if c.u16() == 0 && c.bad == nil {
		c.bad = violation("the packet identifier 0")
	}
}

// reasonAndProperties may both be left out when they say success and nothing more (section 3.4.2.1).
func (c *cursor) reasonAndProperties(v5 bool, t Type) {
	if !v5 || len(c.rest) == 0 {
		return
	}
	c.skip(1)
	if len(c.rest) > 0 {
		c.properties(true, t)
	}
}

// checkConnect walks CONNECT (section 3.1) as far as the version is one that is spoken here.
func checkConnect(c *cursor) {
	name := string(c.data())
	version := c.u8()
	if c.bad != nil {
		return
	}
	if (name != "MQTT" && name != "MQIsdp") || (version != Version311 && version != Version5) || name == "MQIsdp" {
		c.bad = &PacketError{Code: UnsupportedVersion, Detail: "the protocol is neither MQTT 3.1.1 nor 5"}
		return
	}
	flags := c.u8()
	will, password, user := flags&0x04 != 0, flags&0x40 != 0, flags&0x80 != 0
	switch {
	case flags&0x01 != 0:
		c.fail("a reserved flag of CONNECT is set")
	case flags&0x18 == 0x18, !will && flags&0x38 != 0:
		c.fail("the will's flags in CONNECT are 0x%02x", flags)
	case version == Version311 && password && !user:
		c.fail("a password without a user name") // 3.1.1, section 3.1.2.9
	}
	c.skip(2)
	c.properties(version == Version5, TypeConnect)
	c.text()
	if will {
		c.properties(version == Version5, willProperties)
		c.topic()
		c.data()
	}
	if user {
		c.text()
	}
	if password {
		c.data()
	}
}

// topic is a topic name, which has no wildcards.
func (c *cursor) topic() {
	for _, char := range c.text() {
		if c.bad == nil && (char == '+' || char == '#') {
			c.bad = &PacketError{Code: TopicNameInvalid, Detail: "a topic name with a wildcard"}
		}
	}
}

func checkPublish(c *cursor, h Header, v5 bool) {
	qos := h.First >> 1 & 3
	if qos == 3 || (qos == 0 && h.First&0x08 != 0) {
		c.fail("the flags of PUBLISH are %04b", h.First&0x0f)
	}
	before := len(c.rest)
	c.topic()
	empty := before-len(c.rest) == 2
	if qos > 0 {
		c.packetID()
	}
	seen := c.properties(v5, TypePublish)
	if c.bad == nil && empty && seen&(1<<propTopicAlias) == 0 {
		c.bad = violation("PUBLISH without a topic")
	}
	c.rest = nil // the payload
}

// maxFilters bounds one SUBSCRIBE or UNSUBSCRIBE; nobody here has so many topics.
const maxFilters = 64

func checkFilters(c *cursor, t Type, v5 bool) {
	c.packetID()
	c.properties(v5, t)
	n := 0
	for ; c.bad == nil && len(c.rest) > 0; n++ {
		if len(c.text()) == 0 {
			c.fail("an empty topic filter")
		}
		if t != TypeSubscribe {
			continue
		}
		options := c.u8()
		if options&3 == 3 || options&0xc0 != 0 || options&0x30 == 0x30 || (!v5 && options > 2) {
			c.fail("the options of a subscription are 0x%02x", options)
		}
	}
	switch {
	case c.bad != nil:
	case n == 0:
		c.bad = violation("no topic filter")
	case n > maxFilters:
		c.bad = &PacketError{Code: QuotaExceeded, Detail: "more than 64 topic filters at once"}
	}
}
