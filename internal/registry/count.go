package registry

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// Kept counts change in the transaction of what they count, so that they are right at every moment.
// Each is spread over shards; see the migrations.

// tally is by how much a transaction changes kept counts.
type tally struct {
	stages map[stageKey]int64
	labels map[labelKey]int64
	models map[modelKey]int64
}

type (
	stageKey struct {
		tenant device.TenantID
		stage  device.Stage
	}
	labelKey struct {
		tenant     device.TenantID
		key, value string
		stage      device.Stage
	}
	modelKey struct {
		tenant device.TenantID
		model  string
	}
)

// tallyOf sums up what changes mean for the counts.
func tallyOf(list []change) tally {
	t := tally{map[stageKey]int64{}, map[labelKey]int64{}, map[modelKey]int64{}}
	for _, c := range list {
		t.add(c.before, -1)
		t.add(c.after, 1)
	}
	maps.DeleteFunc(t.stages, func(_ stageKey, n int64) bool { return n == 0 })
	maps.DeleteFunc(t.labels, func(_ labelKey, n int64) bool { return n == 0 })
	maps.DeleteFunc(t.models, func(_ modelKey, n int64) bool { return n == 0 })
	return t
}

// add counts a device; one without a stage did not exist.
func (t tally) add(d device.Device, by int64) {
	if d.Stage == "" {
		return
	}
	t.stages[stageKey{d.Tenant, d.Stage}] += by
	for k, v := range d.Labels {
		t.labels[labelKey{d.Tenant, k, v, d.Stage}] += by
	}
	if d.Model != "" {
		t.models[modelKey{d.Tenant, d.Model}] += by
	}
}

// shard is the expression for the row in which a transaction counts; see the migration. The backend's
// number belongs to one transaction at a time, and the remainder bounds how many rows a count has, which
// is what reading it costs.
func shard(tx *sqldb.Tx) string { return tx.Dialect().Pick("0", "pg_backend_pid() % 64") }

// write adds to the kept counts, in an order that is the same for all.
func (t tally) write(ctx context.Context, tx *sqldb.Tx) error {
	stages := counter{table: "registry_count", columns: "tenant, stage"}
	for _, k := range sorted(t.stages, func(a, b stageKey) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.stage, b.stage))
	}) {
		stages.add(t.stages[k], string(k.tenant), string(k.stage))
	}
	labels := counter{table: "registry_label_stage", columns: "tenant, key, value, stage", vanish: true}
	for _, k := range sorted(t.labels, func(a, b labelKey) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.key, b.key), cmp.Compare(a.value, b.value), cmp.Compare(a.stage, b.stage))
	}) {
		labels.add(t.labels[k], string(k.tenant), k.key, k.value, string(k.stage))
	}
	models := counter{table: "registry_model_count", columns: "tenant, model", vanish: true}
	for _, k := range sorted(t.models, func(a, b modelKey) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.model, b.model))
	}) {
		models.add(t.models[k], string(k.tenant), k.model)
	}
	for _, c := range []counter{stages, labels, models} {
		if err := c.write(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

func sorted[K comparable](counts map[K]int64, by func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(counts), by)
}

// counter is what is to be added to one table of kept counts.
type counter struct {
	table   string
	columns string // of the key, without the shard
	vanish  bool   // rows that have come to nothing are removed: their keys come and go
	rows    [][]any
	by      []int64
}

func (c *counter) add(by int64, key ...any) {
	c.rows, c.by = append(c.rows, key), append(c.by, by)
}

func (c *counter) write(ctx context.Context, tx *sqldb.Tx) error {
	for from := 0; from < len(c.rows); from += batchRows {
		rows, by := c.rows[from:min(from+batchRows, len(c.rows))], c.by[from:]
		q := sqldb.NewQuery("INSERT INTO " + c.table + " (" + c.columns + ", shard, devices) VALUES")
		for i, key := range rows {
			q.Add(comma(i)+"("+marks(len(key))+", "+shard(tx)+", ?)", append(slices.Clone(key), by[i])...)
		}
		q.Add("ON CONFLICT (" + c.columns + ", shard) DO UPDATE SET devices = " + c.table + ".devices + excluded.devices")
		if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
			return err
		}
		if !c.vanish {
			continue
		}
		for i, key := range rows {
			if by[i] >= 0 {
				continue
			}
			q := sqldb.NewQuery("DELETE FROM "+c.table+" WHERE ("+c.columns+") = ("+marks(len(key))+") AND shard = "+shard(tx)+" AND devices = 0", key...)
			if _, err := tx.Exec(ctx, q.SQL(), q.Args()...); err != nil {
				return err
			}
		}
	}
	return nil
}

// modelCount returns how many devices of the tenant are of the model.
func modelCount(ctx context.Context, q sqldb.Reader, tenant device.TenantID, model string) (n int64, err error) {
	err = q.QueryRowContext(ctx, "SELECT COALESCE(SUM(devices), 0) FROM registry_model_count WHERE tenant = $1 AND model = $2", tenant, model).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count model %s: %w", model, err)
	}
	return n, nil
}

// keptCounts are the tables of kept counts with what each must be.
var keptCounts = []struct{ what, kept, counted string }{
	{"devices by stage",
		"SELECT tenant AS a, stage AS b, '' AS c, '' AS d, SUM(devices) AS n FROM registry_count GROUP BY tenant, stage",
		"SELECT tenant AS a, stage AS b, '' AS c, '' AS d, COUNT(*) AS n FROM registry_device GROUP BY tenant, stage"},
	{"devices by label and stage",
		"SELECT tenant AS a, key AS b, value AS c, stage AS d, SUM(devices) AS n FROM registry_label_stage GROUP BY tenant, key, value, stage",
		`SELECT l.tenant AS a, l.key AS b, l.value AS c, d.stage AS d, COUNT(*) AS n FROM registry_label l JOIN registry_device d ON d.num = l.num
			GROUP BY l.tenant, l.key, l.value, d.stage`},
	{"devices by model",
		"SELECT tenant AS a, model AS b, '' AS c, '' AS d, SUM(devices) AS n FROM registry_model_count GROUP BY tenant, model",
		"SELECT tenant AS a, model AS b, '' AS c, '' AS d, COUNT(*) AS n FROM registry_device WHERE model <> '' GROUP BY tenant, model"},
}

// CheckCounts counts everything anew and returns a sentence for each kept count that is wrong, at most
// 20 for each kind. It reads every device and so is for checks of the whole database, not for requests.
func (s *Service) CheckCounts(ctx context.Context, q sqldb.Reader) ([]string, error) {
	var wrong []string
	for _, c := range keptCounts {
		query := `SELECT COALESCE(k.a, t.a), COALESCE(k.b, t.b), COALESCE(k.c, t.c), COALESCE(k.d, t.d), COALESCE(k.n, 0), COALESCE(t.n, 0)
			FROM (` + c.kept + `) k FULL JOIN (` + c.counted + `) t ON t.a = k.a AND t.b = k.b AND t.c = k.c AND t.d = k.d
			WHERE COALESCE(k.n, 0) <> COALESCE(t.n, 0) LIMIT 20`
		some, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (string, error) {
			var key [4]string
			var kept, counted int64
			err := rows.Scan(&key[0], &key[1], &key[2], &key[3], &kept, &counted)
			return fmt.Sprintf("%s: kept %d, counted %d for %v", c.what, kept, counted, key), err
		}, query)
		if err != nil {
			return nil, fmt.Errorf("check the count of %s: %w", c.what, err)
		}
		wrong = append(wrong, some...)
	}
	return wrong, nil
}
