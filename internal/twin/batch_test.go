package twin

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

// held is a together whose batches wait until the test lets them go.
type held struct {
	together[int]
	mu      sync.Mutex
	batches [][]int
	begun   chan struct{}
	goOn    chan struct{}
}

func newHeld(limit int) *held {
	h := &held{begun: make(chan struct{}, 100), goOn: make(chan struct{})}
	h.limit = limit
	h.run = func(_ context.Context, calls []*call[int]) {
		var items []int
		for _, c := range calls {
			items = append(items, c.item)
		}
		h.mu.Lock()
		h.batches = append(h.batches, items)
		h.mu.Unlock()
		h.begun <- struct{}{}
		<-h.goOn
		for _, c := range calls {
			if c.item < 0 {
				c.err = errOdd
			}
		}
		if slices.Contains(items, 666) {
			panic("the batch is bad")
		}
	}
	return h
}

var errOdd = errors.New("odd")

// waits polls until so many calls are queued.
func (h *held) waits(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		h.together.mu.Lock()
		queued := len(h.queue)
		h.together.mu.Unlock()
		if queued == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d calls wait, want %d", queued, n)
		}
		<-time.After(time.Millisecond)
	}
}

func TestCallsThatWaitShareABatchInTheirOrderAndEachGetsItsOutcome(t *testing.T) {
	h := newHeld(3)
	var wg sync.WaitGroup
	outcomes := make([]error, 6)
	start := func(i, item int) {
		wg.Go(func() { outcomes[i] = h.do(context.Background(), item) })
	}
	start(0, 1)
	<-h.begun
	for i, item := range []int{2, -3, 4, 5, 6} {
		start(i+1, item)
		h.waits(t, i+1)
	}
	close(h.goOn)
	wg.Wait()
	if want := [][]int{{1}, {2, -3, 4}, {5, 6}}; !slices.EqualFunc(h.batches, want, slices.Equal) {
		t.Errorf("batches %v, want %v", h.batches, want)
	}
	for i, err := range outcomes {
		if (i == 2) != errors.Is(err, errOdd) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if h.leading || h.queue != nil {
		t.Error("somebody leads still")
	}
}

func TestCallWhoseContextEndsIsWithdrawnUnlessABatchHasIt(t *testing.T) {
	h := newHeld(3)
	ctx, cancel := context.WithCancel(context.Background())
	var first, second error
	var wg sync.WaitGroup
	wg.Go(func() { first = h.do(ctx, 1) })
	<-h.begun
	withdrawn := make(chan struct{})
	go func() {
		defer close(withdrawn)
		second = h.do(ctx, 2)
	}()
	h.waits(t, 1)
	cancel()
	<-withdrawn
	if !errors.Is(second, context.Canceled) {
		t.Errorf("the waiting call returned %v", second)
	}
	close(h.goOn)
	wg.Wait()
	if first != nil || len(h.batches) != 1 {
		t.Errorf("the running call returned %v, batches %v", first, h.batches)
	}
	if err := h.do(ctx, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that came too late returned %v", err)
	}
}

func TestPanicOfABatchReachesItsLeaderAndAllOthersGoOn(t *testing.T) {
	h := newHeld(3)
	var wg sync.WaitGroup
	var panics, third, fourth any
	caught := func(item int, into *any) {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					*into = p
				}
			}()
			if err := h.do(context.Background(), item); err != nil {
				*into = err
			}
		})
	}
	wg.Go(func() { _ = h.do(context.Background(), 1) })
	<-h.begun
	var other any
	caught(666, &panics)
	h.waits(t, 1)
	caught(2, &other)
	h.waits(t, 2)
	caught(3, &third)
	h.waits(t, 3)
	caught(4, &fourth)
	h.waits(t, 4)
	close(h.goOn)
	wg.Wait()
	if panics != "the batch is bad" {
		t.Errorf("the leader got %v", panics)
	}
	for name, got := range map[string]any{"2": other, "3": third} {
		if err, _ := got.(error); !errors.Is(err, errEnded) {
			t.Errorf("neighbour %s got %v", name, got)
		}
	}
	if fourth != nil {
		t.Errorf("the next batch got %v", fourth)
	}
}
