package monitoring

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
)

const eventColumns = "e.num, e.nr, e.device, e.at, e.name, e.severity, e.text, e.data, e.device_time"

func scanEvents(rows *sql.Rows, err error) ([]DeviceEvent, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []DeviceEvent
	for rows.Next() {
		var e DeviceEvent
		var data string
		if err := rows.Scan(&e.num, &e.Number, &e.Device, sqldb.ScanMicros(&e.At), &e.Name, &e.Severity, &e.Text, &data, sqldb.ScanMicros(&e.DeviceTime)); err != nil {
			return nil, err
		}
		if data != "" {
			e.Data = []byte(data)
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// insertEvent stores one event under the device's next number and takes away what is too many. The same
// event sent again changes nothing.
func insertEvent(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, e DeviceEvent) error {
	var last int64
	if err := tx.QueryRowContext(ctx, "SELECT COALESCE(MAX(nr), 0) FROM monitoring_event WHERE num = $1", e.num).Scan(&last); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `INSERT INTO monitoring_event (num, nr, tenant, device, at, name, severity, text, data, device_time, digest)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (num, digest) WHERE digest <> '' DO NOTHING`,
		e.num, last+1, string(tenant), string(e.Device), sqldb.Micros(e.At), e.Name, int(e.Severity), e.Text, string(e.Data), sqldb.Micros(e.DeviceTime), e.digest())
	if err != nil || n == 0 || last < MaxEvents {
		return err
	}
	_, err = tx.Exec(ctx, "DELETE FROM monitoring_event WHERE num = $1 AND nr <= $2", e.num, last+1-MaxEvents)
	return err
}

// forgetEvents deletes events that are older than KeepEvents, tenant by tenant, each by its index.
func (s *Service) forgetEvents(ctx context.Context) error {
	before := sqldb.Micros(s.now().Add(-KeepEvents))
	for tenant, more := "", true; more; {
		err := s.cfg.DB.QueryRowContext(ctx, "SELECT tenant FROM monitoring_event WHERE tenant > $1 ORDER BY tenant LIMIT 1", tenant).Scan(&tenant)
		if err == sql.ErrNoRows {
			return nil
		}
		for n := int64(rowsPerStatement); err == nil && n == rowsPerStatement; {
			err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
				n, err = tx.Exec(ctx, `DELETE FROM monitoring_event WHERE (num, nr) IN
					(SELECT num, nr FROM monitoring_event WHERE tenant = $1 AND at < $2 ORDER BY at LIMIT $3)`, tenant, before, rowsPerStatement)
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("forget old events: %w", err)
		}
	}
	return nil
}

// TroubledDevices counts the devices of the scope that have sent an error since then; it looks at no more
// than maxAttention of their events.
func (s *Service) TroubledDevices(ctx context.Context, scope device.Scope, since time.Time) (n int64, err error) {
	q := sqldb.NewQuery("SELECT COUNT(*) FROM (SELECT DISTINCT r.num FROM (SELECT e.num AS num FROM monitoring_event e WHERE e.severity > 1 AND e.tenant = ? AND e.at >= ?",
		string(scope.Tenant), sqldb.Micros(since))
	if !scope.Selector.Empty() {
		nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, nil)
		q.Add("AND e.num IN ("+nums+")", args...)
	}
	q.Add("ORDER BY e.at DESC LIMIT ?) r) t", maxAttention)
	if err := s.cfg.DB.QueryRowContext(ctx, q.SQL(), q.Args()...).Scan(&n); err != nil {
		return 0, fmt.Errorf("devices with errors: %w", err)
	}
	return n, nil
}
