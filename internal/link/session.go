package link

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

// session is one connection of MQTT. What it knows ends with it: what is open for a device, the database
// knows.
//
// Concurrency. Reading is done by one goroutine at a time, which owns the fields up to mu. When there is
// nothing to read it ends, and a fresh one waits for the next packet: an idle session costs the smallest
// stack there is, no buffer and no timer. Packets are handled one after the other, so that a device's
// messages keep their order and a device that sends too much finds its own socket full. Writing is done by
// whoever holds writes, see flush; mu guards the rest and is never held during I/O.
//
//	greet → begin → loop ⇄ park/await → end
//	                 ↓ packet: connect, receive, subscribe, …
type session struct {
	s      *Server
	conn   *conn
	tls    *tls.Conn
	stream io.ReadWriter // tls, or the WebSocket upon it
	web    bool

	cert []byte  // DER, to be judged again; crypto/tls no longer has it
	key  certKey // of it

	// From CONNECT.
	version   byte // 0 until then
	taciturn  bool // the client wants no reasons but with CONNACK and DISCONNECT (Request Problem Information)
	id        device.ID
	tenant    device.TenantID
	clientID  string
	keepAlive time.Duration // 0 means that the client sends no pings
	mostBytes int           // of a packet that the client takes
	will      *mqtt.Message
	current   bool // it has said which desired state it has, and has not subscribed yet
	opened    time.Time

	silent   time.Time // when the keep-alive time will have passed, and half of it again
	alive    time.Time // when the last sign of life was passed on
	judged   time.Time // when the certificate was last judged
	released []uint16  // identifiers of QoS 2 that wait for PUBREL

	writes sync.Mutex

	mu       sync.Mutex
	subs     subscriptions
	control  []byte       // encoded packets that nothing holds back
	answers  []byte       // encoded messages that go behind them: the acknowledgement comes first
	queue    []message    // commands that wait for their turn
	pending  *wire.Sealed // the newest desired state that the device was not sent yet
	epoch    int64        // of the desired state it was sent last, or says that it has
	onWay    []uint16     // QoS 1 identifiers without acknowledgement
	window   int          // how many these may be
	lastID   uint16
	commands map[string]struct{} // that were sent in this session
	more     bool                // commands wait for which there was no room
	ended    string              // why it ends; empty while it lives
	stay     bool                // the will is not published: the device is not to blame
}

// Times of a session.
const (
	connectTime  = 10 * time.Second // from the handshake to CONNECT
	aliveEvery   = time.Minute      // signs of life are passed on at most so often
	judgeEvery   = 10 * time.Minute // a certificate is judged anew at the next sign of life; the bus is quicker
	writeTime    = 10 * time.Second // for a device to take a packet
	farewellTime = 200 * time.Millisecond
)

// begin takes over a connection that is through with TLS. It returns when there is nothing to read yet.
func (s *Server) begin(ss *session) {
	if certs := ss.tls.ConnectionState().PeerCertificates; len(certs) > 0 {
		ss.cert = slices.Clone(certs[0].Raw)
		ss.key = keyOf(ss.cert)
		// While it is there in parsed form; what becomes of it, CONNECT will ask.
		_, _ = s.who.certificate(s.base, certs[0])
	}
	slimPeer(ss.tls)
	ss.opened = time.Now()
	ss.silent = ss.opened.Add(connectTime)
	ss.conn.mode = quiet
	if !s.open() {
		_ = ss.conn.Close()
		return
	}
	ss.loop()
}

// loop handles packets until there is nothing to read.
func (ss *session) loop() {
	defer func() {
		if p := recover(); p != nil {
			ss.s.cfg.Log.Error("link: panic", "panic", p, "stack", string(debug.Stack()), "device.id", string(ss.id))
			ss.close("an error of the server", mqtt.UnspecifiedError)
			ss.end()
		}
	}()
	var first [1]byte
	for {
		if ss.conn.raw == nil {
			_ = ss.conn.SetReadDeadline(ss.silent)
		}
		_, err := io.ReadFull(ss.stream, first[:])
		if errors.Is(err, errQuiet) {
			ss.park()
			return
		}
		if err != nil {
			ss.lost(err)
			ss.end()
			return
		}
		if err := ss.packet(first[0]); err != nil {
			ss.refuse(err)
			ss.end()
			return
		}
		if slimBuffers(ss.tls) && ss.conn.raw != nil && ss.empty() {
			ss.park()
			return
		}
	}
}

// empty tells whether nothing is held above TLS.
func (ss *session) empty() bool {
	w, ok := ss.stream.(*webSocket)
	return !ok || w.empty()
}

// park leaves the waiting to a goroutine with a fresh stack.
func (ss *session) park() {
	_ = ss.conn.SetReadDeadline(ss.silent) // zero means none
	go ss.await()
}

