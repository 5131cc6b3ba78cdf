package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Packet is one control packet. Its strings and slices stand in memory of its own, which whoever has
// read it may keep.
type Packet = packets.Packet

// Properties of a Packet, and UserProperty of them.
type (
	Properties   = packets.Properties
	UserProperty = packets.UserProperty
)

// Subscription is one filter of a SUBSCRIBE.
type Subscription = packets.Subscription

// Type of a packet (section 2.1.2).
type Type = byte

// The types.
const (
	TypeConnect     Type = packets.Connect
	TypeConnack     Type = packets.Connack
	TypePublish     Type = packets.Publish
	TypePuback      Type = packets.Puback
	TypePubrec      Type = packets.Pubrec
	TypePubrel      Type = packets.Pubrel
	TypePubcomp     Type = packets.Pubcomp
	TypeSubscribe   Type = packets.Subscribe
	TypeSuback      Type = packets.Suback
	TypeUnsubscribe Type = packets.Unsubscribe
	TypeUnsuback    Type = packets.Unsuback
	TypePingreq     Type = packets.Pingreq
	TypePingresp    Type = packets.Pingresp
	TypeDisconnect  Type = packets.Disconnect
	TypeAuth        Type = packets.Auth
)

// Versions of the protocol as CONNECT names them.
const (
	Version311 = 4
	Version5   = 5
)

// PacketError says why a packet was not accepted, with the reason code of version 5 for it.
type PacketError struct {
	Code   Reason
	Detail string
}

func (e *PacketError) Error() string { return e.Detail + " (" + e.Code.String() + ")" }

func malformed(format string, args ...any) error {
	return &PacketError{Code: MalformedPacket, Detail: fmt.Sprintf(format, args...)}
}

func violation(format string, args ...any) error {
	return &PacketError{Code: ProtocolError, Detail: fmt.Sprintf(format, args...)}
}

// ReasonOf returns the reason code that an error of Read asks for: MalformedPacket unless it says another.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*PacketError](err); ok {
		return e.Code
	}
	return MalformedPacket
}

// Header is a packet's fixed header (section 2.1).
type Header struct {
	First  byte // type and flags
	Length int  // of what follows, bytes
}

// Type of the packet.
func (h Header) Type() Type { return h.First >> 4 }

// Size of the whole packet in bytes.
func (h Header) Size() int { return 1 + uvarintSize(h.Length) + h.Length }

// ReadLength reads the rest of the fixed header that begins with first, and refuses a packet of more
// than limit bytes with PacketTooLarge before any of it is read.
func ReadLength(r io.Reader, first byte, limit int) (Header, error) {
	h := Header{First: first}
	var b [1]byte
	for shift := 0; ; shift += 7 {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return h, unexpected(err)
		}
		h.Length |= int(b[0]&0x7f) << shift
		if b[0]&0x80 == 0 {
			if shift > 0 && b[0] == 0 {
				return h, malformed("the packet's length has more bytes than it needs") // section 1.5.5
			}
			break
		}
		if shift == 21 {
			return h, malformed("the packet's length has more than four bytes")
		}
	}
	if h.Size() > limit {
		return h, &PacketError{Code: PacketTooLarge, Detail: fmt.Sprintf("a packet of %d bytes, at most %d are taken", h.Size(), limit)}
	}
	return h, nil
}

// firstPiece is how much memory a packet gets before more of it has arrived.
const firstPiece = 4 << 10

// ReadBody reads and decodes the packet behind its header; version is the connection's, and of no
// meaning for CONNECT. The memory it takes grows with what arrives, at most twice as much.
func ReadBody(r io.Reader, h Header, version byte, p *Packet) error {
	body := make([]byte, min(h.Length, firstPiece))
	for have := 0; ; {
		n, err := io.ReadFull(r, body[have:])
		if have += n; err != nil {
			return unexpected(err)
		}
		if have == h.Length {
			break
		}
		more := make([]byte, min(h.Length, 2*have))
		copy(more, body)
		body = more
	}
	return Decode(h, body, version, p)
}

