package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// batchRows bounds the rows of one statement. SQLite takes 32,766 arguments, and statements of one
// length are compiled once.
const batchRows = 200

// insertDevices writes new devices and fills in their numbers. When a serial number is taken, by a
// device that was there or by one before it in the list, the error is errTaken and index tells which;
// the devices before and behind it may have been inserted then.
func insertDevices(ctx context.Context, tx *sqldb.Tx, list []device.Device) (index int, err error) {
	for from := 0; from < len(list); from += batchRows {
		chunk := list[from:min(from+batchRows, len(list))]
		q := sqldb.NewQuery(`INSERT INTO registry_device
			(id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision) VALUES`)
		for i, d := range chunk {
			labels, err := json.Marshal(d.Labels)
			if err != nil {
				return 0, err
			}
			q.Add(comma(i)+"(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", string(d.ID), string(d.Tenant), d.Serial, d.Model, d.Name, string(d.Stage),
				sqldb.Micros(d.StageSince), d.Reason, string(labels), sqldb.Micros(d.Created), d.Revision)
		}
		q.Add("ON CONFLICT DO NOTHING RETURNING id, num")
		nums, err := numsByID(ctx, tx, q)
		if err != nil {
			return 0, err
		}
		for i := range chunk {
			num, inserted := nums[chunk[i].ID]
			if !inserted {
				return from + i, errTaken
			}
			chunk[i].Num = num
		}
	}
	return 0, nil
}

