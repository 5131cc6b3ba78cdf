package registry_test

import (
	"slices"
	"testing"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestEveryEventOfTheRoomIsASentence(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.create(device.New{Stage: device.Ordered, Labels: map[string]string{"old": "1"}})
	h.do(func(tx *sqldb.Tx) (device.Device, error) {
		return h.s.AssignSerial(t.Context(), tx, operator, d.Num, "SN-1")
	})
	h.move(d.Num, device.Received)
	for _, name := range []string{"Pump", "Fan", ""} {
		h.do(func(tx *sqldb.Tx) (device.Device, error) { return h.s.Rename(t.Context(), tx, operator, d.Num, name) })
	}
	h.do(func(tx *sqldb.Tx) (device.Device, error) {
		return h.s.SetLabels(t.Context(), tx, operator, d.Num, map[string]string{"a": "1"})
	})
	h.create(device.New{Serial: "SN-2"})
	var got []string
	for _, e := range ledgertest.Events(t, h.l, ledger.Filter{}) {
		got = append(got, registry.Describe()[e.Kind](e))
	}
	want := []string{
		"Was ordered", "Got the serial number SN-1", "Moved to received", "Is called Pump",
		"Is called Fan instead of Pump", "Lost the name Fan", "Labels: a=1, without old",
		"Came into being as received with the serial number SN-2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("sentences %q, want %q", got, want)
	}
}
