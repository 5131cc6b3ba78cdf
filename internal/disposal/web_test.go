package disposal_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/disposal"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/ui"
)

// site serves the room's API and pages to whoever is in who.
type site struct {
	*yard
	api     *httpapi.API
	console *ui.Console
}

func (s *site) Authenticate(*http.Request) (httpapi.Principal, error) { return s.who, nil }

func eachSite(t *testing.T, test func(t *testing.T, s *site)) {
	each(t, func(t *testing.T, y *yard) {
		s := &site{yard: y}
		log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
		s.api = httpapi.New(httpapi.Config{Version: "test", Auth: s, Log: log})
		s.console = ui.New(ui.Config{Auth: s, Log: log, Now: y.clock})
		y.Routes(s.api)
		y.Pages(s.console)
		test(t, s)
	})
}

func (s *site) call(status int, method, path, contentType, body string) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	w := httptest.NewRecorder()
	if strings.HasPrefix(path, "/api/") {
		s.api.ServeHTTP(w, r)
	} else {
		s.console.ServeHTTP(w, r)
	}
	if w.Code != status {
		_, main, _ := strings.Cut(w.Body.String(), "<main")
		s.t.Fatalf("%s %s: status %d, want %d\n%.1500s", method, path, w.Code, status, cmp.Or(main, w.Body.String()))
	}
	return w
}

func (s *site) json(status int, method, path string, in, out any) *httptest.ResponseRecorder {
	s.t.Helper()
	body := []byte{}
	if in != nil {
		var err error
		body, err = json.Marshal(in)
		s.must(err)
	}
	w := s.call(status, method, path, "application/json", string(body))
	if out != nil {
		s.must(json.Unmarshal(w.Body.Bytes(), out))
	}
	return w
}

func (s *site) form(status int, path string, values ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	v := url.Values{}
	for i := 0; i < len(values); i += 2 {
		v.Add(values[i], values[i+1])
	}
	return s.call(status, "POST", path, "application/x-www-form-urlencoded", v.Encode())
}

func (s *site) page(path string, want ...string) {
	s.t.Helper()
	body := s.call(200, "GET", path, "", "").Body.String()
	for _, text := range want {
		if !strings.Contains(body, text) {
			_, main, _ := strings.Cut(body, "<main")
			s.t.Errorf("%s lacks %q\n%.3000s", path, text, main)
		}
	}
}

func TestDeviceIsDisposedOfThroughTheAPI(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		d, id := s.device("SN-1", true)
		path := "/api/v1/devices/" + string(d.ID)
		var p disposal.Preview
		s.json(200, "GET", path+"/disposal", nil, &p)
		if !p.MayRetire || p.MayOrder || !p.Certificate || p.Confirm != "SN-1" || len(p.Effects) != 1 || p.Effects[0].Level != "warn" {
			t.Errorf("preview %+v", p)
		}
		s.json(422, "POST", path+"/retire", map[string]any{"reason": ""}, nil)
		s.json(200, "POST", path+"/retire", map[string]any{"reason": "old"}, nil)
		if w := s.json(422, "POST", path+"/disposal/order", map[string]any{"reason": "old", "confirm": "SN-2"}, nil); !strings.Contains(w.Body.String(), "body.confirm") {
			t.Errorf("%s", w.Body)
		}
		s.call(409, "GET", path+"/disposal/certificate", "", "")
		var x disposal.Disposal
		s.json(201, "POST", path+"/disposal/order", map[string]any{"reason": "old", "confirm": "SN-1"}, &x)
		s.must(s.Accept(t.Context(), d, s.seal(statementOf(d, id, x), id.key)))
		ledgertest.Events(t, s.ledger, ledger.Filter{})
		w := s.call(200, "GET", path+"/disposal/certificate", "", "")
		if _, err := disposal.VerifyCertificate(w.Body.Bytes(), s.pins()); err != nil {
			t.Error(err)
		}
		other := s.call(200, "GET", "/api/v1/disposals/"+x.ID+"/certificate", "", "")
		if !bytes.Equal(other.Body.Bytes(), w.Body.Bytes()) {
			t.Error("two certificates of one disposal")
		}
		var keys struct {
			PublicKey string `json:"public_key"`
			LedgerKey string `json:"ledger_key"`
		}
		s.json(200, "GET", "/api/v1/disposal/keys", nil, &keys)
		if pins := s.pins(); keys.PublicKey != pins.IssuerKey || keys.LedgerKey != pins.LedgerKey {
			t.Errorf("keys %+v", keys)
		}
		s.json(200, "GET", "/api/v1/disposals?state=sanitized", nil, nil)
		s.call(404, "GET", "/api/v1/devices/dev-nonsense/disposal", "", "")
		s.call(422, "GET", "/api/v1/disposal/bulk?selector=%3D%3D", "", "")
		s.json(409, "POST", "/api/v1/disposal/bulk", map[string]any{"selector": "", "reason": "old", "confirm": 3}, nil)
		s.who.Role = httpapi.Viewer
		s.json(403, "POST", path+"/retire", map[string]any{"reason": "old"}, nil)
	})
}

