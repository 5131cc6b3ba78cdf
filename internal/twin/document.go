package twin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// A document that nobody uses is swept when it was not touched for documentLife. Who begins to use one
// touches it when the last time is more than half of that ago, so that a document can't be swept under
// a transaction that has just found it, and a popular one is not written by every device.
const documentLife = 24 * time.Hour

// encode brings a room's document to its canonical bytes and checks its size.
func encode(section wire.Section, doc any) ([]byte, error) {
	if err := checkSection(section); err != nil {
		return nil, err
	}
	body, err := wire.Canonical(doc)
	if err != nil {
		return nil, fmt.Errorf("encode section %s: %w", section, err)
	}
	if len(body) > wire.MaxDocumentBytes {
		return nil, fault.New(fault.TooLarge, "the document of section %s has %d bytes: at most %d", section, len(body), wire.MaxDocumentBytes)
	}
	return body, nil
}

// putDocument returns the number of the document with these bytes, storing it when it is new.
func (s *Service) putDocument(ctx context.Context, tx *sqldb.Tx, hash wire.Hash, body []byte) (int64, error) {
	doc, err := s.useDocument(ctx, tx, hash)
	if err == nil || !errors.Is(err, sql.ErrNoRows) {
		return doc, err
	}
	// Two transactions may come here with one new document; the second waits for the first.
	err = tx.QueryRowContext(ctx, `INSERT INTO twin_document (hash, size, body, touched) VALUES ($1, $2, $3, $4)
		ON CONFLICT (hash) DO UPDATE SET touched = excluded.touched RETURNING document`,
		hash, len(body), body, sqldb.Micros(s.now())).Scan(&doc)
	if err != nil {
		return 0, fmt.Errorf("store document %s: %w", hash, err)
	}
	return doc, nil
}

// useDocument returns the number of a known document, or sql.ErrNoRows.
func (s *Service) useDocument(ctx context.Context, tx *sqldb.Tx, hash wire.Hash) (int64, error) {
	var doc int64
	var touched time.Time
	err := tx.QueryRowContext(ctx, "SELECT document, touched FROM twin_document WHERE hash = $1", hash).Scan(&doc, sqldb.ScanMicros(&touched))
	if err != nil {
		return 0, err
	}
	now := s.now()
	if now.Sub(touched) < documentLife/2 {
		return doc, nil
	}
	n, err := tx.Exec(ctx, "UPDATE twin_document SET touched = $1 WHERE document = $2", sqldb.Micros(now), doc)
	if err != nil {
		return 0, fmt.Errorf("touch document %s: %w", hash, err)
	}
	if n == 0 { // swept between the two statements
		return 0, sql.ErrNoRows
	}
	return doc, nil
}

// sweepBatch is how many documents one transaction removes.
const sweepBatch = 500

// Sweep removes documents that no device has in either direction any more and returns how many. What is
// in use is read outside of the transactions, which only look again whether a document was touched.
func (s *Service) Sweep(ctx context.Context) (removed int64, err error) {
	before := sqldb.Micros(s.now().Add(-documentLife))
	rows, err := s.db.QueryContext(ctx, `SELECT document FROM twin_document WHERE touched < $1
		AND document NOT IN (SELECT document FROM twin_desired UNION SELECT document FROM twin_reported)`, before)
	if err != nil {
		return 0, fmt.Errorf("find unused documents: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var unused []any
	for rows.Next() {
		var doc int64
		if err := rows.Scan(&doc); err != nil {
			return 0, err
		}
		unused = append(unused, doc)
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("find unused documents: %w", err)
	}
	for batch := range slices.Chunk(unused, sweepBatch) {
		var n int64
		err := s.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
			q := sqldb.NewQuery("DELETE FROM twin_document WHERE touched < ?", before).
				Add("AND document IN (?"+strings.Repeat(", ?", len(batch)-1)+")", batch...)
			n, err = tx.Exec(ctx, q.SQL(), q.Args()...)
			return err
		})
		if err != nil {
			return removed, fmt.Errorf("sweep documents: %w", err)
		}
		removed += n
	}
	return removed, nil
}
