package provisioning

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

func readAuthorities(ctx context.Context, q sqldb.Reader, owner device.TenantID) ([]stored, error) {
	rows, err := q.QueryContext(ctx, `SELECT id, kind, generation, key, body, created
		FROM provisioning_authority WHERE tenant = $1 ORDER BY kind DESC, generation`, string(owner))
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	defer rows.Close()
	var out []stored
	for rows.Next() {
		var s stored
		var der []byte
		if err := rows.Scan(&s.id, &s.kind, &s.generation, &s.key, &der, sqldb.ScanMicros(&s.created)); err != nil {
			return nil, fmt.Errorf("read authorities: %w", err)
		}
		if s.cert, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("parse authority %s: %w", s.id, err)
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// insertAuthority returns 0 when that generation already stands.
func insertAuthority(ctx context.Context, tx *sqldb.Tx, owner device.TenantID, s stored) (int64, error) {
	n, err := tx.Exec(ctx, `INSERT INTO provisioning_authority (id, tenant, kind, generation, key, body, created, expires)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant, kind, generation) DO NOTHING`,
		s.id, string(owner), s.kind, s.generation, s.key, s.cert.Raw, sqldb.Micros(s.created), sqldb.Micros(s.cert.NotAfter))
	if err != nil || n == 0 || s.kind == "root" {
		return n, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO provisioning_crl (authority, tenant, changes, signed, number, next_update)
		VALUES ($1, $2, 1, 0, 0, 0)`, s.id, string(owner))
	return n, err
}

func readTrust(ctx context.Context, q sqldb.Reader, pin wire.Hash) ([]byte, error) {
	var body []byte
	err := q.QueryRowContext(ctx, "SELECT body FROM provisioning_trust WHERE hash = $1", string(pin)).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "no trust document has this hash: is the token of this server?")
	}
	if err != nil {
		return nil, fmt.Errorf("read trust document: %w", err)
	}
	return body, nil
}

func readPolicy(ctx context.Context, q sqldb.Reader, tenant device.TenantID) (Policy, error) {
	p := Policy{Unpurchased: QuarantineUnpurchased}
	err := q.QueryRowContext(ctx, "SELECT unpurchased, revision, changed, changed_by FROM provisioning_policy WHERE tenant = $1", string(tenant)).
		Scan(&p.Unpurchased, &p.Revision, sqldb.ScanMicros(&p.Changed), &p.ChangedBy)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Policy{}, fmt.Errorf("read policy: %w", err)
	}
	return p, nil
}

func writePolicy(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, p Policy) error {
	_, err := tx.Exec(ctx, `INSERT INTO provisioning_policy (tenant, unpurchased, revision, changed, changed_by) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (tenant) DO UPDATE SET unpurchased = excluded.unpurchased, revision = excluded.revision,
			changed = excluded.changed, changed_by = excluded.changed_by`,
		string(tenant), string(p.Unpurchased), p.Revision, sqldb.Micros(p.Changed), p.ChangedBy)
	if err != nil {
		return fmt.Errorf("write policy: %w", err)
	}
	return nil
}

func insertUnpurchased(ctx context.Context, tx *sqldb.Tx, d device.Device, at int64) error {
	_, err := tx.Exec(ctx, "INSERT INTO provisioning_unpurchased (num, tenant, enrolled) VALUES ($1, $2, $3) ON CONFLICT (num) DO NOTHING",
		d.Num, string(d.Tenant), at)
	return err
}

// cloneRow is provisioning_clone with what a CloneFlag does not show.
type cloneRow struct {
	CloneFlag
	cleared bool
}

func readClone(ctx context.Context, q sqldb.Reader, num int64) (cloneRow, error) {
	var c cloneRow
	var instances string
	var cleared int64
	err := q.QueryRowContext(ctx, "SELECT device, instances, since, last, cleared FROM provisioning_clone WHERE num = $1", num).
		Scan(&c.Device, &instances, sqldb.ScanMicros(&c.Since), sqldb.ScanMicros(&c.Last), &cleared)
	if errors.Is(err, sql.ErrNoRows) {
		return cloneRow{cleared: true}, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(instances), &c.Instances)
	}
	if err != nil {
		return cloneRow{}, fmt.Errorf("read clone flag: %w", err)
	}
	c.cleared = cleared > 0
	return c, nil
}

func writeClone(ctx context.Context, tx *sqldb.Tx, d device.Device, c CloneFlag) error {
	instances, err := json.Marshal(c.Instances)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO provisioning_clone (num, tenant, device, instances, since, last, cleared) VALUES ($1, $2, $3, $4, $5, $6, 0)
		ON CONFLICT (num) DO UPDATE SET instances = excluded.instances, since = excluded.since, last = excluded.last, cleared = 0`,
		d.Num, string(d.Tenant), string(d.ID), string(instances), sqldb.Micros(c.Since), sqldb.Micros(c.Last))
	return err
}

func clearClone(ctx context.Context, tx *sqldb.Tx, num, at int64) (int64, error) {
	return tx.Exec(ctx, "UPDATE provisioning_clone SET cleared = $1 WHERE num = $2 AND cleared = 0", at, num)
}
