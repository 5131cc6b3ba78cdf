package purchase_test

import (
	"io/fs"
	"log/slog"
	"testing"
	"testing/fstest"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestStockIsFilledFromTheUnitsOfAnOlderVersion(t *testing.T) {
	m := purchase.Migration()
	text, err := fs.ReadFile(m.Files, "00001_purchase.sql")
	if err != nil {
		t.Fatal(err)
	}
	old := sqldb.Migration{Room: m.Room, Files: fstest.MapFS{"00001_purchase.sql": {Data: text}}}
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration(), registry.Migration(), old}, func(t *testing.T, db *sqldb.DB) {
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			for _, s := range []string{
				`INSERT INTO registry_device (num, id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision) VALUES
					(1, 'dev-1', 'default', 'S1', 'gw', '', 'received', 1, '', '{}', 1, 1),
					(2, 'dev-2', 'default', 'S2', 'gw', '', 'received', 1, '', '{}', 1, 1),
					(3, 'dev-3', 'default', 'S3', 'gw', '', 'active', 1, '', '{}', 1, 1),
					(4, 'dev-4', 'default', '', 'gw', '', 'ordered', 1, '', '{}', 1, 1)`,
				`INSERT INTO purchase_order (id, tenant, number, supplier, currency, due, note, state, created, placed, ended, revision)
					VALUES ('ord-1', 'default', 'PO', 'acme', 'EUR', '', '', 'partly_received', 1, 1, 0, 1)`,
				`INSERT INTO purchase_line (order_id, line, model, quantity, unit_price, note, extra, received, cancelled) VALUES ('ord-1', 1, 'gw', 4, 100, '', 0, 3, 0)`,
				`INSERT INTO purchase_unit (num, tenant, order_id, line, model, state, delivery_id, serial, mac, delivered, warranty_end) VALUES
					(1, 'default', 'ord-1', 1, 'gw', 'received', 'del-1', 'S1', '', 5, '2027-01-01'),
					(2, 'default', 'ord-1', 1, 'gw', 'received', 'del-1', 'S2', '', 5, '2027-01-01'),
					(3, 'default', 'ord-1', 1, 'gw', 'received', 'del-1', 'S3', '', 5, '2027-01-01'),
					(4, 'default', 'ord-1', 1, 'gw', 'open', '', '', '', 0, '')`,
			} {
				if _, err := tx.Exec(t.Context(), s); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(t.Context(), purchase.Migration()); err != nil {
			t.Fatal(err)
		}
		k := &desk{t: t, db: db, ledger: ledgertest.New(t, db), now: start}
		k.who.Scope.Tenant = device.DefaultTenant
		k.devices = registry.New(registry.Config{DB: db, Ledger: k.ledger})
		k.Service = purchase.New(purchase.Config{DB: db, Devices: k.devices, Ledger: k.ledger, Now: k.clock, Log: slog.New(slog.DiscardHandler)})
		if wrong, err := k.CheckStock(t.Context(), db, device.DefaultTenant); err != nil || len(wrong) > 0 {
			t.Errorf("kept stock: %q, %v", wrong, err)
		}
		stock, err := k.Stock(t.Context(), k.who)
		if err != nil || len(stock) != 1 || stock[0].Units != 2 || stock[0].Value != 200 {
			t.Errorf("stock %+v, %v", stock, err)
		}
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "UPDATE purchase_stock SET units = units + 1 WHERE stage = 'active'")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if wrong, err := k.CheckStock(t.Context(), db, device.DefaultTenant); err != nil || len(wrong) != 1 || wrong[0] != "stock: kept 2, counted 1 of order ord-1 line 1 in stage active" {
			t.Errorf("a wrong count is told as %q, %v", wrong, err)
		}
	})
}
