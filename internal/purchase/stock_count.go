package purchase

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// stockKey is what kept stock is counted by; its units cannot be told apart in any view of stock.
type stockKey struct {
	tenant      device.TenantID
	stage       device.Stage
	order       string
	line        int
	model       string
	delivered   int64 // microseconds
	warrantyEnd Date
}

// stockChange is by how much a transaction changes kept stock.
type stockChange map[stockKey]int64

// in is where a unit is counted while its device is in the stage.
func (u unit) in(tenant device.TenantID, order string, stage device.Stage) stockKey {
	return stockKey{tenant, stage, order, u.line, u.model, sqldb.Micros(u.delivered), u.warrantyEnd}
}

// shard is the expression for the row in which a transaction counts; see the migration.
func shard(tx *sqldb.Tx) string { return tx.Dialect().Pick("0", "pg_backend_pid() % 64") }

const stockKeyColumns = "tenant, stage, order_id, line, model, delivered, warranty_end"

// write adds to kept stock, in an order that is the same for all; rows that have come to nothing go.
func (c stockChange) write(ctx context.Context, tx *sqldb.Tx) error {
	maps.DeleteFunc(c, func(_ stockKey, n int64) bool { return n == 0 })
	keys := slices.SortedFunc(maps.Keys(c), func(a, b stockKey) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.stage, b.stage), cmp.Compare(a.order, b.order), cmp.Compare(a.line, b.line),
			cmp.Compare(a.model, b.model), cmp.Compare(a.delivered, b.delivered), cmp.Compare(a.warrantyEnd, b.warrantyEnd))
	})
	for part := range slices.Chunk(keys, batch) {
		b := sqldb.NewQuery("INSERT INTO purchase_stock (" + stockKeyColumns + ", shard, units) VALUES")
		for i, k := range part {
			b.Add(comma(i)+"(?, ?, ?, ?, ?, ?, ?, "+shard(tx)+", ?)", append(k.args(), c[k])...)
		}
		b.Add("ON CONFLICT (" + stockKeyColumns + ", shard) DO UPDATE SET units = purchase_stock.units + excluded.units")
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("count stock: %w", err)
		}
	}
	for _, k := range keys {
		if c[k] > 0 {
			continue
		}
		b := sqldb.NewQuery("DELETE FROM purchase_stock WHERE ("+stockKeyColumns+") = (?, ?, ?, ?, ?, ?, ?) AND shard = "+shard(tx)+" AND units = 0", k.args()...)
		if _, err := tx.Exec(ctx, b.SQL(), b.Args()...); err != nil {
			return fmt.Errorf("count stock: %w", err)
		}
	}
	return nil
}

func (k stockKey) args() []any {
	return []any{string(k.tenant), string(k.stage), k.order, k.line, k.model, k.delivered, string(k.warrantyEnd)}
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

func marks(n int) string { return "?" + strings.Repeat(", ?", n-1) }

// Moved keeps stock in step with the stages of devices; registry.Config.MovedMany takes it. Units that
// are not delivered yet are no stock: they are counted when they are booked.
func (s *Service) Moved(ctx context.Context, tx *sqldb.Tx, moved []device.Moved) error {
	byNum := make(map[int64]device.Moved, len(moved))
	for _, m := range moved {
		byNum[m.Num] = m
	}
	change := stockChange{}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(byNum)), batch) {
		b := sqldb.NewQuery("SELECT num, tenant, order_id, line, model, delivered, warranty_end FROM purchase_unit WHERE state = ?", string(unitReceived))
		args := make([]any, len(part))
		for i, num := range part {
			args[i] = num
		}
		b.Add("AND num IN ("+marks(len(part))+")", args...)
		_, err := sqldb.Collect(ctx, tx, func(rows *sql.Rows) (struct{}, error) {
			var k stockKey
			var num int64
			err := rows.Scan(&num, &k.tenant, &k.order, &k.line, &k.model, &k.delivered, &k.warrantyEnd)
			k.stage = byNum[num].From
			change[k]--
			k.stage = byNum[num].Stage
			change[k]++
			return struct{}{}, err
		}, b.SQL(), b.Args()...)
		if err != nil {
			return fmt.Errorf("look for the purchase of %d devices: %w", len(part), err)
		}
	}
	return change.write(ctx, tx)
}

// keptStock is a SELECT of kept stock by its whole key, with "?" placeholders, the shards summed up. Rows of single shards may be
// below zero, so nothing else may be made of them. The condition is one on columns of the key, or empty.
func keptStock(tenant device.TenantID, stages []device.Stage, cond string, condArgs ...any) (query string, args []any) {
	query, args = "SELECT "+stockKeyColumns+", SUM(units) AS units FROM purchase_stock WHERE tenant = ? AND stage IN ("+marks(len(stages))+")", []any{string(tenant)}
	for _, st := range stages {
		args = append(args, string(st))
	}
	return query + " " + cond + " GROUP BY " + stockKeyColumns + " HAVING SUM(units) <> 0", append(args, condArgs...)
}

// CheckStock counts the tenant's stock anew and returns a sentence for each kept count that is wrong, at
// most 20. It reads every unit and so is for checks of the whole database, not for requests.
func (s *Service) CheckStock(ctx context.Context, q sqldb.Reader, tenant device.TenantID) ([]string, error) {
	var wrong []string
	for _, stage := range device.Stages {
		some, err := s.checkStage(ctx, q, tenant, stage)
		if err != nil {
			return nil, fmt.Errorf("check the stock that is %s: %w", stage, err)
		}
		wrong = append(wrong, some...)
	}
	return wrong[:min(len(wrong), 20)], nil
}

func (s *Service) checkStage(ctx context.Context, q sqldb.Reader, tenant device.TenantID, stage device.Stage) ([]string, error) {
	query, args := keptStock(tenant, []device.Stage{stage}, "")
	kept, err := stockRows(ctx, q, sqldb.NewQuery(query, args...))
	if err != nil {
		return nil, err
	}
	nums, args := s.cfg.Devices.Matching(device.Scope{Tenant: tenant}, device.Selector{}, []device.Stage{stage})
	counted, err := stockRows(ctx, q, sqldb.NewQuery("SELECT tenant, CAST(? AS TEXT), order_id, line, model, delivered, warranty_end, COUNT(*) FROM purchase_unit"+
		" WHERE tenant = ? AND state = ?", string(stage), tenant, string(unitReceived)).Add("AND num IN ("+nums+")", args...).
		Add("GROUP BY tenant, order_id, line, model, delivered, warranty_end"))
	if err != nil {
		return nil, err
	}
	var wrong []string
	for k, n := range counted {
		if kept[k] != n {
			wrong = append(wrong, fmt.Sprintf("stock: kept %d, counted %d of order %s line %d in stage %s", kept[k], n, k.order, k.line, k.stage))
		}
		delete(kept, k)
	}
	for k, n := range kept {
		if n != 0 {
			wrong = append(wrong, fmt.Sprintf("stock: kept %d, counted 0 of order %s line %d in stage %s", n, k.order, k.line, k.stage))
		}
	}
	return wrong, nil
}

func stockRows(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) (map[stockKey]int64, error) {
	out := map[stockKey]int64{}
	_, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (struct{}, error) {
		var k stockKey
		var n int64
		err := rows.Scan(&k.tenant, &k.stage, &k.order, &k.line, &k.model, &k.delivered, &k.warrantyEnd, &n)
		out[k] += n
		return struct{}{}, err
	}, b.SQL(), b.Args()...)
	return out, err
}
