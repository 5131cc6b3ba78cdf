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

// loop is closed: each worker begins the next thing when its last is done.
type loop struct {
	workers, count int
	limit          time.Duration         // after it no more is begun; 0: none
	due            func(i int) time.Time // when the i-th is begun at the earliest; nil: at once
}

// run does the things and measures each.
func (l loop) run(ctx context.Context, do func(ctx context.Context, i int) error) measured {
	began := time.Now()
	m := measured{}
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(l.workers, l.count) {
		wg.Go(func() {
			for ctx.Err() == nil && (l.limit == 0 || time.Since(began) < l.limit) {
				i := int(next.Add(1)) - 1
				if i >= l.count {
					return
				}
				if l.due != nil && pause(ctx, time.Until(l.due(i))) != nil {
					return
				}
				start := time.Now()
				err := do(ctx, i)
				took := time.Since(start)
				mu.Lock()
				m.count++
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
