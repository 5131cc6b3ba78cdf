package bench

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// measured is what a run of requests or devices took.
type measured struct {
	count, failed int
	elapsed       time.Duration
	latencies     []time.Duration // of those that did not fail
	first         error           // of those that failed
}

// closedLoop does count things with so many workers, each beginning the next when its last is done.
func closedLoop(ctx context.Context, workers, count int, do func(ctx context.Context, i int) error) measured {
	m := measured{count: count}
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range min(workers, count) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= count {
					return
				}
				start := time.Now()
				err := do(ctx, i)
				took := time.Since(start)
				mu.Lock()
				if err == nil {
					m.latencies = append(m.latencies, took)
				} else {
					m.failed++
					if m.first == nil {
						m.first = err
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	m.elapsed = time.Since(began)
	if ctx.Err() != nil && m.first == nil {
		m.first = ctx.Err()
	}
	return m
}

// result is the part of a row that a measured run gives.
func (m measured) result() Result {
	return Result{
		Failed: m.failed, Seconds: m.elapsed.Seconds(), PerSecond: float64(len(m.latencies)) / m.elapsed.Seconds(),
		P50: percentile(m.latencies, 50), P99: percentile(m.latencies, 99),
	}
}

// until asks again and again until ok, an error, or the time is up.
func until(ctx context.Context, limit time.Duration, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
