package purchase

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// batch bounds the rows of one bulk statement: PostgreSQL takes 65,535 parameters, SQLite 32,766.
const batch = 500

// Order and work are read in one statement: an order that is placing without work would be a lie.
const orderColumns = "SELECT o.id, o.tenant, o.number, o.supplier, o.currency, o.due, o.note, o.state, o.created, o.placed, o.ended, o.revision," +
	" COALESCE(w.kind, ''), COALESCE(w.done, 0), COALESCE(w.total, 0), COALESCE(w.started, 0)" +
	" FROM purchase_order o LEFT JOIN purchase_work w ON w.order_id = o.id WHERE o.tenant = ?"

func scanOrder(rows *sql.Rows) (o Order, err error) {
	var p Progress
	err = rows.Scan(&o.ID, &o.Tenant, &o.Number, &o.Supplier, &o.Currency, &o.Due, &o.Note, &o.State,
		sqldb.ScanMicros(&o.Created), sqldb.ScanMicros(&o.Placed), sqldb.ScanMicros(&o.Ended), &o.Revision,
		&p.Task, &p.Done, &p.Total, sqldb.ScanMicros(&p.Started))
	if p.Task != "" {
		o.Progress = &p
	}
	o.Lines = []Line{}
	return o, err
}

// position is where a page of orders ended.
type position struct {
	Created int64
	ID      string
}

// readOrders reads a page, newest first, lines included; one more than limit tells that there are more.
func readOrders(ctx context.Context, q sqldb.Reader, tenant device.TenantID, f OrderFilter, after position, today Date) ([]Order, error) {
	b := sqldb.NewQuery(orderColumns, tenant)
	if f.State != "" {
		b.Add("AND o.state = ?", string(f.State))
	}
	if f.Supplier != "" {
		b.Add("AND o.supplier = ?", f.Supplier)
	}
	if f.Number != "" {
		b.Add("AND o.number = ?", f.Number)
	}
	if f.Overdue {
		b.Add("AND o.state IN (?, ?) AND o.due <> '' AND o.due < ?", string(Placed), string(PartlyReceived), string(today))
	}
	if f.Undecided {
		b.Add("AND EXISTS (SELECT 1 FROM purchase_discrepancy x WHERE x.tenant = o.tenant AND x.order_id = o.id AND x.decision = '')")
	}
	if after.ID != "" {
		b.Add("AND (o.created, o.id) < (?, ?)", after.Created, after.ID)
	}
	orders, err := rowsOf(ctx, q, b.Add("ORDER BY o.created DESC, o.id DESC LIMIT ?", f.Limit+1), scanOrder)
	if err != nil {
		return nil, err
	}
	return orders, addLines(ctx, q, orders)
}

func readOrder(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Order, error) {
	list, err := rowsOf(ctx, q, sqldb.NewQuery(orderColumns, tenant).Add("AND o.id = ?", id), scanOrder)
	if _, err := one(list, err, "order", id); err != nil {
		return Order{}, err
	}
	err = addLines(ctx, q, list)
	return list[0], err
}

func addLines(ctx context.Context, q sqldb.Reader, orders []Order) error {
	if len(orders) == 0 {
		return nil
	}
	at := make(map[string]int, len(orders))
	b := sqldb.NewQuery("SELECT order_id, line, model, quantity, unit_price, note, extra, received, cancelled FROM purchase_line WHERE order_id IN (")
	for i, o := range orders {
		at[o.ID] = i
		if i > 0 {
			b.Add(",")
		}
		b.Add("?", o.ID)
	}
	type lineOf struct {
		order string
		line  Line
	}
	lines, err := rowsOf(ctx, q, b.Add(") ORDER BY order_id, line"), func(rows *sql.Rows) (l lineOf, err error) {
		err = rows.Scan(&l.order, &l.line.Line, &l.line.Model, &l.line.Quantity, &l.line.UnitPrice, &l.line.Note,
			&l.line.Extra, &l.line.Received, &l.line.Cancelled)
		return l, err
	})
	if err != nil {
		return fmt.Errorf("read order lines: %w", err)
	}
	for _, l := range lines {
		o := &orders[at[l.order]]
		o.Lines = append(o.Lines, l.line)
	}
	return nil
}

func insertOrder(ctx context.Context, tx *sqldb.Tx, o Order) error {
	b := sqldb.NewQuery("INSERT INTO purchase_order (id, tenant, number, supplier, currency, due, note, state, created, placed, ended, revision)"+
		" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", o.ID, o.Tenant, o.Number, o.Supplier, o.Currency, string(o.Due), o.Note,
		string(o.State), sqldb.Micros(o.Created), sqldb.Micros(o.Placed), sqldb.Micros(o.Ended), o.Revision)
	if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
		return err
	}
	return insertLines(ctx, tx, o)
}

