package purchase

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"

	"steward/internal/device"
	"steward/internal/sqldb"
)

const deliveryColumns = "SELECT id, order_id, sha256, note, row_count, booked, discrepancies, waiting, created, actor," +
	" (SELECT COUNT(*) FROM purchase_discrepancy x WHERE x.delivery_id = d.id AND x.decision = '')" +
	" FROM purchase_delivery d WHERE tenant = ?"

func scanDelivery(rows *sql.Rows) (d Delivery, err error) {
	var actor string
	if err = rows.Scan(&d.ID, &d.Order, &d.SHA256, &d.Note, &d.Rows, &d.Booked, &d.Discrepancies, &d.Waiting,
		sqldb.ScanMicros(&d.Created), &actor, &d.Undecided); err != nil {
		return d, err
	}
	return d, json.Unmarshal([]byte(actor), &d.Actor)
}

func readDeliveries(ctx context.Context, q sqldb.Reader, tenant device.TenantID, order string) ([]Delivery, error) {
	return rowsOf(ctx, q, sqldb.NewQuery(deliveryColumns, tenant).Add("AND order_id = ? ORDER BY created, id", order), scanDelivery)
}

func readDelivery(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id string) (Delivery, error) {
	list, err := rowsOf(ctx, q, sqldb.NewQuery(deliveryColumns, tenant).Add("AND id = ?", id), scanDelivery)
	return one(list, err, "delivery", id)
}

// deliveryOfFile finds the delivery that a file was booked as.
func deliveryOfFile(ctx context.Context, q sqldb.Reader, o Order, sha256 string) (Delivery, bool, error) {
	list, err := rowsOf(ctx, q, sqldb.NewQuery(deliveryColumns, o.Tenant).Add("AND order_id = ? AND sha256 = ?", o.ID, sha256), scanDelivery)
	if err != nil || len(list) == 0 {
		return Delivery{}, false, err
	}
	return list[0], true, nil
}

func insertDelivery(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, d Delivery) error {
	b := sqldb.NewQuery("INSERT INTO purchase_delivery (id, tenant, order_id, sha256, note, row_count, booked, discrepancies, waiting, created, actor) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		d.ID, tenant, d.Order, d.SHA256, d.Note, d.Rows, d.Booked, d.Discrepancies, d.Waiting, sqldb.Micros(d.Created), actorJSON(d.Actor))
	_, err := tx.Exec(ctx, b.SQL(), b.Args()...)
	return err
}

// updateDelivery writes how far the booking of a delivery is.
func updateDelivery(ctx context.Context, tx *sqldb.Tx, d Delivery) error {
	_, err := tx.Exec(ctx, "UPDATE purchase_delivery SET booked = $1, discrepancies = $2, waiting = $3 WHERE id = $4",
		d.Booked, d.Discrepancies, d.Waiting, d.ID)
	if err != nil {
		return fmt.Errorf("update delivery: %w", err)
	}
	return nil
}

// insertParts keeps the rows of a delivery until they are booked.
func insertParts(ctx context.Context, tx *sqldb.Tx, order string, parts []bookingPart) error {
	no := 0
	for some := range slices.Chunk(parts, batch) {
		b := sqldb.NewQuery("INSERT INTO purchase_work_part (order_id, part, body) VALUES")
		for i, p := range some {
			body, err := json.Marshal(p)
			if err != nil {
				return err
			}
			b.Add(comma(i)+"(?, ?, ?)", order, no, string(body))
			no++
		}
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("keep the rows of the delivery: %w", err)
		}
	}
	return nil
}

// takeParts removes the next parts of an order's work and returns what was in them, and whether there
// are more.
func takeParts(ctx context.Context, tx *sqldb.Tx, order string, limit int) (parts []bookingPart, more bool, err error) {
	last := -1
	parts, err = sqldb.Collect(ctx, tx, func(rows *sql.Rows) (p bookingPart, err error) {
		var body string
		if err = rows.Scan(&last, &body); err == nil {
			err = json.Unmarshal([]byte(body), &p)
		}
		return p, err
	}, "SELECT part, body FROM purchase_work_part WHERE order_id = $1 ORDER BY part LIMIT $2", order, limit)
	if err != nil {
		return nil, false, fmt.Errorf("read the rows of the delivery: %w", err)
	}
	if _, err := tx.Exec(ctx, "DELETE FROM purchase_work_part WHERE order_id = $1 AND part <= $2", order, last); err != nil {
		return nil, false, fmt.Errorf("remove booked rows: %w", err)
	}
	left, err := count(ctx, tx, sqldb.NewQuery("SELECT COUNT(*) FROM (SELECT 1 FROM purchase_work_part WHERE order_id = ? LIMIT 1) p", order))
	return parts, left > 0, err
}

