package twin

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Subjects of wake-ups on the bus. The messages are empty: what is true stands in the database.
const (
	subjectPrefix = "twin."
	subjectAll    = "twin.all"
)

// lookAgain is how long a waiter trusts that it would have been woken: a lost message costs this much.
const lookAgain = 30 * time.Second

// WaitEpoch returns the device's epoch as soon as it is higher than the given one. When ctx ends first,
// it returns the epoch it has last seen and ctx's error.
func (s *Service) WaitEpoch(ctx context.Context, num int64, than int64) (int64, error) {
	woken, done := s.waiters.add(num) // before the first look, so that no change falls between
	defer done()
	timer := time.NewTicker(lookAgain)
	defer timer.Stop()
	for {
		epoch, err := s.Epoch(ctx, num)
		if err != nil {
			if ctx.Err() != nil {
				return than, ctx.Err()
			}
			return 0, err
		}
		if epoch > than {
			return epoch, nil
		}
		select {
		case <-woken:
		case <-timer.C:
		case <-ctx.Done():
			return epoch, ctx.Err()
		}
	}
}

// wake tells the waiters of this node at once and those of other nodes by the bus.
func (s *Service) wake(num int64) {
	s.waiters.wake(num)
	s.publish(subjectPrefix + strconv.FormatInt(num, 10))
}

func (s *Service) wakeAll() {
	s.waiters.wakeAll()
	s.publish(subjectAll)
}

// publish may fail: waiters look again by themselves.
func (s *Service) publish(subject string) {
	if s.cfg.Bus == nil {
		return
	}
	if err := s.cfg.Bus.Publish(subject, nil); err != nil {
		s.log.Warn("wake-up was not sent", "subject", subject, "error", err)
	}
}

// waiters holds, by device, the channels of those who wait. Each channel has room for one token.
type waiters struct {
	mu sync.Mutex
	of map[int64]map[chan struct{}]struct{}
}

func (w *waiters) add(num int64) (woken <-chan struct{}, done func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[int64]map[chan struct{}]struct{}{}
	}
	if w.of[num] == nil {
		w.of[num] = map[chan struct{}]struct{}{}
	}
	w.of[num][ch] = struct{}{}
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.of[num], ch)
		if len(w.of[num]) == 0 {
			delete(w.of, num)
		}
	}
}

func (w *waiters) wake(num int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	signal(w.of[num])
}

func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, chans := range w.of {
		signal(chans)
	}
}

// wakeSubject wakes whom a message on the bus is about.
func (w *waiters) wakeSubject(subject string) {
	if subject == subjectAll {
		w.wakeAll()
		return
	}
	if num, err := strconv.ParseInt(strings.TrimPrefix(subject, subjectPrefix), 10, 64); err == nil {
		w.wake(num)
	}
}

func signal(chans map[chan struct{}]struct{}) {
	for ch := range chans {
		select {
		case ch <- struct{}{}:
		default: // it has a token already
		}
	}
}
