package purchase_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/purchase"
	"steward/internal/ui"
)

// site serves the room's API and pages to whoever is in who.
type site struct {
	*desk
	api     *httpapi.API
	console *ui.Console
}

func (s *site) Authenticate(*http.Request) (httpapi.Principal, error) { return s.who, nil }

func eachSite(t *testing.T, test func(t *testing.T, s *site)) {
	each(t, func(t *testing.T, k *desk) {
		s := &site{desk: k}
		quiet := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
		s.api = httpapi.New(httpapi.Config{Version: "test", Auth: s, Log: quiet})
		s.console = ui.New(ui.Config{Auth: s, Log: quiet, Now: k.clock})
		k.Routes(s.api)
		k.Pages(s.console)
		test(t, s)
	})
}

// call sends a request and checks the status.
func (s *site) call(status int, method, path, contentType, body string, header ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
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

func (s *site) json(status int, method, path string, in, out any, header ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	body, err := json.Marshal(in)
	s.must(nil, err)
	w := s.call(status, method, path, "application/json", string(body), header...)
	if out != nil {
		s.must(nil, json.Unmarshal(w.Body.Bytes(), out))
	}
	return w
}

func TestOrderIsBoughtThroughTheAPI(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		var o purchase.Order
		w := s.json(201, "POST", "/api/v1/orders", map[string]any{"number": "PO-1", "supplier": "acme", "currency": "EUR",
			"lines": []any{map[string]any{"model": "gw-1", "quantity": 2, "unit_price": 100}}}, &o)
		if w.Header().Get("ETag") != `"1"` {
			t.Errorf("ETag %s", w.Header().Get("ETag"))
		}
		path := "/api/v1/orders/" + o.ID
		s.call(412, "POST", path+"/place", "", "", "If-Match", `"7"`)
		s.call(200, "POST", path+"/place", "", "", "If-Match", `"1"`)
		s.call(409, "POST", path+"/place", "", "")

		file := "serial,model\nG1,gw-1\nG2,gw-1\nG3,gw-1\n"
		var answer struct {
			Check  *purchase.Check
			Booked *purchase.Booked
		}
		w = s.call(200, "POST", path+"/deliveries", "text/csv", file)
		s.must(nil, json.Unmarshal(w.Body.Bytes(), &answer))
		if answer.Check == nil || len(answer.Check.Matched) != 2 || len(answer.Check.Discrepancies) != 1 {
			t.Fatalf("preview %s", w.Body)
		}
		w = s.call(422, "POST", path+"/deliveries?mode=book", "text/csv", "serial,model\nG1,gw-1\n,gw-1\n")
		if !strings.Contains(w.Body.String(), "line 3, column 1") {
			t.Errorf("problem %s", w.Body)
		}
		s.wantStages("ordered:2")
		s.call(422, "POST", path+"/deliveries?mode=maybe", "text/csv", file)
		w = s.call(201, "POST", path+"/deliveries?mode=book&note=DN-7", "text/csv", file)
		s.must(nil, json.Unmarshal(w.Body.Bytes(), &answer))
		w = s.call(200, "POST", path+"/deliveries?mode=book", "text/csv", file)
		if !strings.Contains(w.Body.String(), `"repeated":true`) {
			t.Errorf("the same file again: %s", w.Body)
		}
		var found struct{ Items []purchase.Discrepancy }
		s.json(200, "GET", "/api/v1/discrepancies?undecided=true&order="+o.ID, nil, &found)
		if len(found.Items) != 1 || found.Items[0].FileLine != 4 {
			t.Fatalf("%+v", found)
		}
		decisions := "/api/v1/deliveries/" + answer.Booked.Delivery.ID + "/decisions"
		s.json(422, "POST", decisions, map[string]any{"file_lines": []int{4}, "action": "keep"}, nil)
		s.json(200, "POST", decisions, map[string]any{"file_lines": []int{4}, "action": "accept"}, nil)
		s.call(200, "POST", path+"/close", "", "")
		var stock struct{ Items []purchase.StockRow }
		s.json(200, "GET", "/api/v1/stock", nil, &stock)
		if len(stock.Items) != 1 || stock.Items[0].Units != 3 {
			t.Errorf("stock %+v", stock)
		}
		s.call(404, "GET", "/api/v1/orders/ord-none", "", "")
		s.json(422, "PUT", "/api/v1/models/gw-2", map[string]any{"maker": "A", "name": "B", "architecture": "z80"}, nil)
		s.call(204, "DELETE", "/api/v1/models/cam", "", "")
		s.call(409, "DELETE", "/api/v1/models/gw-1", "", "")
		s.who.Role = httpapi.Viewer
		s.call(403, "POST", path+"/close", "", "")
		s.call(403, "POST", path+"/deliveries", "text/csv", file)
	})
}

