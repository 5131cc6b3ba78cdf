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
)

const certificateColumns = "serial, tenant, num, device, key_id, key_kind, body, issued, expires, address, first_used, superseded, revoked, reason, seal"

func scanCertificate(row interface{ Scan(...any) error }, now time.Time) (Certificate, error) {
	var c Certificate
	err := row.Scan(&c.Serial, &c.tenant, &c.num, &c.Device, &c.KeyID, &c.KeyKind, &c.body, sqldb.ScanMicros(&c.Issued), sqldb.ScanMicros(&c.Expires),
		&c.Address, sqldb.ScanMicros(&c.FirstUsed), sqldb.ScanMicros(&c.Superseded), sqldb.ScanMicros(&c.Revoked), &c.Reason, &c.seal)
	c.State = c.stateAt(now)
	return c, err
}

func certificateBySerial(ctx context.Context, q sqldb.Reader, serial string, now time.Time) (Certificate, error) {
	c, err := scanCertificate(q.QueryRowContext(ctx, "SELECT "+certificateColumns+" FROM provisioning_certificate WHERE serial = $1", serial), now)
	if errors.Is(err, sql.ErrNoRows) {
		return Certificate{}, fault.NotFound
	}
	if err != nil {
		return Certificate{}, fmt.Errorf("read certificate: %w", err)
	}
	return c, nil
}

// certificatesOf lists a device's certificates, newest first.
func certificatesOf(ctx context.Context, q sqldb.Reader, num int64, now time.Time) ([]Certificate, error) {
	return listCertificates(ctx, q, sqldb.NewQuery("SELECT "+certificateColumns+
		" FROM provisioning_certificate WHERE num = ? ORDER BY issued DESC, serial LIMIT 200", num), now)
}

