// Package ledgertest gives the rooms' tests a ledger on their database and a look at what was
// appended to it.
package ledgertest

import (
	"context"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// Origin of the keys that New makes.
const Origin = "steward.test/ledger"

// New returns a ledger with a fresh key on a database that has the ledger's tables. It does not run:
// see Events.
func New(t testing.TB, db *sqldb.DB) *ledger.Ledger {
	t.Helper()
	key, err := ledger.GenerateKey(Origin)
	if err != nil {
		t.Fatal(err)
	}
	return ledger.New(ledger.Config{DB: db, Key: key})
}

// Events sequences what was committed and returns everything from the start that the filter picks.
func Events(t testing.TB, l *ledger.Ledger, f ledger.Filter) []ledger.Event {
	t.Helper()
	ctx := context.Background()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := l.Sequence(ctx); err != nil {
			t.Fatalf("sequence the ledger: %v", err)
		}
		// Sequence does nothing while another node, or one just stopped, holds the head.
		if n, err := l.Pending(ctx); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d events are still pending, error %v", n, err)
		} else if n == 0 {
			break
		}
	}
	var all []ledger.Event
	f.Limit = ledger.MaxPage
	for {
		events, next, err := l.Events(ctx, f)
		if err != nil {
			t.Fatalf("read the ledger: %v", err)
		}
		all = append(all, events...)
		if next == "" {
			return all
		}
		f.Cursor = next
	}
}

// Kinds returns the kinds of a device's events in their order; of all events for an empty ID.
func Kinds(t testing.TB, l *ledger.Ledger, id device.ID) []string {
	t.Helper()
	kinds := []string{}
	for _, e := range Events(t, l, ledger.Filter{Device: id}) {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}
