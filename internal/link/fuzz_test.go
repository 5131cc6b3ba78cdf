package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

// house is a server whose rooms are a few lines: some messages are taken, some are refused.
type fuzzHouse struct{}

func (fuzzHouse) Envelope(context.Context, device.Device) ([]byte, int64, error) {
	return []byte(`{}`), 3, nil
}
func (fuzzHouse) Epoch(context.Context, int64) (int64, error)            { return 3, nil }
func (fuzzHouse) WaitEpoch(context.Context, int64, int64) (int64, error) { return 3, nil }
func (fuzzHouse) Watch(func(int64)) (cancel func())                      { return func() {} }
func (fuzzHouse) Epochs(_ context.Context, nums []int64) (map[int64]int64, error) {
	return map[int64]int64{}, nil
}
func (fuzzHouse) Envelopes(context.Context, []device.Device) ([]wire.Sealed, error) { return nil, nil }
func (fuzzHouse) Report(context.Context, device.Device, wire.Report) (wire.ReportAnswer, error) {
	return wire.ReportAnswer{}, nil
}
func (fuzzHouse) Upload(context.Context, device.Device, wire.Hash, []byte) error {
	return fault.New(fault.TooMany, "too many")
}
func (fuzzHouse) Document(context.Context, device.Device, wire.Hash) ([]byte, error) {
	return []byte("{}"), nil
}
func (fuzzHouse) Waiting(context.Context, device.Device) ([]wire.RemoteCommand, error) {
	return []wire.RemoteCommand{{ID: "c1"}, {ID: "c2"}}, nil
}
func (fuzzHouse) Pending(context.Context, device.Device) (int, error) { return 2, nil }
func (fuzzHouse) Result(context.Context, device.Device, string, wire.RemoteResult) error {
	return errors.New("the database is away")
}
func (fuzzHouse) Event(context.Context, device.Device, wire.DeviceEvent) error   { return nil }
func (fuzzHouse) Telemetry(context.Context, device.Device, wire.Telemetry) error { return nil }
func (fuzzHouse) Publish(string, []byte) error                                   { return nil }
func (fuzzHouse) Subscribe(string, func(string, []byte)) (func(), error)         { return func() {}, nil }

