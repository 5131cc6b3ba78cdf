package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"steward/internal/wire"
)

// Who knocks: after a restart a whole fleet does. Only so many handshakes compute at a time that those
// who are in are still served; only so many are accepted and not yet through that memory stays bounded;
// the others wait in the kernel's queue, where waiting costs nothing and nobody is turned away.
const (
	knockersMost  = 2048             // accepted, and not yet through the handshake
	handshakeTime = 10 * time.Second // for all of it
	pressedTime   = 3 * time.Second  // after that a silent one makes room, when there is none

	acceptPause        = 10 * time.Millisecond // after an error; longer with each that follows at once, up to a second
	acceptFailuresMost = 300                   // one after the other; then the listener is given up
)

// place is a turn to compute; see conn.Read.
type place struct{ turns chan struct{} }

func (p *place) enter() { p.turns <- struct{}{} }
func (p *place) leave() { <-p.turns }

// gate counts who is within the handshake.
type gate struct {
	turns chan struct{} // one for each handshake that computes
	room  chan struct{} // one for each that is accepted
	now   atomic.Int64

	mu    sync.Mutex
	first *knocker // oldest first, so that the one that has been silent longest is found at once
	last  *knocker
}

// knocker is a connection within its handshake.
type knocker struct {
	conn       *conn
	since      time.Time
	prev, next *knocker
}

func newGate(room int) *gate {
	return &gate{turns: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), room: make(chan struct{}, room)}
}

// wait returns when there is room for one more connection. Under pressure it makes room.
func (g *gate) wait(ctx context.Context) error {
	select {
	case g.room <- struct{}{}:
		return nil
	default:
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		g.press()
		select {
		case g.room <- struct{}{}:
			return nil
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// press closes the connection that has been within its handshake for longest, when that is long.
func (g *gate) press() {
	g.mu.Lock()
	k := g.first
	g.mu.Unlock()
	if k != nil && time.Since(k.since) > pressedTime {
		_ = k.conn.Close()
	}
}

func (g *gate) in(c *conn) *knocker {
	k := &knocker{conn: c, since: time.Now()}
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.prev = g.last; k.prev != nil {
		k.prev.next = k
	} else {
		g.first = k
	}
	g.last = k
	g.now.Add(1)
	return k
}

func (g *gate) out(k *knocker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.prev != nil {
		k.prev.next = k.next
	} else {
		g.first = k.next
	}
	if k.next != nil {
		k.next.prev = k.prev
	} else {
		g.last = k.prev
	}
	g.now.Add(-1)
	<-g.room
}

// keepAlive finds dead peers between long polls without waking a sleepy modem often.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 4 * time.Minute, Interval: 30 * time.Second, Count: 4}

// accept takes connections of one listener until it is closed. What is beyond MaxConnections, or beyond
// one address' share, is closed at once: a device then tries again later.
func (s *Server) accept(ctx context.Context, l net.Listener, config *tls.Config) error {
	var warned time.Time
	failures := 0
	for {
		if err := s.gate.wait(ctx); err != nil {
			return nil
		}
		raw, err := l.Accept()
		if err != nil {
			<-s.gate.room
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			// As a rule it passes: too many open files, or a peer that has gone meanwhile.
			if failures++; failures > acceptFailuresMost {
				return err
			}
			s.cfg.Log.Warn("link: can't take a connection", "error", err)
			select {
			case <-time.After(min(time.Duration(failures)*acceptPause, time.Second)):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		failures = 0
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetKeepAliveConfig(keepAlive) // without it, timeouts find them later
		}
		c := newConn(raw, s.doors)
		if !s.doors.add(c, s.cfg.MaxConnections) {
			<-s.gate.room
			_ = raw.Close()
			if now := time.Now(); now.Sub(warned) > time.Minute {
				warned = now
				s.cfg.Log.Warn("link: too many connections, new ones are closed", "max", s.cfg.MaxConnections, "of", raw.RemoteAddr().String())
			}
			continue
		}
		s.running.Add(1)
		s.crew.do(func() {
			defer s.running.Done()
			s.greet(c, config)
		})
	}
}

// greet leads a connection through TLS and hands it on: to a session of MQTT, whose first packet it waits
// for on a goroutine with a small stack, or to net/http.
func (s *Server) greet(c *conn, config *tls.Config) {
	defer func() {
		if p := recover(); p != nil { // of the room that identifies devices
			s.cfg.Log.Error("link: panic", "panic", p, "stack", string(debug.Stack()))
			_ = c.Close()
		}
	}()
	k := s.gate.in(c)
	t := tls.Server(c, config)
	err := s.handshake(c, t)
	s.gate.out(k)
	if err != nil {
		_ = c.Close()
		s.cfg.Log.Debug("link: handshake", "client.address", c.RemoteAddr().String(), "error", err) // scanners and such
		return
	}
	_ = c.SetDeadline(time.Time{})
	if proto := t.ConnectionState().NegotiatedProtocol; proto == wire.ALPNMQTT || (config == s.mqttTLS && proto == "") {
		s.begin(&session{s: s, conn: c, tls: t, stream: t})
		return
	}
	if !s.handed.put(t) {
		_ = c.Close()
	}
}

func (s *Server) handshake(c *conn, t *tls.Conn) error {
	if err := c.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if c.raw != nil {
		if err := c.wait(); err != nil { // silent ones take no turn, and no more memory than this
			return err
		}
	}
	c.place = &place{s.gate.turns}
	c.place.enter()
	defer func() {
		c.place.leave()
		c.place = nil
	}()
	return t.HandshakeContext(context.Background()) // the deadline bounds it
}

// handed is the listener from which net/http takes connections that are through with their handshake.
type handed struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func newHanded(addr net.Addr) *handed {
	return &handed{conns: make(chan net.Conn), done: make(chan struct{}), addr: addr}
}

func (h *handed) put(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handed) Addr() net.Addr { return h.addr }

// logAttr is the address of a peer, for the log.
func logAttr(c net.Conn) slog.Attr { return slog.String("client.address", c.RemoteAddr().String()) }
