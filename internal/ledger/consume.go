package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/sqldb"
)

const (
	consumeBatch   = 256
	maxConsumeWait = 30 * time.Second // between tries of a handler that fails
)

// Handler gets events in the order of the tree, in the transaction that moves the cursor on. What it
// writes through tx happens exactly once per event; anything else may happen again.
type Handler func(ctx context.Context, tx *sqldb.Tx, events []Event) error

// Consume hands all events, from the first on, to handle, and remembers under name how far it came.
// It blocks until ctx ends and then returns nil. Of many nodes that consume under one name, one works
// at a time. When handle fails nothing moves: the same events come again, after a pause that grows to
// 30 s. The cursor waits for the handler, so a handler must refuse only what may succeed later.
func (l *Ledger) Consume(ctx context.Context, name string, handle func(ctx context.Context, tx *sqldb.Tx, events []Event) error) error {
	if err := l.addCursor(ctx, name); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	pause := time.Duration(0)
	for ctx.Err() == nil {
		more, err := l.consumeOnce(ctx, name, handle)
		switch {
		case err != nil && ctx.Err() == nil:
			pause = min(max(2*pause, 100*time.Millisecond), maxConsumeWait)
			l.cfg.Log.ErrorContext(ctx, "ledger consumer failed and tries again", "consumer", name, "pause", pause, "error", err)
			wait(ctx, nil, pause)
		case more:
			pause = 0
		default:
			pause = 0
			l.waitForGrowth(ctx, name)
		}
	}
	return nil
}

// waitForGrowth returns when the tree may hold events for the consumer. The timer covers a node whose
// Run is not there to tell, and another node that held the cursor and died.
func (l *Ledger) waitForGrowth(ctx context.Context, name string) {
	_, changed := l.growth.get() // before looking: growth in between closes it
	if behind, err := l.behind(ctx, l.cfg.DB, name); err == nil && behind > 0 {
		wait(ctx, nil, 50*time.Millisecond) // another node is at it
		return
	}
	wait(ctx, changed, safetyInterval)
}

func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (l *Ledger) addCursor(ctx context.Context, name string) error {
	return l.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO ledger_cursor (name, position, at) VALUES ($1, 0, $2) ON CONFLICT (name) DO NOTHING",
			name, sqldb.Micros(l.cfg.Now()))
		if err != nil {
			return fmt.Errorf("add ledger consumer %s: %w", name, err)
		}
		return nil
	})
}

// behind is how many sequenced events the consumer has not handled.
func (l *Ledger) behind(ctx context.Context, q sqldb.Reader, name string) (n int64, err error) {
	err = q.QueryRowContext(ctx, "SELECT h.size - c.position FROM ledger_head h, ledger_cursor c WHERE c.name = $1", name).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("read ledger consumer %s: %w", name, err)
	}
	return n, nil
}

// consumeOnce handles one batch; more tells that another may be waiting.
func (l *Ledger) consumeOnce(ctx context.Context, name string, handle Handler) (more bool, err error) {
	if behind, err := l.behind(ctx, l.cfg.DB, name); err != nil || behind <= 0 {
		return false, err
	}
	err = l.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		more = false
		position, busy, err := lockCursor(ctx, tx, name)
		if err != nil || busy {
			return err
		}
		events, err := readEvents(ctx, tx, "SELECT "+eventColumns+" FROM ledger_event WHERE sequence >= $1 ORDER BY sequence LIMIT $2",
			position, consumeBatch)
		if err != nil || len(events) == 0 {
			return err
		}
		if first, last := events[0].Sequence, events[len(events)-1].Sequence; first != position || last-first != int64(len(events)-1) {
			return &TamperError{Findings: []string{fmt.Sprintf("entries are missing between %d and %d", position, last)}}
		}
		if err := handle(ctx, tx, events); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE ledger_cursor SET position = $1, at = $2 WHERE name = $3",
			position+int64(len(events)), sqldb.Micros(l.cfg.Now()), name)
		if err != nil {
			return fmt.Errorf("move ledger consumer %s: %w", name, err)
		}
		more = len(events) == consumeBatch
		return nil
	})
	return more && err == nil, err
}

// lockCursor holds the consumer's cursor until the transaction ends; busy is true when another node
// holds it.
func lockCursor(ctx context.Context, tx *sqldb.Tx, name string) (position int64, busy bool, err error) {
	err = tx.QueryRowContext(ctx, tx.Dialect().Pick(
		"SELECT position FROM ledger_cursor WHERE name = $1",
		"SELECT position FROM ledger_cursor WHERE name = $1 FOR UPDATE SKIP LOCKED"), name).Scan(&position)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, true, nil
	case err != nil:
		return 0, false, fmt.Errorf("lock ledger consumer %s: %w", name, err)
	}
	return position, false, nil
}

// ConsumerState tells how far a consumer has come; Behind above zero for long means that it fails.
type ConsumerState struct {
	Name     string
	Position int64
	Behind   int64
	At       time.Time // of its last step
}

// Consumers lists all consumers by name; for metrics and the console.
func (l *Ledger) Consumers(ctx context.Context) ([]ConsumerState, error) {
	rows, err := l.cfg.DB.QueryContext(ctx,
		"SELECT c.name, c.position, h.size - c.position, c.at FROM ledger_cursor c, ledger_head h ORDER BY c.name")
	if err != nil {
		return nil, fmt.Errorf("read ledger consumers: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []ConsumerState
	for rows.Next() {
		var s ConsumerState
		if err := rows.Scan(&s.Name, &s.Position, &s.Behind, sqldb.ScanMicros(&s.At)); err != nil {
			return nil, fmt.Errorf("read ledger consumers: %w", err)
		}
		out = append(out, s)
	}
	return out, rows.Err()
}
