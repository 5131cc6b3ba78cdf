package mqtt_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mochi-mqtt/server/v2/packets"

	"steward/internal/mqtt"
)

const limit = 64 << 10

// bytesOf encodes a packet of the given type and version after change has filled it in.
func bytesOf(t testing.TB, kind mqtt.Type, version byte, change func(*mqtt.Packet)) []byte {
	t.Helper()
	p := mqtt.Packet{ProtocolVersion: version}
	p.FixedHeader.Type = kind
	if change != nil {
		change(&p)
	}
	var buf bytes.Buffer
	if err := mqtt.Append(&buf, &p); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func hello(version byte) func(*mqtt.Packet) {
	return func(p *mqtt.Packet) {
		p.Connect.ProtocolName, p.ProtocolVersion, p.Connect.ClientIdentifier, p.Connect.Keepalive = []byte("MQTT"), version, "pump-1", 60
		p.Connect.Clean = true
	}
}

func TestPacketsComeBackAsTheyWereWritten(t *testing.T) {
	publish := func(p *mqtt.Packet) {
		p.TopicName, p.Payload, p.PacketID, p.FixedHeader.Qos = "steward/v1/me/up/report", bytes.Repeat([]byte("x"), 40_000), 7, 1
		p.Properties.CorrelationData = []byte{1, 2, 3}
		p.Properties.User = []mqtt.UserProperty{{Key: "a", Val: "b"}, {Key: "a", Val: "c"}}
	}
	filters := func(p *mqtt.Packet) {
		p.PacketID, p.Filters = 9, []mqtt.Subscription{{Filter: "a/b", Qos: 1}, {Filter: "a/#"}}
	}
	id := func(p *mqtt.Packet) { p.PacketID = 3 }
	codes := func(p *mqtt.Packet) { p.PacketID, p.ReasonCodes = 3, []byte{0, 1, 0x87} }
	for name, row := range map[string]struct {
		kind mqtt.Type
		fill func(*mqtt.Packet)
	}{
		"CONNACK": {mqtt.TypeConnack, func(p *mqtt.Packet) { p.ReasonCode = 0x87; p.SessionPresent = false }},
		"PUBLISH": {mqtt.TypePublish, publish}, "PUBACK": {mqtt.TypePuback, id}, "PUBREC": {mqtt.TypePubrec, id}, "PUBREL": {mqtt.TypePubrel, id},
		"PUBCOMP": {mqtt.TypePubcomp, id}, "SUBSCRIBE": {mqtt.TypeSubscribe, filters}, "SUBACK": {mqtt.TypeSuback, codes},
		"UNSUBSCRIBE": {mqtt.TypeUnsubscribe, filters}, "UNSUBACK": {mqtt.TypeUnsuback, id}, "PINGREQ": {mqtt.TypePingreq, nil},
		"PINGRESP": {mqtt.TypePingresp, nil}, "DISCONNECT": {mqtt.TypeDisconnect, nil},
	} {
		for _, version := range []byte{mqtt.Version311, mqtt.Version5} {
			raw := bytesOf(t, row.kind, version, row.fill)
			var p mqtt.Packet
			// One byte at a time, as a slow modem would.
			if err := mqtt.Read(iotest.OneByteReader(bytes.NewReader(raw)), version, limit, &p); err != nil {
				t.Errorf("%s, version %d: %v", name, version, err)
				continue
			}
			var again bytes.Buffer
			if err := mqtt.Append(&again, &p); err != nil || !bytes.Equal(again.Bytes(), raw) {
				t.Errorf("%s, version %d: %x became %x (%v)", name, version, raw, again.Bytes(), err)
			}
		}
	}
	for _, version := range []byte{mqtt.Version311, mqtt.Version5} {
		var p mqtt.Packet
		if err := mqtt.Read(bytes.NewReader(bytesOf(t, mqtt.TypeConnect, version, hello(version))), 0, limit, &p); err != nil || p.ProtocolVersion != version || p.Connect.ClientIdentifier != "pump-1" {
			t.Errorf("CONNECT, version %d: %+v, %v", version, p.Connect, err)
		}
	}
}

func TestMalformedPacketsAreRefusedWithTheStandardsReason(t *testing.T) {
	v5connect := bytesOf(t, mqtt.TypeConnect, 5, hello(5))
	with := func(raw []byte, at int, b byte) []byte {
		raw = bytes.Clone(raw)
		raw[at] = b
		return raw
	}
	for name, row := range map[string]struct {
		version byte
		raw     []byte
		want    mqtt.Reason
	}{
		"type 0":                               {5, []byte{0x00, 0}, mqtt.MalformedPacket},
		"flags of PINGREQ":                     {5, []byte{0xc1, 0}, mqtt.MalformedPacket},
		"flags of SUBSCRIBE":                   {5, []byte{0x80, 6, 0, 1, 0, 0, 1, 'a'}, mqtt.MalformedPacket},
		"content of PINGREQ":                   {5, []byte{0xc0, 1, 0}, mqtt.MalformedPacket},
		"length of five bytes":                 {5, []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x7f}, mqtt.MalformedPacket},
		"length with a needless byte":          {5, []byte{0xc0, 0x80, 0x00}, mqtt.MalformedPacket},
		"larger than taken":                    {5, []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, mqtt.PacketTooLarge},
		"QoS 3":                                {5, []byte{0x36, 6, 0, 1, 'a', 0, 1, 0}, mqtt.MalformedPacket},
		"DUP of QoS 0":                         {5, []byte{0x38, 4, 0, 1, 'a', 0}, mqtt.MalformedPacket},
		"topic that ends too early":            {5, []byte{0x30, 3, 0, 9, 'a'}, mqtt.MalformedPacket},
		"topic that is not UTF-8":              {5, []byte{0x30, 5, 0, 2, 0xc3, 0x28, 0}, mqtt.MalformedPacket},
		"topic with a null character":          {5, []byte{0x30, 5, 0, 2, 'a', 0, 0}, mqtt.MalformedPacket},
		"topic with a wildcard":                {5, []byte{0x30, 4, 0, 1, '#', 0}, mqtt.TopicNameInvalid},
		"no topic":                             {4, []byte{0x30, 2, 0, 0}, mqtt.ProtocolError},
		"packet identifier 0":                  {5, []byte{0x32, 6, 0, 1, 'a', 0, 0, 0}, mqtt.ProtocolError},
		"properties that end too early":        {5, []byte{0x30, 5, 0, 1, 'a', 9, 1}, mqtt.MalformedPacket},
		"property that crosses the end":        {5, []byte{0x30, 9, 0, 1, 'a', 2, 3, 0, 1, 'x', 'y'}, mqtt.MalformedPacket},
		"unknown property":                     {5, []byte{0x30, 6, 0, 1, 'a', 2, 99, 0}, mqtt.MalformedPacket},
		"property of another packet":           {5, []byte{0x30, 7, 0, 1, 'a', 3, 33, 0, 9}, mqtt.MalformedPacket},
		"property twice":                       {5, []byte{0x30, 8, 0, 1, 'a', 4, 1, 0, 1, 0}, mqtt.ProtocolError},
		"topic alias 0":                        {5, []byte{0x30, 7, 0, 1, 'a', 3, 35, 0, 0}, mqtt.ProtocolError},
		"payload format 2":                     {5, []byte{0x30, 6, 0, 1, 'a', 2, 1, 2}, mqtt.ProtocolError},
		"SUBSCRIBE without options":            {5, []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}, mqtt.MalformedPacket},
		"SUBSCRIBE without filters":            {5, []byte{0x82, 3, 0, 1, 0}, mqtt.ProtocolError},
		"SUBSCRIBE to an empty filter":         {5, []byte{0x82, 6, 0, 1, 0, 0, 0, 1}, mqtt.MalformedPacket},
		"SUBSCRIBE with reserved options":      {5, []byte{0x82, 7, 0, 1, 0, 0, 1, 'a', 0xc1}, mqtt.MalformedPacket},
		"SUBSCRIBE of 3.1.1 with options of 5": {4, []byte{0x82, 6, 0, 1, 0, 1, 'a', 4}, mqtt.MalformedPacket},
		"AUTH in 3.1.1":                        {4, []byte{0xf0, 0}, mqtt.ProtocolError},
		"CONNECT of 3.1":                       {0, []byte("\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00"), mqtt.UnsupportedVersion},
		"CONNECT of version 6":                 {0, with(v5connect, 8, 6), mqtt.UnsupportedVersion},
		"CONNECT of something else":            {0, with(v5connect, 5, 'X'), mqtt.UnsupportedVersion},
		"CONNECT with a reserved flag":         {0, with(v5connect, 9, 3), mqtt.MalformedPacket},
		"CONNECT with a will that isn't there": {0, with(v5connect, 9, 6), mqtt.MalformedPacket},
		"CONNECT with a QoS of no will":        {0, with(v5connect, 9, 0x0a), mqtt.MalformedPacket},
		"CONNECT that goes on":                 {0, append(with(v5connect, 1, v5connect[1]+1), 0), mqtt.MalformedPacket},
	} {
		var p mqtt.Packet
		err := mqtt.Read(bytes.NewReader(row.raw), row.version, limit, &p)
		if got := mqtt.ReasonOf(err); err == nil || got != row.want {
			t.Errorf("%s: %v (%s), want %s", name, err, got, row.want)
		}
	}
}

