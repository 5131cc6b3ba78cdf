package link

import (
	"context"
	"errors"
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

	strangers int // the sum of strange
	sessions  int // of MQTT, of all devices
}

// party is one device that is or was lately connected. Its maps are made when they are needed: there are
// tens of thousands of parties, most of them with nothing but one session.
type party struct {
	limit    *rate.Limiter      // shared by HTTPS and MQTT
	conns    map[*conn]struct{} // of HTTPS
	sessions []*session         // of MQTT, at most wire.MaxMQTTConnections
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

// devices is how many connections there are of devices that are known, of both protocols.
func (d *doors) devices() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns) - d.strangers
}

func (d *doors) counts() (connections, sessions int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns), d.sessions
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
	d.strangers++
	c.strangeOf = host
	return true
}

// known takes the connection off its address' account. The lock is held.
func (d *doors) known(c *conn) {
	if !c.strangeOf.IsValid() {
		return
	}
	d.strangers--
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
	p := d.party(num)
	if v.conn != nil && v.conn.num == 0 { // a connection's certificate, and so its device, never changes
		v.conn.num = num
		d.known(v.conn)
		if p.conns == nil {
			p.conns = map[*conn]struct{}{}
		}
		p.conns[v.conn] = struct{}{}
	}
	if len(p.requests) >= d.cfg.Concurrent {
		return tooMany
	}
	if p.requests == nil {
		p.requests = map[*visit]struct{}{}
	}
	p.requests[v] = struct{}{}
	return admitted
}

// party returns the device's party, a new one when it has none. The lock is held.
func (d *doors) party(num int64) *party {
	p := d.parties[num]
	if p == nil {
		p = &party{limit: rate.NewLimiter(rate.Limit(d.cfg.Rate), d.cfg.Burst)}
		d.parties[num] = p
	}
	p.last = d.cfg.Now()
	return p
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
		if len(p.conns) == 0 && len(p.requests) == 0 && len(p.sessions) == 0 && now.Sub(p.last) > sweepEvery {
			delete(d.parties, num)
			continue
		}
		if len(p.conns) == 0 {
			p.conns = nil
		}
		if len(p.requests) == 0 {
			p.requests = nil
		}
	}
	for num, at := range d.revoked {
		if time.Since(at) > sweepEvery {
			delete(d.revoked, num)
		}
	}
}

// closeAll closes all connections but those that say goodbye.
func (d *doors) closeAll() {
	d.mu.Lock()
	var all []*conn
	for c := range d.conns {
		all = append(all, c)
	}
	d.mu.Unlock()
	for _, c := range all {
		if !c.parting.Load() {
			_ = c.Close()
		}
	}
}
