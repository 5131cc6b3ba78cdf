package access

import (
	"sync"
	"time"
)

// grant is what a token or a session gives, as the database had it.
type grant struct {
	account Account
	tenant  string    // of a session: the one chosen
	session string    // hash; empty for a token
	token   Token     // without ID for a session
	seen    time.Time // last use as stored
	expires time.Time
}

const (
	cacheLife = 5 * time.Second
	// cacheSize bounds the entries; a full cache starts anew.
	cacheSize = 10_000
	// touchEvery is how exact the time of the last use is stored.
	touchEvery = time.Minute
)

// cache keeps grants by the hash of their secret; safe for concurrent use.
type cache struct {
	now func() time.Time

	mu      sync.Mutex
	era     uint64 // grows with each clear
	entries map[string]*cacheEntry
}

type cacheEntry struct {
	grant
	read time.Time
}

func newCache(now func() time.Time) *cache {
	return &cache{now: now, entries: map[string]*cacheEntry{}}
}

// get returns what is known, and the era to put with what is read when nothing is.
func (c *cache) get(hash string) (g grant, era uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[hash]
	if !ok || c.now().Sub(e.read) >= cacheLife {
		return grant{}, c.era, false
	}
	return e.grant, c.era, true
}

// put keeps a grant, unless the cache was cleared since the era: then it may be older than the change.
func (c *cache) put(hash string, g grant, era uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if era != c.era {
		return
	}
	if len(c.entries) >= cacheSize {
		clear(c.entries)
	}
	c.entries[hash] = &cacheEntry{grant: g, read: c.now()}
}

// touch notes a use and tells whether it is time to store it; of concurrent callers one is told so.
func (c *cache) touch(hash string, g grant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if e, ok := c.entries[hash]; ok {
		if now.Sub(e.seen) < touchEvery {
			return false
		}
		e.seen = now
		return true
	}
	return now.Sub(g.seen) >= touchEvery
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.era++
	clear(c.entries)
}