func (ss *session) await() {
	err := ss.conn.wait()
	ss.s.crew.do(func() {
		if err != nil {
			ss.lost(err)
			ss.end()
			return
		}
		ss.loop()
	})
}

// lost notes why reading has failed.
func (ss *session) lost(err error) {
	why := "the connection was lost"
	if errors.Is(err, os.ErrDeadlineExceeded) {
		why = "nothing came within one and a half times the keep-alive time"
		if ss.version == 0 {
			why = "no CONNECT came"
		}
		ss.close(why, mqtt.KeepAliveTimeout)
		return
	}
	if problem, ok := errors.AsType[*mqtt.PacketError](err); ok { // of the WebSocket
		ss.refuse(problem)
		return
	}
	ss.close(why, mqtt.Success)
}

// refuse ends the session because of a packet.
func (ss *session) refuse(err error) {
	problem, ok := errors.AsType[*mqtt.PacketError](err)
	if !ok {
		ss.lost(err)
		return
	}
	ss.s.cfg.Log.Debug("link: packet refused", "device.id", string(ss.id), "error", err, logAttr(ss.conn))
	ss.close(problem.Detail, problem.Code)
}

// close ends the session from any goroutine. A client of MQTT 5 is told why, unless the reason is Success
// or telling it would have to wait long. The goroutine that reads notices, and does the rest in end.
func (ss *session) close(why string, reason mqtt.Reason) {
	ss.mu.Lock()
	again := ss.ended != ""
	if !again {
		ss.ended = why
		ss.stay = reason == mqtt.ServerShuttingDown
	}
	ss.mu.Unlock()
	if again {
		return
	}
	if ss.version == mqtt.Version5 && reason != mqtt.Success {
		ss.farewell(why, reason)
		return
	}
	_ = ss.conn.Close()
}

// farewell tells a client why its connection ends, and closes it. A write that is under way, and waits for
// a client that doesn't read, is cut short.
func (ss *session) farewell(why string, reason mqtt.Reason) {
	_ = ss.conn.SetWriteDeadline(time.Now().Add(farewellTime))
	ss.writes.Lock()
	defer ss.writes.Unlock()
	p := mqtt.Packet{ProtocolVersion: mqtt.Version5, ReasonCode: byte(reason)}
	p.FixedHeader.Type = mqtt.TypeDisconnect
	p.Properties.ReasonString = why
	p.Properties.User = ss.s.reconnect()
	_ = mqtt.Write(ss.stream, &p)
	tcp, ok := ss.conn.Conn.(interface{ CloseWrite() error })
	if !ok {
		_ = ss.conn.Close()
		return
	}
	// What the device has sent and nobody reads would make the system take back the farewell: see drain.
	ss.conn.parting.Store(true)
	_ = tcp.CloseWrite()
	_ = ss.conn.SetReadDeadline(time.Now().Add(farewellTime))
	time.AfterFunc(2*farewellTime, func() { _ = ss.conn.Close() })
}

// over tells whether the session ends.
func (ss *session) over() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.ended != ""
}

// end is the last that the goroutine does that reads.
func (ss *session) end() {
	defer ss.s.done()
	ss.drain()
	_ = ss.conn.Close()
	if ss.version == 0 {
		return
	}
	left := ss.s.doors.part(ss)
	ss.mu.Lock()
	why, stay := ss.ended, ss.stay
	ss.mu.Unlock()
	if left {
		ss.s.cfg.Presence.Disconnected(ss.device(), why)
	}
	ss.s.cfg.Log.Debug("link: session ended", "device.id", string(ss.id), "mqtt.client", ss.clientID, "reason", why, slog.Duration("duration", time.Since(ss.opened)))
	if w := ss.will; w != nil && !stay {
		ss.publishWill(w)
	}
}

// drain reads on for a moment after a farewell, see close.
func (ss *session) drain() {
	var waste [512]byte
	for range 128 {
		if _, err := ss.conn.Conn.Read(waste[:]); err != nil {
			return
		}
	}
}

// device is what the session knows of its device by itself.
func (ss *session) device() device.Device {
	return device.Device{Num: ss.conn.num, ID: ss.id, Tenant: ss.tenant}
}

// judge tells whose certificate it is, by what is known for a minute at most.
func (ss *session) judge() (device.Device, error) {
	if ss.cert == nil {
		return ss.s.who.certificate(ss.s.base, nil)
	}
	return ss.s.who.find(ss.s.base, ss.key, func() (*x509.Certificate, error) { return x509.ParseCertificate(ss.cert) })
}

// via names the protocol as monitoring shows it.
func (ss *session) via() string {
	via := "mqtt/3.1.1"
	if ss.version == mqtt.Version5 {
		via = "mqtt/5"
	}
	if ss.web {
		via += "+ws"
	}
	return via
}
