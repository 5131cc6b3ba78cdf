package update_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"steward/internal/httpapi"
	"steward/internal/update"
	"steward/internal/wire"
)

// ask calls the API and decodes what it answers.
func (h *house) ask(api http.Handler, method, path, body string, out any) int {
	h.Helper()
	req := httptest.NewRequest(method, "/api/v1"+path, strings.NewReader(body))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	api.ServeHTTP(w, req)
	if out != nil && w.Code < 300 {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			h.Fatalf("%s %s answered %d: %s", method, path, w.Code, w.Body)
		}
	}
	if w.Code >= 500 {
		h.Errorf("%s %s answered %d: %s", method, path, w.Code, w.Body)
	}
	return w.Code
}

func TestAssignmentGoesFromPreviewToRetryByAPI(t *testing.T) {
	each(t, func(h *house) {
		api := httpapi.New(httpapi.Config{Version: "test", Auth: manager{}, Log: slog.New(slog.DiscardHandler), DB: h.db})
		h.Routes(api)
		devices := h.devices(3, map[string]string{"site": "berlin"})
		const wish = `{"name":"app","version":"1.0","selector":"site=berlin","note":"first"}`
		var p update.Preview
		if code := h.ask(api, "POST", "/assignments/preview", wish, &p); code != 200 || p.Devices != 3 || p.Unknown != 3 {
			h.Fatalf("%d: %+v", code, p)
		}
		var a update.Assignment
		if code := h.ask(api, "POST", "/assignments", wish, &a); code != 201 || a.Counts[wire.UpdatePending] != 3 || a.Note != "first" {
			h.Fatalf("%d: %+v", code, a)
		}
		h.report(progress(a, 1, wire.UpdateRolledBack, "broken"), devices[0])
		h.report(progress(a, 1, wire.UpdateCommitted, ""), devices[1])
		var d update.AssignmentDetail
		if code := h.ask(api, "GET", "/assignments/"+a.ID, "", &d); code != 200 || d.Percent != 33 || len(d.Failures) != 1 || d.Failures[0].Cause != "broken" {
			h.Errorf("%d: %+v", code, d)
		}
		var states httpapi.List[update.DeviceState]
		if code := h.ask(api, "GET", "/assignments/"+a.ID+"/devices?state=rolled_back", "", &states); code != 200 || len(states.Items) != 1 || states.Items[0].Device != devices[0].ID {
			h.Errorf("%d: %+v", code, states)
		}
		if code := h.ask(api, "GET", "/device-updates?name=app&state=committed", "", &states); code != 200 || len(states.Items) != 1 || states.Items[0].Device != devices[1].ID {
			h.Errorf("%d: %+v", code, states)
		}
		var u update.DeviceUpdates
		if code := h.ask(api, "GET", "/devices/"+string(devices[0].ID)+"/updates", "", &u); code != 200 || len(u.Wanted) != 1 || u.Wanted[0].Cause != "broken" || len(u.History) != 1 {
			h.Errorf("%d: %+v", code, u)
		}
		var retried struct {
			Devices int64 `json:"devices"`
		}
		if code := h.ask(api, "POST", "/assignments/"+a.ID+"/retry", `{}`, &retried); code != 200 || retried.Devices != 1 {
			h.Errorf("%d: %+v", code, retried)
		}
		if code := h.ask(api, "POST", "/assignments/"+a.ID+"/cancel", `{"reason":"enough"}`, &a); code != 200 || a.State != update.CalledBack {
			h.Errorf("%d: %+v", code, a)
		}
		var list httpapi.List[update.Assignment]
		if code := h.ask(api, "GET", "/assignments?state=cancelled", "", &list); code != 200 || len(list.Items) != 1 {
			h.Errorf("%d: %+v", code, list)
		}
		for _, c := range []struct {
			method, path, body string
			want               int
		}{
			{"POST", "/assignments", `{"name":"app","version":"gone"}`, 404},
			{"POST", "/assignments", `{"name":"app","version":"1.0","selector":"a in (b"}`, 422},
			{"POST", "/assignments", `{"name":"app","version":"1.0","percent":50}`, 422}, // an unknown field is never ignored
			{"POST", "/assignments/" + a.ID + "/cancel", `{}`, 409},
			{"GET", "/assignments/asg-none", "", 404},
			{"GET", "/devices/dev-0000000000000000/updates", "", 404},
			{"GET", "/assignments?cursor=nonsense", "", 422},
		} {
			if code := h.ask(api, c.method, c.path, c.body, nil); code != c.want {
				h.Errorf("%s %s %s answered %d, want %d", c.method, c.path, c.body, code, c.want)
			}
		}
	})
}
