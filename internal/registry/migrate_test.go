package registry_test

import (
	"io/fs"
	"testing"
	"testing/fstest"

	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// firstOf is a room's tables as its first version had them.
func firstOf(t *testing.T, m sqldb.Migration) sqldb.Migration {
	t.Helper()
	names, err := fs.Glob(m.Files, "00001_*.sql")
	if err != nil || len(names) != 1 {
		t.Fatalf("%q, %v", names, err)
	}
	text, err := fs.ReadFile(m.Files, names[0])
	if err != nil {
		t.Fatal(err)
	}
	return sqldb.Migration{Room: m.Room, Files: fstest.MapFS{names[0]: {Data: text}}}
}

func TestCountsAreFilledFromTheDevicesOfAnOlderVersion(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{firstOf(t, registry.Migration())}, func(t *testing.T, db *sqldb.DB) {
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			for _, s := range []string{
				`INSERT INTO registry_device (num, id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision) VALUES
					(1, 'dev-1', 'a', 'S1', 'gw', '', 'active', 1, '', '{"site":"x"}', 1, 1),
					(2, 'dev-2', 'a', 'S2', 'gw', '', 'active', 1, '', '{"site":"x"}', 1, 1),
					(3, 'dev-3', 'a', 'S3', '', '', 'received', 1, '', '{"site":"y"}', 1, 1),
					(4, 'dev-4', 'b', 'S1', 'gw', '', 'active', 1, '', '{}', 1, 1)`,
				`INSERT INTO registry_label (num, tenant, key, value) VALUES (1, 'a', 'site', 'x'), (2, 'a', 'site', 'x'), (3, 'a', 'site', 'y')`,
				`INSERT INTO registry_count (tenant, stage, shard, devices) VALUES ('a', 'active', 0, 2), ('a', 'received', 0, 1), ('b', 'active', 0, 1)`,
				`INSERT INTO registry_label_count (tenant, key, value, shard, devices) VALUES ('a', 'site', 'x', 0, 2), ('a', 'site', 'y', 0, 1)`,
			} {
				if _, err := tx.Exec(t.Context(), s); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(t.Context(), registry.Migration()); err != nil {
			t.Fatal(err)
		}
		s := registry.New(registry.Config{DB: db})
		if wrong, err := s.CheckCounts(t.Context(), db); err != nil || len(wrong) > 0 {
			t.Errorf("kept counts: %q, %v", wrong, err)
		}
		values, err := s.LabelValues(t.Context(), db, "a", "site", nil, 10)
		if err != nil || len(values) != 2 || values[0].Devices != 2 {
			t.Errorf("values %+v, %v", values, err)
		}
	})
}

func TestWrongCountIsFound(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{registry.Migration()}, func(t *testing.T, db *sqldb.DB) {
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "INSERT INTO registry_count (tenant, stage, shard, devices) VALUES ('a', 'active', 0, 2)")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		wrong, err := registry.New(registry.Config{DB: db}).CheckCounts(t.Context(), db)
		if err != nil || len(wrong) != 1 || wrong[0] != "devices by stage: kept 2, counted 0 for [a active  ]" {
			t.Errorf("%q, %v", wrong, err)
		}
	})
}
