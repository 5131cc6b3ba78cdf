package registry

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

// deviceColumns are what scanDevice reads, of the table under the name d.
const deviceColumns = "d.num, d.id, d.tenant, d.name, d.serial, d.model, d.stage, d.stage_since, d.reason, d.labels, d.created, d.revision"

// scanDevice reads deviceColumns and then what follows them.
func scanDevice(row interface{ Scan(...any) error }, more ...any) (device.Device, error) {
	var d device.Device
	var labels string
	to := append([]any{&d.Num, &d.ID, &d.Tenant, &d.Name, &d.Serial, &d.Model, &d.Stage, sqldb.ScanMicros(&d.StageSince),
		&d.Reason, &labels, sqldb.ScanMicros(&d.Created), &d.Revision}, more...)
	if err := row.Scan(to...); err != nil {
		return device.Device{}, err
	}
	if err := json.Unmarshal([]byte(labels), &d.Labels); err != nil {
		return device.Device{}, fmt.Errorf("labels of %s: %w", d.ID, err)
	}
	return d, nil
}

// oneDevice reads a single row; none is fault.NotFound.
func oneDevice(row *sql.Row) (device.Device, error) {
	d, err := scanDevice(row)
	if errors.Is(err, sql.ErrNoRows) {
		return d, fault.NotFound
	}
	return d, err
}

// manyDevices reads all rows.
func manyDevices(ctx context.Context, q sqldb.Reader, query string, args ...any) ([]device.Device, error) {
	return sqldb.Collect(ctx, q, func(rows *sql.Rows) (device.Device, error) { return scanDevice(rows) }, query, args...)
}

// lockDevice reads a device so that nobody else changes it until the transaction ends. SQLite has one
// writer, so there is nothing to lock.
func lockDevice(ctx context.Context, tx *sqldb.Tx, num int64) (device.Device, error) {
	d, err := oneDevice(tx.QueryRowContext(ctx, "SELECT "+deviceColumns+" FROM registry_device d WHERE d.num = $1"+
		tx.Dialect().Pick("", " FOR UPDATE"), num))
	return d, named(err, "no device number %d", num)
}

// bySerialQuery asks for at most three devices, enough to say that there is more than one. Its last condition
// lets both engines use the partial index; in the order of that index, the model's, SQLite needs no
// other and does not walk the tenant's devices in the order of their numbers.
const bySerialQuery = "SELECT " + deviceColumns + ` FROM registry_device d
	WHERE d.tenant = $1 AND d.serial = $2 AND d.serial <> '' ORDER BY d.model LIMIT 3`

func bySerial(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serial string) ([]device.Device, error) {
	return manyDevices(ctx, q, bySerialQuery, tenant, serial)
}

func bySerialAndModel(ctx context.Context, q sqldb.Reader, tenant device.TenantID, model, serial string) (device.Device, error) {
	return oneDevice(q.QueryRowContext(ctx, "SELECT "+deviceColumns+` FROM registry_device d
		WHERE d.tenant = $1 AND d.serial = $2 AND d.model = $3 AND d.serial <> ''`, tenant, serial, model))
}