// promise is a peer that announces a large packet and sends little of it.
func TestMemoryGrowsWithWhatArrivesNotWithWhatIsAnnounced(t *testing.T) {
	const large = 64 << 20
	raw := append([]byte{0x30, 0xff, 0xff, 0xff, 0x1f}, bytes.Repeat([]byte{'x'}, 1000)...)
	bytesUsed := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			var p mqtt.Packet
			if err := mqtt.Read(bytes.NewReader(raw), 5, large, &p); !errors.Is(err, io.ErrUnexpectedEOF) {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if bytesUsed > 16<<10 {
		t.Errorf("%d bytes of memory for 1,000 that came", bytesUsed)
	}
}

func TestEndBetweenPacketsIsToldFromEndWithinOne(t *testing.T) {
	raw := bytesOf(t, mqtt.TypeConnect, 5, hello(5))
	for n := range raw {
		var p mqtt.Packet
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if err := mqtt.Read(bytes.NewReader(raw[:n]), 5, limit, &p); !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// FuzzRead: whatever comes, there is no panic, and what is accepted can be written and read again with
// the same meaning.
func FuzzRead(f *testing.F) {
	for _, cases := range packets.TPacketData { // the library's own cases, good and bad
		for _, c := range cases {
			f.Add(c.RawBytes, byte(5))
			f.Add(c.RawBytes, byte(4))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, version byte) {
		if version != mqtt.Version311 {
			version = mqtt.Version5
		}
		var p, q mqtt.Packet
		if err := mqtt.Read(bytes.NewReader(raw), version, limit, &p); err != nil {
			return
		}
		kind := p.FixedHeader.Type
		var buf bytes.Buffer
		if err := mqtt.Append(&buf, &p); err != nil {
			t.Fatalf("type %d was read and can't be written: %v", kind, err)
		}
		if err := mqtt.Read(&buf, version, 2*limit, &q); err != nil {
			t.Fatalf("type %d, written as %x: %v", kind, buf.Bytes(), err)
		}
		if p.TopicName != q.TopicName || !bytes.Equal(p.Payload, q.Payload) || p.PacketID != q.PacketID || !reflect.DeepEqual(p.Filters, q.Filters) ||
			p.Connect.ClientIdentifier != q.Connect.ClientIdentifier || strings.ContainsRune(p.TopicName, 0) {
			t.Fatalf("%+v became %+v", p, q)
		}
	})
}
