package access

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

const tokenColumns = "t.id, t.account, t.parent, t.name, t.role, t.selector, t.created, t.expires, t.used"

// tokenRow scans tokenColumns.
type tokenRow struct {
	Token
	role, selector string
	used           time.Time
}

func (r *tokenRow) columns() []any {
	return []any{&r.ID, &r.Account, &r.parent, &r.Name, &r.role, &r.selector,
		sqldb.ScanMicros(&r.Created), sqldb.ScanMicros(&r.Expires), sqldb.ScanMicros(&r.used)}
}

func (r *tokenRow) token() (Token, error) {
	t := r.Token
	var err, errSelector error
	t.Role, err = httpapi.ParseRole(r.role)
	t.Selector, errSelector = device.ParseSelector(r.selector)
	t.Used = optional(r.used)
	return t, errors.Join(err, errSelector)
}

var errNoToken = fault.New(fault.NotFound, "there is no such token, or it isn't yours")

func readTokenGrant(ctx context.Context, q sqldb.Reader, hash string) (grant, error) {
	var a accountRow
	var t tokenRow
	err := q.QueryRowContext(ctx, "SELECT "+accountColumns+", "+tokenColumns+`
		FROM access_token t JOIN access_account a ON a.id = t.account WHERE t.hash = $1`, hash).
		Scan(append(a.columns(), t.columns()...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return grant{}, errNoToken
	}
	if err != nil {
		return grant{}, fmt.Errorf("read token: %w", err)
	}
	g := grant{seen: t.used, expires: t.Expires}
	var errAccount, errToken error
	g.account, errAccount = a.account()
	g.token, errToken = t.token()
	return g, errors.Join(errAccount, errToken)
}

func readToken(ctx context.Context, q sqldb.Reader, id string) (Token, error) {
	var t tokenRow
	var owner string
	var tenant device.TenantID
	err := q.QueryRowContext(ctx, "SELECT "+tokenColumns+`, a.name, a.tenant
		FROM access_token t JOIN access_account a ON a.id = t.account WHERE t.id = $1`, id).
		Scan(append(t.columns(), &owner, &tenant)...)
	if errors.Is(err, sql.ErrNoRows) {
		return Token{}, errNoToken
	}
	if err != nil {
		return Token{}, fmt.Errorf("read token: %w", err)
	}
	out, err := t.token()
	out.Owner, out.tenant = owner, tenant
	return out, err
}

// tokenFilter says which tokens to list: of a tenant, and of one account when that is not empty.
type tokenFilter struct {
	tenant  device.TenantID
	account string
	after   string // ID
	limit   int
}

func listTokens(ctx context.Context, q sqldb.Reader, f tokenFilter) ([]Token, error) {
	b := sqldb.NewQuery("SELECT "+tokenColumns+`, a.name, a.tenant
		FROM access_token t JOIN access_account a ON a.id = t.account WHERE t.id > ?`, f.after)
	if f.account != "" {
		b.Add("AND t.account = ?", f.account)
	} else {
		b.Add("AND a.tenant = ?", f.tenant)
	}
	b.Add("ORDER BY t.id LIMIT ?", f.limit)
	rows, err := q.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err below tells
	var out []Token
	for rows.Next() {
		var r tokenRow
		var owner string
		var tenant device.TenantID
		if err := rows.Scan(append(r.columns(), &owner, &tenant)...); err != nil {
			return nil, fmt.Errorf("list tokens: %w", err)
		}
		t, err := r.token()
		if err != nil {
			return nil, fmt.Errorf("list tokens: %w", err)
		}
		t.Owner, t.tenant = owner, tenant
		out = append(out, t)
	}
	return out, rows.Err()
}

func insertToken(ctx context.Context, tx *sqldb.Tx, t Token, hash string) error {
	_, err := tx.Exec(ctx, `INSERT INTO access_token (id, hash, account, parent, name, role, selector, created, expires, used)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0)`,
		t.ID, hash, t.Account, t.parent, t.Name, t.Role.String(), t.Selector.String(), sqldb.Micros(t.Created), sqldb.Micros(t.Expires))
	if err != nil {
		return fmt.Errorf("insert token: %w", err)
	}
	return nil
}

// deleteToken takes a token away with all that were made with it.
func deleteToken(ctx context.Context, tx *sqldb.Tx, id string) (int64, error) {
	n, err := tx.Exec(ctx, `DELETE FROM access_token WHERE id IN (
		WITH RECURSIVE family (id) AS (
			SELECT id FROM access_token WHERE id = $1
			UNION SELECT t.id FROM access_token t JOIN family f ON t.parent = f.id)
		SELECT id FROM family)`, id)
	if err != nil {
		return 0, fmt.Errorf("delete token: %w", err)
	}
	return n, nil
}

func deleteTokensOf(ctx context.Context, tx *sqldb.Tx, account string) (int64, error) {
	// Tokens of other accounts that were made with one of these go, too.
	n, err := tx.Exec(ctx, `DELETE FROM access_token WHERE id IN (
		WITH RECURSIVE family (id) AS (
			SELECT id FROM access_token WHERE account = $1
			UNION SELECT t.id FROM access_token t JOIN family f ON t.parent = f.id)
		SELECT id FROM family)`, account)
	if err != nil {
		return 0, fmt.Errorf("delete tokens: %w", err)
	}
	return n, nil
}

// tidyTokens takes away the account's tokens that expired more than a month ago, and counts the rest.
func tidyTokens(ctx context.Context, tx *sqldb.Tx, account string, now time.Time) (n int, err error) {
	if _, err := tx.Exec(ctx, "DELETE FROM access_token WHERE account = $1 AND expires < $2",
		account, sqldb.Micros(now.Add(-30*24*time.Hour))); err != nil {
		return 0, fmt.Errorf("delete old tokens: %w", err)
	}
	if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM access_token WHERE account = $1", account).Scan(&n); err != nil {
		return 0, fmt.Errorf("count tokens: %w", err)
	}
	return n, nil
}