// form posts a form as a browser does.
func (s *site) form(status int, path string, values ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	v := url.Values{}
	for i := 0; i < len(values); i += 2 {
		v.Add(values[i], values[i+1])
	}
	return s.call(status, "POST", path, "application/x-www-form-urlencoded", v.Encode(), "Sec-Fetch-Site", "same-origin")
}

// upload posts a file with further fields.
func (s *site) upload(status int, path, file string, values ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	var body bytes.Buffer
	m := multipart.NewWriter(&body)
	if file != "" {
		part, err := m.CreateFormFile("file", "delivery.csv")
		s.must(nil, err)
		_, err = part.Write([]byte(file))
		s.must(nil, err)
	}
	for i := 0; i < len(values); i += 2 {
		s.must(nil, m.WriteField(values[i], values[i+1]))
	}
	s.must(nil, m.Close())
	return s.call(status, "POST", path, m.FormDataContentType(), body.String(), "Sec-Fetch-Site", "same-origin")
}

func (s *site) page(path string, want ...string) string {
	s.t.Helper()
	body := s.call(200, "GET", path, "", "").Body.String()
	for _, text := range want {
		if !strings.Contains(body, text) {
			s.t.Errorf("%s lacks %q", path, text)
		}
	}
	return body
}

var hidden = regexp.MustCompile(`name="(carried|sha256)" value="([^"]*)"`)

func TestOrderIsBoughtThroughTheConsole(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		s.page("/orders", "No orders yet")
		s.page("/orders/new", "Acme Ltd.", "Gateway 1")
		w := s.form(422, "/orders", "number", "PO-1", "supplier", "acme", "currency", "eur",
			"lines[0].model", "gw-1", "lines[0].quantity", "two", "lines[0].unit_price", "1.005", "lines[1].model", "")
		if body := w.Body.String(); !strings.Contains(body, "EUR has 2 decimal digits") || !strings.Contains(body, `value="two"`) {
			t.Errorf("refused form %s", body)
		}
		if w = s.form(200, "/orders", "more", "1", "number", "PO-1", "lines[0].model", "gw-1"); strings.Count(w.Body.String(), `name="lines[`) < 5*4 {
			t.Error("no more lines")
		}
		w = s.form(303, "/orders", "number", "PO-1", "supplier", "acme", "currency", "eur", "due", "2026-04-30",
			"lines[0].model", "gw-1", "lines[0].quantity", "2", "lines[0].unit_price", "199", "lines[1].model", "")
		path := w.Header().Get("Location")
		s.page(path, "Place order", "398.00 EUR")
		s.page(path+"/edit", `value="199.00"`)
		s.form(303, path+"/edit", "rev", `"1"`, "number", "PO-1b", "supplier", "acme", "currency", "EUR",
			"lines[0].model", "gw-1", "lines[0].quantity", "2", "lines[0].unit_price", "10")
		s.form(303, path+"/place", "rev", `"2"`)
		s.page("/orders?state=placed", "PO-1b", "Acme Ltd.")

		if w = s.upload(422, path+"/deliveries", "serial,model\nA B,gw-1\n"); !strings.Contains(w.Body.String(), "line 2, column 1") {
			t.Errorf("problems %s", w.Body)
		}
		file := "serial,model\r\nG1,gw-1\nX1,toaster\n"
		w = s.upload(200, path+"/deliveries", file, "note", "DN-1")
		values := []string{"do", "book", "note", "DN-1"}
		for _, m := range hidden.FindAllStringSubmatch(w.Body.String(), -1) {
			values = append(values, m[1], strings.ReplaceAll(m[2], "&#43;", "+"))
		}
		s.wantStages("ordered:2")
		s.upload(422, path+"/deliveries", "serial,model\nG9,gw-1\n", values[:6]...) // another file than the checked one
		w = s.upload(303, path+"/deliveries", "", values...)
		s.wantStages("ordered:1 received:1")
		body := s.page(path, "toaster", "Accept into stock", "DN-1")
		delivery := regexp.MustCompile(`/deliveries/(del-[0-9a-z]+)/decisions`).FindStringSubmatch(body)
		if delivery == nil {
			t.Fatal("no form for decisions")
		}
		s.form(303, "/deliveries/"+delivery[1]+"/decisions", "file_line", "3", "action", "reject", "line", "1", "note", "no such thing")
		s.page(path, "no such thing", "1 decision")

		s.page(path+"/cancel", "1 × gw-1", "Cancel 1 open unit")
		s.form(422, path+"/cancel", "reason", "")
		s.form(303, path+"/cancel", "reason", "sold out")
		s.wantStages("received:1 retired:1")
		s.page(path, "Close order")
		s.form(303, path+"/close")
		s.page("/stock", "Gateway 1", "10.00 EUR")
		_ = w
	})
}

