package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// doors knows which connections are open, whose they are and what each device is doing.
type doors struct {
	cfg Config

	mu      sync.Mutex
	conns   map[*conn]struct{}
	strange map[netip.Addr]int // connections of which no request was identified yet, by address as buckets
	parties map[int64]*party
	revoked map[int64]time.Time // lately, so that a request that was identified just before is caught
}

// party is one device that is or was lately connected.
type party struct {
	limit    *rate.Limiter
	conns    map[*conn]struct{}
	requests map[*visit]struct{}
	last     time.Time
}

// visit is one running request of a device.
type visit struct {
	conn   *conn
	cancel context.CancelCauseFunc
	keep   bool // is answered even though the device is revoked meanwhile, by this very request
}

var errRevokedNow = errors.New("revoked during the request")

func newDoors(cfg Config) *doors {
	return &doors{cfg: cfg, conns: map[*conn]struct{}{}, strange: map[netip.Addr]int{}, parties: map[int64]*party{}, revoked: map[int64]time.Time{}}
}

func (d *doors) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

func (d *doors) running(num int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.parties[num]; p != nil {
		return len(p.requests)
	}
	return 0
}

// strangersAtLeast is how many connections that have not shown who they are one address may always have.
const strangersAtLeast = 64

// add takes a connection in; false when there are too many, or when its address alone holds a quarter of
// all places without having shown a device's certificate: one host must not lock the fleet out.
func (d *doors) add(c *conn, most int) bool {
	host := hostOf(c.RemoteAddr().String())
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.conns) >= most || d.strange[host] >= max(most/4, strangersAtLeast) {
		return false
	}
	d.conns[c] = struct{}{}
	d.strange[host]++
	c.strangeOf = host
	return true
}

// known takes the connection off its address' account. The lock is held.
func (d *doors) known(c *conn) {
	if !c.strangeOf.IsValid() {
		return
	}
	if d.strange[c.strangeOf]--; d.strange[c.strangeOf] <= 0 {
		delete(d.strange, c.strangeOf)
	}
	c.strangeOf = netip.Addr{}
}

func (d *doors) remove(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	d.known(c)
	if p := d.parties[c.num]; p != nil {
		delete(p.conns, c)
	}
}

// limited takes one request from the rate of the connection's device, when it is known from an earlier
// request; it spares the database a device that runs wild.
func (d *doors) limited(c *conn) (wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c == nil {
		return 0
	}
	p := d.parties[c.num]
	if p == nil {
		return 0
	}
	return take(p.limit, d.cfg.Now())
}

// take returns how long to wait, 0 when the request may pass.
func take(l *rate.Limiter, now time.Time) time.Duration {
	r := l.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

type admission int

const (
	admitted admission = iota
	tooMany            // requests of this device at a time
	stale              // it was revoked since it was identified: identify again
)

// enter notes a request of an identified device. identified is when the identification began.
func (d *doors) enter(num int64, v *visit, identified time.Time) admission {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at, ok := d.revoked[num]; ok && !at.Before(identified) {
		return stale
	}
	p := d.parties[num]
	if p == nil {
		p = &party{
			limit: rate.NewLimiter(rate.Limit(d.cfg.Rate), d.cfg.Burst),
			conns: map[*conn]struct{}{}, requests: map[*visit]struct{}{},
		}
		d.parties[num] = p
	}
	p.last = d.cfg.Now()
	if v.conn != nil && v.conn.num == 0 { // a connection's certificate, and so its device, never changes
		v.conn.num = num
		d.known(v.conn)
		p.conns[v.conn] = struct{}{}
	}
	if len(p.requests) >= d.cfg.Concurrent {
		return tooMany
	}
	p.requests[v] = struct{}{}
	return admitted
}

func (d *doors) leave(num int64, v *visit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.parties[num]; p != nil {
		delete(p.requests, v)
		p.last = d.cfg.Now()
	}
	if v.keep && v.conn != nil { // net/http sends the answer when the handlers have returned
		v.conn.speaks = time.Now().Add(lastWord)
	}
}

// lastWord is how long the answer to a request that revoked its own device may take to leave.
const lastWord = 2 * time.Second

// revoke ends the device's requests and closes its connections at once. Only a connection that
// carries the request by which the device was disposed of lives a moment longer, for its answer.
func (d *doors) revoke(num int64) int {
	d.mu.Lock()
	d.revoked[num] = time.Now()
	p := d.parties[num]
	var closing []*conn
	if p != nil {
		now := time.Now()
		keep := map[*conn]bool{}
		for v := range p.requests {
			if v.keep {
				keep[v.conn] = true
				continue
			}
			v.cancel(errRevokedNow)
		}
		for c := range p.conns {
			if keep[c] || now.Before(c.speaks) {
				c.closeSoon()
			} else {
				closing = append(closing, c)
			}
		}
	}
	d.mu.Unlock()
	for _, c := range closing { // remove takes the lock
		_ = c.Close()
	}
	return len(closing)
}

// sweep forgets devices that have gone and revocations that no running request can have missed.
func (d *doors) sweep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.cfg.Now()
	for num, p := range d.parties {
		if len(p.conns) == 0 && len(p.requests) == 0 && now.Sub(p.last) > sweepEvery {
			delete(d.parties, num)
		}
	}
	for num, at := range d.revoked {
		if time.Since(at) > sweepEvery {
			delete(d.revoked, num)
		}
	}
}

func (d *doors) closeAll() {
	d.mu.Lock()
	var all []*conn
	for c := range d.conns {
		all = append(all, c)
	}
	d.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// conn is one TCP connection. num is its device, 0 until a request has been identified; speaks is
// until when an answer may be on its way that must arrive; strangeOf is its address until num is known.
// doors' lock guards all but the first three.
type conn struct {
	net.Conn
	doors     *doors
	once      sync.Once
	num       int64
	speaks    time.Time
	later     *time.Timer
	strangeOf netip.Addr
}

// Close is also what net/http calls; the TCP connection goes at once, without TLS's farewell, which a
// peer that doesn't read could hold up.
func (c *conn) Close() (err error) {
	c.once.Do(func() {
		c.doors.remove(c)
		err = c.Conn.Close()
	})
	return err
}

// closeSoon is called with doors' lock held.
func (c *conn) closeSoon() {
	if c.later == nil {
		c.later = time.AfterFunc(lastWord, func() { _ = c.Close() })
	}
}

type connKey struct{}

// connContext lets a request find its connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if own, ok := t.NetConn().(*conn); ok {
			return context.WithValue(ctx, connKey{}, own)
		}
	}
	return ctx
}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// listener hands out watched connections and closes at once what is too many: a device then tries
// again later, while one that waits in the queue would hold a socket and time out.
type listener struct {
	net.Listener
	doors *doors
	max   int
	log   *slog.Logger

	warned time.Time // Accept is called by one goroutine
}

// keepAlive finds dead peers between long polls without waking a sleepy modem often.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 4 * time.Minute, Interval: 30 * time.Second, Count: 4}

func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetKeepAliveConfig(keepAlive) // without it, timeouts find them later
		}
		c := &conn{Conn: raw, doors: l.doors}
		if l.doors.add(c, l.max) {
			return c, nil
		}
		_ = raw.Close()
		if now := time.Now(); now.Sub(l.warned) > time.Minute {
			l.warned = now
			l.log.Warn("link: too many connections, new ones are closed", "max", l.max, "of", raw.RemoteAddr().String())
		}
	}
}
