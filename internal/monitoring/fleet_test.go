package monitoring

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// benchDevices is how many devices the benchmarks of a fleet have; STEWARD_BENCH_DEVICES changes it.
func benchDevices(b *testing.B) int {
	s := os.Getenv("STEWARD_BENCH_DEVICES")
	if s == "" {
		return 1_000_000
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// fillFleet makes n devices by SQL as contacts have left them: all active and online, one in 1,000 late,
// one in 1,000 offline; a hundredth is at each site, all but two have the label most.
func fillFleet(tb testing.TB, db *sqldb.DB, n int, now time.Time) {
	tb.Helper()
	text := func(expr string) string { return "CAST(" + expr + " AS TEXT)" }
	series := fmt.Sprintf("WITH RECURSIVE c (n) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT n + 1 FROM c WHERE n < %d) ", n)
	id := "'dev-' || " + text("1000000000000000 + n")
	at := sqldb.Micros(now)
	for _, s := range []string{
		`INSERT INTO registry_device (id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision) ` + series +
			`SELECT ` + id + `, 'default', 'S' || ` + text("n") + `, '', '', 'active', 1, '', '{}', 1, 1 FROM c`,
		"INSERT INTO registry_label (num, tenant, key, value) " + series + "SELECT n, 'default', 'site', 'site-' || " + text("n % 100") + " FROM c",
		"INSERT INTO registry_label (num, tenant, key, value) " + series + fmt.Sprintf("SELECT n, 'default', 'most', '' FROM c WHERE n <= %d", n-2),
		"INSERT INTO registry_count (tenant, stage, shard, devices) SELECT tenant, stage, 0, COUNT(*) FROM registry_device GROUP BY tenant, stage",
		"INSERT INTO registry_label_stage (tenant, key, value, stage, shard, devices) SELECT l.tenant, l.key, l.value, d.stage, 0, COUNT(*) FROM registry_label l JOIN registry_device d ON d.num = l.num GROUP BY l.tenant, l.key, l.value, d.stage",
		"INSERT INTO monitoring_seen (num, tenant, device, last_contact, interval_s, state, state_since, check_at) " + series +
			fmt.Sprintf("SELECT n, 'default', %s, %d, 60, CASE n %% 1000 WHEN 5 THEN 2 WHEN 6 THEN 3 ELSE 1 END, %d, %d + n FROM c", id, at, at, at+int64(150*time.Second/time.Microsecond)),
		"INSERT INTO monitoring_count (tenant, state, n) SELECT tenant, state, COUNT(*) FROM monitoring_seen GROUP BY tenant, state",
		"ANALYZE",
	} {
		if db.Dialect() == sqldb.SQLite && s == "ANALYZE" {
			continue // Steward doesn't run it either
		}
		if err := db.Write(tb.Context(), func(tx *sqldb.Tx) error { _, err := tx.Exec(tb.Context(), s); return err }); err != nil {
			tb.Fatalf("%.80s: %v", s, err)
		}
	}
}

// BenchmarkFleet asks what pages ask of a fleet of a million devices.
func BenchmarkFleet(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			db := sqldbtest.Open(b, engine, tables...)
			now := &clock{t: morning}
			fillFleet(b, db, benchDevices(b), morning)
			room, err := Open(Config{DB: db, Devices: registry.New(registry.Config{DB: db}), Dir: b.TempDir(), Now: now.now, Log: quietLog()})
			if err != nil {
				b.Fatal(err)
			}
			defer room.Close()
			for name, sel := range map[string]string{"whole": "", "site": "site=site-7", "most": "most", "both": "most,site=site-7"} {
				b.Run("rollup-"+name, func(b *testing.B) {
					for b.Loop() {
						now.pass(2 * cacheFresh)
						r, err := room.RollUp(b.Context(), device.Scope{Tenant: "default"}, device.MustSelector(sel))
						if err != nil || r.Devices == 0 {
							b.Fatal(r, err)
						}
					}
				})
			}
			b.Run("notices", func(b *testing.B) {
				for b.Loop() {
					if _, err := room.Notices(b.Context(), device.Scope{Tenant: "default"}); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("sample", func(b *testing.B) {
				for b.Loop() {
					if ids, _, err := room.sampleOf(b.Context(), device.Scope{Tenant: "default"}, device.MustSelector("most"), maxGroupDevices); err != nil || len(ids) != maxGroupDevices {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkSweep judges a fleet of which all has fallen silent at the same time, in steps.
func BenchmarkSweep(b *testing.B) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) {
			const fleet = 100_000
			db := sqldbtest.Open(b, engine, tables...)
			now := &clock{t: morning}
			fillFleet(b, db, fleet, morning)
			room, err := Open(Config{DB: db, Ledger: ledgertest.New(b, db), Devices: registry.New(registry.Config{DB: db}), Dir: b.TempDir(), Now: now.now, Log: quietLog()})
			if err != nil {
				b.Fatal(err)
			}
			defer room.Close()
			judged := 0
			for b.Loop() {
				if err := db.Write(b.Context(), func(tx *sqldb.Tx) error { // all online again
					_, err := tx.Exec(b.Context(), "UPDATE monitoring_seen SET state = 1, check_at = 1, last_contact = 1")
					return err
				}); err != nil {
					b.Fatal(err)
				}
				for range fleet / rowsPerStatement {
					if _, err := room.sweepOnce(b.Context(), time.Time{}); err != nil {
						b.Fatal(err)
					}
					judged += rowsPerStatement
				}
			}
			b.ReportMetric(float64(judged)/b.Elapsed().Seconds(), "devices/s")
		})
	}
}
