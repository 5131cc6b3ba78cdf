package httpapi

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is how many requests one principal may make: on average, and at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// DefaultRate serves a busy script and stops a loop that went wild.
var DefaultRate = Rate{PerSecond: 200, Burst: 400}

// limiterSize bounds how many principals are remembered; who was quiet longest is forgotten first.
const limiterSize = 10_000

// limiter holds one token bucket per key in bounded memory; safe for concurrent use.
type limiter struct {
	rate Rate
	now  func() time.Time

	mu   sync.Mutex
	keys map[string]*list.Element // of *bucket
	used *list.List               // most recently used first
}

type bucket struct {
	key string
	*rate.Limiter
}

func newLimiter(r Rate, now func() time.Time) *limiter {
	return &limiter{rate: r, now: now, keys: map[string]*list.Element{}, used: list.New()}
}

// take takes one request from the key's bucket, or says how long to wait for one.
func (l *limiter) take(key string) (wait time.Duration, ok bool) {
	now := l.now()
	res := l.bucket(key).ReserveN(now, 1)
	if !res.OK() {
		return time.Minute, false
	}
	if d := res.DelayFrom(now); d > 0 {
		res.CancelAt(now)
		return d, false
	}
	return 0, true
}

func (l *limiter) bucket(key string) *bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, found := l.keys[key]; found {
		l.used.MoveToFront(e)
		return e.Value.(*bucket)
	}
	b := &bucket{key: key, Limiter: rate.NewLimiter(rate.Limit(l.rate.PerSecond), l.rate.Burst)}
	l.keys[key] = l.used.PushFront(b)
	if l.used.Len() > limiterSize {
		oldest := l.used.Back()
		l.used.Remove(oldest)
		delete(l.keys, oldest.Value.(*bucket).key)
	}
	return b
}
