package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/bus"
	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/sqldb"
)

func TestManyNodesSequenceOneTree(t *testing.T) {
	each(t, func(h house) {
		const writers, rounds, perRound = 8, 10, 7
		ctx, stop := context.WithCancel(t.Context())
		var nodes, appenders sync.WaitGroup
		for range 3 {
			node := h.open(ledger.Config{})
			nodes.Go(func() {
				for ctx.Err() == nil {
					if _, err := node.Sequence(ctx); err != nil && ctx.Err() == nil {
						t.Errorf("sequence: %v", err)
					}
				}
			})
		}
		for w := range writers {
			appenders.Go(func() {
				for r := range rounds {
					events := make([]ledger.Event, perRound)
					for i := range events {
						events[i] = event("test.counted", "")
						events[i].Subject = fmt.Sprintf("%d-%d-%d", w, r, i)
					}
					err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error { return h.l.Append(t.Context(), tx, events...) })
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		appenders.Wait()
		stop()
		nodes.Wait()
		seen := map[string]bool{}
		for i, e := range ledgertest.Events(t, h.l, ledger.Filter{}) {
			if e.Sequence != int64(i) || seen[e.Subject] {
				t.Fatalf("place %d holds %d, %s again: %v", i, e.Sequence, e.Subject, seen[e.Subject])
			}
			seen[e.Subject] = true
		}
		if len(seen) != writers*rounds*perRound {
			t.Errorf("%d events, want %d", len(seen), writers*rounds*perRound)
		}
		if c, err := h.l.Verify(t.Context()); err != nil || c.Size != int64(len(seen)) {
			t.Errorf("size %d, error %v", c.Size, err)
		}
	})
}

func TestBatchesLargerThanOneTransactionAreSequencedInFull(t *testing.T) {
	each(t, func(h house) {
		h.fill(1500)
		c, err := h.l.Verify(t.Context())
		if err != nil || c.Size != 1500 {
			t.Errorf("size %d, error %v", c.Size, err)
		}
	})
}

func TestOtherNodeIsWokenOverTheBus(t *testing.T) {
	each(t, func(h house) {
		b, err := bus.Start(bus.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		writer, runner := h.open(ledger.Config{Bus: b}), h.open(ledger.Config{Bus: b})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		running, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- runner.Run(running) }()
		for i := range int64(5) {
			err := h.db.Write(ctx, func(tx *sqldb.Tx) error { return writer.Append(ctx, tx, event("test.far", "")) })
			if err != nil {
				t.Fatal(err)
			}
			if head, err := runner.Wait(ctx, i); err != nil || head != i+1 {
				t.Fatalf("head %d, error %v", head, err)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestConsumerHandlesEachEventOnceAcrossNodesAndFailures(t *testing.T) {
	each(t, func(h house) {
		setup := "CREATE TABLE seen (sequence BIGINT PRIMARY KEY)"
		if err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error { _, err := tx.Exec(t.Context(), setup); return err }); err != nil {
			t.Fatal(err)
		}
		const total = 700
		h.fill(total)
		ctx, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		failures := 0
		handle := func(ctx context.Context, tx *sqldb.Tx, events []ledger.Event) error {
			for _, e := range events {
				if _, err := tx.Exec(ctx, "INSERT INTO seen (sequence) VALUES ($1)", e.Sequence); err != nil {
					return err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if failures++; failures%2 == 1 && failures < 6 {
				return errors.New("the handler stumbles after its work")
			}
			return nil
		}
		var nodes sync.WaitGroup
		for range 2 {
			nodes.Go(func() {
				if err := h.open(ledger.Config{}).Consume(ctx, "test", handle); err != nil {
					t.Errorf("consume: %v", err)
				}
			})
		}
		eventually(t, func() bool {
			var n int
			if err := h.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM seen").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == total
		})
		h.append(event("test.late", "")) // and goes on with what comes later
		h.sequence()
		eventually(t, func() bool {
			states, err := h.l.Consumers(t.Context())
			return err == nil && len(states) == 1 && states[0].Name == "test" && states[0].Position == total+1 && states[0].Behind == 0
		})
		stop()
		nodes.Wait()
	})
}

// eventually polls until the condition holds.
func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen in time")
		}
	}
}

func TestNewKeySaysSoInTheLedgerAndGoesOn(t *testing.T) {
	each(t, func(h house) {
		h.fill(3)
		other, err := ledger.GenerateKey(ledgertest.Origin)
		if err != nil {
			t.Fatal(err)
		}
		l := h.open(ledger.Config{Key: other})
		h.append(event("test.waits", ""))
		if _, err := l.Sequence(t.Context()); !errors.Is(err, ledger.ErrForeignHead) {
			t.Fatalf("sequenced under a foreign head: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		if _, err := l.Wait(ctx, 4); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		events := h.events(ledger.Filter{Kinds: []string{"ledger"}})
		if len(events) != 1 || events[0].Kind != "ledger.rekeyed" || !strings.Contains(string(events[0].Data), other.Verifier()) {
			t.Errorf("events %v", events)
		}
		if _, err := l.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestLedgerWithoutKeyKeepsEventsAndRefusesToRun(t *testing.T) {
	each(t, func(h house) {
		l := ledger.New(ledger.Config{DB: h.db})
		err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error {
			return l.Append(t.Context(), tx, ledger.Event{Tenant: "default", Kind: "test.kept", Actor: device.System("test")})
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Run(t.Context()); err == nil {
			t.Error("it runs without a key")
		}
		if _, err := l.Sequence(t.Context()); err == nil {
			t.Error("it sequences without a key")
		}
		if kinds := ledgertest.Kinds(t, h.l, ""); len(kinds) != 1 {
			t.Errorf("kinds %v", kinds)
		}
	})
}

func BenchmarkAppendAndSequence(b *testing.B) {
	benchEach(b, func(b *testing.B, db *sqldb.DB) {
		l := ledgertest.New(b, db)
		var events []ledger.Event
		for range 100 {
			e := event("test.counted", "dev-0123456789abcdef")
			e.Data = ledger.Facts(map[string]any{"from": "enrolled", "to": "active"})
			events = append(events, e)
		}
		n := 0
		for b.Loop() {
			err := db.Write(b.Context(), func(tx *sqldb.Tx) error { return l.Append(b.Context(), tx, events...) })
			if err != nil {
				b.Fatal(err)
			}
			if _, err := l.Sequence(b.Context()); err != nil {
				b.Fatal(err)
			}
			n += len(events)
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
	})
}

func TestAHeadThatLostItsSignatureIsNotSignedInSilence(t *testing.T) {
	each(t, func(h house) {
		h.fill(3)
		err := h.db.Write(t.Context(), func(tx *sqldb.Tx) error { // an intruder who may write to the database
			_, err := tx.Exec(t.Context(), "UPDATE ledger_head SET checkpoint = ''")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		l := h.open(ledger.Config{})
		h.append(event("test.waits", ""))
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		if _, err := l.Wait(ctx, 4); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if events := h.events(ledger.Filter{Kinds: []string{"ledger"}}); len(events) != 1 || events[0].Kind != "ledger.rekeyed" {
			t.Errorf("the ledger doesn't tell: %+v", events)
		}
	})
}
