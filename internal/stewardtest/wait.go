package stewardtest

import (
	"testing"
	"time"
)

const (
	startLimit = 60 * time.Second // of a server's start, on a machine that does much else
	waitLimit  = 60 * time.Second // of Until
)

// poll asks until ok or the time is up.
func poll(limit time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	pause := 10 * time.Millisecond
	for {
		if ok() {
			return true
		}
		next := time.NewTimer(pause)
		select {
		case <-next.C:
			pause = min(pause*3/2, 250*time.Millisecond)
		case <-deadline.C:
			next.Stop()
			return ok()
		}
	}
}

// Until waits for a condition and fails the test when it does not come.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !poll(waitLimit, ok) {
		t.Fatalf("waited %s in vain until %s", waitLimit, what)
	}
}

// Never fails the test when the condition comes true within the time.
func Never(t testing.TB, limit time.Duration, what string, bad func() bool) {
	t.Helper()
	if poll(limit, bad) {
		t.Fatalf("it happened that %s", what)
	}
}