func numsByID(ctx context.Context, tx *sqldb.Tx, q *sqldb.Builder) (map[device.ID]int64, error) {
	nums := map[device.ID]int64{}
	_, err := sqldb.Collect(ctx, tx, func(rows *sql.Rows) (struct{}, error) {
		var id device.ID
		var num int64
		err := rows.Scan(&id, &num)
		nums[id] = num
		return struct{}{}, err
	}, q.SQL(), q.Args()...)
	return nums, err
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

// updateDevices writes what changes of devices in their rows. The types of a list of values are those of its
// first row.
func updateDevices(ctx context.Context, tx *sqldb.Tx, list []change) error {
	for chunk := range slices.Chunk(list, batchRows) {
		q := sqldb.NewQuery(`UPDATE registry_device SET serial = v.column2, name = v.column3, stage = v.column4, stage_since = v.column5,
			reason = v.column6, labels = v.column7, revision = v.column8 FROM (VALUES`)
		for i, c := range chunk {
			row := ",(?, ?, ?, ?, ?, ?, ?, ?)"
			if i == 0 {
				row = `(CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS TEXT),
					CAST(? AS TEXT), CAST(? AS BIGINT))`
			}
			d := c.after
			labels, err := json.Marshal(d.Labels)
			if err != nil {
				return err
			}
			q.Add(row, d.Num, d.Serial, d.Name, string(d.Stage), sqldb.Micros(d.StageSince), d.Reason, string(labels), d.Revision)
		}
		q.Add(") AS v WHERE registry_device.num = v.column1")
		n, err := tx.Exec(ctx, q.SQL(), q.Args()...)
		if err != nil {
			return err
		}
		if n != int64(len(chunk)) {
			return fmt.Errorf("%d of %d devices written", n, len(chunk))
		}
	}
	return nil
}

// lockDevices reads devices so that nobody else changes them until the transaction ends, in the order of
// their numbers, which is also the order in which they are locked. A number without a device, or named
// twice, gives no device.
func lockDevices(ctx context.Context, tx *sqldb.Tx, nums []int64) ([]device.Device, error) {
	out := make([]device.Device, 0, len(nums))
	nums = slices.Compact(slices.Sorted(slices.Values(nums)))
	for chunk := range slices.Chunk(nums, batchRows) {
		q := sqldb.NewQuery("SELECT "+deviceColumns+" FROM registry_device d WHERE d.num IN ("+marks(len(chunk))+")", anys(chunk)...).
			Add("ORDER BY d.num" + tx.Dialect().Pick("", " FOR UPDATE"))
		some, err := manyDevices(ctx, tx, q.SQL(), q.Args()...)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

// bySerials reads the tenant's devices that have one of the serial numbers, in their order.
func bySerials(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serials []string) ([]device.Device, error) {
	var out []device.Device
	serials = slices.Compact(slices.Sorted(slices.Values(serials)))
	for chunk := range slices.Chunk(serials, batchRows) {
		b := sqldb.NewQuery("SELECT "+deviceColumns+" FROM registry_device d WHERE d.tenant = ?", tenant).
			Add("AND d.serial IN ("+marks(len(chunk))+")", anys(chunk)...).Add("AND d.serial <> '' ORDER BY d.serial, d.model")
		some, err := manyDevices(ctx, q, b.SQL(), b.Args()...)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

// index brings labels, search terms and counts from what the devices were to what they are.
func index(ctx context.Context, tx *sqldb.Tx, list []change) error {
	if err := indexLabels(ctx, tx, list); err != nil {
		return fmt.Errorf("index labels: %w", err)
	}
	if err := indexTerms(ctx, tx, list); err != nil {
		return fmt.Errorf("index search terms: %w", err)
	}
	if err := tallyOf(list).write(ctx, tx); err != nil {
		return fmt.Errorf("count devices: %w", err)
	}
	return nil
}

type labelRow struct {
	num        int64
	tenant     device.TenantID
	key, value string
}

func indexLabels(ctx context.Context, tx *sqldb.Tx, list []change) error {
	gone := map[string][]int64{} // key → devices
	var fresh []labelRow
	for _, c := range list {
		for k, old := range c.before.Labels {
			if v, has := c.after.Labels[k]; !has || v != old {
				gone[k] = append(gone[k], c.after.Num)
			}
		}
		for k, v := range c.after.Labels {
			if old, had := c.before.Labels[k]; !had || old != v {
				fresh = append(fresh, labelRow{c.after.Num, c.after.Tenant, k, v})
			}
		}
	}
	for key, nums := range gone {
		for chunk := range slices.Chunk(nums, batchRows) {
			q := sqldb.NewQuery("DELETE FROM registry_label WHERE key = ? AND num IN (", key).Add(marks(len(chunk))+")", anys(chunk)...)
			if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
				return err
			}
		}
	}
	// In the order of an index the rows of one page are written together.
	slices.SortFunc(fresh, func(a, b labelRow) int {
		if c := int(a.num - b.num); c != 0 {
			return c
		}
		return strings.Compare(a.key, b.key)
	})
	for chunk := range slices.Chunk(fresh, batchRows) {
		q := sqldb.NewQuery("INSERT INTO registry_label (num, tenant, key, value) VALUES")
		for i, r := range chunk {
			q.Add(comma(i)+"(?, ?, ?, ?)", r.num, string(r.tenant), r.key, r.value)
		}
		if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
			return err
		}
	}
	return nil
}

type termRow struct {
	num    int64
	tenant device.TenantID
	term   string
}

func indexTerms(ctx context.Context, tx *sqldb.Tx, list []change) error {
	var fresh []termRow
	for _, c := range list {
		if c.before.ID == c.after.ID && c.before.Serial == c.after.Serial && c.before.Name == c.after.Name {
			continue
		}
		var had []string
		if c.before.ID != "" {
			had = termsOf(c.before)
		}
		has := termsOf(c.after)
		for _, term := range had {
			if slices.Contains(has, term) {
				continue
			}
			if _, err := tx.Exec(ctx, "DELETE FROM registry_term WHERE num = $1 AND term = $2", c.after.Num, []byte(term)); err != nil {
				return err
			}
		}
		for _, term := range has {
			if !slices.Contains(had, term) {
				fresh = append(fresh, termRow{c.after.Num, c.after.Tenant, term})
			}
		}
	}
	for chunk := range slices.Chunk(fresh, batchRows) {
		q := sqldb.NewQuery("INSERT INTO registry_term (tenant, term, num) VALUES")
		for i, r := range chunk {
			q.Add(comma(i)+"(?, ?, ?)", string(r.tenant), []byte(r.term), r.num)
		}
		if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
			return err
		}
	}
	return nil
}

// errTaken says that the serial number belongs to another device of the tenant and model.
var errTaken = errors.New("serial number is taken")
