package purchase_test

import (
	"log/slog"
	"net/http/httptest"
	"testing"

	"steward/internal/ledger"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/ui"
	"steward/internal/ui/uitest"
)

func TestPagesHoldInABrowser(t *testing.T) {
	browser := uitest.Start(t)
	k := newDesk(t, sqldbtest.SQLite(t, ledger.Migration(), registry.Migration(), purchase.Migration()))
	s := &site{desk: k}
	s.console = ui.New(ui.Config{Auth: s, Log: slog.New(slog.DiscardHandler), Now: k.clock, Nav: []ui.NavItem{{Name: "Orders", Path: "/orders", Icon: "orders"}}})
	k.Pages(s.console)
	o := k.order("PO-2026-0042", line("gw-1", 120, 19900), line("cam", 40, 4950))
	k.book(o, "GW1-000001,gw-1,", "GW1-000002,gw-1,", "C-1,cam,", "X-1,toaster,", "GW1-000003,cam,1")
	server := httptest.NewServer(s.console)
	defer server.Close()
	for name, path := range map[string]string{
		"orders": "/orders", "order": "/orders/" + o.ID, "order_new": "/orders/new", "order_cancel": "/orders/" + o.ID + "/cancel",
		"models": "/models", "model": "/models/gw-1", "suppliers": "/suppliers", "supplier": "/suppliers/new", "stock": "/stock",
	} {
		browser.CheckPage(t, server.URL+path, uitest.Options{Name: "purchase-" + name})
	}
}
