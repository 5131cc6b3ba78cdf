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
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []device.Device
	for rows.Next() {
		d, err := scanDevice(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, rows.Err()
}

// errTaken says that the serial number belongs to another device of the tenant and model.
var errTaken = errors.New("serial number is taken")

// insertDevice returns the new device's number. A conflict inserts nothing and leaves the transaction
// usable on both engines.
func insertDevice(ctx context.Context, tx *sqldb.Tx, d device.Device) (num int64, err error) {
	labels, err := json.Marshal(d.Labels)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `INSERT INTO registry_device
		(id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING num`,
		d.ID, d.Tenant, d.Serial, d.Model, d.Name, d.Stage, sqldb.Micros(d.StageSince), d.Reason, string(labels),
		sqldb.Micros(d.Created), d.Revision).Scan(&num)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errTaken
	}
	return num, err
}

func updateDevice(ctx context.Context, tx *sqldb.Tx, d device.Device) error {
	labels, err := json.Marshal(d.Labels)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE registry_device SET serial = $1, name = $2, stage = $3, stage_since = $4, reason = $5,
		labels = $6, revision = $7 WHERE num = $8`,
		d.Serial, d.Name, d.Stage, sqldb.Micros(d.StageSince), d.Reason, string(labels), d.Revision, d.Num)
	return err
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

// index brings labels, search terms and counts from what the device was to what it is. A device that
// was not has an empty stage and no labels.
func (s *Service) index(ctx context.Context, tx *sqldb.Tx, before, d device.Device) error {
	if err := indexLabels(ctx, tx, before, d); err != nil {
		return fmt.Errorf("index labels: %w", err)
	}
	if err := indexTerms(ctx, tx, before, d); err != nil {
		return fmt.Errorf("index search terms: %w", err)
	}
	if before.Stage == d.Stage {
		return nil
	}
	if before.Stage != "" {
		if err := addStageCount(ctx, tx, d.Tenant, before.Stage, -1); err != nil {
			return err
		}
	}
	return addStageCount(ctx, tx, d.Tenant, d.Stage, 1)
}

func indexLabels(ctx context.Context, tx *sqldb.Tx, before, d device.Device) error {
	for k, old := range before.Labels {
		if v, has := d.Labels[k]; has && v == old {
			continue
		}
		if _, err := tx.Exec(ctx, "DELETE FROM registry_label WHERE num = $1 AND key = $2", d.Num, k); err != nil {
			return err
		}
		if err := addLabelCount(ctx, tx, d.Tenant, k, old, -1); err != nil {
			return err
		}
	}
	for k, v := range d.Labels {
		if old, had := before.Labels[k]; had && old == v {
			continue
		}
		if _, err := tx.Exec(ctx, "INSERT INTO registry_label (num, tenant, key, value) VALUES ($1, $2, $3, $4)", d.Num, d.Tenant, k, v); err != nil {
			return err
		}
		if err := addLabelCount(ctx, tx, d.Tenant, k, v, 1); err != nil {
			return err
		}
	}
	return nil
}

func indexTerms(ctx context.Context, tx *sqldb.Tx, before, d device.Device) error {
	if before.ID == d.ID && before.Serial == d.Serial && before.Name == d.Name {
		return nil
	}
	if before.ID != "" {
		if _, err := tx.Exec(ctx, "DELETE FROM registry_term WHERE num = $1", d.Num); err != nil {
			return err
		}
	}
	q := sqldb.NewQuery("INSERT INTO registry_term (tenant, term, num) VALUES")
	for i, term := range termsOf(d) {
		if i > 0 {
			q.Add(",")
		}
		q.Add("(?, ?, ?)", d.Tenant, []byte(term), d.Num)
	}
	_, err := tx.Exec(ctx, q.SQL(), q.Args()...)
	return err
}

// shard is the expression for the row in which a transaction counts; see the migration. The backend's
// number belongs to one transaction at a time, and the remainder bounds how many rows a count has.
func shard(tx *sqldb.Tx) string { return tx.Dialect().Pick("0", "pg_backend_pid() % 256") }

func addStageCount(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, stage device.Stage, by int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO registry_count (tenant, stage, shard, devices) VALUES ($1, $2, `+shard(tx)+`, $3)
		ON CONFLICT (tenant, stage, shard) DO UPDATE SET devices = registry_count.devices + excluded.devices`, tenant, stage, by)
	if err != nil {
		return fmt.Errorf("count stage: %w", err)
	}
	return nil
}

// addLabelCount also removes a row that has come to nothing: values come and go, stages don't.
func addLabelCount(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, key, value string, by int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO registry_label_count (tenant, key, value, shard, devices) VALUES ($1, $2, $3, `+shard(tx)+`, $4)
		ON CONFLICT (tenant, key, value, shard) DO UPDATE SET devices = registry_label_count.devices + excluded.devices`, tenant, key, value, by)
	if err == nil && by < 0 {
		_, err = tx.Exec(ctx, "DELETE FROM registry_label_count WHERE tenant = $1 AND key = $2 AND value = $3 AND shard = "+shard(tx)+" AND devices = 0",
			tenant, key, value)
	}
	if err != nil {
		return fmt.Errorf("count label: %w", err)
	}
	return nil
}
