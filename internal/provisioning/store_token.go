package provisioning

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

const tokenColumns = "id, tenant, serial, num, device, note, created, created_by, expires, used, used_key, certificate, revoked, reused"

func scanToken(row interface{ Scan(...any) error }, now time.Time) (Token, error) {
	var t Token
	err := row.Scan(&t.ID, &t.Tenant, &t.Serial, &t.num, &t.Device, &t.Note, sqldb.ScanMicros(&t.Created), &t.CreatedBy,
		sqldb.ScanMicros(&t.Expires), sqldb.ScanMicros(&t.Used), &t.usedKey, &t.Certificate, sqldb.ScanMicros(&t.Revoked), sqldb.ScanMicros(&t.Reused))
	t.State = t.stateAt(now)
	return t, err
}

func tokenBySecret(ctx context.Context, q sqldb.Reader, hash []byte, now time.Time) (Token, error) {
	t, err := scanToken(q.QueryRowContext(ctx, "SELECT "+tokenColumns+" FROM provisioning_token WHERE secret_hash = $1", hash), now)
	if errors.Is(err, sql.ErrNoRows) {
		return Token{}, fault.NotFound
	}
	if err != nil {
		return Token{}, fmt.Errorf("read token: %w", err)
	}
	return t, nil
}

func tokenByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string, now time.Time) (Token, error) {
	t, err := scanToken(q.QueryRowContext(ctx, "SELECT "+tokenColumns+" FROM provisioning_token WHERE id = $1 AND tenant = $2", id, string(tenant)), now)
	if errors.Is(err, sql.ErrNoRows) {
		return Token{}, fault.New(fault.NotFound, "token %.40s is not known", id)
	}
	if err != nil {
		return Token{}, fmt.Errorf("read token: %w", err)
	}
	return t, nil
}

// tokenInsert is what a new row needs beyond the token.
type tokenInsert struct {
	token      Token
	secretHash []byte
	pin        wire.Hash
}

func insertToken(ctx context.Context, tx *sqldb.Tx, in tokenInsert) error {
	t := in.token
	_, err := tx.Exec(ctx, `INSERT INTO provisioning_token (id, tenant, secret_hash, serial, num, device, pin, note, created, created_by, expires)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		t.ID, string(t.Tenant), in.secretHash, t.Serial, t.num, string(t.Device), string(in.pin), t.Note,
		sqldb.Micros(t.Created), t.CreatedBy, sqldb.Micros(t.Expires))
	if err != nil {
		return fmt.Errorf("insert token: %w", err)
	}
	return nil
}

func insertTrust(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, body []byte, at time.Time) error {
	_, err := tx.Exec(ctx, "INSERT INTO provisioning_trust (hash, tenant, body, created) VALUES ($1, $2, $3, $4) ON CONFLICT (hash) DO NOTHING",
		string(wire.HashOf(body)), string(tenant), body, sqldb.Micros(at))
	if err != nil {
		return fmt.Errorf("insert trust document: %w", err)
	}
	return nil
}

// revokeTokens ends the open tokens of a device and those made for its serial number before it was in
// stock; d.Num 0 stands for such a serial number.
func revokeTokens(ctx context.Context, tx *sqldb.Tx, d device.Device, at time.Time) (int64, error) {
	n, err := tx.Exec(ctx, `UPDATE provisioning_token SET revoked = $1
		WHERE tenant = $2 AND serial = $3 AND num IN ($4, 0) AND used = 0 AND revoked = 0 AND expires > $5`,
		sqldb.Micros(at), string(d.Tenant), d.Serial, d.Num, sqldb.Micros(at))
	if err != nil {
		return 0, fmt.Errorf("revoke open tokens: %w", err)
	}
	return n, nil
}

// takeToken marks the token used by the key. It returns false when somebody else was faster or it is
// no longer open.
func takeToken(ctx context.Context, tx *sqldb.Tx, id, keyID string, at time.Time) (bool, error) {
	n, err := tx.Exec(ctx, "UPDATE provisioning_token SET used = $1, used_key = $2 WHERE id = $3 AND used = 0 AND revoked = 0 AND expires > $4",
		sqldb.Micros(at), keyID, id, sqldb.Micros(at))
	if err != nil {
		return false, fmt.Errorf("take token: %w", err)
	}
	return n == 1, nil
}

func settleToken(ctx context.Context, tx *sqldb.Tx, id string, d device.Device, certificate string) error {
	_, err := tx.Exec(ctx, "UPDATE provisioning_token SET num = $1, device = $2, certificate = $3 WHERE id = $4",
		d.Num, string(d.ID), certificate, id)
	if err != nil {
		return fmt.Errorf("settle token: %w", err)
	}
	return nil
}

// markReused notes the try of another key; false when one was noted after since, so that a hostile
// caller cannot fill the ledger.
func markReused(ctx context.Context, tx *sqldb.Tx, id string, at, since time.Time) (bool, error) {
	n, err := tx.Exec(ctx, "UPDATE provisioning_token SET reused = $1 WHERE id = $2 AND reused < $3",
		sqldb.Micros(at), id, sqldb.Micros(since))
	return n == 1, err
}

// tokenPosition is where a page of tokens ends.
type tokenPosition struct {
	Created int64  `json:"c"`
	ID      string `json:"i"`
}

// tokenQuery picks tokens, newest first.
type tokenQuery struct {
	scope  device.Scope
	state  TokenState // empty: all
	past   bool       // all but the open ones; not together with state
	reused bool       // only those that another key tried
	num    int64      // 0: all
	serial string     // empty: all
	after  tokenPosition
	limit  int
}

func (s *Service) queryTokens(ctx context.Context, in tokenQuery) ([]Token, error) {
	now := s.cfg.Now()
	q := sqldb.NewQuery("SELECT "+tokenColumns+" FROM provisioning_token WHERE tenant = ?", string(in.scope.Tenant))
	if !in.scope.Selector.Empty() {
		nums, args := s.cfg.Fleet.Matching(in.scope, device.Selector{}, nil)
		q.Add("AND num IN ("+nums+")", args...)
	}
	switch in.state {
	case TokenOpen:
		q.Add("AND used = 0 AND revoked = 0 AND expires > ?", sqldb.Micros(now))
	case TokenUsed:
		q.Add("AND used > 0")
	case TokenRevoked:
		q.Add("AND used = 0 AND revoked > 0")
	case TokenExpired:
		q.Add("AND used = 0 AND revoked = 0 AND expires <= ?", sqldb.Micros(now))
	}
	if in.past {
		q.Add("AND (used > 0 OR revoked > 0 OR expires <= ?)", sqldb.Micros(now))
	}
	if in.reused {
		q.Add("AND reused > 0")
	}
	if in.num != 0 {
		q.Add("AND num = ?", in.num)
	}
	if in.serial != "" {
		q.Add("AND serial = ?", in.serial)
	}
	if in.after.ID != "" {
		q.Add("AND (created, id) < (?, ?)", in.after.Created, in.after.ID)
	}
	q.Add("ORDER BY created DESC, id DESC LIMIT ?", in.limit)
	rows, err := s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	defer rows.Close()
	out := []Token{}
	for rows.Next() {
		t, err := scanToken(rows, now)
		if err != nil {
			return nil, fmt.Errorf("list tokens: %w", err)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}
