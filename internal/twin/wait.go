package twin

import (
	"context"
	"sync"
	"time"
)

// Subjects of wake-ups on the bus. The messages say only which node sent them: what is true stands in the
// database.
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
	if num != allDevices {
		signal(w.of[num])
		return
	}
	for _, chans := range w.of {
		signal(chans)
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
