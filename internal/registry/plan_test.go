package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// fill makes n devices by SQL, as Create would have left them: nine of ten are active, one in a
// thousand is in quarantine; every hundredth is at site-7; the last twentieth is of the batch "new" with
// serial numbers that begin with Z; five have the label rare, all but the last two the label most. Half of
// them have half=a and other=a, the others half=b and other=b. One in 10,000 is offline.
func fill(tb testing.TB, db *sqldb.DB, n int) {
	tb.Helper()
	ctx := context.Background()
	text := func(expr string) string { return "CAST(" + expr + " AS TEXT)" }
	bytes := func(expr string) string {
		return db.Dialect().Pick("CAST("+expr+" AS BLOB)", "CONVERT_TO("+expr+", 'UTF8')")
	}
	stage := "CASE WHEN n % 1000 = 7 THEN 'quarantined' WHEN n % 10 = 3 THEN 'received' ELSE 'active' END"
	batch := fmt.Sprintf("CASE WHEN n > %d THEN 'new' ELSE 'old' END", n-n/20)
	serial := fmt.Sprintf("CASE WHEN n > %d THEN 'Z' ELSE 'S' END || ", n-n/20) + text("100000000 + n")
	id := "'dev-' || " + text("1000000000000000 + (n * 7919) % 999983 * 1000003 + n")
	site := "'site-' || " + text("n % 100")
	series := fmt.Sprintf("WITH RECURSIVE c (n) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT n + 1 FROM c WHERE n < %d) ", n)
	statements := []string{
		`INSERT INTO registry_device (id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision) ` +
			series + `SELECT ` + id + `, 'default', ` + serial + `, 'mod-' || ` + text("n % 5") + `, '', ` + stage + `, 1, '', '{}', 1, 1 FROM c`,
		"INSERT INTO registry_label (num, tenant, key, value) " + series + "SELECT n, 'default', 'site', " + site + " FROM c",
		"INSERT INTO registry_label (num, tenant, key, value) " + series + "SELECT n, 'default', 'batch', " + batch + " FROM c",
		"INSERT INTO registry_label (num, tenant, key, value) " + series + fmt.Sprintf("SELECT n, 'default', 'rare', '' FROM c WHERE n > %d", n-5),
		"INSERT INTO registry_label (num, tenant, key, value) " + series + fmt.Sprintf("SELECT n, 'default', 'most', '' FROM c WHERE n <= %d", n-2),
		"INSERT INTO registry_label (num, tenant, key, value) " + series + "SELECT n, 'default', 'half', CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END FROM c",
		"INSERT INTO registry_label (num, tenant, key, value) " + series + "SELECT n, 'default', 'other', CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END FROM c",
		"INSERT INTO registry_term (tenant, term, num) " + series + "SELECT 'default', " + bytes("LOWER("+serial+")") + ", n FROM c",
		"INSERT INTO registry_term (tenant, term, num) " + series + "SELECT 'default', " + bytes(id) + ", n FROM c",
		"INSERT INTO registry_count (tenant, stage, shard, devices) SELECT tenant, stage, 0, COUNT(*) FROM registry_device GROUP BY tenant, stage",
		"INSERT INTO registry_label_stage (tenant, key, value, stage, shard, devices) SELECT l.tenant, l.key, l.value, d.stage, 0, COUNT(*) FROM registry_label l JOIN registry_device d ON d.num = l.num GROUP BY l.tenant, l.key, l.value, d.stage",
		"INSERT INTO registry_model_count (tenant, model, shard, devices) SELECT tenant, model, 0, COUNT(*) FROM registry_device GROUP BY tenant, model",
		"CREATE TABLE seen (num BIGINT PRIMARY KEY, state TEXT NOT NULL)",
		"INSERT INTO seen (num, state) " + series + "SELECT n, CASE WHEN n % 10000 = 9999 THEN 'offline' ELSE 'online' END FROM c",
		"CREATE INDEX seen_state ON seen (state)",
		"ANALYZE",
	}
	for _, s := range statements {
		if db.Dialect() == sqldb.SQLite && s == "ANALYZE" {
			continue // Steward doesn't run it either
		}
		if err := db.Write(ctx, func(tx *sqldb.Tx) error { _, err := tx.Exec(ctx, s); return err }); err != nil {
			tb.Fatalf("%.80s: %v", s, err)
		}
	}
}

type seenTable struct{}

func (seenTable) Of(context.Context, []int64) (map[int64]Presence, error) { return nil, nil }

func (seenTable) Where(numColumn, state string) (string, []any) {
	return "EXISTS (SELECT 1 FROM seen s WHERE s.num = " + numColumn + " AND s.state = ?)", []any{state}
}

