package registry_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// seen is the presence of devices that a test makes up, kept in a table as a room would.
type seen struct{ db *sqldb.DB }

func newSeen(h *house) seen {
	h.Helper()
	err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(h.Context(), "CREATE TABLE seen (num BIGINT PRIMARY KEY, state TEXT NOT NULL)")
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
	return seen{h.db}
}

func (s seen) set(t *testing.T, num int64, state string) {
	t.Helper()
	err := s.db.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(t.Context(), "INSERT INTO seen (num, state) VALUES ($1, $2)", num, state)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s seen) Of(ctx context.Context, nums []int64) (map[int64]registry.Presence, error) {
	out := map[int64]registry.Presence{}
	for _, num := range nums {
		var state string
		if err := s.db.QueryRowContext(ctx, "SELECT state FROM seen WHERE num = $1", num).Scan(&state); err == nil {
			out[num] = registry.Presence{State: state, LastContact: start}
		}
	}
	return out, nil
}

func (s seen) Where(numColumn, state string) (string, []any) {
	return "EXISTS (SELECT 1 FROM seen s WHERE s.num = " + numColumn + " AND s.state = ?)", []any{state}
}

var everything = device.Scope{Tenant: "default"}

// all reads a list page by page and returns the serial numbers in their order.
func (h *house) all(dk *registry.Desk, scope device.Scope, f registry.Filter, limit int) []string {
	h.Helper()
	serials := []string{}
	page := httpapi.PageIn{Limit: limit}
	for range 1000 {
		rows, next, err := dk.List(h.Context(), scope, f, page)
		if err != nil {
			h.Fatal(err)
		}
		if len(rows) > limit {
			h.Fatalf("page of %d, limit %d", len(rows), limit)
		}
		for _, r := range rows {
			serials = append(serials, r.Serial)
		}
		if next == "" {
			return serials
		}
		page.Cursor = next
	}
	h.Fatal("the list has no end")
	return nil
}

func TestListPagesThroughExactlyTheDevicesThatPass(t *testing.T) {
	each(t, func(h *house) {
		presence := newSeen(h)
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s, Presence: presence})
		for i := range 12 {
			d := h.create(device.New{Serial: fmt.Sprintf("S%02d", i), Model: fmt.Sprint("mod-", i%2), Labels: map[string]string{"site": []string{"berlin", "paris"}[i%2]}})
			if i%3 == 0 {
				h.move(d.Num, device.Staged)
			}
			if i%4 == 0 {
				presence.set(t, d.Num, registry.Offline)
			}
		}
		h.create(device.New{Serial: "S99", Tenant: "other"})
		berlin := device.MustSelector("site=berlin")
		for _, tt := range []struct {
			name  string
			scope device.Scope
			f     registry.Filter
			want  string
		}{
			{"all", everything, registry.Filter{}, "S00 S01 S02 S03 S04 S05 S06 S07 S08 S09 S10 S11"},
			{"one stage", everything, registry.Filter{Stages: []device.Stage{device.Staged}}, "S00 S03 S06 S09"},
			{"two stages", everything, registry.Filter{Stages: []device.Stage{device.Staged, device.Received}, Selector: berlin}, "S00 S02 S04 S06 S08 S10"},
			{"no such stage", everything, registry.Filter{Stages: []device.Stage{device.Disposed}}, ""},
			{"label and stage", everything, registry.Filter{Stages: []device.Stage{device.Staged}, Selector: berlin}, "S00 S06"},
			{"scope", device.Scope{Tenant: "default", Selector: berlin}, registry.Filter{Selector: device.MustSelector("site")}, "S00 S02 S04 S06 S08 S10"},
			{"scope shuts out", device.Scope{Tenant: "default", Selector: berlin}, registry.Filter{Selector: device.MustSelector("site=paris")}, ""},
			{"model", everything, registry.Filter{Model: "mod-1"}, "S01 S03 S05 S07 S09 S11"},
			{"presence", everything, registry.Filter{Presence: registry.Offline}, "S00 S04 S08"},
			{"presence and stage", everything, registry.Filter{Presence: registry.Offline, Stages: []device.Stage{device.Staged}}, "S00"},
			{"other tenant", device.Scope{Tenant: "other"}, registry.Filter{}, "S99"},
			{"search", everything, registry.Filter{Search: "s0"}, "S00 S01 S02 S03 S04 S05 S06 S07 S08 S09"},
			{"search and stage", everything, registry.Filter{Search: "S1", Stages: []device.Stage{device.Received}}, "S10 S11"},
			{"search and label", everything, registry.Filter{Search: "S1", Selector: berlin}, "S10"},
		} {
			for _, limit := range []int{1, 5, 100} {
				if got := strings.Join(h.all(dk, tt.scope, tt.f, limit), " "); got != tt.want {
					t.Errorf("%s by %d: %s, want %s", tt.name, limit, got, tt.want)
				}
			}
		}
	})
}

