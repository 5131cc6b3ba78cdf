package update_test

import (
	"io/fs"
	"testing"
	"testing/fstest"

	"steward/internal/ledger"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/update"
)

func TestCountersAreFilledFromTheStatesOfAnOlderVersion(t *testing.T) {
	m := update.Migration()
	text, err := fs.ReadFile(m.Files, "00001_update.sql")
	if err != nil {
		t.Fatal(err)
	}
	old := sqldb.Migration{Room: m.Room, Files: fstest.MapFS{"00001_update.sql": {Data: text}}}
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration(), registry.Migration(), twin.Migration(), old}, func(t *testing.T, db *sqldb.DB) {
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			for _, s := range []string{
				`INSERT INTO update_assignment (num, id, tenant, name, version, target, selector, author_scope, note, state, created, created_by)
					VALUES (1, 'asg-1', 'acme', 'app', '1', 't', '', '', '', 'active', 1, '{}')`,
				`INSERT INTO update_state (assignment, num, name, version, attempt, current, state, changed) VALUES
					(1, 1, 'app', '1', 1, 1, 'pending', 1), (1, 2, 'app', '1', 1, 1, 'committed', 1), (1, 3, 'app', '1', 1, 0, 'committed', 1)`,
				`INSERT INTO update_count (assignment, state, shard, n) VALUES (1, 'pending', 1, 1), (1, 'committed', 2, 1), (1, 'committed', 3, 1)`,
			} {
				if _, err := tx.Exec(t.Context(), s); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(t.Context(), update.Migration()); err != nil {
			t.Fatal(err)
		}
		h := newHouse(t, db)
		h.wantCounted()
		states, err := h.ReleaseStates(t.Context(), all, "app", "1")
		if err != nil || states["pending"] != 1 || states["committed"] != 1 {
			t.Errorf("asked for now: %v, %v", states, err)
		}
		if got := a0(h, update.Assignment{ID: "asg-1"}); got.Counts["committed"] != 2 {
			t.Errorf("counts %v", got.Counts)
		}
	})
}