func listCertificates(ctx context.Context, q sqldb.Reader, query *sqldb.Builder, now time.Time) ([]Certificate, error) {
	rows, err := q.QueryContext(ctx, query.SQL(), query.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	defer rows.Close()
	out := []Certificate{}
	for rows.Next() {
		c, err := scanCertificate(rows, now)
		if err != nil {
			return nil, fmt.Errorf("list certificates: %w", err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

func insertCertificate(ctx context.Context, tx *sqldb.Tx, c Certificate, authority string) error {
	late := c.Issued.Add(c.Expires.Sub(c.Issued) * 3 / 4)
	_, err := tx.Exec(ctx, `INSERT INTO provisioning_certificate
		(serial, tenant, num, device, authority, key_id, key_kind, body, issued, expires, renewal_late, address, seal)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		c.Serial, string(c.tenant), c.num, string(c.Device), authority, c.KeyID, c.KeyKind, c.body,
		sqldb.Micros(c.Issued), sqldb.Micros(c.Expires), sqldb.Micros(late), c.Address, c.seal)
	if err != nil {
		return fmt.Errorf("insert certificate: %w", err)
	}
	return nil
}

// keyOwner tells whose key it is: the number of another device that has ever had it (0: none), and
// whether a certificate of num with it was revoked.
func keyOwner(ctx context.Context, q sqldb.Reader, keyID string, num int64) (other int64, revoked bool, err error) {
	var revocations int64
	err = q.QueryRowContext(ctx, `SELECT COALESCE(MAX(CASE WHEN num <> $1 THEN num ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN num = $2 AND revoked > 0 THEN 1 ELSE 0 END), 0)
		FROM provisioning_certificate WHERE key_id = $3`, num, num, keyID).Scan(&other, &revocations)
	if err != nil {
		return 0, false, fmt.Errorf("look for the key's owner: %w", err)
	}
	return other, revocations > 0, nil
}

// markUsed notes the first use; false when it was noted before.
func markUsed(ctx context.Context, tx *sqldb.Tx, serial string, at time.Time) (bool, error) {
	n, err := tx.Exec(ctx, "UPDATE provisioning_certificate SET first_used = $1 WHERE serial = $2 AND first_used = 0 AND superseded = 0 AND revoked = 0",
		sqldb.Micros(at), serial)
	return n == 1, err
}

// holdCertificate locks the row until the transaction ends; false when it was revoked. A revocation
// that runs at the same time waits, and then sees what this transaction has added.
func holdCertificate(ctx context.Context, tx *sqldb.Tx, serial string) (bool, error) {
	n, err := tx.Exec(ctx, "UPDATE provisioning_certificate SET address = address WHERE serial = $1 AND revoked = 0", serial)
	if err != nil {
		return false, fmt.Errorf("hold certificate: %w", err)
	}
	return n == 1, nil
}

// supersede ends certificates by their serial numbers.
func supersede(ctx context.Context, tx *sqldb.Tx, at time.Time, serials []string) error {
	for _, serial := range serials {
		if _, err := tx.Exec(ctx, "UPDATE provisioning_certificate SET superseded = $1 WHERE serial = $2 AND superseded = 0 AND revoked = 0",
			sqldb.Micros(at), serial); err != nil {
			return fmt.Errorf("supersede certificate: %w", err)
		}
	}
	return nil
}

// revokeCertificates ends all certificates of a device that are not revoked, superseded ones too.
func revokeCertificates(ctx context.Context, tx *sqldb.Tx, num int64, at time.Time, reason string) (int64, error) {
	n, err := tx.Exec(ctx, "UPDATE provisioning_certificate SET revoked = $1, reason = $2 WHERE num = $3 AND revoked = 0",
		sqldb.Micros(at), reason, num)
	if err != nil {
		return 0, fmt.Errorf("revoke certificates: %w", err)
	}
	return n, nil
}

// touchCRL says that the tenant's revocation lists no longer hold everything.
func touchCRL(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID) error {
	if _, err := tx.Exec(ctx, "UPDATE provisioning_crl SET changes = changes + 1 WHERE tenant = $1", string(tenant)); err != nil {
		return fmt.Errorf("mark revocation list: %w", err)
	}
	return nil
}

// certificatePosition is where a page of certificates ends.
type certificatePosition struct {
	Expires int64  `json:"e"`
	Serial  string `json:"s"`
}

// inService are the stages in which a device should keep its certificate alive.
var inService = []device.Stage{device.Enrolled, device.Active, device.Quarantined, device.InTransfer, device.Retired}

// newestOnly keeps of each device the certificate that was issued last.
const newestOnly = "AND NOT EXISTS (SELECT 1 FROM provisioning_certificate n WHERE n.num = c.num AND n.issued > c.issued AND n.revoked = 0)"

// expiring lists the newest living certificates of devices in service that end before the given time.
func (s *Service) expiring(ctx context.Context, scope device.Scope, before time.Time, after certificatePosition, limit int) ([]Certificate, error) {
	q := sqldb.NewQuery("SELECT "+certificateColumns+" FROM provisioning_certificate c WHERE tenant = ? AND superseded = 0 AND revoked = 0 AND expires < ?",
		string(scope.Tenant), sqldb.Micros(before))
	nums, args := s.cfg.Fleet.Matching(scope, device.Selector{}, inService)
	q.Add("AND EXISTS (SELECT 1 FROM ("+nums+") m WHERE m.num = c.num)", args...).Add(newestOnly)
	if after.Serial != "" {
		q.Add("AND (expires, serial) > (?, ?)", after.Expires, after.Serial)
	}
	q.Add("ORDER BY expires, serial LIMIT ?", limit)
	return listCertificates(ctx, s.cfg.DB, q, s.cfg.Now())
}

// count runs a query that gives one number.
func count(ctx context.Context, q sqldb.Reader, query *sqldb.Builder) (n int64, err error) {
	err = q.QueryRowContext(ctx, query.SQL(), query.Args()...).Scan(&n)
	return n, err
}