func TestCataloguePages(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		s.page("/models", "Gateway 1", "no TPM")
		s.page("/models/new")
		s.page("/models/gw-1", `value="GW1-EU"`)
		if w := s.form(422, "/models", "new", "1", "id", "gw-1", "maker", "A", "name", "B", "architecture", "arm64"); !strings.Contains(w.Body.String(), "is taken") {
			t.Error("a new model overwrote one")
		}
		s.form(422, "/models", "new", "1", "id", "No", "maker", "", "name", "B", "architecture", "arm64")
		s.form(303, "/models", "new", "1", "id", "nuc", "maker", "A", "name", "B", "architecture", "amd64", "interfaces", "wifi", "interfaces", "can", "secure_boot", "true", "tpm", "2.0", "warranty_months", "12")
		m, err := s.Model(t.Context(), s.who, "nuc")
		if err != nil || !m.SecureBoot || len(m.Interfaces) != 2 || m.TPM != "2.0" || m.WarrantyMonths != 12 {
			t.Errorf("%+v, %v", m, err)
		}
		s.form(303, "/models/nuc/delete")
		s.page("/suppliers", "Acme Ltd.")
		s.page("/suppliers/new")
		s.form(422, "/suppliers", "new", "1", "id", "beta", "name", "Beta", "email", "nobody")
		s.form(303, "/suppliers", "new", "1", "id", "beta", "name", "Beta", "website", "https://beta.example")
		s.page("/suppliers/beta", "https://beta.example")
		s.form(303, "/suppliers/beta/delete")
		s.call(404, "GET", "/suppliers/beta", "", "")
	})
}

func TestPanelShowsOriginAndHidesPricesFromPartOfTheFleet(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		s.book(s.order("PO-1", line("gw-1", 1, 19900)), "G1,gw-1,")
		d := s.serial("G1")
		html, err := s.Panel().Render(t.Context(), s.who, d)
		if err != nil || !strings.Contains(string(html), "PO-1") || !strings.Contains(string(html), "199.00 EUR") || !strings.Contains(string(html), "Gateway 1") {
			t.Errorf("%s, %v", html, err)
		}
		part := s.who
		part.Scope.Selector = device.MustSelector("site=berlin")
		if html, err = s.Panel().Render(t.Context(), part, d); err != nil || strings.Contains(string(html), "199.00") {
			t.Errorf("%s, %v", html, err)
		}
		if html, err = s.Panel().Render(t.Context(), s.who, device.Device{Num: 999, Tenant: "default"}); err != nil || !strings.Contains(string(html), "not bought") {
			t.Errorf("%s, %v", html, err)
		}
	})
}