func insertDiscrepancies(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, d Delivery, list []Discrepancy) error {
	for len(list) > 0 {
		part := list[:min(batch, len(list))]
		list = list[len(part):]
		b := sqldb.NewQuery("INSERT INTO purchase_discrepancy (delivery_id, file_line, tenant, order_id, kind, serial, model, line, mac, note, detail," +
			" decision, decided, actor, decision_note, decision_line) VALUES")
		for i, x := range part {
			if i > 0 {
				b.Add(",")
			}
			b.Add("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', 0, '', '', 0)", d.ID, x.FileLine, tenant, d.Order, string(x.Kind),
				x.Serial, x.Model, x.Line, x.MAC, x.Note, x.Detail)
		}
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("insert discrepancies: %w", err)
		}
	}
	return nil
}

const discrepancyColumns = "SELECT delivery_id, order_id, file_line, kind, serial, model, line, mac, note, detail," +
	" decision, decided, actor, decision_note, decision_line FROM purchase_discrepancy WHERE tenant = ?"

func scanDiscrepancy(rows *sql.Rows) (x Discrepancy, err error) {
	var actor string
	if err = rows.Scan(&x.Delivery, &x.Order, &x.FileLine, &x.Kind, &x.Serial, &x.Model, &x.Line, &x.MAC, &x.Note, &x.Detail,
		&x.Decision, sqldb.ScanMicros(&x.Decided), &actor, &x.DecisionNote, &x.DecisionLine); err != nil {
		return x, err
	}
	if actor != "" {
		x.Actor = new(device.Actor)
		err = json.Unmarshal([]byte(actor), x.Actor)
	}
	return x, err
}

// readDiscrepancies reads those of a delivery behind a line of its file, in the order of the file.
func readDiscrepancies(ctx context.Context, q sqldb.Reader, tenant device.TenantID, f DiscrepancyFilter) ([]Discrepancy, error) {
	b := sqldb.NewQuery(discrepancyColumns, tenant)
	if f.Order != "" {
		b.Add("AND order_id = ?", f.Order)
	}
	if f.Delivery != "" {
		b.Add("AND delivery_id = ?", f.Delivery)
	}
	if f.Kind != "" {
		b.Add("AND kind = ?", string(f.Kind))
	}
	if f.Undecided {
		b.Add("AND decision = ''")
	}
	if f.after.Delivery != "" {
		b.Add("AND (delivery_id, file_line) > (?, ?)", f.after.Delivery, f.after.FileLine)
	}
	return rowsOf(ctx, q, b.Add("ORDER BY delivery_id, file_line LIMIT ?", f.Limit+1), scanDiscrepancy)
}

func readDiscrepancy(ctx context.Context, q sqldb.Reader, tenant device.TenantID, delivery string, fileLine int) (Discrepancy, error) {
	b := sqldb.NewQuery(discrepancyColumns, tenant).Add("AND delivery_id = ? AND file_line = ?", delivery, fileLine)
	list, err := rowsOf(ctx, q, b, scanDiscrepancy)
	return one(list, err, "discrepancy of file line", fmt.Sprint(fileLine))
}

func writeDecision(ctx context.Context, tx *sqldb.Tx, x Discrepancy) error {
	_, err := tx.Exec(ctx, "UPDATE purchase_discrepancy SET decision = $1, decided = $2, actor = $3, decision_note = $4, decision_line = $5 WHERE delivery_id = $6 AND file_line = $7",
		string(x.Decision), sqldb.Micros(x.Decided), actorJSON(*x.Actor), x.DecisionNote, x.DecisionLine, x.Delivery, x.FileLine)
	return err
}

func countUndecided(ctx context.Context, q sqldb.Reader, tenant device.TenantID, order string) (int64, error) {
	b := sqldb.NewQuery("SELECT COUNT(*) FROM purchase_discrepancy WHERE tenant = ? AND decision = ''", tenant)
	if order != "" {
		b.Add("AND order_id = ?", order)
	}
	return count(ctx, q, b)
}
