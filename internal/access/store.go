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

const accountColumns = `a.id, a.tenant, a.name, a.email, a.role, a.selector, a.program, a.password,
	a.must_change, a.disabled, a.created, a.signed_in, a.revision`

// accountRow scans accountColumns.
type accountRow struct {
	Account
	role, selector                string
	program, mustChange, disabled int
	signedIn                      time.Time
}

func (r *accountRow) columns() []any {
	return []any{&r.ID, &r.Tenant, &r.Name, &r.Email, &r.role, &r.selector, &r.program, &r.password,
		&r.mustChange, &r.disabled, sqldb.ScanMicros(&r.Created), sqldb.ScanMicros(&r.signedIn), &r.Revision}
}

func (r *accountRow) account() (Account, error) {
	a := r.Account
	var err, errSelector error
	a.Role, err = httpapi.ParseRole(r.role)
	a.Selector, errSelector = device.ParseSelector(r.selector)
	a.Program, a.MustChange, a.Disabled = r.program == 1, r.mustChange == 1, r.disabled == 1
	a.SignedIn = optional(r.signedIn)
	return a, errors.Join(err, errSelector)
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

var errNoAccount = fault.New(fault.NotFound, "there is no such account in your tenant")

// readAccount reads one account by a condition with one argument, as "a.id = $1".
func readAccount(ctx context.Context, q sqldb.Reader, where string, arg any) (Account, error) {
	var r accountRow
	err := q.QueryRowContext(ctx, "SELECT "+accountColumns+" FROM access_account a WHERE "+where, arg).Scan(r.columns()...)
	if errors.Is(err, sql.ErrNoRows) {
		return Account{}, errNoAccount
	}
	if err != nil {
		return Account{}, fmt.Errorf("read account: %w", err)
	}
	return r.account()
}

// ownAccount reads an account of the tenant.
func ownAccount(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Account, error) {
	a, err := readAccount(ctx, q, "a.id = $1", id)
	if err == nil && a.Tenant != tenant {
		return Account{}, errNoAccount
	}
	return a, err
}

func listAccounts(ctx context.Context, q sqldb.Reader, tenant device.TenantID, after string, limit int) ([]Account, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+accountColumns+` FROM access_account a
		WHERE a.tenant = $1 AND a.name > $2 ORDER BY a.name LIMIT $3`, tenant, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err below tells
	var out []Account
	for rows.Next() {
		var r accountRow
		if err := rows.Scan(r.columns()...); err != nil {
			return nil, fmt.Errorf("list accounts: %w", err)
		}
		a, err := r.account()
		if err != nil {
			return nil, fmt.Errorf("list accounts: %w", err)
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

func insertAccount(ctx context.Context, tx *sqldb.Tx, a Account) error {
	_, err := tx.Exec(ctx, `INSERT INTO access_account (id, tenant, name, email, role, selector, program, password,
			must_change, disabled, created, signed_in, revision)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12)`,
		a.ID, a.Tenant, a.Name, a.Email, a.Role.String(), a.Selector.String(), flag(a.Program), a.password,
		flag(a.MustChange), flag(a.Disabled), sqldb.Micros(a.Created), a.Revision)
	if sqldb.IsUnique(err) {
		return fault.New(fault.Conflict, "the name %s is taken; names are unique in the whole installation", a.Name)
	}
	if err != nil {
		return fmt.Errorf("insert account: %w", err)
	}
	return nil
}

// updateAccount stores everything but names and times, unless the revision has moved on.
func updateAccount(ctx context.Context, tx *sqldb.Tx, a Account) error {
	n, err := tx.Exec(ctx, `UPDATE access_account SET email = $1, role = $2, selector = $3, password = $4,
			must_change = $5, disabled = $6, revision = revision + 1 WHERE id = $7 AND revision = $8`,
		a.Email, a.Role.String(), a.Selector.String(), a.password, flag(a.MustChange), flag(a.Disabled), a.ID, a.Revision)
	if err != nil {
		return fmt.Errorf("update account: %w", err)
	}
	if n == 0 {
		return fault.New(fault.Conflict, "the account %s was changed at the same time; look at it again", a.Name)
	}
	return nil
}

// lockTenant makes changes of a tenant's administrators wait for one another, on both engines.
func lockTenant(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID) error {
	n, err := tx.Exec(ctx, "UPDATE access_tenant SET revision = revision + 1 WHERE id = $1", tenant)
	if err != nil {
		return fmt.Errorf("lock tenant %s: %w", tenant, err)
	}
	if n == 0 {
		return errNoTenant(tenant)
	}
	return nil
}

// countAdmins counts those who can sign in and administer the tenant.
func countAdmins(ctx context.Context, q sqldb.Reader, tenant device.TenantID) (n int, err error) {
	err = q.QueryRowContext(ctx, `SELECT COUNT(*) FROM access_account
		WHERE tenant = $1 AND role = $2 AND disabled = 0 AND program = 0`, tenant, httpapi.Admin.String()).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count administrators: %w", err)
	}
	return n, nil
}

func errNoTenant(id device.TenantID) error {
	return fault.New(fault.NotFound, "there is no tenant %s", id)
}

func readTenant(ctx context.Context, q sqldb.Reader, id device.TenantID) (Tenant, error) {
	t := Tenant{ID: id}
	err := q.QueryRowContext(ctx, "SELECT name, created FROM access_tenant WHERE id = $1", id).Scan(&t.Name, sqldb.ScanMicros(&t.Created))
	if errors.Is(err, sql.ErrNoRows) {
		return t, errNoTenant(id)
	}
	if err != nil {
		return t, fmt.Errorf("read tenant: %w", err)
	}
	return t, nil
}

func listTenants(ctx context.Context, q sqldb.Reader, after device.TenantID, limit int) ([]Tenant, error) {
	rows, err := q.QueryContext(ctx, "SELECT id, name, created FROM access_tenant WHERE id > $1 ORDER BY id LIMIT $2", after, limit)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err below tells
	var out []Tenant
	for rows.Next() {
		var t Tenant
		if err := rows.Scan(&t.ID, &t.Name, sqldb.ScanMicros(&t.Created)); err != nil {
			return nil, fmt.Errorf("list tenants: %w", err)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// insertTenant returns false when there is one of that name.
func insertTenant(ctx context.Context, tx *sqldb.Tx, t Tenant) (bool, error) {
	n, err := tx.Exec(ctx, `INSERT INTO access_tenant (id, name, created, revision) VALUES ($1, $2, $3, 1)
		ON CONFLICT (id) DO NOTHING`, t.ID, t.Name, sqldb.Micros(t.Created))
	if err != nil {
		return false, fmt.Errorf("insert tenant: %w", err)
	}
	return n == 1, nil
}
