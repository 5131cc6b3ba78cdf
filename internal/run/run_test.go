package run_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"steward/internal/run"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// untilEnd works until it is told to stop, as Run functions do.
func untilEnd(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestFirstFailureStopsTheOthersAndIsNamed(t *testing.T) {
	broken := errors.New("broken")
	var stopped atomic.Int32
	var g run.Group
	for range 3 {
		g.Add("steady", func(ctx context.Context) error { defer stopped.Add(1); return untilEnd(ctx) })
	}
	g.Add("weak", func(context.Context) error { return broken })
	err := g.Run(t.Context())
	if !errors.Is(err, broken) || err.Error() != "weak: broken" || stopped.Load() != 3 {
		t.Errorf("error %v, %d stopped", err, stopped.Load())
	}
}

func TestEndOfContextIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var g run.Group
	g.Add("a", untilEnd)
	g.Add("b", func(ctx context.Context) error { <-ctx.Done(); return nil })
	g.Add("c", func(context.Context) error { cancel(); return nil })
	if err := g.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestFinishedMemberLeavesTheOthersRunning(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	finished := make(chan struct{})
	var g run.Group
	g.Add("short", func(context.Context) error { close(finished); return nil })
	g.Add("long", func(ctx context.Context) error {
		<-finished
		if ctx.Err() != nil {
			t.Error("stopped because another was done")
		}
		cancel()
		return untilEnd(ctx)
	})
	if err := g.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestPanicStopsTheGroupInOrder(t *testing.T) {
	closed := false
	var g run.Group
	g.Add("steady", func(ctx context.Context) error { defer func() { closed = true }(); return untilEnd(ctx) })
	g.Add("weak", func(context.Context) error { panic("out of luck") })
	err := g.Run(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "weak: panic: out of luck") || !strings.Contains(err.Error(), "run_test.go") || !closed {
		t.Errorf("error %v, closed %v", err, closed)
	}
}

func TestFailureWhileStoppingIsReportedToo(t *testing.T) {
	var g run.Group
	g.Add("first", func(context.Context) error { return errors.New("one") })
	g.Add("second", func(ctx context.Context) error { <-ctx.Done(); return errors.New("flush: disk full") })
	if err := g.Run(t.Context()); err == nil || err.Error() != "first: one\nsecond: flush: disk full" {
		t.Errorf("error %q", err)
	}
}
