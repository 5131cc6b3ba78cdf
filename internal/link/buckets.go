package link

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Requests without a valid certificate, per network address: enrollments of many devices behind one
// address must pass, floods not.
const (
	strangeRate      = 20 // per second
	strangeBurst     = 200
	strangeAddresses = 8192
)

// buckets limits requests per address (IPv6: per /64) in bounded memory: when it is full, an arbitrary
// address is forgotten.
type buckets struct {
	now func() time.Time
	mu  sync.Mutex
	by  map[netip.Addr]*rate.Limiter
}

func newBuckets(now func() time.Time) *buckets {
	return &buckets{now: now, by: map[netip.Addr]*rate.Limiter{}}
}

// take returns how long the address must wait; 0 lets the request pass.
func (b *buckets) take(remote string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	host := hostOf(remote)
	l := b.by[host]
	if l == nil {
		if len(b.by) >= strangeAddresses {
			for any := range b.by {
				delete(b.by, any)
				break
			}
		}
		l = rate.NewLimiter(strangeRate, strangeBurst)
		b.by[host] = l
	}
	return take(l, b.now())
}

func hostOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.IPv6Unspecified()
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	if p, err := a.Prefix(64); err == nil {
		return p.Addr()
	}
	return a
}
