package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"steward/internal/httpapi"
)

func TestEveryRefusalIsAProblemThatSaysWhatToDo(t *testing.T) {
	s := newSample(t, nil)
	long := strings.Repeat("x", 5000)
	const good = `{"name":"a","quantity":1}`
	for _, c := range []struct {
		name, method, path, as, body string
		headers                      []string
		status                       int
		says                         string // in the body of the answer
	}{
		{"unknown path", "GET", "/api/v1/nothing", "viewer", "", nil, 404, "openapi.yaml"},
		{"unknown path outside of v1", "GET", "/api/v9", "", "", nil, 404, "nothing at this path"},
		{"wrong method", "DELETE", "/api/v1/things", "admin", "", nil, 405, "DELETE is not possible"},
		{"nobody", "GET", "/api/v1/things", "", "", nil, 401, "sign in"},
		{"unknown token", "GET", "/api/v1/things", "stp_wrong", "", nil, 401, "sign in"},
		{"role too low", "POST", "/api/v1/things", "viewer", good, nil, 403, "needs the role operator; you have viewer"},
		{"broken authenticator", "GET", "/api/v1/things", "broken", "", nil, 500, "request_id"},
		{"unknown query parameter", "GET", "/api/v1/things?limt=5", "viewer", "", nil, 422, "query.limt"},
		{"limit too large", "GET", "/api/v1/things?limit=5000", "viewer", "", nil, 422, "query.limit"},
		{"limit no number", "GET", "/api/v1/things?limit=many", "viewer", "", nil, 422, "query.limit"},
		{"foreign cursor", "GET", "/api/v1/things?cursor=AAAA", "viewer", "", nil, 422, "query.cursor"},
		{"NUL in the query", "GET", "/api/v1/things?cursor=%00", "viewer", "", nil, 400, "not UTF-8"},
		{"NUL in the path", "GET", "/api/v1/things/%00", "viewer", "", nil, 400, "not UTF-8"},
		{"broken UTF-8 in the path", "GET", "/api/v1/things/%ff", "viewer", "", nil, 400, "not UTF-8"},
		{"broken query", "GET", "/api/v1/things?a=1;b=2", "viewer", "", nil, 400, "percent-encoding"},
		{"not found", "GET", "/api/v1/things/two", "viewer", "", nil, 404, "there is no thing two"},
		{"no body", "POST", "/api/v1/things", "operator", "", nil, 400, "body is required"},
		{"unknown field", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1,"colour":"red"}`, nil, 422, "body.colour"},
		{"wrong case of a field", "POST", "/api/v1/things", "operator", `{"Name":"a","quantity":1}`, nil, 422, "body.Name"},
		{"missing field", "POST", "/api/v1/things", "operator", `{"name":"a"}`, nil, 422, "quantity"},
		{"wrong type", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":"1"}`, nil, 422, "body.quantity"},
		{"fraction", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1.5}`, nil, 422, "body.quantity"},
		{"number that Go can't take", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1e0}`, nil, 422, "line 1, column 26"},
		{"same field in two cases", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1,"Quantity":99}`, nil, 422, "body.Quantity"},
		{"null", "POST", "/api/v1/things", "operator", `null`, nil, 422, "body"},
		{"array", "POST", "/api/v1/things", "operator", `[]`, nil, 422, "body"},
		{"unknown role", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1,"role":"god"}`, nil, 422, "body.role"},
		{"broken JSON", "POST", "/api/v1/things", "operator", "{\n  \"name\": \"a\",\n  quantity: 1}", nil, 400, "line 3, column 3"},
		{"JSON that ends early", "POST", "/api/v1/things", "operator", `{"name":"a"`, nil, 400, "ends too early"},
		{"two JSON values", "POST", "/api/v1/things", "operator", good + "{}", nil, 400, "line 1, column 26"},
		{"field twice", "POST", "/api/v1/things", "operator", `{"name":"a","quantity":1,"name":"b"}`, nil, 400, "stands twice"},
		{"NUL in a text", "POST", "/api/v1/things", "operator", `{"name":"\u0000","quantity":1}`, nil, 400, "NUL"},
		{"broken UTF-8", "POST", "/api/v1/things", "operator", "{\"name\":\"\xff\",\"quantity\":1}", nil, 400, "UTF-8"},
		{"nested too deep", "POST", "/api/v1/things", "operator", strings.Repeat("[", 100) + strings.Repeat("]", 100), nil, 400, "nested"},
		{"too large", "POST", "/api/v1/things", "operator", `{"name":"` + long + `"}`, nil, 413, "4096"},
		{"form instead of JSON", "POST", "/api/v1/things", "operator", "name=a", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "application/json"},
		{"nonsense media type", "POST", "/api/v1/things", "operator", good, []string{"Content-Type", "///"}, 415, "application/json"},
		{"JSON instead of CSV", "POST", "/api/v1/import", "operator", "{}", nil, 415, "text/csv"},
		{"CSV too large", "POST", "/api/v1/import", "operator", long, []string{"Content-Type", "text/csv"}, 413, "4096"},
		{"bad CSV", "POST", "/api/v1/import", "operator", "bad", []string{"Content-Type", "text/csv"}, 422, "line 1, column 1"},
		{"unknown query of a stream", "POST", "/api/v1/import?odrer=1", "operator", "a", []string{"Content-Type", "text/csv"}, 422, "query.odrer"},
		{"conflict", "POST", "/api/v1/fail/done", "operator", "", nil, 409, "it is done already"},
		{"fields of a room", "POST", "/api/v1/fail/fields", "operator", "", nil, 422, "body.lines[2].quantity"},
		{"later", "POST", "/api/v1/fail/later", "operator", "", nil, 503, "not yet"},
		{"timeout", "POST", "/api/v1/fail/timeout", "operator", "", nil, 504, "look before you repeat"},
		{"internal", "POST", "/api/v1/fail/internal", "operator", "", nil, 500, "request_id"},
		{"panic", "POST", "/api/v1/fail/panic", "operator", "", nil, 500, "request_id"},
		{"old revision", "PUT", "/api/v1/things/one", "operator", "", []string{"If-Match", `"6"`}, 412, "revision 7"},
		{"weak tag", "PUT", "/api/v1/things/one", "operator", "", []string{"If-Match", `W/"7"`}, 412, "revision 7"},
		{"no tag", "PUT", "/api/v1/things/one", "operator", "", []string{"If-Match", `7`}, 422, "header.If-Match"},
		{"page of another site", "POST", "/api/v1/things", "", good, []string{"Cookie", "session=operator", "Sec-Fetch-Site", "cross-site"}, 403, "another site"},
		{"other origin", "POST", "/api/v1/things", "", good, []string{"Cookie", "session=operator", "Origin", "https://evil.example"}, 403, "another site"},
		{"basic beside the cookie", "POST", "/api/v1/things", "", good, []string{"Cookie", "session=operator", "Authorization", "Basic eDp5", "Origin", "https://evil.example"}, 403, "another site"},
		{"idempotency without a database", "POST", "/api/v1/things", "operator", good, []string{"Idempotency-Key", "0123456789"}, 501, "not switched on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.send(t, c.method, c.path, c.as, c.body, c.headers...)
			if a.StatusCode != c.status || !strings.Contains(a.body, c.says) {
				t.Errorf("got %d %s, want %d that says %q", a.StatusCode, a.body, c.status, c.says)
			}
			if strings.Contains(a.body, "hunter2") || strings.Contains(a.body, "cellar") || len(a.body) > 1500 {
				t.Errorf("the answer tells internals, secrets or too much: %s", a.body)
			}
		})
	}
	if n := s.made.Load(); n != 6 { // the calls of fail-thing
		t.Errorf("%d operations ran although all were refused", n-6)
	}
}

