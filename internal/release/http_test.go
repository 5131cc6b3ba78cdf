package release_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/release"
	"steward/internal/release/signing"
	"steward/internal/ui"
	"steward/internal/wire"
)

// admin is somebody who may do everything.
type admin struct{}

func (admin) Authenticate(*http.Request) (httpapi.Principal, error) {
	return httpapi.Principal{Actor: operator, Role: httpapi.Admin, Scope: device.Scope{Tenant: tenant}}, nil
}

func (r *rig) api() http.Handler {
	a := httpapi.New(httpapi.Config{Version: "test", Auth: admin{}, Log: slog.New(slog.DiscardHandler)})
	r.Routes(a)
	return a
}

func (r *rig) console() http.Handler {
	c := ui.New(ui.Config{Auth: admin{}, Log: slog.New(slog.DiscardHandler), Now: r.now})
	r.Pages(c)
	return c
}

// call makes a request and decodes the answer.
func call(t *testing.T, h http.Handler, method, path string, body any, out any) int {
	t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		in = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(text)
	}
	req := httptest.NewRequest(method, "/api/v1"+path, in)
	if _, raw := body.([]byte); raw {
		req.Header.Set("Content-Type", "application/octet-stream")
	} else if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if raw, ok := out.(*[]byte); ok {
		*raw = w.Body.Bytes()
	} else if out != nil && w.Code < 300 {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			t.Fatalf("%s %s answered %d: %s", method, path, w.Code, w.Body)
		}
	}
	if w.Code >= 500 {
		t.Errorf("%s %s answered %d: %s", method, path, w.Code, w.Body)
	}
	return w.Code
}

func TestReleaseGoesFromKeysToPublicationByAPI(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		api := r.api()
		var repo release.Repository
		if code := call(t, api, "GET", "/release-repository", nil, &repo); code != 200 || repo.Rooted || repo.OnlineKeys.Snapshot == "" {
			t.Fatalf("%d: %+v", code, repo)
		}
		c, err := signing.Init(t.TempDir()+"/keys", repo.OnlineKeys, signing.Options{Now: r.now})
		if err != nil {
			t.Fatal(err)
		}
		if code := call(t, api, "PUT", "/release-repository/root", map[string]any{"root": c.Root().Bytes}, &repo); code != 200 || !repo.Rooted {
			t.Fatalf("%d: %+v", code, repo)
		}
		content := bytes.Repeat([]byte("archive "), 5000)
		var up release.Upload
		if code := call(t, api, "POST", "/artifact-uploads", nil, &up); code != 201 {
			t.Fatal(code)
		}
		for _, half := range [][]byte{content[:20000], content[20000:]} {
			if code := call(t, api, "PATCH", fmt.Sprintf("/artifact-uploads/%s?offset=%d", up.ID, up.OffsetBytes), half, &up); code != 200 {
				t.Fatal(code)
			}
		}
		var got release.Artifact
		hash := wire.HashOf(content)
		if code := call(t, api, "POST", "/artifact-uploads/"+up.ID+"/finish", map[string]any{"sha256": hash}, &got); code != 200 || got.SizeBytes != 40000 {
			t.Fatalf("%d: %+v", code, got)
		}
		rel := compose(t, manifest("app", "1.0"), signing.Artifact(got))
		signed, err := c.SignTargets(nil, rel.Change)
		if err != nil {
			t.Fatal(err)
		}
		publication := map[string]any{"targets": base64.StdEncoding.EncodeToString(signed), "manifests": [][]byte{rel.Bytes}}
		if code := call(t, api, "POST", "/release-repository/targets", publication, &repo); code != 200 || repo.Targets.Version != 1 {
			t.Fatalf("%d: %+v", code, repo)
		}
		var list httpapi.List[release.Release]
		if code := call(t, api, "GET", "/releases?name=app", nil, &list); code != 200 || len(list.Items) != 1 {
			t.Fatalf("%d: %+v", code, list)
		}
		var one release.ReleaseStates
		if code := call(t, api, "GET", "/releases/app/1.0", nil, &one); code != 200 || one.Components[0].SHA256 != hash {
			t.Fatalf("%d: %+v", code, one)
		}
		var raw []byte
		if code := call(t, api, "GET", "/release-repository/metadata/targets.json", nil, &raw); code != 200 || !bytes.Equal(raw, signed) {
			t.Errorf("%d: targets came back as %.200s", code, raw)
		}
		if code := call(t, api, "GET", "/artifacts/"+string(hash)+"/content", nil, &raw); code != 200 || !bytes.Equal(raw, content) {
			t.Errorf("%d: %d bytes came back", code, len(raw))
		}
		for path, want := range map[string]int{
			"/releases/app/9": 404, "/artifacts/" + strings.Repeat("0", 64): 404, "/artifacts/xyz": 422,
			"/release-repository/metadata/..%2f..%2fkeys": 404, "/artifact-uploads/nonsense": 404,
		} {
			if code := call(t, api, "GET", path, nil, nil); code != want {
				t.Errorf("GET %s answered %d, want %d", path, code, want)
			}
		}
		if code := call(t, api, "DELETE", "/releases/app/1.0", nil, nil); code != 409 {
			t.Errorf("removing without the keys answered %d, want 409", code)
		}
	})
}

