package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

var boss = httpapi.Principal{Actor: operator, Role: httpapi.Operator, Scope: everything}

func (h *house) preview(dk *registry.Desk, b registry.Bulk) registry.Preview {
	h.Helper()
	p, err := dk.Preview(h.Context(), boss, b)
	if err != nil {
		h.Fatal(err)
	}
	return p
}

func TestBulkMoveDoesWhatItsPreviewHasShown(t *testing.T) {
	each(t, func(h *house) {
		h.cfg.Guards = []registry.Guard{{Name: "test", Check: func(_ context.Context, _ sqldb.Reader, d device.Device, _ device.Stage) (string, error) {
			if strings.HasSuffix(d.Serial, "7") {
				return "a licence is not assigned", nil
			}
			return "", nil
		}}}
		h.s = registry.New(h.cfg)
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		for i := range 120 { // more than one transaction
			h.create(device.New{Serial: fmt.Sprintf("S%03d", i), Labels: map[string]string{"batch": "a"}})
		}
		other := h.create(device.New{Serial: "T"})
		b := registry.Bulk{Action: registry.MoveAction, To: device.Staged, Filter: registry.Filter{Selector: device.MustSelector("batch=a")}}
		p := h.preview(dk, b)
		if p.Total != 120 || p.Willing != 108 || len(p.First) != 20 || len(p.Refused) != 12 || p.Stages[device.Received] != 120 {
			t.Fatalf("preview %d, %d, %d, %d", p.Total, p.Willing, len(p.First), len(p.Refused))
		}
		if !strings.Contains(p.Refused[0].Detail, "a licence is not assigned") {
			t.Errorf("refused: %+v", p.Refused[0])
		}
		_, err := dk.Apply(t.Context(), boss, b, p.Token)
		wantFault(t, err, fault.Unprocessable, "say why")
		b.Reason = "first batch"
		res, err := dk.Apply(t.Context(), boss, b, p.Token)
		if err != nil || res.Done != 108 || res.Refused != 12 || len(res.Devices) != 120 {
			t.Fatalf("result %d, %d, %d, %v", res.Done, res.Refused, len(res.Devices), err)
		}
		if c := h.counts(everything); c[device.Staged] != 108 || c[device.Received] != 13 {
			t.Errorf("counts %v", c)
		}
		if now, _ := h.s.ByNum(t.Context(), h.db, other.Num); now.Stage != device.Received {
			t.Error("a device that was not picked was moved")
		}
	})
}

func TestBulkIsRefusedWhenTheDevicesAreOthersThanInThePreview(t *testing.T) {
	each(t, func(h *house) {
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		a, b := h.create(device.New{Serial: "1"}), h.create(device.New{Serial: "2"})
		wish := registry.Bulk{Action: registry.LabelAction, Labels: map[string]string{"x": "1"}, Filter: registry.Filter{IDs: []device.ID{a.ID, b.ID}}}
		token := h.preview(dk, wish).Token
		more := wish
		more.Labels = map[string]string{"x": "2"}
		_, err := dk.Apply(t.Context(), boss, more, token)
		wantFault(t, err, fault.Conflict, "preview")
		h.move(a.Num, device.Staged)
		_, err = dk.Apply(t.Context(), boss, wish, token)
		wantFault(t, err, fault.Conflict, "nothing was done")
		if now, _ := h.s.ByNum(t.Context(), h.db, b.Num); len(now.Labels) != 0 {
			t.Errorf("labels %v", now.Labels)
		}
		res, err := dk.Apply(t.Context(), boss, wish, h.preview(dk, wish).Token)
		if err != nil || res.Done != 2 {
			t.Fatalf("%+v, %v", res, err)
		}
		unlabel := registry.Bulk{Action: registry.UnlabelAction, Keys: []string{"x"}, Filter: registry.Filter{Selector: device.MustSelector("x=1")}}
		if res, err = dk.Apply(t.Context(), boss, unlabel, h.preview(dk, unlabel).Token); err != nil || res.Done != 2 {
			t.Fatalf("%+v, %v", res, err)
		}
		if got := strings.Join(ledgertest.Kinds(t, h.l, b.ID), " "); got != "device.created device.labeled device.labeled" {
			t.Errorf("ledger has %s", got)
		}
	})
}

func TestWrongBulkWishesAreRefused(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
	d := h.create(device.New{Serial: "1"})
	one := registry.Filter{IDs: []device.ID{d.ID}}
	for _, tt := range []struct {
		b    registry.Bulk
		want string
	}{
		{registry.Bulk{Action: "explode", Filter: one}, "body.action"},
		{registry.Bulk{Action: registry.LabelAction, Filter: one}, "body.labels"},
		{registry.Bulk{Action: registry.LabelAction, Labels: map[string]string{"a b": ""}, Filter: one}, "body.labels"},
		{registry.Bulk{Action: registry.UnlabelAction, Filter: one}, "body.keys"},
		{registry.Bulk{Action: registry.MoveAction, To: "moon", Filter: one}, "body.to"},
		{registry.Bulk{Action: registry.MoveAction, To: device.Staged}, "body.filter"},
		{registry.Bulk{Action: registry.MoveAction, To: device.Staged, Filter: registry.Filter{Search: "nothing"}}, "no device"},
	} {
		_, err := dk.Preview(t.Context(), boss, tt.b)
		wantFault(t, err, fault.Unprocessable, tt.want)
	}
}

