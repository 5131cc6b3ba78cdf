package stewardtest_test

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"steward/internal/client"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

func TestDoorsRefuseWhatIsTooLargeOrMalformed(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Enlist(h.API, 0, 1)[0]
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	door := h.Door(d.Identity())
	large := func(n int) []byte {
		return append([]byte(`{"boot":"`), append(bytes.Repeat([]byte("x"), n), `"}`...)...)
	}
	anyHash := strings.Repeat("a", 64)
	for _, c := range []struct {
		status             int
		code, method, path string
		body               []byte
	}{
		{http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid, "POST", wire.PathReport, large(wire.MaxReportBytes)},
		{http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid, "PUT", wire.PathDocuments + anyHash, large(wire.MaxDocumentBytes)},
		{http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid, "POST", wire.PathMetrics, large(wire.MaxMetricsBytes)},
		{http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid, "POST", wire.PathDisposal, large(wire.MaxEnvelopeBytes)},
		{http.StatusRequestEntityTooLarge, wire.CodeRequestInvalid, "POST", wire.PathESTReenroll, large(1 << 20)},
		{http.StatusBadRequest, wire.CodeRequestInvalid, "POST", wire.PathReport, []byte(`{"boot":`)},
		{http.StatusBadRequest, wire.CodeRequestInvalid, "POST", wire.PathReport, []byte(`{} {}`)},
		{http.StatusUnprocessableEntity, wire.CodeRequestInvalid, "POST", wire.PathReport, []byte(`{"boot":"short"}`)},
		{http.StatusBadRequest, wire.CodeRequestInvalid, "PUT", wire.PathDocuments + anyHash, []byte(`{}`)},
		{http.StatusBadRequest, wire.CodeRequestInvalid, "GET", wire.PathDocuments + "nohash", nil},
		{http.StatusNotFound, wire.CodeDocumentMissing, "GET", wire.PathDocuments + anyHash, nil},
		{http.StatusBadRequest, wire.CodeRequestInvalid, "GET", wire.PathDesired + "?wait=forever", nil},
		{http.StatusBadRequest, wire.CodeRequestInvalid, "GET", wire.PathTUF + "%2e%2e%2fkeys", nil},
	} {
		door.Must(c.status, c.code, c.method, c.path, c.body)
	}
	door.Must(http.StatusBadRequest, wire.CodeProtocol, http.MethodGet, wire.PathDesired, nil, wire.ProtocolHeader, "99")
	stranger := h.Door(nil)
	stranger.Must(http.StatusUnauthorized, wire.CodeCertificateRequired, http.MethodGet, wire.PathDesired, nil)
	stranger.Must(http.StatusUnauthorized, wire.CodeTokenInvalid, http.MethodPost, wire.PathESTEnroll, []byte("x"))

	// Devices may be newer than the server: what it does not know is ignored, not refused.
	known := strings.Repeat("b", 32)
	door.Must(http.StatusOK, "", http.MethodPost, wire.PathReport,
		[]byte(`{"protocol":1,"boot":"`+known+`","instance":"`+known+`","sequence":1,"time":"2026-01-01T00:00:00Z","mood":"good"}`))
}

func TestAPIRefusesUnknownFieldsAndOversizedBodies(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	p := h.Refused(http.StatusUnprocessableEntity, http.MethodPut, "/suppliers/acme", Object{"name": "ACME", "nmae": "typo"})
	if !strings.Contains(p.Error(), "nmae") {
		t.Errorf("the refusal does not name the field: %v", p)
	}
	h.Refused(http.StatusRequestEntityTooLarge, http.MethodPut, "/suppliers/acme", Object{"name": strings.Repeat("x", 4<<20)})
	h.Refused(http.StatusNotFound, http.MethodGet, "/suppliers/acme", nil)
	h.Refused(http.StatusNotFound, http.MethodGet, "/nothing", nil)
	h.Refused(http.StatusUnprocessableEntity, http.MethodGet, "/devices?limit=-1", nil)
}

// deliver books a CSV file.
func deliver(t *testing.T, h *House, order, csv string) error {
	return h.Client().Do(t.Context(), client.Call{
		Method: http.MethodPost, Path: "/orders/" + order + "/deliveries", Type: "text/csv", Body: strings.NewReader(csv), Query: map[string][]string{"mode": {"book"}},
	}, nil)
}

func TestBadDeliveryNamesLineAndColumnAndBooksNothing(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	order := h.Order(3)
	for _, c := range []struct{ name, csv, says string }{
		{"unknown column", "serial,colour\nA-1,red\n", "colour"},
		{"missing serial", "serial,model\nA-1,gateway\n,gateway\n", "line 3"},
		{"broken quotes", "serial,model\nA-1,\"gateway\nA-2,gateway\n", "line"},
		{"too few fields", "serial,model\nA-1,gateway\nA-2\n", "line 3"},
	} {
		err := deliver(t, h, order, c.csv)
		var p *client.Problem
		if !errors.As(err, &p) || p.Status >= http.StatusInternalServerError || !strings.Contains(p.Error(), c.says) {
			t.Errorf("%s: want a refusal that says %q, got %v", c.name, c.says, err)
		}
		if n := len(h.List("/devices?stage=received")); n != 0 {
			t.Errorf("%s: %d devices were booked", c.name, n)
		}
	}
	if err := h.Receive(order, "A-1", "A-2", "A-3"); err != nil {
		t.Errorf("the right file after the wrong ones: %v", err)
	}
}

func TestDeliveredUnitsThatDoNotFitTheOrderAreShownNotGuessed(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	order := h.Order(2)
	if err := deliver(t, h, order, "serial,model\nA-1,gateway\nA-2,toaster\nA-3,gateway\nA-3,gateway\n"); err != nil {
		t.Fatal(err)
	}
	booked := h.List("/devices?stage=received")
	if len(booked) != 1 || booked[0]["serial"] != "A-1" {
		t.Errorf("want A-1 booked and nothing that is doubtful, got %v", booked)
	}
	if n := len(h.List("/discrepancies")); n < 2 {
		t.Errorf("%d discrepancies are shown for a wrong model and a serial number that came twice", n)
	}
	if n := len(h.List("/devices?stage=ordered")); n != 1 {
		t.Errorf("%d units are still expected", n)
	}
}
