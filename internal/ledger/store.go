package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"steward/internal/sqldb"
)

const eventColumns = "id, COALESCE(sequence, -1), at, tenant, kind, device, subject, actor_kind, actor_id, actor_name, reason, data"

// insertRows bounds the rows of one INSERT; 11 arguments each stay below both engines' limits.
const insertRows = 200

func insertEvents(ctx context.Context, tx *sqldb.Tx, events []Event) error {
	for chunk := range slices.Chunk(events, insertRows) {
		q := sqldb.NewQuery("INSERT INTO ledger_event (id, at, tenant, kind, device, subject, actor_kind, actor_id, actor_name, reason, data) VALUES")
		for i, e := range chunk {
			comma := ","
			if i == 0 {
				comma = ""
			}
			q.Add(comma+"(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", e.ID, sqldb.Micros(e.At), string(e.Tenant), e.Kind, string(e.Device),
				e.Subject, string(e.Actor.Kind), e.Actor.ID, e.Actor.Name, e.Reason, string(e.Data))
		}
		if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
			return fmt.Errorf("append ledger events: %w", err)
		}
	}
	return nil
}

// scanEvents reads rows of eventColumns, preceded by the columns in extra, and closes them.
func scanEvents(rows *sql.Rows, err error, each func(Event) error, extra ...any) error {
	if err != nil {
		return fmt.Errorf("read ledger events: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var e Event
		var data string
		err := rows.Scan(append(slices.Clone(extra), &e.ID, &e.Sequence, sqldb.ScanMicros(&e.At), &e.Tenant, &e.Kind, &e.Device,
			&e.Subject, &e.Actor.Kind, &e.Actor.ID, &e.Actor.Name, &e.Reason, &data)...)
		if err != nil {
			return fmt.Errorf("read ledger events: %w", err)
		}
		if data != "" {
			e.Data = []byte(data)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read ledger events: %w", err)
	}
	return nil
}

func readEvents(ctx context.Context, q sqldb.Reader, query string, args ...any) ([]Event, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	var events []Event
	err = scanEvents(rows, err, func(e Event) error { events = append(events, e); return nil })
	return events, err
}

// pending is an event that waits for its place, with its row's number.
type pending struct {
	num   int64
	event Event
}

func readPending(ctx context.Context, tx *sqldb.Tx, limit int) ([]pending, error) {
	var out []pending
	var num int64
	rows, err := tx.QueryContext(ctx, "SELECT num, "+eventColumns+" FROM ledger_event WHERE sequence IS NULL ORDER BY num LIMIT $1", limit)
	err = scanEvents(rows, err, func(e Event) error { out = append(out, pending{num, e}); return nil }, &num)
	return out, err
}

// placeEvents writes the leaf indexes from first on.
func placeEvents(ctx context.Context, tx *sqldb.Tx, events []pending, first int64) error {
	next := first
	for chunk := range slices.Chunk(events, insertRows) {
		q := sqldb.NewQuery("UPDATE ledger_event SET sequence = v.column2 FROM (VALUES")
		for i, p := range chunk {
			comma := ","
			if i == 0 {
				comma = ""
			}
			q.Add(comma+"(CAST(? AS BIGINT), CAST(? AS BIGINT))", p.num, next)
			next++
		}
		q.Add(") AS v WHERE ledger_event.num = v.column1 AND ledger_event.sequence IS NULL")
		n, err := tx.Exec(ctx, q.SQL(), q.Args()...)
		if err != nil {
			return fmt.Errorf("place ledger events: %w", err)
		}
		if n != int64(len(chunk)) {
			return fmt.Errorf("place ledger events: %d rows changed, not %d", n, len(chunk))
		}
	}
	return nil
}

// head is the newest signed tree head; the checkpoint is empty before the first.
type head struct {
	size       int64
	checkpoint string
}

func readHead(ctx context.Context, q sqldb.Reader) (h head, err error) {
	err = q.QueryRowContext(ctx, "SELECT size, checkpoint FROM ledger_head WHERE one = 1").Scan(&h.size, &h.checkpoint)
	if err != nil {
		return h, fmt.Errorf("read ledger head: %w", err)
	}
	return h, nil
}

// lockHead reads the head and holds it until the transaction ends; busy is true when another node
// holds it.
func lockHead(ctx context.Context, tx *sqldb.Tx) (h head, busy bool, err error) {
	err = tx.QueryRowContext(ctx, tx.Dialect().Pick(
		"SELECT size, checkpoint FROM ledger_head WHERE one = 1",
		"SELECT size, checkpoint FROM ledger_head WHERE one = 1 FOR UPDATE SKIP LOCKED")).Scan(&h.size, &h.checkpoint)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return h, true, nil
	case err != nil:
		return h, false, fmt.Errorf("lock ledger head: %w", err)
	}
	return h, false, nil
}

func readSize(ctx context.Context, q sqldb.Reader) (int64, error) {
	h, err := readHead(ctx, q)
	return h.size, err
}

func writeHead(ctx context.Context, tx *sqldb.Tx, h head, atMicros int64) error {
	_, err := tx.Exec(ctx, "UPDATE ledger_head SET size = $1, at = $2, checkpoint = $3 WHERE one = 1", h.size, atMicros, h.checkpoint)
	if err != nil {
		return fmt.Errorf("write ledger head: %w", err)
	}
	return nil
}

// storedHashes reads the tree's nodes as tlog.HashReader wants them.
func storedHashes(ctx context.Context, q sqldb.Reader) tlog.HashReaderFunc {
	return func(indexes []int64) ([]tlog.Hash, error) {
		if len(indexes) == 0 {
			return nil, nil
		}
		args := make([]any, len(indexes))
		for i, idx := range indexes {
			args[i] = idx
		}
		b := sqldb.NewQuery("SELECT idx, hash FROM ledger_hash WHERE idx IN (?"+strings.Repeat(", ?", len(indexes)-1)+")", args...)
		rows, err := q.QueryContext(ctx, b.SQL(), b.Args()...)
		if err != nil {
			return nil, fmt.Errorf("read ledger hashes: %w", err)
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells
		found := map[int64]tlog.Hash{}
		for rows.Next() {
			var idx int64
			var hash []byte
			if err := rows.Scan(&idx, &hash); err != nil {
				return nil, fmt.Errorf("read ledger hashes: %w", err)
			}
			if len(hash) != tlog.HashSize {
				return nil, fmt.Errorf("ledger hash %d has %d bytes", idx, len(hash))
			}
			found[idx] = tlog.Hash(hash)
		}
		if err := rows.Err(); err != nil {
			return nil, fmt.Errorf("read ledger hashes: %w", err)
		}
		out := make([]tlog.Hash, len(indexes))
		for i, idx := range indexes {
			hash, ok := found[idx]
			if !ok {
				return nil, fmt.Errorf("ledger hash %d is missing", idx)
			}
			out[i] = hash
		}
		return out, nil
	}
}

func insertHashes(ctx context.Context, tx *sqldb.Tx, first int64, hashes []tlog.Hash) error {
	next := first
	for chunk := range slices.Chunk(hashes, insertRows) {
		q := sqldb.NewQuery("INSERT INTO ledger_hash (idx, hash) VALUES")
		for i, h := range chunk {
			comma := ","
			if i == 0 {
				comma = ""
			}
			q.Add(comma+"(?, ?)", next, h[:])
			next++
		}
		if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
			return fmt.Errorf("write ledger hashes: %w", err)
		}
	}
	return nil
}
