package registry

import (
	"strings"
	"testing"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// A serial number is looked up at each enrollment and for each row of a goods-in file.
func TestSerialNumberIsFoundByItsIndex(t *testing.T) {
	db := sqldbtest.SQLite(t, Migration())
	steps := explain(t, db, sqldb.NewQuery(strings.NewReplacer("$1", "?", "$2", "?").Replace(bySerialQuery), "default", "S1"))
	if len(steps) != 1 || !strings.Contains(steps[0], "registry_device_serial (tenant=? AND serial=?)") {
		t.Errorf("want one step by the index of serial numbers, got %q", steps)
	}
}
