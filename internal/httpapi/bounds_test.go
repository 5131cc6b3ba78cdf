package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"steward/internal/httpapi"
)

func TestWildPrincipalIsSlowedDownAloneAndToldWhenToComeBack(t *testing.T) {
	s := newSample(t, func(c *httpapi.Config) { c.Rate = httpapi.Rate{PerSecond: 0.5, Burst: 3} })
	for i := range 3 {
		if a := s.send(t, "GET", "/api/v1/things", "viewer", ""); a.StatusCode != 200 {
			t.Fatalf("request %d: %d", i, a.StatusCode)
		}
	}
	a := s.send(t, "GET", "/api/v1/things", "viewer", "")
	if a.StatusCode != http.StatusTooManyRequests || a.Header.Get("Retry-After") != "2" {
		t.Fatalf("got %d, Retry-After %q, want 429 and 2", a.StatusCode, a.Header.Get("Retry-After"))
	}
	if a := s.send(t, "GET", "/api/v1/things", "admin", ""); a.StatusCode != 200 {
		t.Errorf("another principal got %d", a.StatusCode)
	}
	s.clock.Add(2 * time.Second)
	if a := s.send(t, "GET", "/api/v1/things", "viewer", ""); a.StatusCode != 200 {
		t.Errorf("after the wait: %d", a.StatusCode)
	}
}

func TestWrongTokensAreLimitedByAddress(t *testing.T) {
	s := newSample(t, func(c *httpapi.Config) { c.Rate = httpapi.Rate{PerSecond: 1, Burst: 2} })
	want := []int{401, 401, 429, 429}
	for i, token := range []string{"stp_a", "stp_b", "stp_c", "stp_d"} {
		if a := s.send(t, "GET", "/api/v1/things", token, ""); a.StatusCode != want[i] {
			t.Errorf("guess %d: got %d, want %d", i, a.StatusCode, want[i])
		}
	}
}