func TestRefusalsCarryTheirHeaders(t *testing.T) {
	s := newSample(t, nil)
	for _, c := range []struct{ method, path, as, header, want string }{
		{"PATCH", "/api/v1/things", "admin", "Allow", "GET, HEAD, POST"},
		{"GET", "/api/v1/things", "", "WWW-Authenticate", `Bearer realm="steward"`},
		{"POST", "/api/v1/fail/later", "operator", "Retry-After", "2"},
		{"GET", "/api/v1/things", "viewer", "Cache-Control", "no-store"},
		{"GET", "/api/v1/things", "viewer", "X-Content-Type-Options", "nosniff"},
		{"GET", "/api/v1/things", "viewer", "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"},
	} {
		if got := s.send(t, c.method, c.path, c.as, "").Header.Get(c.header); got != c.want {
			t.Errorf("%s %s: %s is %q, want %q", c.method, c.path, c.header, got, c.want)
		}
	}
}

func TestGoodRequestsPass(t *testing.T) {
	s := newSample(t, nil)
	const good = `{"name":"a","quantity":1}`
	for _, c := range []struct {
		name, method, path, as, body string
		headers                      []string
		status                       int
	}{
		{"list", "GET", "/api/v1/things?limit=5", "viewer", "", nil, 200},
		{"public", "GET", "/api/v1/hello", "", "", nil, 200},
		{"public with an old token", "GET", "/api/v1/hello", "stp_old", "", nil, 200},
		{"higher role", "POST", "/api/v1/things", "admin", good, nil, 200},
		{"charset", "POST", "/api/v1/things", "operator", good, []string{"Content-Type", "application/json; charset=utf-8"}, 200},
		{"own site", "POST", "/api/v1/things", "", good, []string{"Cookie", "session=operator", "Sec-Fetch-Site", "same-origin"}, 200},
		{"token from a page of another site", "POST", "/api/v1/things", "operator", good, []string{"Origin", "https://app.example"}, 200},
		{"reading across sites", "GET", "/api/v1/things", "", "", []string{"Cookie", "session=viewer", "Sec-Fetch-Site", "cross-site"}, 200},
		{"current tag", "PUT", "/api/v1/things/one", "operator", "", []string{"If-Match", `"3", "7"`}, 204},
		{"any tag", "PUT", "/api/v1/things/one", "operator", "", []string{"If-Match", "*"}, 204},
		{"no condition", "PUT", "/api/v1/things/one", "operator", "", nil, 204},
		{"stream", "POST", "/api/v1/import?order=1", "operator", "a,b", []string{"Content-Type", "text/csv"}, 200},
		{"body that fills the limit", "POST", "/api/v1/import", "operator", strings.Repeat("x", 4096), []string{"Content-Type", "text/csv"}, 200},
		{"JSON that fills the limit", "POST", "/api/v1/things", "operator", good + strings.Repeat(" ", 4096-len(good)), nil, 200},
		{"head", "HEAD", "/api/v1/things", "viewer", "", nil, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			if a := s.send(t, c.method, c.path, c.as, c.body, c.headers...); a.StatusCode != c.status {
				t.Errorf("got %d %s, want %d", a.StatusCode, a.body, c.status)
			}
		})
	}
}