func TestDeviceIsDisposedOfThroughTheConsole(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		s.page("/disposal", "Nothing was disposed of yet", "No retired device waits")
		d, id := s.device("SN-1", true)
		path := "/devices/" + string(d.ID) + "/dispose"
		s.page(path, "Retire SN-1", "it can sign its own sanitization", "It is online")
		s.form(422, path, "do", "retire", "reason", "")
		s.form(303, path, "do", "retire", "reason", "end of support")
		s.page(path, "Type SN-1 to confirm", "Write an attestation")
		s.page("/disposal", "not ordered", "SN-1")
		s.form(422, path, "do", "order", "reason", "old", "confirm", "yes")
		if w := s.form(422, path, "do", "attest", "attest_reason", "", "attest_confirm", "SN-1", "technique", "hammer"); !strings.Contains(w.Body.String(), `value="hammer"`) {
			t.Error("what was typed is lost")
		}
		s.form(422, path, "do", "dance")
		s.form(303, path, "do", "order", "reason", "end of support", "confirm", "SN-1")
		list, _, err := s.List(t.Context(), s.who, disposal.Filter{Limit: 1})
		s.must(err)
		x := list[0]
		s.page("/disposal?state=ordered", x.ID)
		s.call(409, "GET", "/disposal/"+x.ID+"/certificate", "", "")
		s.must(s.Accept(t.Context(), d, s.seal(statementOf(d, id, x), id.key)))
		ledgertest.Events(t, s.ledger, ledger.Filter{})
		s.page(path, "Certificate of disposal")
		s.page("/disposal/"+x.ID+"/certificate", "Example Fleet", "SN-1", "release files of app 1.2", "PO-1", "status-good")
		w := s.call(200, "GET", "/disposal/"+x.ID+"/certificate.json", "", "")
		if _, err := disposal.VerifyCertificate(w.Body.Bytes(), s.pins()); err != nil {
			t.Error(err)
		}
		html, err := s.Panel().Render(t.Context(), s.who, s.get(d))
		if err != nil || !strings.Contains(string(html), "/disposal/"+x.ID+"/certificate") {
			t.Errorf("%s, %v", html, err)
		}
	})
}

func TestAttestationAndBulkPages(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		d, _ := s.device("SN-1", false)
		d = s.move(d, device.Retired)
		path := "/devices/" + string(d.ID) + "/dispose"
		s.page(path, "people have to attest its end")
		s.form(303, path, "do", "attest", "method", "destroy", "technique", "shredded", "performer", "Grace", "witness", "Alan",
			"performed", "2026-05-30", "evidence", "protocol 4711", "attest_reason", "broken", "attest_confirm", "SN-1")
		ledgertest.Events(t, s.ledger, ledger.Filter{})
		list, _, err := s.List(t.Context(), s.who, disposal.Filter{Limit: 1})
		s.must(err)
		s.page("/disposal/"+list[0].ID+"/certificate", "Attested by people", "protocol 4711", "it held no certificate")
		e, _ := s.device("SN-2", true)
		s.move(e, device.Retired)
		s.page("/disposal/bulk", "Sanitize 1 device")
		s.call(422, "GET", "/disposal/bulk?selector=%3D", "", "")
		s.form(422, "/disposal/bulk", "selector", "", "reason", "old", "confirm", "many")
		s.form(422, "/disposal/bulk", "selector", "", "reason", "old", "confirm", "2")
		s.form(303, "/disposal/bulk", "selector", "", "reason", "old", "confirm", "1")
		s.page("/disposal/bulk", "No device would get an order", string(e.ID))
	})
}
