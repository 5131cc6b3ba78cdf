package stewardtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"steward/internal/client"
	"steward/internal/wire"
)

// Object is a JSON object as the server sent it.
type Object = client.Object

// API is the public API as one account.
type API struct {
	t        testing.TB
	c        *client.Client
	settings client.Settings
}

// Client is the client behind the API.
func (a *API) Client() *client.Client { return a.c }

// Token is the account's API token.
func (a *API) Token() string { return a.settings.Token }

// Until waits for a condition and fails the test when it does not come.
func (a *API) Until(what string, ok func() bool) {
	a.t.Helper()
	Until(a.t, what, ok)
}

// Try makes a call and returns its error.
func (a *API) Try(method, path string, body any) (out Object, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	path, query, _ := strings.Cut(path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	return out, a.c.Do(ctx, client.Call{Method: method, Path: path, Query: values, Body: body}, &out)
}

// Send makes a call that must succeed.
func (a *API) Send(method, path string, body any) Object {
	a.t.Helper()
	out, err := a.Try(method, path, body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return out
}

// Get reads one thing, which must be there.
func (a *API) Get(path string) Object {
	a.t.Helper()
	return a.Send(http.MethodGet, path, nil)
}

// List reads all pages of a list.
func (a *API) List(path string) []Object {
	a.t.Helper()
	path, query, _ := strings.Cut(path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		a.t.Fatal(err)
	}
	items, err := a.c.All(context.Background(), path, values, 0)
	if err != nil {
		a.t.Fatalf("list %s: %v", path, err)
	}
	return items
}

// Refused makes a call that must be refused with the status, and returns the refusal.
func (a *API) Refused(status int, method, path string, body any) *client.Problem {
	a.t.Helper()
	out, err := a.Try(method, path, body)
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != status {
		a.t.Errorf("%s %s: want status %d, got %v %v", method, path, status, out, err)
		return &client.Problem{}
	}
	return p
}

// as is the API with other settings.
func (a *API) as(s client.Settings) *API {
	a.t.Helper()
	c, err := client.New(s)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(c.Close)
	return &API{t: a.t, c: c, settings: s}
}

// In is the same account with another tenant in its header.
func (a *API) In(tenant string) *API {
	s := a.settings
	s.Tenant = tenant
	return a.as(s)
}

// Tenant makes a tenant and returns the API in it.
func (a *API) Tenant(id string) *API {
	a.t.Helper()
	a.Send(http.MethodPost, "/tenants", Object{"id": id})
	return a.In(id)
}

// Account makes an account for a program and returns the API as that.
func (a *API) Account(name, role, selector string) *API {
	a.t.Helper()
	body := Object{"name": name, "role": role, "program": true}
	if selector != "" {
		body["selector"] = selector
	}
	account := a.Send(http.MethodPost, "/accounts", body)
	token := a.Send(http.MethodPost, "/tokens", Object{"name": "test", "account": account["id"]})
	s := a.settings
	s.Token, s.Tenant = text(token, "secret"), ""
	return a.as(s)
}

// text is a field that must be a string; "" when it is none.
func text(o Object, field string) string {
	s, _ := o[field].(string)
	return s
}

// Order buys devices of one model and returns the order's ID. Its units are in stage ordered.
func (a *API) Order(quantity int) string {
	a.t.Helper()
	a.Send(http.MethodPut, "/suppliers/acme", Object{"name": "ACME Edge Supplies"})
	a.Send(http.MethodPut, "/models/gateway", Object{"maker": "ACME", "name": "Gateway", "architecture": "arm64"})
	order := a.Send(http.MethodPost, "/orders", Object{
		"number": fmt.Sprintf("PO-%d", time.Now().UnixNano()), "supplier": "acme", "currency": "EUR",
		"lines": []Object{{"model": "gateway", "quantity": quantity, "unit_price": 18900}},
	})
	a.Send(http.MethodPost, "/orders/"+text(order, "id")+"/place", Object{})
	return text(order, "id")
}

// Receive books a delivery with these serial numbers.
func (a *API) Receive(order string, serials ...string) error {
	csv := "serial,model\n" + strings.Join(serials, ",gateway\n") + ",gateway\n"
	return a.c.Do(context.Background(), client.Call{
		Method: http.MethodPost, Path: "/orders/" + order + "/deliveries", Type: "text/csv", Body: strings.NewReader(csv), Query: url.Values{"mode": {"book"}},
	}, nil)
}

// Buy orders and receives devices and returns their IDs in the order of the serial numbers.
func (a *API) Buy(serials ...string) []string {
	a.t.Helper()
	if err := a.Receive(a.Order(len(serials)), serials...); err != nil {
		a.t.Fatalf("receive %v: %v", serials, err)
	}
	ids := make([]string, len(serials))
	for i, s := range serials {
		ids[i] = text(a.BySerial(s), "id")
	}
	return ids
}

// BySerial finds a device.
func (a *API) BySerial(serial string) Object {
	a.t.Helper()
	for _, d := range a.List("/devices?" + url.Values{"q": {serial}}.Encode()) {
		if text(d, "serial") == serial {
			return d
		}
	}
	a.t.Fatalf("no device has the serial number %s", serial)
	return nil
}

// EnrollmentToken makes a token for a device.
func (a *API) EnrollmentToken(device string) string {
	a.t.Helper()
	return text(a.Send(http.MethodPost, "/enrollment-tokens", Object{"device": device}), "token")
}

// Label sets a device's labels.
func (a *API) Label(device string, labels Object) {
	a.t.Helper()
	a.Send(http.MethodPatch, "/devices/"+device, Object{"labels": labels})
}

// Stage is a device's stage now; "" when the server does not answer.
func (a *API) Stage(device string) string {
	out, err := a.Try(http.MethodGet, "/devices/"+device, nil)
	if err != nil {
		return ""
	}
	return text(out, "stage")
}

// AwaitStage waits until the device is in the stage.
func (a *API) AwaitStage(device, stage string) {
	a.t.Helper()
	last := ""
	if !poll(waitLimit, func() bool { last = a.Stage(device); return last == stage }) {
		a.t.Fatalf("device %s is %s, not %s", device, last, stage)
	}
}

// Events lists a device's events of a kind ("" means all), the oldest first or as the server orders them.
func (a *API) Events(device, kind string) []Object {
	a.t.Helper()
	query := url.Values{"device": {device}}
	if kind != "" {
		query.Set("kind", kind)
	}
	return a.List("/events?" + query.Encode())
}

// Settle waits until everything that was written before is in the ledger's order: it makes an event of
// its own and waits for that.
func (a *API) Settle() {
	a.t.Helper()
	name := fmt.Sprintf("settle-%d", time.Now().UnixNano())
	a.Send(http.MethodPut, "/suppliers/"+name, Object{"name": name})
	a.Until("the ledger has all events", func() bool { return len(a.List("/events?kind=purchase&subject="+name)) > 0 })
}

// Reported is a section as the device has reported it last; nil when it has not.
func (a *API) Reported(device string, section wire.Section) Object {
	out, err := a.Try(http.MethodGet, "/devices/"+device+"/reported/"+string(section), nil)
	if err != nil {
		return nil
	}
	return out
}

// Counts are an assignment's devices by state.
func (a *API) Counts(assignment string) map[string]int {
	counts := map[string]int{}
	out, err := a.Try(http.MethodGet, "/assignments/"+assignment, nil)
	states, _ := out["states"].(map[string]any)
	for state, n := range states {
		if f, ok := n.(float64); ok && err == nil {
			counts[state] = int(f)
		}
	}
	return counts
}

// Counted is how many devices are in the stage.
func (a *API) Counted(stage string) int {
	a.t.Helper()
	return len(a.List("/devices?stage=" + stage))
}
