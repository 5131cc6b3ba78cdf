package registry

import (
	"context"
	"testing"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb/sqldbtest"
)

// reads are what people and programs ask of the registry.
func reads(dk *Desk) map[string]func(ctx context.Context) error {
	scope := device.Scope{Tenant: "default"}
	out := map[string]func(ctx context.Context) error{
		"label keys": func(ctx context.Context) error { _, err := dk.LabelKeys(ctx, dk.db, "default"); return err },
		"label values": func(ctx context.Context) error {
			_, err := dk.LabelValues(ctx, dk.db, "default", "site", nil, 50)
			return err
		},
		"serial number": func(ctx context.Context) error {
			_, err := dk.BySerial(ctx, dk.db, "default", "S100000042")
			return err
		},
		"next devices of a step": func(ctx context.Context) error {
			_, _, err := dk.Part(ctx, dk.db, scope, device.Part{Selector: device.MustSelector("!most"), After: 100, Limit: 100})
			return err
		},
	}
	for _, l := range lists {
		out["list: "+l.name] = func(ctx context.Context) error {
			_, _, err := dk.List(ctx, scope, l.filter, httpapi.PageIn{Limit: 50})
			return err
		}
	}
	for _, sel := range []string{"", "site=site-7", "site in (site-1,site-2)", "batch", "batch!=old", "!rare"} {
		out["count by stage: "+sel] = func(ctx context.Context) error {
			_, err := dk.Counts(ctx, dk.db, device.Scope{Tenant: "default", Selector: device.MustSelector(sel)})
			return err
		}
	}
	return out
}

func TestReadsCostTheSameInAFleetOfThreeTimesTheSize(t *testing.T) {
	const small = 25_000 // more than one page of a list looks at
	work := map[int]map[string]sqldbtest.Work{}
	for _, n := range []int{small, 3 * small} {
		db := sqldbtest.SQLite(t, Migration())
		fill(t, db, n)
		work[n] = map[string]sqldbtest.Work{}
		for name, read := range reads(filledDesk(db)) {
			work[n][name] = sqldbtest.Count(t, db, read)
		}
	}
	for name, few := range work[small] {
		many := work[3*small][name]
		t.Logf("%-45s %2d queries, %6d pages; three times the fleet: %2d queries, %6d pages", name, few.Queries, few.Pages, many.Queries, many.Pages)
		// A level more in a tree of pages, and the few devices behind a rare thing, are allowed for; a look at
		// each device of the fleet would take more than a thousand pages.
		if many.Queries > few.Queries || many.Pages > max(few.Pages*3/2, 1000) {
			t.Errorf("%s grows with the fleet: %+v, then %+v", name, few, many)
		}
	}
}