func TestLogShowsEachRequestButNoSecret(t *testing.T) {
	s := newSample(t, nil)
	s.send(t, "GET", "/api/v1/things?cursor=stp_querysecret", "stp_headersecret", "", "Cookie", "session=cookiesecret")
	s.send(t, "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1,"password":"much-too-long-bodysecret"}`)
	s.send(t, "POST", "/api/v1/things", "operator", `{"name":"bodysecret`)
	a := s.send(t, "POST", "/api/v1/fail/internal", "operator", "", "X-Request-Id", "trace-12345")
	if a.Header.Get("X-Request-Id") != "trace-12345" {
		t.Errorf("the caller's request ID was not taken over: %q", a.Header.Get("X-Request-Id"))
	}
	log := s.log.String()
	for _, secret := range []string{"querysecret", "headersecret", "cookiesecret", "bodysecret"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %s:\n%s", secret, log)
		}
	}
	for _, want := range []string{`"http.response.status_code":401`, `"operation":"create-thing"`, `"enduser.id":"acc-operator"`, "dial db", "trace-12345"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	if strings.Contains(s.send(t, "GET", "/api/v1/things", "viewer", "", "X-Request-Id", "a\tb<script>").Header.Get("X-Request-Id"), "<") {
		t.Error("a request ID of any form was taken over")
	}
}

func TestSecretsAreNotEchoed(t *testing.T) {
	s := newSample(t, nil)
	a := s.send(t, "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1,"password":"much-too-long"}`)
	if a.StatusCode != 422 || len(a.problem.Errors) != 1 || a.problem.Errors[0].Location != "body.password" || strings.Contains(a.body, "much-too-long") {
		t.Errorf("got %s", a.body)
	}
}

func TestReadinessFollowsItsChecks(t *testing.T) {
	var broken error
	s := newSample(t, func(c *httpapi.Config) {
		c.Ready = map[string]func(context.Context) error{
			"database": func(context.Context) error { return broken },
			"bus":      func(context.Context) error { return nil },
		}
	})
	get := func() (int, map[string]any) {
		resp, err := http.Get(s.URL + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	if status, body := get(); status != 200 || body["ready"] != true {
		t.Errorf("got %d %v", status, body)
	}
	broken = errors.New("password hunter2 refused")
	status, body := get()
	if checks := body["checks"].(map[string]any); status != 503 || checks["database"] != false || checks["bus"] != true {
		t.Errorf("got %d %v", status, body)
	}
	if !strings.Contains(s.log.String(), "hunter2") {
		t.Error("the log doesn't say why")
	}
}

func TestMetricsCountByOperationForViewersOnly(t *testing.T) {
	s := newSample(t, nil)
	s.send(t, "POST", "/api/v1/things", "viewer", "")
	s.send(t, "GET", "/api/v1/x"+strings.Repeat("y", 50), "viewer", "")
	if a := s.send(t, "GET", "/metrics", "", ""); a.StatusCode != 401 {
		t.Errorf("without a token: %d", a.StatusCode)
	}
	a := s.send(t, "GET", "/metrics", "viewer", "")
	for _, want := range []string{
		`steward_http_requests_total{code="403",method="POST",operation="create-thing"} 1`,
		`steward_http_requests_total{code="404",method="any",operation="other"} 1`,
		`steward_http_request_duration_seconds_count{operation="create-thing"} 1`,
		"go_goroutines", `steward_build_info{version="test"} 1`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("lacks %s", want)
		}
	}
}

// The server puts Observe around console and API together, and the API has it built in.
func TestRequestThroughTwoDoorsIsOneRequest(t *testing.T) {
	s := newSample(t, nil)
	outer := httptest.NewServer(s.api.Observe(s.Config.Handler))
	defer outer.Close()
	inner := s.URL
	s.URL = outer.URL
	a := s.send(t, "POST", "/api/v1/fail/panic", "operator", "")
	s.URL = inner
	if a.StatusCode != 500 || !strings.Contains(a.body, a.Header.Get("X-Request-Id")) {
		t.Errorf("%d %s, not under the ID %s", a.StatusCode, a.body, a.Header.Get("X-Request-Id"))
	}
	log := s.log.String()
	if n := strings.Count(log, `"msg":"request"`); n != 1 {
		t.Errorf("%d lines of one request:\n%s", n, log)
	}
	if !strings.Contains(log, `"operation":"fail-thing"`) {
		t.Errorf("the line does not name the operation:\n%s", log)
	}
	if metrics := s.send(t, "GET", "/metrics", "viewer", "").body; strings.Contains(metrics, `operation="other"} 1`) {
		t.Error("it was counted twice")
	}
}

func TestMetricsAreOpenToLoopbackWhenSoConfigured(t *testing.T) {
	s := newSample(t, func(c *httpapi.Config) { c.OpenMetricsToLoopback = true })
	if a := s.send(t, "GET", "/metrics", "", ""); a.StatusCode != 200 {
		t.Errorf("from loopback: %d", a.StatusCode)
	}
	if a := s.send(t, "GET", "/metrics", "", "", "X-Forwarded-For", "192.0.2.1"); a.StatusCode != 401 {
		t.Errorf("passed on by a proxy on loopback: %d", a.StatusCode)
	}
}

func TestOpenAPIDescribesRolesRefusalsAndKeys(t *testing.T) {
	s := newSample(t, nil)
	yaml, err := s.api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	again, err := newSample(t, nil).api.OpenAPI()
	if err != nil || string(again) != string(yaml) {
		t.Errorf("the document differs from run to run (%v)", err)
	}
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]map[string]any
		Components struct {
			Schemas, SecuritySchemes map[string]any
		}
	}
	if err := json.Unmarshal([]byte(s.send(t, "GET", "/api/openapi.json", "", "").body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" || doc.Components.SecuritySchemes["bearer"] == nil || doc.Components.SecuritySchemes["cookie"] == nil {
		t.Errorf("version %q, schemes %v", doc.OpenAPI, doc.Components.SecuritySchemes)
	}
	create := doc.Paths["/api/v1/things"]["post"]
	if create["x-role"] != "operator" {
		t.Errorf("x-role is %v", create["x-role"])
	}
	for _, status := range []string{"200", "400", "401", "403", "409", "413", "415", "422", "429", "500", "503"} {
		if create["responses"].(map[string]any)[status] == nil {
			t.Errorf("create-thing lacks %s", status)
		}
	}
	for _, want := range []string{"Idempotency-Key", "ListHttpapi_testThing", "application/problem+json", "text/csv", "Where they belong"} {
		if !strings.Contains(string(yaml), want) {
			t.Errorf("the document lacks %s", want)
		}
	}
	if strings.Contains(string(yaml), "ErrorModel") {
		t.Error("the document has huma's error type, which is never sent")
	}
}

func TestTwoTypesOfOneNameGetTwoSchemas(t *testing.T) {
	s := newSample(t, nil)
	type Order struct {
		A string `json:"a"`
	}
	reg := func(id string) { // both have an anonymous body, too
		httpapi.Register(s.api, httpapi.Op{ID: id, Method: "POST", Path: "/" + id, Summary: id, Tag: "room", Role: httpapi.Viewer},
			func(context.Context, httpapi.Principal, *struct {
				Body struct {
					Name string `json:"name"`
				}
			}) (*struct{ Body Order }, error) {
				return nil, nil
			})
	}
	reg("first")
	func() {
		type Order struct {
			B int `json:"b"`
		}
		httpapi.Register(s.api, httpapi.Op{ID: "third", Method: "GET", Path: "/third", Summary: "third", Tag: "room", Role: httpapi.Viewer},
			func(context.Context, httpapi.Principal, *struct{}) (*struct{ Body Order }, error) { return nil, nil })
	}()
	reg("second")
	if _, err := s.api.OpenAPI(); err != nil {
		t.Fatal(err)
	}
}

func TestClientAddressComesFromTrustedProxiesOnly(t *testing.T) {
	proxies := httpapi.Proxies{netip.MustParsePrefix("10.0.0.0/8")}
	for _, c := range []struct{ remote, forwarded, want string }{
		{"192.0.2.7:1", "198.51.100.1", "192.0.2.7"},
		{"10.0.0.1:1", "", "10.0.0.1"},
		{"10.0.0.1:1", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1", "203.0.113.9, 198.51.100.1, 10.0.0.2", "198.51.100.1"},
		{"10.0.0.1:1", "nonsense", "10.0.0.1"},
		{"[::ffff:192.0.2.7]:1", "", "192.0.2.7"},
		{"@", "", "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": {c.forwarded}}}
		if c.forwarded == "" {
			r.Header.Del("X-Forwarded-For")
		}
		if got := proxies.Client(r).String(); got != c.want {
			t.Errorf("%s via %q: got %s, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
	if got := httpapi.ClientNetwork(netip.MustParseAddr("2001:db8:1:2:3::4")); got != "2001:db8:1:2::/64" {
		t.Errorf("got %s", got)
	}
}
