package swarm

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"steward/internal/agent/link"
	ownid "steward/internal/device"
	"steward/internal/wire"
)

// squad is the devices of one process.
type squad struct {
	devices []*device
	roots   *x509.CertPool
	docs    documents
	boot    string

	copies sync.Map // of certificates that many devices have: their bytes, once
	marked int64    // Unix microseconds of the last mark

	mu   sync.Mutex // guards seen, which devices add to by themselves
	seen Tally

	stop context.CancelFunc // ends the devices' lives
	wg   sync.WaitGroup
}

func newSquad() *squad {
	return &squad{docs: makeDocuments(), boot: ownid.RandomName(12), stop: func() {}}
}

// trustIn takes the roots that the link's certificate chains to.
func (s *squad) trustIn(t wire.Trust) error {
	roots, err := link.RootsOf(t)
	if err != nil {
		return err
	}
	s.roots = x509.NewCertPool()
	for _, r := range roots {
		s.roots.AddCert(r)
	}
	return nil
}

// shared returns one copy of equal bytes.
func (s *squad) shared(raw []byte) []byte {
	one, _ := s.copies.LoadOrStore(string(raw), raw)
	return one.([]byte)
}

func hostOf(door string) string {
	host, _, err := net.SplitHostPort(door)
	if err != nil {
		return door
	}
	return host
}

// maxFacts bounds how many different troubles are told apart.
const maxFacts = 12

// note remembers something that went wrong without an order waiting for it; the next order's tally tells it.
func (s *squad) note(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	text := err.Error()
	if i := strings.Index(text, "->"); i >= 0 { // addresses differ; what happened is the same
		text = "network" + text[i+2:]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.First == "" {
		s.seen.First = text
	}
	text = "trouble: " + text
	if _, counted := s.seen.Facts[text]; !counted && len(s.seen.Facts) >= maxFacts {
		text = "trouble: others"
	}
	s.seen.Fact(text, 1)
}

// noteOf notes what an acknowledgement says.
func (s *squad) noteOf(doing string) func(error) {
	return func(err error) {
		if err != nil {
			s.note(fmt.Errorf("%s: %w", doing, err))
		}
	}
}

func (s *squad) fact(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen.Fact(name, 1)
}

// shook counts a handshake.
func (s *squad) shook(resumed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if resumed {
		s.seen.Fact("resumed", 1)
	} else {
		s.seen.Fact("full", 1)
	}
}

// take moves what was seen since the last call into the tally.
func (s *squad) take(t *Tally) *Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, n := range s.seen.Facts {
		t.Fact(name, n)
	}
	if t.First == "" {
		t.First = s.seen.First
	}
	s.seen = Tally{}
	return t
}

// connect begins the devices' lives and waits until all are served.
func (s *squad) connect(ctx context.Context, how Connect) *Tally {
	s.leave()
	s.mark()
	var gate chan struct{}
	if how.AtOnce > 0 {
		gate = make(chan struct{}, how.AtOnce)
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	for _, d := range s.devices {
		s.wg.Go(func() { d.life(life, how, gate) })
	}
	return s.served(ctx, "")
}

// leave disconnects all and forgets their sessions.
func (s *squad) leave() {
	s.stop()
	s.wg.Wait()
	for _, d := range s.devices {
		d.keep.Put("", nil)
	}
}

// mark begins a measurement.
func (s *squad) mark() {
	s.marked = time.Now().UnixMicro()
	for _, d := range s.devices {
		d.mu.Lock()
		d.markKnown, d.markDoor, d.knownAt, d.servedAt = d.known, d.door, 0, 0
		d.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = Tally{}
}

// served waits until all devices have been served since the mark, or those that were connected to the door.
func (s *squad) served(ctx context.Context, door string) *Tally {
	among := s.devices
	if door != "" {
		among = nil
		for _, d := range s.devices {
			if d.markDoor == door { // only mark writes it
				among = append(among, d)
			}
		}
	}
	return s.await(ctx, among, "not served in time", func(d *device) int64 { return d.servedAt })
}

// converged waits until the server has acknowledged all devices' reports of a newer epoch.
func (s *squad) converged(ctx context.Context) *Tally {
	return s.await(ctx, s.devices, "not converged in time", func(d *device) int64 { return d.knownAt })
}

// await waits until at gives a time for each device. Latencies count from the mark.
func (s *squad) await(ctx context.Context, among []*device, late string, at func(*device) int64) *Tally {
	t := &Tally{}
	waiting := slices.Clone(among)
	for {
		rest := waiting[:0]
		for _, d := range waiting {
			d.mu.Lock()
			when := at(d)
			d.mu.Unlock()
			if when == 0 {
				rest = append(rest, d)
				continue
			}
			t.Done(time.UnixMicro(s.marked), time.UnixMicro(when), nil)
		}
		if waiting = rest; len(waiting) == 0 || pause(ctx, 20*time.Millisecond) != nil {
			break
		}
	}
	s.take(t)
	first := t.First
	if t.First = ""; len(waiting) > 0 {
		if first != "" {
			late += "; " + first
		}
		t.Missed(len(waiting), late)
	}
	return t
}

// pause waits, or returns early with the context's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// forEach does count things, at most atOnce at a time, and returns when all have ended or ctx has.
func forEach(ctx context.Context, atOnce, count int, do func(i int)) {
	var next int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(atOnce, count) {
		wg.Go(func() {
			for ctx.Err() == nil {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= count {
					return
				}
				do(i)
			}
		})
	}
	wg.Wait()
}
