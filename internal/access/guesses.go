package access

import (
	"net/netip"
	"sync/atomic"
	"time"

	"steward/internal/fault"
	"steward/internal/httpapi"
)

// guesses limits failed sign-ins. Every attempt takes a token of each bucket before the password is
// looked at, so that attempts at the same time are counted, too; a right password gives them back.
type guesses struct {
	pair    *httpapi.Limiter // account and address
	account *httpapi.Limiter
	address *httpapi.Limiter

	eventEach *httpapi.Limiter // events per account or address
	eventAll  *httpapi.Limiter
	left      atomic.Int64 // events left out since the last
}

func newGuesses(now func() time.Time) *guesses {
	each := func(every time.Duration, burst int) *httpapi.Limiter {
		return httpapi.NewLimiter(httpapi.Rate{PerSecond: 1 / every.Seconds(), Burst: burst}, now)
	}
	return &guesses{
		pair: each(30*time.Second, 5), account: each(20*time.Second, 50), address: each(10*time.Second, 30),
		eventEach: each(time.Minute, 1), eventAll: each(10*time.Second, 20),
	}
}

// attempt is one try to sign in, for its buckets.
type attempt struct{ name, network string }

func newAttempt(name string, client netip.Addr) attempt {
	return attempt{name: name, network: httpapi.ClientNetwork(client)}
}

func (a attempt) pair() string { return a.name + "\x00" + a.network }

// begin counts an attempt, or refuses it with the time to wait.
func (g *guesses) begin(a attempt) error {
	taken := []func(){}
	for _, b := range []struct {
		l   *httpapi.Limiter
		key string
	}{{g.address, a.network}, {g.account, a.name}, {g.pair, a.pair()}} {
		wait, ok := b.l.Take(b.key)
		if !ok {
			for _, undo := range taken {
				undo()
			}
			return &httpapi.Later{After: wait, Err: fault.New(fault.TooMany,
				"too many failed attempts to sign in; try again in %s", wait.Round(time.Second)+time.Second)}
		}
		taken = append(taken, func() { b.l.Return(b.key) })
	}
	return nil
}

// right forgets the failures of an account from that address.
func (g *guesses) right(a attempt) {
	g.address.Return(a.network)
	g.account.Return(a.name)
	g.pair.Reset(a.pair())
}

// mayTell tells whether a failure goes to the ledger, and how many were left out before it.
func (g *guesses) mayTell(key string) (left int64, ok bool) {
	if _, ok := g.eventEach.Take(key); !ok {
		g.left.Add(1)
		return 0, false
	}
	if _, ok := g.eventAll.Take(""); !ok {
		g.left.Add(1)
		return 0, false
	}
	return g.left.Swap(0), true
}