func TestConsoleShowsReleasesKeysAndForms(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		console := r.console()
		get := func(path string, wants ...string) {
			t.Helper()
			w := httptest.NewRecorder()
			console.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != 200 {
				t.Fatalf("GET %s: %d: %s", path, w.Code, w.Body)
			}
			for _, want := range wants {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s lacks %q: %s", path, want, w.Body)
				}
			}
		}
		get("/releases", "No release keys yet", "steward release init-keys")
		get("/releases/keys", "not signed yet", "Let this server hold the keys")
		post := func(req *http.Request) *httptest.ResponseRecorder {
			req.Header.Set("Sec-Fetch-Site", "same-origin")
			w := httptest.NewRecorder()
			console.ServeHTTP(w, req)
			return w
		}
		if w := post(httptest.NewRequest(http.MethodPost, "/releases/keys/managed", nil)); w.Code != 303 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		get("/releases", "No releases yet", "managed keys")
		form := func(version string) *http.Request {
			var body bytes.Buffer
			m := multipart.NewWriter(&body)
			for _, f := range [][2]string{{"name", "app"}, {"version", version}, {"health", `./check "two words"`}, {"health_seconds", "5"}, {"architectures", "amd64, arm64"}} {
				if err := m.WriteField(f[0], f[1]); err != nil {
					t.Fatal(err)
				}
			}
			part, err := m.CreateFormFile("artifact", "app.tar")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := part.Write([]byte("archive")); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest(http.MethodPost, "/releases", &body)
			req.Header.Set("Content-Type", m.FormDataContentType())
			return req
		}
		if w := post(form("../1")); w.Code != 422 || !strings.Contains(w.Body.String(), "version") {
			t.Errorf("a wrong version answered %d: %s", w.Code, w.Body)
		}
		if w := post(form("1.0")); w.Code != 303 || w.Header().Get("Location") != "/releases/app/1.0" {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		got, err := r.Release(t.Context(), tenant, "app", "1.0")
		if err != nil || len(got.Components) != 1 || len(got.Components[0].Commands.Health) != 1 || got.Components[0].Commands.Health[0].Argv[1] != "two words" {
			t.Errorf("release %+v, error %v", got, err)
		}
		r.usage = usage{devices: 3}
		get("/releases", "app", "Assign")
		get("/releases/new", "Sign and publish")
		get("/releases/app/1.0", "two words", "amd64, arm64", "committed 3", "Remove release")
		get("/releases/keys", "valid", "this server")
		if w := post(httptest.NewRequest(http.MethodPost, "/releases/app/1.0/remove", nil)); w.Code != 409 || !strings.Contains(w.Body.String(), "3 devices") {
			t.Errorf("removing a release in use answered %d: %s", w.Code, w.Body)
		}
		r.usage = usage{}
		if w := post(httptest.NewRequest(http.MethodPost, "/releases/app/1.0/remove", nil)); w.Code != 303 {
			t.Errorf("removing it answered %d: %s", w.Code, w.Body)
		}
	})
}
