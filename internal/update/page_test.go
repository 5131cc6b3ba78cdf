package update_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ui"
	"steward/internal/wire"
)

// manager is somebody who may do everything the room's pages offer.
type manager struct{}

func (manager) Authenticate(*http.Request) (httpapi.Principal, error) {
	return httpapi.Principal{Actor: operator, Role: httpapi.ReleaseManager, Scope: device.Scope{Tenant: tenant}}, nil
}

// page gets a page of the console, which must be there.
func (h *house) page(console http.Handler, path string) string {
	h.Helper()
	w := httptest.NewRecorder()
	console.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Body)
	if err != nil || w.Code != http.StatusOK {
		h.Fatalf("GET %s: %d, error %v: %s", path, w.Code, err, body)
	}
	return string(body)
}

func TestPagesShowHowFarAssignmentsAre(t *testing.T) {
	each(t, func(h *house) {
		console := ui.New(ui.Config{Auth: manager{}, Log: slog.New(slog.DiscardHandler), Now: h.now})
		h.Pages(console)
		if text := h.page(console, "/updates"); !strings.Contains(text, "steward update assign") {
			h.Errorf("the empty list does not teach the next step: %s", text)
		}
		devices := h.devices(4, nil)
		a := h.assign("app", "1.0", "")
		h.report(progress(a, 1, wire.UpdateRolledBack, "health command failed"), devices[0])
		h.report(progress(a, 1, wire.UpdateFailed, "disk is full"), devices[1])
		h.report(progress(a, 1, wire.UpdateCommitted, ""), devices[2])
		for path, want := range map[string][]string{
			"/updates":                             {"1 of 4 committed", "1 rolled back", "1 failed"},
			"/updates?state=active":                {"1 of 4 committed"},
			"/updates/" + a.ID:                     {"25 %", "health command failed", "disk is full", `data-confirm="Try again on 1 device?"`},
			"/updates/" + a.ID + "/devices":        {"rolled back", "committed", "pending"},
			"/updates/new?release=app&version=1.0": {"devices match"},
		} {
			text := h.page(console, path)
			for _, w := range want {
				if !strings.Contains(text, w) {
					h.Errorf("%s lacks %q: %s", path, w, text)
				}
			}
		}
	})
}
