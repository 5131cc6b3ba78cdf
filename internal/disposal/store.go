package disposal

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
)

const columns = "SELECT id, tenant, num, device, serial, model, state, method, reason, actor, created, accepted, ended, cause," +
	" attestation, statement, chain, certificate FROM disposal_record"

func scan(rows *sql.Rows) (x Disposal, err error) {
	var actor, attestation, chain string
	if err = rows.Scan(&x.ID, &x.tenant, &x.num, &x.Device, &x.Serial, &x.Model, &x.State, &x.Method, &x.Reason, &actor,
		sqldb.ScanMicros(&x.Created), sqldb.ScanMicros(&x.AcceptedAt), sqldb.ScanMicros(&x.Ended), &x.Cause,
		&attestation, &x.statement, &chain, &x.Certificate); err != nil {
		return x, err
	}
	if err = json.Unmarshal([]byte(actor), &x.Actor); err != nil {
		return x, fmt.Errorf("actor of disposal %s: %w", x.ID, err)
	}
	if attestation != "" {
		x.Attestation = new(Attestation)
		if err = json.Unmarshal([]byte(attestation), x.Attestation); err != nil {
			return x, fmt.Errorf("attestation of disposal %s: %w", x.ID, err)
		}
	}
	if chain != "" {
		if err = json.Unmarshal([]byte(chain), &x.chain); err != nil {
			return x, fmt.Errorf("certificate chain of disposal %s: %w", x.ID, err)
		}
	}
	return x, nil
}

func query(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) ([]Disposal, error) {
	list, err := sqldb.Collect(ctx, q, scan, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("read disposals: %w", err)
	}
	return append([]Disposal{}, list...), nil
}

func byID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Disposal, error) {
	list, err := query(ctx, q, sqldb.NewQuery(columns+" WHERE tenant = ? AND id = ?", tenant, id))
	if err == nil && len(list) == 0 {
		err = fault.New(fault.NotFound, "there is no disposal %q", id)
	}
	if err != nil {
		return Disposal{}, err
	}
	return list[0], nil
}

// ofDevice lists a device's disposals, newest first.
func ofDevice(ctx context.Context, q sqldb.Reader, num int64) ([]Disposal, error) {
	return query(ctx, q, sqldb.NewQuery(columns+" WHERE num = ? ORDER BY created DESC, id DESC LIMIT 100", num))
}

func insert(ctx context.Context, tx *sqldb.Tx, x Disposal) error {
	actor, err := json.Marshal(x.Actor)
	if err != nil {
		return err
	}
	attestation := ""
	if x.Attestation != nil {
		text, err := json.Marshal(x.Attestation)
		if err != nil {
			return err
		}
		attestation = string(text)
	}
	b := sqldb.NewQuery("INSERT INTO disposal_record (id, tenant, num, device, serial, model, state, method, reason, actor, created, accepted, ended, cause,"+
		" attestation, statement, chain, certificate) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, '', '')",
		x.ID, x.tenant, x.num, x.Device, x.Serial, x.Model, string(x.State), x.Method, x.Reason, string(actor),
		sqldb.Micros(x.Created), sqldb.Micros(x.AcceptedAt), sqldb.Micros(x.Ended), x.Cause, attestation)
	if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
		return fmt.Errorf("insert disposal: %w", err)
	}
	return nil
}

// update writes what changes in a disposal's life.
func update(ctx context.Context, tx *sqldb.Tx, x Disposal) error {
	chain := ""
	if x.chain != nil {
		text, err := json.Marshal(x.chain)
		if err != nil {
			return err
		}
		chain = string(text)
	}
	if _, err := tx.Exec(ctx, "UPDATE disposal_record SET state = $1, accepted = $2, ended = $3, cause = $4, statement = $5, chain = $6 WHERE id = $7",
		string(x.State), sqldb.Micros(x.AcceptedAt), sqldb.Micros(x.Ended), x.Cause, x.statement, chain, x.ID); err != nil {
		return fmt.Errorf("update disposal %s: %w", x.ID, err)
	}
	return nil
}

// lock makes changes to the disposals of one device wait for each other on PostgreSQL; SQLite has one
// writer. Two first orders at the same time are told apart by the unique index.
func lock(ctx context.Context, tx *sqldb.Tx, num int64) error {
	if _, err := tx.Exec(ctx, "UPDATE disposal_record SET num = num WHERE num = $1", num); err != nil {
		return fmt.Errorf("lock disposals: %w", err)
	}
	return nil
}

type position struct {
	Created int64
	ID      string
}

// list reads a page of the scope's disposals, newest first; one more than the limit tells that there
// are more. nums is a sub-SELECT of the devices that may be seen.
func list(ctx context.Context, q sqldb.Reader, scope device.Scope, f Filter, after position, nums string, args []any) ([]Disposal, error) {
	b := sqldb.NewQuery(columns+" WHERE tenant = ?", scope.Tenant)
	if f.State != "" {
		b.Add("AND state = ?", string(f.State))
	}
	if !scope.Selector.Empty() {
		b.Add("AND num IN ("+nums+")", args...)
	}
	if after.ID != "" {
		b.Add("AND (created, id) < (?, ?)", after.Created, after.ID)
	}
	return query(ctx, q, b.Add("ORDER BY created DESC, id DESC LIMIT ?", f.Limit+1))
}

// insertCertificate keeps the document unless the disposal has one already.
func insertCertificate(ctx context.Context, tx *sqldb.Tx, x Disposal, id string, issued int64, document []byte) (inserted bool, err error) {
	n, err := tx.Exec(ctx, "INSERT INTO disposal_certificate (id, disposal, tenant, issued, document) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
		id, x.ID, x.tenant, issued, document)
	if err != nil || n == 0 {
		return false, err
	}
	_, err = tx.Exec(ctx, "UPDATE disposal_record SET certificate = $1 WHERE id = $2", id, x.ID)
	return true, err
}

func readCertificate(ctx context.Context, q sqldb.Reader, disposal string) (document []byte, err error) {
	err = q.QueryRowContext(ctx, "SELECT document FROM disposal_certificate WHERE disposal = $1", disposal).Scan(&document)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.NotFound
	}
	return document, err
}
