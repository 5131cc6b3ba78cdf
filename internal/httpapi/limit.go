package httpapi

import (
	"container/list"
	"sync"
	"time"
)

// Rate is how many requests one principal may make: on average, and at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// DefaultRate serves a busy script and stops a loop that went wild.
var DefaultRate = Rate{PerSecond: 200, Burst: 400}

// limiterSize bounds how many keys are remembered; who was quiet longest is forgotten first, which
// gives at most a full bucket back.
const limiterSize = 10_000

// Limiter holds one token bucket per key in bounded memory; safe for concurrent use. It counts on this
// node only and starts anew with the process.
type Limiter struct {
	rate Rate
	now  func() time.Time

	mu   sync.Mutex
	keys map[string]*list.Element // of *bucket
	used *list.List               // most recently used first
}

type bucket struct {
	key    string
	tokens float64
	at     time.Time // when tokens was right
}

// NewLimiter returns a limiter of full buckets.
func NewLimiter(r Rate, now func() time.Time) *Limiter {
	return &Limiter{rate: r, now: now, keys: map[string]*list.Element{}, used: list.New()}
}

// Take takes one token from the key's bucket, or says how long to wait for one and takes none.
func (l *Limiter) Take(key string) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucket(key)
	if b.tokens >= 1 {
		b.tokens--
		return 0, true
	}
	if l.rate.PerSecond <= 0 {
		return time.Hour, false
	}
	return time.Duration((1 - b.tokens) / l.rate.PerSecond * float64(time.Second)), false
}

// Return gives back a token that was taken for something that need not be counted.
func (l *Limiter) Return(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucket(key)
	b.tokens = min(b.tokens+1, float64(l.rate.Burst))
}

// Reset fills the key's bucket.
func (l *Limiter) Reset(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, found := l.keys[key]; found {
		l.used.Remove(e)
		delete(l.keys, key)
	}
}

// bucket returns the key's bucket as of now; the caller holds mu.
func (l *Limiter) bucket(key string) *bucket {
	now := l.now()
	if e, found := l.keys[key]; found {
		l.used.MoveToFront(e)
		b := e.Value.(*bucket)
		if gone := now.Sub(b.at); gone > 0 {
			b.tokens = min(b.tokens+gone.Seconds()*l.rate.PerSecond, float64(l.rate.Burst))
			b.at = now
		}
		return b
	}
	b := &bucket{key: key, tokens: float64(l.rate.Burst), at: now}
	l.keys[key] = l.used.PushFront(b)
	if l.used.Len() > limiterSize {
		oldest := l.used.Back()
		l.used.Remove(oldest)
		delete(l.keys, oldest.Value.(*bucket).key)
	}
	return b
}
