package mqtt

// Kinds of a property's value (section 2.2.2.2).
type valueKind byte

const (
	kindNone valueKind = iota
	kindFlag           // a byte of 0 or 1
	kindU16
	kindU32
	kindVarint
	kindText
	kindData
	kindPair
)

// willProperties stands for the properties of CONNECT's will in a property's set of packets.
const willProperties Type = 0

const (
	propSubscriptionID = 11
	propTopicAlias     = 35
	propUser           = 38
)

// property says which values and packets a property is for; its number is the index in properties.
type property struct {
	kind    valueKind
	notZero bool
	in      uint16 // a bit per packet type
}

func types(list ...Type) (set uint16) {
	for _, t := range list {
		set |= 1 << t
	}
	return set
}

var anyPacket = types(willProperties, TypeConnect, TypeConnack, TypePublish, TypePuback, TypePubrec, TypePubrel, TypePubcomp,
	TypeSubscribe, TypeSuback, TypeUnsubscribe, TypeUnsuback, TypeDisconnect, TypeAuth)

// properties is the table of section 2.2.2.2.
var properties = [43]property{
	1:                  {kindFlag, false, types(TypePublish, willProperties)},                                                                                      // payload format
	2:                  {kindU32, false, types(TypePublish, willProperties)},                                                                                       // message expiry
	3:                  {kindText, false, types(TypePublish, willProperties)},                                                                                      // content type
	8:                  {kindText, false, types(TypePublish, willProperties)},                                                                                      // response topic
	9:                  {kindData, false, types(TypePublish, willProperties)},                                                                                      // correlation data
	propSubscriptionID: {kindVarint, true, types(TypePublish, TypeSubscribe)},                                                                                      //
	17:                 {kindU32, false, types(TypeConnect, TypeConnack, TypeDisconnect)},                                                                          // session expiry
	18:                 {kindText, false, types(TypeConnack)},                                                                                                      // assigned client ID
	19:                 {kindU16, false, types(TypeConnack)},                                                                                                       // server keep-alive
	21:                 {kindText, false, types(TypeConnect, TypeConnack, TypeAuth)},                                                                               // authentication method
	22:                 {kindData, false, types(TypeConnect, TypeConnack, TypeAuth)},                                                                               // authentication data
	23:                 {kindFlag, false, types(TypeConnect)},                                                                                                      // request problem information
	24:                 {kindU32, false, types(willProperties)},                                                                                                    // will delay
	25:                 {kindFlag, false, types(TypeConnect)},                                                                                                      // request response information
	26:                 {kindText, false, types(TypeConnack)},                                                                                                      // response information
	28:                 {kindText, false, types(TypeConnack, TypeDisconnect)},                                                                                      // server reference
	31:                 {kindText, false, types(TypeConnack, TypePuback, TypePubrec, TypePubrel, TypePubcomp, TypeSuback, TypeUnsuback, TypeDisconnect, TypeAuth)}, // reason string
	33:                 {kindU16, true, types(TypeConnect, TypeConnack)},                                                                                           // receive maximum
	34:                 {kindU16, false, types(TypeConnect, TypeConnack)},                                                                                          // topic alias maximum
	propTopicAlias:     {kindU16, true, types(TypePublish)},                                                                                                        //
	36:                 {kindFlag, false, types(TypeConnack)},                                                                                                      // maximum QoS
	37:                 {kindFlag, false, types(TypeConnack)},                                                                                                      // retain available
	propUser:           {kindPair, false, anyPacket},                                                                                                               //
	39:                 {kindU32, true, types(TypeConnect, TypeConnack)},                                                                                           // maximum packet size
	40:                 {kindFlag, false, types(TypeConnack)},                                                                                                      // wildcards available
	41:                 {kindFlag, false, types(TypeConnack)},                                                                                                      // subscription IDs available
	42:                 {kindFlag, false, types(TypeConnack)},                                                                                                      // shared subscriptions available
}

// maxUserProperties bounds what a packet makes the decoder allocate.
const maxUserProperties = 32

// properties walks a packet's properties and returns the set of those that it saw.
func (c *cursor) properties(v5 bool, t Type) (seen uint64) {
	if !v5 {
		return 0
	}
	n := c.varint()
	in := &cursor{rest: c.take(n), bad: c.bad}
	if c.bad != nil {
		return 0
	}
	for users := 0; in.bad == nil && len(in.rest) > 0; {
		id := in.u8()
		if int(id) >= len(properties) || properties[id].in&(1<<t) == 0 {
			in.fail("property %d in a packet of type %d", id, t)
			break
		}
		repeats := id == propUser || (id == propSubscriptionID && t == TypePublish)
		if seen&(1<<id) != 0 && !repeats {
			in.bad = violation("property %d comes twice", id)
			break
		}
		seen |= 1 << id
		if id == propUser {
			if users++; users > maxUserProperties {
				in.bad = &PacketError{Code: QuotaExceeded, Detail: "more than 32 user properties"}
			}
		}
		in.value(id, properties[id])
	}
	c.bad = in.bad
	return seen
}

func (c *cursor) value(id byte, p property) {
	n := 1
	switch p.kind {
	case kindFlag:
		if n = int(c.u8()); n > 1 && c.bad == nil {
			c.bad = violation("property %d is %d", id, n)
		}
	case kindU16:
		n = int(c.u16())
	case kindU32:
		n = int(c.u32())
	case kindVarint:
		n = c.varint()
	case kindText:
		c.text()
	case kindData:
		c.data()
	case kindPair:
		c.text()
		c.text()
	}
	if p.notZero && n == 0 && c.bad == nil {
		c.bad = violation("property %d is 0", id)
	}
}
