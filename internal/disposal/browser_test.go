package disposal_test

import (
	"log/slog"
	"net/http/httptest"
	"testing"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/ui"
	"steward/internal/ui/uitest"
)

func TestPagesHoldInABrowser(t *testing.T) {
	browser := uitest.Start(t)
	y := newYard(t, sqlite(t))
	s := &site{yard: y}
	s.console = ui.New(ui.Config{Auth: s, Log: slog.New(slog.DiscardHandler), Now: y.clock, Nav: []ui.NavItem{{Name: "Disposal", Path: "/disposal", Icon: "trash"}}})
	y.Pages(s.console)
	active, _ := y.device("SN-0", true)
	retired, _ := y.device("SN-1", true)
	y.move(retired, device.Retired)
	d, id, x := y.ordered("SN-2")
	y.must(y.Accept(t.Context(), d, y.seal(statementOf(d, id, x), id.key)))
	ledgertest.Events(t, y.ledger, ledger.Filter{})
	server := httptest.NewServer(s.console)
	defer server.Close()
	for name, path := range map[string]string{
		"list": "/disposal", "retire": "/devices/" + string(active.ID) + "/dispose", "order": "/devices/" + string(retired.ID) + "/dispose",
		"done": "/devices/" + string(d.ID) + "/dispose", "bulk": "/disposal/bulk", "certificate": "/disposal/" + x.ID + "/certificate",
	} {
		browser.CheckPage(t, server.URL+path, uitest.Options{Name: "disposal-" + name})
	}
}
