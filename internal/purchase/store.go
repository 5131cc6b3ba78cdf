package purchase

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

// rowsOf is sqldb.Collect for a builder; no row is an empty list, which answers show as one.
func rowsOf[T any](ctx context.Context, q sqldb.Reader, b *sqldb.Builder, scan func(*sql.Rows) (T, error)) ([]T, error) {
	list, err := sqldb.Collect(ctx, q, scan, b.SQL(), b.Args()...)
	if list == nil {
		list = []T{}
	}
	return list, err
}

// one returns the only row, or fault.NotFound with what was looked for.
func one[T any](list []T, err error, what, id string) (T, error) {
	var zero T
	if err != nil {
		return zero, fmt.Errorf("read %s %s: %w", what, id, err)
	}
	if len(list) == 0 {
		return zero, fault.New(fault.NotFound, "there is no %s %q", what, id)
	}
	return list[0], nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

const supplierColumns = "SELECT id, name, contact, email, website, note, created, revision FROM purchase_supplier WHERE tenant = ?"

func scanSupplier(rows *sql.Rows) (s Supplier, err error) {
	err = rows.Scan(&s.ID, &s.Name, &s.Contact, &s.Email, &s.Website, &s.Note, sqldb.ScanMicros(&s.Created), &s.Revision)
	return s, err
}

func readSuppliers(ctx context.Context, q sqldb.Reader, tenant device.TenantID) ([]Supplier, error) {
	return rowsOf(ctx, q, sqldb.NewQuery(supplierColumns, tenant).Add("ORDER BY id"), scanSupplier)
}

func readSupplier(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Supplier, error) {
	list, err := rowsOf(ctx, q, sqldb.NewQuery(supplierColumns, tenant).Add("AND id = ?", id), scanSupplier)
	return one(list, err, "supplier", id)
}

func writeSupplier(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, s Supplier) error {
	b := sqldb.NewQuery("INSERT INTO purchase_supplier (tenant, id, name, contact, email, website, note, created, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		tenant, s.ID, s.Name, s.Contact, s.Email, s.Website, s.Note, sqldb.Micros(s.Created), s.Revision).
		Add("ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, contact = excluded.contact, email = excluded.email," +
			" website = excluded.website, note = excluded.note, revision = excluded.revision")
	_, err := tx.Exec(ctx, b.SQL(), b.Args()...)
	return err
}

const modelColumns = "SELECT id, maker, name, part_number, architecture, interfaces, tpm, secure_boot, support_end," +
	" warranty_months, note, created, revision FROM purchase_model WHERE tenant = ?"

func scanModel(rows *sql.Rows) (m Model, err error) {
	var interfaces string
	var secure, months int64
	if err = rows.Scan(&m.ID, &m.Maker, &m.Name, &m.PartNumber, &m.Architecture, &interfaces, &m.TPM, &secure,
		&m.SupportEnd, &months, &m.Note, sqldb.ScanMicros(&m.Created), &m.Revision); err != nil {
		return m, err
	}
	m.SecureBoot, m.WarrantyMonths = secure != 0, int(months)
	return m, json.Unmarshal([]byte(interfaces), &m.Interfaces)
}

func readModels(ctx context.Context, q sqldb.Reader, tenant device.TenantID) ([]Model, error) {
	return rowsOf(ctx, q, sqldb.NewQuery(modelColumns, tenant).Add("ORDER BY id"), scanModel)
}

func readModel(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Model, error) {
	list, err := rowsOf(ctx, q, sqldb.NewQuery(modelColumns, tenant).Add("AND id = ?", id), scanModel)
	return one(list, err, "hardware model", id)
}

func writeModel(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, m Model) error {
	interfaces, err := json.Marshal(append([]string{}, m.Interfaces...))
	if err != nil {
		return err
	}
	b := sqldb.NewQuery("INSERT INTO purchase_model (tenant, id, maker, name, part_number, architecture, interfaces, tpm, secure_boot,"+
		" support_end, warranty_months, note, created, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		tenant, m.ID, m.Maker, m.Name, m.PartNumber, m.Architecture, string(interfaces), m.TPM, flag(m.SecureBoot),
		string(m.SupportEnd), m.WarrantyMonths, m.Note, sqldb.Micros(m.Created), m.Revision).
		Add("ON CONFLICT (tenant, id) DO UPDATE SET maker = excluded.maker, name = excluded.name, part_number = excluded.part_number," +
			" architecture = excluded.architecture, interfaces = excluded.interfaces, tpm = excluded.tpm, secure_boot = excluded.secure_boot," +
			" support_end = excluded.support_end, warranty_months = excluded.warranty_months, note = excluded.note, revision = excluded.revision")
	_, err = tx.Exec(ctx, b.SQL(), b.Args()...)
	return err
}

// modelNames maps each name that a delivery file may use (ID or part number) to the model's ID.
// SaveModel keeps the two kinds of names apart.
func modelNames(ctx context.Context, q sqldb.Reader, tenant device.TenantID) (map[string]string, error) {
	models, err := readModels(ctx, q, tenant)
	if err != nil {
		return nil, fmt.Errorf("read models: %w", err)
	}
	names := make(map[string]string, 2*len(models))
	for _, m := range models {
		names[m.ID] = m.ID
		if m.PartNumber != "" {
			names[m.PartNumber] = m.ID
		}
	}
	return names, nil
}

// count returns the single number that a query gives.
func count(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) (n int64, err error) {
	err = q.QueryRowContext(ctx, b.SQL(), b.Args()...).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return n, err
}
