package access

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/fault"
	"steward/internal/sqldb"
)

var errNoSession = fault.New(fault.NotFound, "there is no such session")

func readSessionGrant(ctx context.Context, q sqldb.Reader, hash string) (grant, error) {
	var r accountRow
	g := grant{session: hash}
	err := q.QueryRowContext(ctx, "SELECT "+accountColumns+`, s.tenant, s.seen, s.expires
		FROM access_session s JOIN access_account a ON a.id = s.account WHERE s.hash = $1`, hash).
		Scan(append(r.columns(), &g.tenant, sqldb.ScanMicros(&g.seen), sqldb.ScanMicros(&g.expires))...)
	if errors.Is(err, sql.ErrNoRows) {
		return grant{}, errNoSession
	}
	if err != nil {
		return grant{}, fmt.Errorf("read session: %w", err)
	}
	g.account, err = r.account()
	return g, err
}

// sessionRow is what is stored of a new session.
type sessionRow struct {
	hash, account, tenant, address, agent string
	created                               time.Time
}

// insertSession stores a session and takes away those that have ended, and the oldest of an account
// that has too many.
func insertSession(ctx context.Context, tx *sqldb.Tx, s sessionRow) error {
	now := sqldb.Micros(s.created)
	if _, err := tx.Exec(ctx, "DELETE FROM access_session WHERE expires <= $1 OR seen <= $2",
		now, sqldb.Micros(s.created.Add(-SessionIdle))); err != nil {
		return fmt.Errorf("delete old sessions: %w", err)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM access_session WHERE hash IN (
			SELECT hash FROM access_session WHERE account = $1 ORDER BY seen DESC LIMIT $2 OFFSET $3)`,
		s.account, 1_000_000, maxSessionsEach-1); err != nil {
		return fmt.Errorf("delete surplus sessions: %w", err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO access_session (hash, account, tenant, created, seen, expires, address, agent)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		s.hash, s.account, s.tenant, now, now, sqldb.Micros(s.created.Add(SessionLife)), s.address, s.agent)
	if err != nil {
		return fmt.Errorf("insert session: %w", err)
	}
	return nil
}

func deleteSession(ctx context.Context, tx *sqldb.Tx, hash string) (int64, error) {
	n, err := tx.Exec(ctx, "DELETE FROM access_session WHERE hash = $1", hash)
	if err != nil {
		return 0, fmt.Errorf("delete session: %w", err)
	}
	return n, nil
}

// deleteSessions ends all sessions of an account but one, which may be "".
func deleteSessions(ctx context.Context, tx *sqldb.Tx, account, but string) (int64, error) {
	n, err := tx.Exec(ctx, "DELETE FROM access_session WHERE account = $1 AND hash <> $2", account, but)
	if err != nil {
		return 0, fmt.Errorf("delete sessions: %w", err)
	}
	return n, nil
}

func listSessions(ctx context.Context, q sqldb.Reader, account, current string, now time.Time) ([]Session, error) {
	rows, err := q.QueryContext(ctx, `SELECT hash, created, seen, expires, address, agent FROM access_session
		WHERE account = $1 AND expires > $2 AND seen > $3 ORDER BY seen DESC`,
		account, sqldb.Micros(now), sqldb.Micros(now.Add(-SessionIdle)))
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err below tells
	var out []Session
	for rows.Next() {
		var s Session
		var hash string
		if err := rows.Scan(&hash, sqldb.ScanMicros(&s.Created), sqldb.ScanMicros(&s.Seen), sqldb.ScanMicros(&s.Expires), &s.Address, &s.Agent); err != nil {
			return nil, fmt.Errorf("list sessions: %w", err)
		}
		s.ID, s.Current = hash[:12], hash == current
		out = append(out, s)
	}
	return out, rows.Err()
}