func insertLines(ctx context.Context, tx *sqldb.Tx, o Order) error {
	for _, l := range o.Lines {
		b := sqldb.NewQuery("INSERT INTO purchase_line (order_id, line, model, quantity, unit_price, note, extra, received, cancelled)"+
			" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", o.ID, l.Line, l.Model, l.Quantity, l.UnitPrice, l.Note, l.Extra, l.Received, l.Cancelled)
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("insert order line %d: %w", l.Line, err)
		}
	}
	return nil
}

// updateOrder writes the order's own row; lines are counted by countLine.
func updateOrder(ctx context.Context, tx *sqldb.Tx, o Order) error {
	b := sqldb.NewQuery("UPDATE purchase_order SET number = ?, supplier = ?, currency = ?, due = ?, note = ?, state = ?, placed = ?, ended = ?, revision = ? WHERE id = ?",
		o.Number, o.Supplier, o.Currency, string(o.Due), o.Note, string(o.State), sqldb.Micros(o.Placed), sqldb.Micros(o.Ended), o.Revision, o.ID)
	_, err := tx.Exec(ctx, b.SQL(), b.Args()...)
	return err
}

func replaceLines(ctx context.Context, tx *sqldb.Tx, o Order) error {
	if _, err := tx.Exec(ctx, "DELETE FROM purchase_line WHERE order_id = $1", o.ID); err != nil {
		return err
	}
	return insertLines(ctx, tx, o)
}

// saveCounts writes what became of the lines' units.
func saveCounts(ctx context.Context, tx *sqldb.Tx, o Order) error {
	for _, l := range o.Lines {
		if _, err := tx.Exec(ctx, "UPDATE purchase_line SET extra = $1, received = $2, cancelled = $3 WHERE order_id = $4 AND line = $5",
			l.Extra, l.Received, l.Cancelled, o.ID, l.Line); err != nil {
			return fmt.Errorf("count order line %d: %w", l.Line, err)
		}
	}
	return nil
}

// unitState tells what became of an ordered unit.
type unitState string

const (
	unitOpen      unitState = "open"
	unitReceived  unitState = "received"
	unitCancelled unitState = "cancelled"
)

// unit is one ordered device as this room keeps it.
type unit struct {
	num         int64
	line        int
	model       string
	state       unitState
	delivery    string
	serial, mac string
	delivered   time.Time
	warrantyEnd Date
}

func insertUnits(ctx context.Context, tx *sqldb.Tx, o Order, units []unit) error {
	for len(units) > 0 {
		part := units[:min(batch, len(units))]
		units = units[len(part):]
		b := sqldb.NewQuery("INSERT INTO purchase_unit (num, tenant, order_id, line, model, state, delivery_id, serial, mac, delivered, warranty_end) VALUES")
		for i, u := range part {
			if i > 0 {
				b.Add(",")
			}
			b.Add("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", u.num, o.Tenant, o.ID, u.line, u.model, string(u.state), u.delivery,
				u.serial, u.mac, sqldb.Micros(u.delivered), string(u.warrantyEnd))
		}
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("insert units: %w", err)
		}
	}
	return nil
}

// openUnits returns up to limit device numbers of a line's open units, the oldest first.
func openUnits(ctx context.Context, q sqldb.Reader, order string, line int, limit int64) ([]int64, error) {
	b := sqldb.NewQuery("SELECT num FROM purchase_unit WHERE order_id = ? AND line = ? AND state = ? ORDER BY num LIMIT ?",
		order, line, string(unitOpen), limit)
	return rowsOf(ctx, q, b, func(rows *sql.Rows) (num int64, err error) {
		err = rows.Scan(&num)
		return num, err
	})
}

// updateUnits writes what became of units. The types of a list of values are those of its first row.
func updateUnits(ctx context.Context, tx *sqldb.Tx, units []unit) error {
	for part := range slices.Chunk(units, batch) {
		b := sqldb.NewQuery("UPDATE purchase_unit SET state = v.column2, delivery_id = v.column3, serial = v.column4, mac = v.column5," +
			" delivered = v.column6, warranty_end = v.column7 FROM (VALUES")
		for i, u := range part {
			row := ",(?, ?, ?, ?, ?, ?, ?)"
			if i == 0 {
				row = "(CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS TEXT))"
			}
			b.Add(row, u.num, string(u.state), u.delivery, u.serial, u.mac, sqldb.Micros(u.delivered), string(u.warrantyEnd))
		}
		b.Add(") AS v WHERE purchase_unit.num = v.column1")
		n, err := tx.Exec(ctx, b.SQL(), b.Args()...)
		if err != nil {
			return fmt.Errorf("update units: %w", err)
		}
		if n != int64(len(part)) {
			return fmt.Errorf("%d of %d units updated", n, len(part))
		}
	}
	return nil
}