func TestSearchFindsBeginningsOfIDSerialNameAndWordsOnce(t *testing.T) {
	each(t, func(h *house) {
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		a := h.create(device.New{Serial: "DX-77", Name: "Kühlhaus pump 7, pump room"})
		h.create(device.New{Serial: "A_1"})
		h.create(device.New{Serial: "AX1"})
		search := func(q string) string {
			return strings.Join(h.all(dk, everything, registry.Filter{Search: q}, 2), " ")
		}
		for q, want := range map[string]string{
			"kühl": "DX-77", "KÜHLHAUS PUMP": "DX-77", "pump": "DX-77", "room": "DX-77", "7": "DX-77",
			"dx-7": "DX-77", string(a.ID)[:12]: "DX-77", "a_": "A_1", "a": "A_1 AX1", "%": "", "ump": "", "x": "",
		} {
			if got := search(q); got != want {
				t.Errorf("search %q: %q, want %q", q, got, want)
			}
		}
		if got := len(h.all(dk, everything, registry.Filter{Search: "dev-"}, 2)); got != 3 {
			t.Errorf("search dev- finds %d rows, want every device once", got)
		}
		h.do(func(tx *sqldb.Tx) (device.Device, error) { return h.s.Rename(t.Context(), tx, operator, a.Num, "Ofen") })
		if search("pump") != "" || search("ofe") != "DX-77" {
			t.Error("the search knows the old name only")
		}
	})
}

func TestForeignCursorIsRefused(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
	_, _, err := dk.List(t.Context(), everything, registry.Filter{}, httpapi.PageIn{Cursor: httpapi.EncodeCursor(7)})
	wantFault(t, err, fault.Unprocessable)
}

// TestSelectorsMeanTheSameInSQLAsInGo runs random selectors over random labels in both.
func TestSelectorsMeanTheSameInSQLAsInGo(t *testing.T) {
	each(t, func(h *house) {
		rnd := rand.New(rand.NewPCG(1, 2))
		keys, values := []string{"a", "b", "x/c", "in"}, []string{"", "1", "2", "notin"}
		pick := func(from []string) string { return from[rnd.IntN(len(from))] }
		var devices []device.Device
		for i := range 60 {
			labels := map[string]string{}
			for range rnd.IntN(4) {
				labels[pick(keys)] = pick(values)
			}
			devices = append(devices, h.create(device.New{Serial: fmt.Sprint(i), Labels: labels}))
		}
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		for range 150 {
			var parts []string
			for range rnd.IntN(4) {
				k := pick(keys)
				parts = append(parts, []string{
					k, "!" + k, k + "=" + pick(values), k + "!=" + pick(values),
					k + " in (" + pick(values) + "," + pick(values) + ")", k + " notin (" + pick(values) + "," + pick(values) + ")",
				}[rnd.IntN(6)])
			}
			sel := device.MustSelector(strings.Join(parts, ","))
			want := []string{}
			for _, d := range devices {
				if sel.Matches(d.Labels) {
					want = append(want, d.Serial)
				}
			}
			if got := h.all(dk, everything, registry.Filter{Selector: sel}, 1000); !slices.Equal(got, want) {
				t.Fatalf("list of %q: %v, want %v", sel, got, want)
			}
			if got := h.matching(everything, sel, nil); !slices.Equal(got, want) {
				t.Fatalf("matching %q: %v, want %v", sel, got, want)
			}
		}
	})
}