// Decode checks the bytes behind a header and reads them into p, which then refers to them.
func Decode(h Header, body []byte, version byte, p *Packet) error {
	if err := check(h, body, version); err != nil {
		return err
	}
	*p = Packet{ProtocolVersion: version}
	err := p.FixedHeader.Decode(h.First)
	if err == nil {
		p.FixedHeader.Remaining = h.Length
		err = decoders[h.Type()](p, body)
	}
	if err != nil {
		if code, ok := errors.AsType[packets.Code](err); ok {
			return &PacketError{Code: Reason(code.Code), Detail: code.Reason}
		}
		return malformed("%s", err)
	}
	return nil
}

// decoders are the library's. PINGREQ and PINGRESP have no content.
var decoders = [16]func(*Packet, []byte) error{
	TypeConnect: (*Packet).ConnectDecode, TypeConnack: (*Packet).ConnackDecode, TypePublish: (*Packet).PublishDecode,
	TypePuback: (*Packet).PubackDecode, TypePubrec: (*Packet).PubrecDecode, TypePubrel: (*Packet).PubrelDecode,
	TypePubcomp: (*Packet).PubcompDecode, TypeSubscribe: (*Packet).SubscribeDecode, TypeSuback: (*Packet).SubackDecode,
	TypeUnsubscribe: (*Packet).UnsubscribeDecode, TypeUnsuback: (*Packet).UnsubackDecode,
	TypePingreq: (*Packet).PingreqDecode, TypePingresp: (*Packet).PingrespDecode,
	TypeDisconnect: (*Packet).DisconnectDecode, TypeAuth: (*Packet).AuthDecode,
}

// Read reads a whole packet of at most limit bytes. It returns io.EOF when the peer has ended the
// connection between two packets, and a *PacketError for a packet that can't be accepted; after either
// the connection can't be used any more.
func Read(r io.Reader, version byte, limit int, p *Packet) error {
	var first [1]byte
	if _, err := io.ReadFull(r, first[:]); err != nil {
		return err
	}
	h, err := ReadLength(r, first[0], limit)
	if err != nil {
		return err
	}
	return ReadBody(r, h, version, p)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Append encodes p behind what buf holds. The packet's type and version say how; properties are
// written only in version 5.
func Append(buf *bytes.Buffer, p *Packet) error {
	encode := encoders[p.FixedHeader.Type&0x0f]
	if encode == nil {
		return fmt.Errorf("encode a packet of type %d", p.FixedHeader.Type)
	}
	if p.FixedHeader.Type == TypePuback && p.ReasonCode == 0 && p.Properties.ReasonString == "" && len(p.Properties.User) == 0 {
		// By far the most frequent packet; the library would look at each property that it might have.
		buf.Write([]byte{TypePuback << 4, 2, byte(p.PacketID >> 8), byte(p.PacketID)})
		return nil
	}
	p.Mods.AllowResponseInfo = true // else the library leaves Correlation Data out
	switch p.FixedHeader.Type {
	case TypePubrel, TypeSubscribe, TypeUnsubscribe:
		p.FixedHeader.Qos = 1 // the reserved flags 0010 of these types stand where PUBLISH has its QoS
	}
	return encode(p, buf)
}

var encoders = [16]func(*Packet, *bytes.Buffer) error{
	TypeConnect: (*Packet).ConnectEncode, TypeConnack: (*Packet).ConnackEncode, TypePublish: (*Packet).PublishEncode,
	TypePuback: (*Packet).PubackEncode, TypePubrec: (*Packet).PubrecEncode, TypePubrel: (*Packet).PubrelEncode,
	TypePubcomp: (*Packet).PubcompEncode, TypeSubscribe: (*Packet).SubscribeEncode, TypeSuback: (*Packet).SubackEncode,
	TypeUnsubscribe: (*Packet).UnsubscribeEncode, TypeUnsuback: (*Packet).UnsubackEncode,
	TypePingreq: (*Packet).PingreqEncode, TypePingresp: (*Packet).PingrespEncode,
	TypeDisconnect: (*Packet).DisconnectEncode, TypeAuth: (*Packet).AuthEncode,
}

// buffers are for packets on their way out; large ones are left to the garbage collector.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const keepBuffer = 16 << 10 // bytes

// Write encodes p and writes it with one call.
func Write(w io.Writer, p *Packet) error {
	buf := buffers.Get().(*bytes.Buffer)
	buf.Reset()
	defer func() {
		if buf.Cap() <= keepBuffer {
			buffers.Put(buf)
		}
	}()
	if err := Append(buf, p); err != nil {
		return err
	}
	_, err := w.Write(buf.Bytes())
	return err
}

func uvarintSize(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}