func filledDesk(db *sqldb.DB) *Desk {
	return NewDesk(DeskConfig{Registry: New(Config{DB: db}), Presence: seenTable{},
		PresenceCounts: func(ctx context.Context, _ device.Scope) (map[string]int64, error) {
			var n int64
			err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM seen WHERE state = 'offline'").Scan(&n)
			return map[string]int64{Offline: n}, err
		},
		PresenceIn: func(_ device.TenantID, state string) (string, []any) {
			return "SELECT num FROM seen WHERE state = ?", []any{state}
		},
	})
}

// lists are the lists that people look at, with the way in which each should begin.
var lists = []struct {
	name   string
	filter Filter
	entry  entry
}{
	{"all", Filter{}, byTenant},
	{"rare stage", Filter{Stages: []device.Stage{device.Quarantined}}, byStage},
	{"common stage", Filter{Stages: []device.Stage{device.Active}}, byStage},
	{"two common stages", Filter{Stages: []device.Stage{device.Active, device.Received}}, byTenant},
	{"site", Filter{Selector: device.MustSelector("site=site-7")}, byLabel},
	{"site and rare stage", Filter{Selector: device.MustSelector("batch=old,site=site-7"), Stages: []device.Stage{device.Quarantined}}, byStage},
	{"five devices with a label", Filter{Selector: device.MustSelector("batch=new,rare"), Stages: []device.Stage{device.Active}}, byLabel},
	{"all but a label", Filter{Selector: device.MustSelector("batch!=old")}, byLabel},
	{"all but many labels", Filter{Selector: device.MustSelector("site notin (site-1,site-2)")}, byTenant},
	{"nothing is left", Filter{Selector: device.MustSelector("batch notin (old,new)")}, byNothing},
	{"without a label that all have", Filter{Selector: device.MustSelector("!batch")}, byNothing},
	{"without a label that most have", Filter{Selector: device.MustSelector("!most")}, byTenant},
	{"two common labels that none has together", Filter{Selector: device.MustSelector("half=a,other=b")}, byLabel},
	{"model", Filter{Model: "mod-3"}, byModel},
	{"offline", Filter{Presence: Offline}, byPresence},
	{"search a batch at the end", Filter{Search: "z"}, byTerm},
	{"search everything", Filter{Search: "s"}, byTerm},
	{"search one serial number", Filter{Search: "s100000042"}, byTerm},
	{"search in a rare stage", Filter{Search: "s", Stages: []device.Stage{device.Quarantined}}, byStage},
}

func TestListsBeginWithTheRarestIndex(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{Migration()}, func(t *testing.T, db *sqldb.DB) {
		fill(t, db, 8_000)
		dk := filledDesk(db)
		scope := device.Scope{Tenant: "default"}
		for _, tt := range lists {
			p, err := dk.choose(t.Context(), db, scope, tt.filter)
			if err != nil || p.entry != tt.entry {
				t.Errorf("%s begins with %d (%d devices), want %d, %v", tt.name, p.entry, p.devices, tt.entry, err)
			}
			if db.Dialect() != sqldb.SQLite || p.entry == byNothing {
				continue
			}
			steps := explain(t, db, dk.listQuery(p, scope, tt.filter, span{after: position{Num: 5}}).Add("ORDER BY "+p.order(tt.filter)+" LIMIT 51"))
			for _, step := range steps {
				if strings.HasPrefix(step, "SCAN") && !strings.Contains(step, "SCAN p") && !strings.Contains(step, "CONSTANT ROW") {
					t.Errorf("%s looks at a whole table: %q", tt.name, steps)
				}
			}
			if tt.filter.Search != "" && p.entry != byTerm && !slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, "SEARCH t USING COVERING INDEX registry_term_num") }) {
				t.Errorf("%s walks through the terms of the fleet for each device: %q", tt.name, steps)
			}
			sorted := slices.ContainsFunc(steps, func(s string) bool { return strings.Contains(s, "TEMP B-TREE FOR ORDER BY") })
			mayBeFew := len(tt.filter.Stages) > 0 && tt.filter.Search != "" || p.entry == byPresence ||
				p.entry == byLabel && len(p.anchor.Values) != 1
			if sorted && !mayBeFew {
				t.Errorf("%s sorts %d devices: %q", tt.name, p.devices, steps)
			}
		}
	})
}

func explain(t *testing.T, db *sqldb.DB, q *sqldb.Builder) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+q.SQL(), q.Args()...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var steps []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, detail)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return steps
}