func newFuzzServer(tb testing.TB) *Server {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	none := func(http.ResponseWriter, *http.Request) error { return nil }
	h := fuzzHouse{}
	s, err := New(Config{
		Listener: l, Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") },
		Identify: func(context.Context, *x509.Certificate) (device.Device, error) {
			return device.Device{Num: 1, ID: "dev-1", Tenant: "default"}, nil
		},
		Trust: func(context.Context, wire.Hash) ([]byte, error) { return nil, fault.NotFound }, EST: none, PKI: none,
		Desired: h, Changes: h, Reports: h, Commands: h, Events: h, Bus: h,
		Metrics:  func(context.Context, device.Device, string, []byte) ([]byte, error) { return nil, nil },
		Artifact: func(context.Context, device.Device, string) (io.ReadSeekCloser, error) { return nil, fault.NotFound },
		Metadata: func(context.Context, device.TenantID, string) ([]byte, error) { return nil, fault.NotFound },
		Disposal: func(context.Context, device.Device, []byte) error { return nil },
		Rate:     1e9, Burst: 1e9, BodyTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// converse runs a session over a pipe, to which the peer writes raw and then hangs up; it returns what the
// session has written, after it has ended.
func converse(s *Server, raw []byte) []byte {
	near, far := net.Pipe()
	c := newConn(far, s.doors)
	s.doors.add(c, 1<<20)
	ss := &session{s: s, conn: c, stream: c, opened: time.Now(), silent: time.Now().Add(5 * time.Second)}
	c.mode = quiet
	s.open()
	s.crew.do(ss.loop)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = near.Write(raw)
		_ = near.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	}()
	out, _ := io.ReadAll(near)
	_ = near.Close()
	<-wrote
	s.running.Wait()
	return out
}

func script(tb testing.TB, version byte, fill ...func(*mqtt.Packet)) []byte {
	tb.Helper()
	var buf bytes.Buffer
	for _, f := range fill {
		p := mqtt.Packet{ProtocolVersion: version}
		f(&p)
		if err := mqtt.Append(&buf, &p); err != nil {
			tb.Fatal(err)
		}
	}
	return buf.Bytes()
}

func fuzzConnect(version byte) func(*mqtt.Packet) {
	return func(p *mqtt.Packet) {
		p.FixedHeader.Type, p.ProtocolVersion = mqtt.TypeConnect, version
		p.Connect.ProtocolName, p.Connect.Clean, p.Connect.ClientIdentifier = []byte("MQTT"), true, "c"
	}
}

func fuzzPublish(qos byte, id uint16, name string) func(*mqtt.Packet) {
	return func(p *mqtt.Packet) {
		p.FixedHeader.Type, p.FixedHeader.Qos, p.PacketID = mqtt.TypePublish, qos, id
		p.TopicName, p.Payload = wire.Topic(wire.Me, wire.TopicUp, name), []byte(`{"name":"a","metrics":{"a":1}}`)
	}
}

func fuzzSubscribe(p *mqtt.Packet) {
	p.FixedHeader.Type, p.PacketID, p.Filters = mqtt.TypeSubscribe, 1, []mqtt.Subscription{{Filter: "steward/v1/me/down/#", Qos: 1}, {Filter: "a/b"}}
}

// FuzzSession: whatever comes, there is no panic, the session ends with its connection, leaves nothing
// behind, and what it has said before are whole packets.
func FuzzSession(f *testing.F) {
	hash := string(wire.HashOf(nil))
	for _, version := range []byte{mqtt.Version311, mqtt.Version5} {
		kind := func(t mqtt.Type) func(*mqtt.Packet) {
			return func(p *mqtt.Packet) { p.FixedHeader.Type, p.PacketID = t, 1 }
		}
		connect := fuzzConnect(version)
		f.Add(script(f, version, connect, fuzzSubscribe, fuzzPublish(1, 1, "report"), fuzzPublish(0, 0, "event"), kind(mqtt.TypePingreq), kind(mqtt.TypeDisconnect)))
		f.Add(script(f, version, connect, fuzzPublish(2, 1, "event"), fuzzPublish(2, 1, "event"), kind(mqtt.TypePubrel), kind(mqtt.TypePubrel)))
		f.Add(script(f, version, connect, fuzzSubscribe, kind(mqtt.TypePuback), fuzzPublish(1, 2, "fetch/"+hash), fuzzPublish(1, 3, "desired"), fuzzPublish(1, 4, "result/c1")))
		f.Add(script(f, version, connect, fuzzPublish(1, 2, "document/"+hash), fuzzPublish(1, 3, "nothing"), connect))
		f.Add(script(f, version, func(p *mqtt.Packet) {
			connect(p)
			p.Connect.WillFlag, p.Connect.WillTopic, p.Connect.WillPayload = true, "steward/v1/me/up/event", []byte("{}")
		}, kind(mqtt.TypeConnack)))
	}
	f.Add([]byte("\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a"))
	f.Add([]byte("GET /"))
	s := newFuzzServer(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		out := converse(s, raw)
		if open, sessions := s.doors.counts(); open != 0 || sessions != 0 || len(s.doors.sessionsOf(1)) != 0 {
			t.Fatalf("%d connections and %d sessions are left", open, sessions)
		}
		if err5, err3 := wellFormed(out, mqtt.Version5), wellFormed(out, mqtt.Version311); err5 != nil && err3 != nil {
			t.Fatalf("the session has said something malformed: %v, %v: %x", err5, err3, out)
		}
	})
}

// wellFormed reads what a session has said; its end may be missing.
func wellFormed(out []byte, version byte) error {
	r := bytes.NewReader(out)
	for r.Len() > 0 {
		var p mqtt.Packet
		if err := mqtt.Read(r, version, 1<<20, &p); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
	}
	return nil
}

// frame is one frame of WebSocket as a client sends it.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{1, 2, 3, 4}
	b = append(b, mask[:]...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

// trickle gives one byte at a time, and says in between that there is nothing, as a socket would.
type trickle struct {
	rest  []byte
	quiet bool
	said  bytes.Buffer
}

func (c *trickle) Read(p []byte) (int, error) {
	if c.quiet = !c.quiet; c.quiet {
		return 0, errQuiet
	}
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	p[0] = c.rest[0]
	c.rest = c.rest[1:]
	return 1, nil
}

func (c *trickle) Write(p []byte) (int, error) { return c.said.Write(p) }

// readAll reads through errQuiet until another error.
func readAll(w *webSocket, size int) (got []byte, err error) {
	p := make([]byte, size)
	for {
		n, err := w.Read(p)
		got = append(got, p[:n]...)
		if err != nil && !errors.Is(err, errQuiet) {
			return got, err
		}
	}
}

func TestWebSocketGivesTheBytesWithinTheFrames(t *testing.T) {
	long, longer := bytes.Repeat([]byte("ab"), 5_000), bytes.Repeat([]byte("cd"), 40_000)
	raw := slices.Concat(frame(0x82, []byte("one")), frame(0x02, []byte("two")), frame(0x89, []byte("ping")), frame(0x00, nil), frame(0x80, []byte("three")),
		frame(0x8a, nil), frame(0x82, long), frame(0x82, longer), frame(0x88, []byte{3, 232}))
	for _, early := range []int{0, 1, 5, 100, len(raw)} {
		c := &trickle{rest: raw[early:]}
		w := &webSocket{conn: c, early: bytes.Clone(raw[:early])}
		got, err := readAll(w, 777)
		if want := slices.Concat([]byte("onetwothree"), long, longer); !bytes.Equal(got, want) || !errors.Is(err, io.EOF) {
			t.Errorf("%d early bytes: %d bytes came, want %d: %v", early, len(got), len(want), err)
		}
		if said := c.said.Bytes(); !bytes.Equal(said, []byte("\x8a\x04ping\x88\x02\x03\xe8")) {
			t.Errorf("answered %x", said)
		}
	}
}

func TestWebSocketRefusesFramesThatTheStandardForbids(t *testing.T) {
	for name, raw := range map[string][]byte{
		"no mask":                    {0x82, 0x01, 'a'},
		"an extension":               frame(0xc2, []byte("a")),
		"text":                       frame(0x81, []byte("a")),
		"an unknown type":            frame(0x83, nil),
		"a long ping":                frame(0x89, make([]byte, 126)),
		"a ping in pieces":           frame(0x09, nil),
		"a continuation of nothing":  frame(0x80, nil),
		"a message within a message": slices.Concat(frame(0x02, []byte("a")), frame(0x82, []byte("b"))),
		"more than there can be":     {0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4},
	} {
		_, err := readAll(&webSocket{conn: &trickle{rest: raw}}, 100)
		if _, ok := errors.AsType[*mqtt.PacketError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzWebSocket: whatever comes, there is no panic and no endless loop, and no byte more comes out than
// went in.
func FuzzWebSocket(f *testing.F) {
	f.Add(slices.Concat(frame(0x82, []byte("one")), frame(0x89, []byte("ping")), frame(0x02, []byte("two")), frame(0x80, []byte("x")), frame(0x88, nil)), 3)
	f.Add(frame(0x82, make([]byte, 70_000)), 0)
	f.Fuzz(func(t *testing.T, raw []byte, early int) {
		early = max(0, min(early, len(raw)))
		got, err := readAll(&webSocket{conn: &trickle{rest: raw[early:]}, early: bytes.Clone(raw[:early])}, 100)
		if len(got) > len(raw) || err == nil {
			t.Fatalf("%d bytes of %d, %v", len(got), len(raw), err)
		}
	})
}