// matching runs the sub-SELECT that other rooms use.
func (h *house) matching(scope device.Scope, sel device.Selector, stages []device.Stage) []string {
	h.Helper()
	query, args := h.s.Matching(scope, sel, stages)
	q := sqldb.NewQuery("SELECT serial FROM registry_device WHERE num IN (", []any{}...).Add(query, args...).Add(") ORDER BY num")
	rows, err := h.db.QueryContext(h.Context(), q.SQL(), q.Args()...)
	if err != nil {
		h.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := []string{}
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			h.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		h.Fatal(err)
	}
	return out
}

func TestMatchingKeepsToScopeAndStages(t *testing.T) {
	each(t, func(h *house) {
		for i, site := range []string{"berlin", "paris", "berlin"} {
			d := h.create(device.New{Serial: fmt.Sprint(i), Labels: map[string]string{"site": site, "n": fmt.Sprint(i)}})
			if i == 2 {
				h.move(d.Num, device.Staged)
			}
		}
		h.create(device.New{Serial: "x", Tenant: "other", Labels: map[string]string{"site": "berlin"}})
		berlin := device.Scope{Tenant: "default", Selector: device.MustSelector("site=berlin")}
		for _, tt := range []struct {
			scope  device.Scope
			sel    string
			stages []device.Stage
			want   string
		}{
			{everything, "", nil, "0 1 2"},
			{berlin, "", nil, "0 2"},
			{berlin, "n in (0,1)", nil, "0"},
			{everything, "n", []device.Stage{device.Staged, device.Active}, "2"},
			{berlin, "site=paris", nil, ""},
		} {
			if got := strings.Join(h.matching(tt.scope, device.MustSelector(tt.sel), tt.stages), " "); got != tt.want {
				t.Errorf("%v %q %v: %s, want %s", tt.scope, tt.sel, tt.stages, got, tt.want)
			}
		}
	})
}

func TestCountsOfAScopeAreThoseOfItsDevices(t *testing.T) {
	each(t, func(h *house) {
		h.create(device.New{Serial: "1", Labels: map[string]string{"site": "berlin"}})
		h.move(h.create(device.New{Serial: "2", Labels: map[string]string{"site": "berlin"}}).Num, device.Staged)
		h.create(device.New{Serial: "3"})
		h.create(device.New{Serial: "4", Tenant: "other"})
		if got := h.counts(everything); !maps.Equal(got, map[device.Stage]int64{device.Received: 2, device.Staged: 1}) {
			t.Errorf("tenant: %v", got)
		}
		berlin := device.Scope{Tenant: "default", Selector: device.MustSelector("site=berlin")}
		if got := h.counts(berlin); !maps.Equal(got, map[device.Stage]int64{device.Received: 1, device.Staged: 1}) {
			t.Errorf("scope: %v", got)
		}
	})
}

func TestFleetCountsPresenceOfDevicesInServiceOnceInTenSeconds(t *testing.T) {
	each(t, func(h *house) {
		presence := newSeen(h)
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s, Presence: presence})
		d := h.create(device.New{Serial: "1"})
		presence.set(t, d.Num, registry.Online)
		fleet := func() registry.Fleet {
			t.Helper()
			f, err := dk.Fleet(t.Context(), everything)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		if f := fleet(); f.Total != 1 || f.Presence[registry.Online] != 0 {
			t.Errorf("in stock: %+v", f)
		}
		h.move(d.Num, device.Staged, device.Enrolled)
		if f := fleet(); f.Stages[device.Enrolled] != 1 || f.Presence[registry.Online] != 0 {
			t.Errorf("counted again at once: %+v", f)
		}
		dk = registry.NewDesk(registry.DeskConfig{Registry: h.s, Presence: presence})
		if f := fleet(); f.Presence[registry.Online] != 1 {
			t.Errorf("in service: %+v", f)
		}
	})
}
