package purchase

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// StockRow is how many received devices of one model and one order are in stock.
type StockRow struct {
	Model        string `json:"model"`
	Order        string `json:"order"`
	Number       string `json:"number" doc:"Of the order"`
	Supplier     string `json:"supplier"`
	Units        int64  `json:"units"`
	Value        int64  `json:"value" doc:"At the order's prices, in minor units"`
	Currency     string `json:"currency"`
	Delivered    Date   `json:"delivered" doc:"Day of the first delivery among them"`
	WarrantyEnd  Date   `json:"warranty_end,omitempty" doc:"First to end; empty when none has a warranty"`
	WarrantyLast Date   `json:"warranty_last,omitempty" doc:"Last to end"`
}

// Stock lists what is received and not yet staged, by model and order. It reads kept counts, so that it
// costs as much as there are deliveries with units in stock.
func (s *Service) Stock(ctx context.Context, who httpapi.Principal) ([]StockRow, error) {
	return s.unitsBy(ctx, who, []device.Stage{device.Received}, "")
}

// EndingWarranties lists devices in stock or in service whose warranty ends soon, by model and order.
func (s *Service) EndingWarranties(ctx context.Context, who httpapi.Principal) ([]StockRow, error) {
	cond, args := s.warrantyEnding()
	return s.unitsBy(ctx, who, underWarranty, cond, args...)
}

// warrantyEnding is the condition that a unit's or a count's warranty ends soon.
func (s *Service) warrantyEnding() (string, []any) {
	now := s.cfg.Now()
	return "AND warranty_end <> '' AND warranty_end >= ? AND warranty_end <= ?",
		[]any{string(DateOf(now)), string(DateOf(now.Add(warrantyNotice)))}
}

// unitsBy sums up kept stock by model and order.
func (s *Service) unitsBy(ctx context.Context, who httpapi.Principal, stages []device.Stage, cond string, condArgs ...any) ([]StockRow, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return nil, err
	}
	kept, args := keptStock(tenant, stages, cond, condArgs...)
	b := sqldb.NewQuery("SELECT s.model, s.order_id, o.number, o.supplier, o.currency, CAST(SUM(s.units) AS BIGINT), CAST(SUM(s.units * l.unit_price) AS BIGINT),"+
		" MIN(s.delivered), MIN(NULLIF(s.warranty_end, '')), MAX(NULLIF(s.warranty_end, ''))"+
		" FROM ("+kept+") s JOIN purchase_order o ON o.id = s.order_id"+
		" JOIN purchase_line l ON l.order_id = s.order_id AND l.line = s.line"+
		" GROUP BY s.model, s.order_id, o.number, o.supplier, o.currency ORDER BY s.model, o.number", args...)
	list, err := sqldb.Collect(ctx, s.cfg.DB, func(rows *sql.Rows) (r StockRow, err error) {
		var delivered time.Time
		var first, last sql.NullString
		err = rows.Scan(&r.Model, &r.Order, &r.Number, &r.Supplier, &r.Currency, &r.Units, &r.Value,
			sqldb.ScanMicros(&delivered), &first, &last)
		r.Delivered, r.WarrantyEnd, r.WarrantyLast = DateOf(delivered), Date(first.String), Date(last.String)
		return r, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("read stock: %w", err)
	}
	return append([]StockRow{}, list...), nil
}

// Bought tells whether a device with this serial number was delivered on an order of the tenant. It
// is the question that enrollment asks before it lets a device into service.
func (s *Service) Bought(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serial string) (bool, error) {
	n, err := count(ctx, q, sqldb.NewQuery("SELECT COUNT(*) FROM purchase_unit WHERE tenant = ? AND serial = ? AND state = ? AND serial <> ''",
		tenant, serial, string(unitReceived)))
	if err != nil {
		return false, fmt.Errorf("look for the purchase of %s: %w", serial, err)
	}
	return n > 0, nil
}

// Provenance is where a device came from.
type Provenance struct {
	Order       string    `json:"order"` // ID
	Number      string    `json:"number"`
	Line        int       `json:"line"`
	Supplier    string    `json:"supplier"` // name
	Model       string    `json:"model"`    // ID
	Maker       string    `json:"maker"`
	ModelName   string    `json:"model_name"`
	Ordered     time.Time `json:"ordered"`
	Delivery    string    `json:"delivery,omitempty"` // ID; empty while open or when cancelled
	Delivered   time.Time `json:"delivered,omitzero"`
	WarrantyEnd string    `json:"warranty_end,omitempty"` // YYYY-MM-DD
	UnitPrice   int64     `json:"unit_price"`             // minor units
	Currency    string    `json:"currency"`
}

// Provenance returns how a device was bought; ok is false when it was not bought through Steward.
func (s *Service) Provenance(ctx context.Context, q sqldb.Reader, num int64) (p Provenance, ok bool, err error) {
	b := sqldb.NewQuery("SELECT o.id, o.number, u.line, COALESCE(s.name, o.supplier), u.model, COALESCE(m.maker, ''), COALESCE(m.name, ''),"+
		" o.placed, u.delivery_id, u.delivered, u.warranty_end, l.unit_price, o.currency"+
		" FROM purchase_unit u JOIN purchase_order o ON o.id = u.order_id"+
		" JOIN purchase_line l ON l.order_id = u.order_id AND l.line = u.line"+
		" LEFT JOIN purchase_supplier s ON s.tenant = o.tenant AND s.id = o.supplier"+
		" LEFT JOIN purchase_model m ON m.tenant = o.tenant AND m.id = u.model WHERE u.num = ?", num)
	err = q.QueryRowContext(ctx, b.SQL(), b.Args()...).Scan(&p.Order, &p.Number, &p.Line, &p.Supplier, &p.Model, &p.Maker, &p.ModelName,
		sqldb.ScanMicros(&p.Ordered), &p.Delivery, sqldb.ScanMicros(&p.Delivered), &p.WarrantyEnd, &p.UnitPrice, &p.Currency)
	if errors.Is(err, sql.ErrNoRows) {
		return Provenance{}, false, nil
	}
	if err != nil {
		return Provenance{}, false, fmt.Errorf("read provenance of device %d: %w", num, err)
	}
	return p, true, nil
}

// Undelivered returns a sub-SELECT, with "?" placeholders, of the numbers of devices that never came:
// their part of an order was cancelled, so there is nothing to sanitize.
func (s *Service) Undelivered(tenant device.TenantID) (query string, args []any) {
	return "SELECT num FROM purchase_unit WHERE tenant = ? AND state = ?", []any{tenant, string(unitCancelled)}
}
