package provisioning

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"steward/internal/fault"
	"steward/internal/wire"
)

// Failed enrollments per address: twenty at once, then one in three seconds. Guessing a secret of 130
// bits is hopeless anyway; the bound spares the database. Many devices may share one address, so only
// failures count.
const (
	failureBurst     = 20.0
	failureSeconds   = 3.0
	failureAddresses = 8192
)

// failures is a token bucket per address (IPv6: per /64, which is what one host controls). When it is
// full, an address with little against it is forgotten, so it never grows.
type failures struct {
	now func() time.Time
	mu  sync.Mutex
	by  map[netip.Addr]bucket
}

type bucket struct {
	level float64 // failures that are still held against the address
	at    time.Time
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, by: map[netip.Addr]bucket{}}
}

func (b bucket) levelAt(now time.Time) float64 {
	return math.Max(0, b.level-now.Sub(b.at).Seconds()/failureSeconds)
}

// check returns a refusal with the time to wait while the address has failed too often.
func (f *failures) check(address string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	level := f.by[hostOf(address)].levelAt(f.now())
	if level < failureBurst {
		return nil
	}
	wait := time.Duration((level - failureBurst + 1) * failureSeconds * float64(time.Second))
	return fault.Later(fault.TooMany, wire.CodeTooMany, wait, "too many failed enrollments from this address")
}

// add counts one failure.
func (f *failures) add(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	host, now := hostOf(address), f.now()
	if _, known := f.by[host]; !known && len(f.by) >= failureAddresses {
		f.forget(now)
	}
	f.by[host] = bucket{level: f.by[host].levelAt(now) + 1, at: now}
}

// forget drops the least held against of a few: the map's random order makes them a sample.
func (f *failures) forget(now time.Time) {
	const sample = 64
	var least netip.Addr
	lowest, seen := math.Inf(1), 0
	for host, b := range f.by {
		if seen++; seen > sample {
			break
		}
		if level := b.levelAt(now); level < lowest {
			least, lowest = host, level
		}
	}
	delete(f.by, least)
}

// hostOf takes "address:port" or an address; what can't be read shares one bucket.
func hostOf(address string) netip.Addr {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return subnet(ap.Addr())
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.IPv6Unspecified()
	}
	return subnet(a)
}

func subnet(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}
