package link

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
)

// What Identify has answered is kept for a minute, unless the bus says before that the device or its
// certificates have changed. So a lost message counts for a minute at most, and a busy device costs the
// database one look a minute.
const (
	identityLife = time.Minute
	identityMost = 50_000 // kept at a time; beyond, an arbitrary one goes
)

type certKey = [sha256.Size]byte

func keyOf(raw []byte) certKey { return sha256.Sum256(raw) }

// identities is what is kept, by certificate and by device.
type identities struct {
	identify func(ctx context.Context, cert *x509.Certificate) (device.Device, error)
	now      func() time.Time

	mu      sync.Mutex
	by      map[certKey]identity
	of      map[int64][]certKey // a device rarely has more than one
	drops   int64               // counts drop
	dropped map[int64]int64     // by device: the drop it was since the last sweep
	earlier map[int64]int64     // and between the last two; an answer from before then has long come
}

type identity struct {
	device device.Device
	ends   time.Time // of the certificate
	since  time.Time // it is kept; a clock that was set back ends it, too
}

func (k identity) fresh(now time.Time) bool {
	return !now.Before(k.since) && now.Sub(k.since) < identityLife
}

func newIdentities(cfg Config) *identities {
	return &identities{identify: cfg.Identify, now: cfg.Now, by: map[certKey]identity{}, of: map[int64][]certKey{}, dropped: map[int64]int64{}}
}

// find tells whose certificate it is. cert is called only when that is not known.
func (i *identities) find(ctx context.Context, key certKey, cert func() (*x509.Certificate, error)) (device.Device, error) {
	i.mu.Lock()
	now := i.now()
	known, ok := i.by[key]
	drops := i.drops
	i.mu.Unlock()
	if ok && known.fresh(now) && now.Before(known.ends) {
		return known.device, nil
	}
	c, err := cert()
	if err != nil {
		return device.Device{}, err
	}
	d, err := i.identify(ctx, c)
	if err != nil {
		return d, err
	}
	i.keep(key, identity{d, c.NotAfter, now}, drops)
	return d, nil
}

// certificate is find for a certificate at hand, or for none.
func (i *identities) certificate(ctx context.Context, cert *x509.Certificate) (device.Device, error) {
	if cert == nil {
		return i.identify(ctx, nil)
	}
	return i.find(ctx, keyOf(cert.Raw), func() (*x509.Certificate, error) { return cert, nil })
}

// keep stores an answer, unless its device has changed since it was asked for.
func (i *identities) keep(key certKey, known identity, drops int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if max(i.dropped[known.device.Num], i.earlier[known.device.Num]) > drops {
		return
	}
	if _, has := i.by[key]; !has {
		// A device's first words with a new certificate end the old one. So nothing that is kept of it counts.
		for _, other := range slices.Clone(i.of[known.device.Num]) {
			i.remove(other)
		}
		if len(i.by) >= identityMost {
			for other := range i.by {
				i.remove(other)
				break
			}
		}
		i.of[known.device.Num] = append(i.of[known.device.Num], key)
	}
	i.by[key] = known
}

// remove is called with the lock held.
func (i *identities) remove(key certKey) {
	num := i.by[key].device.Num
	delete(i.by, key)
	keys := i.of[num]
	for at, k := range keys {
		if k == key {
			keys = append(keys[:at:at], keys[at+1:]...)
			break
		}
	}
	if i.of[num] = keys; len(keys) == 0 {
		delete(i.of, num)
	}
}

// drop forgets what is kept of a device.
func (i *identities) drop(num int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.drops++
	i.dropped[num] = i.drops
	for _, key := range i.of[num] {
		delete(i.by, key)
	}
	delete(i.of, num)
}

// sweep forgets what has ended; it is called once a minute.
func (i *identities) sweep() {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	for key, known := range i.by {
		if !known.fresh(now) {
			i.remove(key)
		}
	}
	i.earlier, i.dropped = i.dropped, map[int64]int64{}
}