func TestStagesThatFollowFromEventsCannotBeDeclaredByHand(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
	d := h.create(device.New{Serial: "1"})
	h.move(d.Num, device.Staged)
	_, err := h.try(func(tx *sqldb.Tx) (device.Device, error) {
		return dk.MoveOne(t.Context(), tx, boss, d.ID, device.Move{To: device.Enrolled, Reason: "I say so"}, "")
	})
	wantFault(t, err, fault.Conflict, "enrollment token")
	p := h.preview(dk, registry.Bulk{Action: registry.MoveAction, To: device.Disposed, Filter: registry.Filter{IDs: []device.ID{d.ID}}})
	if p.Willing != 0 || !strings.Contains(p.Refused[0].Detail, "disposal order") {
		t.Errorf("preview %+v", p)
	}
}

func TestOperatorWithAScopeCannotReachOrPushOutDevicesBeyondIt(t *testing.T) {
	each(t, func(h *house) {
		dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
		berlin := boss
		berlin.Scope.Selector = device.MustSelector("site=berlin")
		mine := h.create(device.New{Serial: "1", Labels: map[string]string{"site": "berlin"}})
		alien := h.create(device.New{Serial: "2", Labels: map[string]string{"site": "paris"}})

		_, err := dk.Get(t.Context(), berlin.Scope, alien.ID)
		wantFault(t, err, fault.NotFound)
		_, err = h.try(func(tx *sqldb.Tx) (device.Device, error) {
			return dk.MoveOne(t.Context(), tx, berlin, alien.ID, device.Move{To: device.Staged, Reason: "x"}, "")
		})
		wantFault(t, err, fault.NotFound)
		edit := func(id device.ID, c registry.Change, ifMatch string) error {
			_, err := h.try(func(tx *sqldb.Tx) (device.Device, error) {
				return dk.Edit(t.Context(), tx, berlin, id, c, ifMatch)
			})
			return err
		}
		wantFault(t, edit(alien.ID, registry.Change{Set: map[string]string{"site": "berlin"}}, ""), fault.NotFound)
		wantFault(t, edit(mine.ID, registry.Change{Set: map[string]string{"site": "paris"}}, ""), fault.Forbidden, "scope")
		wantFault(t, edit(mine.ID, registry.Change{Set: map[string]string{"a": "b"}}, `"7"`), fault.Precondition)
		if err := edit(mine.ID, registry.Change{Set: map[string]string{"a": "b"}}, `"1"`); err != nil {
			t.Error(err)
		}
		_, err = h.try(func(tx *sqldb.Tx) (device.Device, error) {
			return dk.Register(t.Context(), tx, berlin, device.New{Serial: "3", Reason: "found"})
		})
		wantFault(t, err, fault.Forbidden)

		wish := registry.Bulk{Action: registry.UnlabelAction, Keys: []string{"site"}, Filter: registry.Filter{Selector: device.MustSelector("site")}}
		p, err := dk.Preview(t.Context(), berlin, wish)
		if err != nil || p.Total != 1 || p.Willing != 0 {
			t.Errorf("preview %+v, %v", p, err)
		}
	})
}

func TestBulkRunThatTheServerStopsReportsWhatWasDone(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	broken, moved := errors.New("disk on fire"), 0
	h.cfg.Moved = []registry.Moved{func(context.Context, *sqldb.Tx, device.Device, device.Stage) error {
		if moved++; moved > 150 {
			return broken
		}
		return nil
	}}
	h.s = registry.New(h.cfg)
	dk := registry.NewDesk(registry.DeskConfig{Registry: h.s})
	for i := range 220 {
		h.create(device.New{Serial: fmt.Sprint(i)})
	}
	wish := registry.Bulk{Action: registry.MoveAction, To: device.Staged, Reason: "x", Filter: registry.Filter{Stages: []device.Stage{device.Received}}}
	res, err := dk.Apply(t.Context(), boss, wish, h.preview(dk, wish).Token)
	if err != nil || res.Done != 100 || res.Refused != 120 || len(res.Devices) != 220 {
		t.Fatalf("done %d, refused %d of %d, %v", res.Done, res.Refused, len(res.Devices), err)
	}
	if c := h.counts(everything); c[device.Staged] != 100 {
		t.Errorf("counts %v", c)
	}
}
