package stewardtest

import (
	"context"
	"io"
	"net/http"
	"time"
)

// Page is the text of a console page, with the API token as the reader's credential.
func (a *API) Page(path string) string {
	a.t.Helper()
	status, body := a.Fetch(path)
	if status != http.StatusOK {
		a.t.Errorf("page %s: status %d", path, status)
	}
	return body
}

// Fetch reads anything below the console's address.
func (a *API) Fetch(path string) (status int, body string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, a.settings.URL+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.settings.Token)
	if a.settings.Tenant != "" {
		req.Header.Set("Steward-Tenant", a.settings.Tenant)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		a.t.Fatalf("GET %s: %v", path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatalf("GET %s: %v", path, err)
	}
	return resp.StatusCode, string(data)
}