func TestEmptyListIsAnArray(t *testing.T) {
	s := newSample(t, nil)
	if got := strings.TrimSpace(s.send(t, "GET", "/api/v1/things", "viewer", "").body); got != `{"items":[]}` {
		t.Errorf("got %s", got)
	}
}

func TestChunkedBodyIsBounded(t *testing.T) {
	s := newSample(t, nil)
	for path, media := range map[string]string{"/api/v1/things": "application/json", "/api/v1/import": "text/csv"} {
		body := struct{ *strings.Reader }{strings.NewReader(strings.Repeat("1", 100_000))} // hides the length
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer operator")
		req.Header.Set("Content-Type", media)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: got %d, want 413", path, resp.StatusCode)
		}
	}
}

func TestHalfAnAnswerIsNotTakenForAWholeOne(t *testing.T) {
	s := newSample(t, nil)
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/v1/import", strings.NewReader("half"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer operator")
	req.Header.Set("Content-Type", "text/csv")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err == nil {
		var buf [100]byte
		for err == nil {
			_, err = resp.Body.Read(buf[:])
		}
		_ = resp.Body.Close()
		if err.Error() == "EOF" {
			t.Error("a broken answer ended like a whole one")
		}
	}
}

func TestUnchangedThingIsAnsweredWith304(t *testing.T) {
	s := newSample(t, nil)
	for tag, status := range map[string]int{`"7"`: 304, `W/"7"`: 304, `"1", "7"`: 304, "*": 304, `"6"`: 200, "7": 200, "": 200} {
		a := s.send(t, "GET", "/api/v1/things/one", "viewer", "", "If-None-Match", tag)
		if a.StatusCode != status || (status == 304) != (a.body == "") {
			t.Errorf("If-None-Match %s: got %d %q, want %d", tag, a.StatusCode, a.body, status)
		}
		if a.Header.Get("ETag") != httpapi.ETag(7) {
			t.Errorf("If-None-Match %s: ETag %q", tag, a.Header.Get("ETag"))
		}
	}
}
