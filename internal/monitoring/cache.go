package monitoring

import (
	"context"
	"sync"
	"time"
)

// cache keeps costly answers for a minute and lets one reader compute what several wait for. Its zero
// value is ready.
type cache[K comparable, V any] struct {
	mu   sync.Mutex
	kept map[K]*cached[V]
}

type cached[V any] struct {
	turn  chan struct{} // holds one element while somebody computes or reads
	until time.Time
	value V
}

const (
	cacheFresh = time.Minute
	cacheSize  = 100
)

func (c *cache[K, V]) entry(key K) *cached[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.kept[key]; e != nil {
		return e
	}
	if c.kept == nil || len(c.kept) >= cacheSize {
		c.kept = map[K]*cached[V]{} // who still waits for an old entry keeps it
	}
	e := &cached[V]{turn: make(chan struct{}, 1)}
	c.kept[key] = e
	return e
}

// get returns the kept answer, or computes it. An error is kept for nobody.
func (c *cache[K, V]) get(ctx context.Context, key K, now func() time.Time, compute func() (V, error)) (V, error) {
	return c.getIf(ctx, key, now, func(V) bool { return true }, compute)
}

// getIf is get that keeps only what is worth it.
func (c *cache[K, V]) getIf(ctx context.Context, key K, now func() time.Time, worth func(V) bool, compute func() (V, error)) (V, error) {
	var none V
	e := c.entry(key)
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return none, ctx.Err()
	}
	if now().Before(e.until) {
		return e.value, nil
	}
	value, err := compute()
	if err != nil {
		return none, err
	}
	if worth(value) {
		e.value, e.until = value, now().Add(cacheFresh)
	}
	return value, nil
}
