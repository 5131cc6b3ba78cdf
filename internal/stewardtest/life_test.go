package stewardtest_test

import (
	"errors"
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"steward/internal/agent"
	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

func TestTenDevicesLiveFromOrderToCertificateOnBothEngines(t *testing.T) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			wholeLife(t, Start(t, Options{Engine: engine}))
		})
	}
}

// wholeLife takes ten devices from the order to their certificates.
func wholeLife(t *testing.T, h *House) {
	const n = 10
	head := h.Checkpoint()
	keys := h.OfflineKeys()
	fleet := h.Enlist(h.API, 0, n)
	for _, d := range fleet {
		for _, section := range []wire.Section{wire.SectionInventory, wire.SectionPackages, wire.SectionServices} {
			h.Until(d.Serial+" has reported "+string(section), func() bool { return h.Reported(d.ID, section) != nil })
		}
	}
	sharedDocuments(t, h, fleet)

	h.Push(keys, "1.0.0", Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", n)
	h.Push(keys, "2.0.0", Bad)
	bad := h.Assign("2.0.0", "")
	h.AwaitState(bad, "rolled_back", n)
	if counts := h.Counts(bad); counts["committed"] != 0 {
		t.Errorf("a bad release counts as committed: %v", counts)
	}
	for _, d := range fleet {
		if got := Runs(d.State, "app"); got != "1.0.0" {
			t.Errorf("%s runs %q after the roll-back", d.Serial, got)
		}
	}

	for _, d := range fleet {
		h.Retire(d.ID)
		h.OrderDisposal(d.ID, d.Serial)
	}
	for _, d := range fleet {
		h.AwaitStage(d.ID, "disposed")
		if err := d.Stop(); err != nil && !errors.Is(err, agent.ErrDecommissioned) {
			t.Errorf("agent of %s: %v", d.Serial, err)
		}
		h.VerifyCertificate(d.ID)
		passport(t, h, d)
	}
	h.VerifyLedger(head, h.Checkpoint())
}

// passport checks that the ledger tells every stage of the device, once and in order.
func passport(t *testing.T, h *House, d *Device) {
	t.Helper()
	moves := map[string]int{}
	for _, e := range h.Events(d.ID, "device.moved") {
		data, _ := e["data"].(map[string]any)
		to, _ := data["to"].(string)
		moves[to]++
	}
	for _, stage := range []device.Stage{device.Received, device.Staged, device.Enrolled, device.Active, device.Retired, device.Disposed} {
		if moves[string(stage)] != 1 {
			t.Errorf("%s: %d moves to %s in the ledger", d.Serial, moves[string(stage)], stage)
		}
	}
}

// sharedDocuments counts the package lists on the server: one for each that differs, not one per device.
func sharedDocuments(t *testing.T, h *House, fleet []*Device) {
	t.Helper()
	distinct := map[any]bool{}
	for _, d := range fleet {
		list, err := d.Machine.Packages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		distinct[list] = true
	}
	db := h.Database()
	var stored int
	err := db.QueryRowContext(t.Context(), `SELECT COUNT(DISTINCT document) FROM twin_reported WHERE section = $1`, string(wire.SectionPackages)).Scan(&stored)
	if err != nil {
		t.Fatal(err)
	}
	if stored != len(distinct) || stored == len(fleet) {
		t.Errorf("%d devices have %d package lists, %d are stored", len(fleet), len(distinct), stored)
	}
	lists := sqldb.NewQuery("SELECT COUNT(*) FROM twin_document WHERE size > ?", 4096)
	if err := db.QueryRowContext(t.Context(), lists.SQL(), lists.Args()...).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if stored != len(distinct) {
		t.Errorf("%d large documents are stored for %d package lists", stored, len(distinct))
	}
}

func TestHouseLeavesNothingRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Run("house", func(t *testing.T) {
		h := Start(t, Options{})
		d := h.Enlist(h.API, 0, 1)[0]
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		h.StopServer()
		h.StartServer()
		h.Send(http.MethodGet, "/devices/"+d.ID, nil)
	})
	goleak.VerifyNone(t, before)
}
