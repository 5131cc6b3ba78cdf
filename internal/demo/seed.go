package demo

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"steward/internal/agent/host/sim"
	"steward/internal/client"
	"steward/internal/release/push"
	"steward/internal/wire"
)

const thisSerial = "THIS-MACHINE"

// seed buys the devices and makes tokens for those that have not enrolled yet; by serial number. What an
// earlier start has made is found again.
func (f *fleet) seed(ctx context.Context) (map[string]string, error) {
	if err := f.catalogue(ctx); err != nil {
		return nil, err
	}
	if err := f.buy(ctx); err != nil {
		return nil, err
	}
	if err := f.groups(ctx); err != nil {
		return nil, err
	}
	return f.tokens(ctx)
}

func (f *fleet) do(ctx context.Context, method, path string, body, out any) error {
	return f.node.api.Do(ctx, client.Call{Method: method, Path: path, Body: body}, out)
}

func (f *fleet) catalogue(ctx context.Context) error {
	if have, err := f.serials(ctx); err != nil || len(have) > 0 {
		return err // an earlier start has made it, and bought by it
	}
	for id, s := range map[string]client.Object{
		"northwind":   {"name": "Northwind Industrial Supply", "contact": "Sales", "email": "sales@northwind.example"},
		"embedded-eu": {"name": "Embedded Europe GmbH", "website": "https://embedded.example"},
	} {
		if err := f.do(ctx, http.MethodPut, "/suppliers/"+id, s, nil); err != nil {
			return err
		}
	}
	for i, m := range sim.Models() {
		body := client.Object{
			"maker": m.Vendor, "name": m.Name, "architecture": m.Architecture, "interfaces": []string{"ethernet"},
			"support_end": time.Now().AddDate(1+i, 2, 0).Format(time.DateOnly), "warranty_months": 24,
		}
		if err := f.do(ctx, http.MethodPut, "/models/"+m.ID, body, nil); err != nil {
			return err
		}
	}
	inv, err := machine(ctx, f.cfg.Agent, filepath.Join(f.cfg.Dir, "this-machine"))
	if err != nil {
		return err
	}
	maker, name := machineName(inv)
	return f.do(ctx, http.MethodPut, "/models/this-machine", client.Object{
		"maker": maker, "name": name,
		"architecture": runtime.GOARCH, "tpm": tpmVersion(inv.TPM), "secure_boot": inv.SecureBoot == "on",
	}, nil)
}

// buy orders and receives all devices that are not known yet, a purchase order per model; one order is
// left open and overdue, so that the home page has something to say.
func (f *fleet) buy(ctx context.Context) error {
	byModel := map[string][]string{}
	var models []string
	add := func(model, serial string) {
		if byModel[model] == nil {
			models = append(models, model)
		}
		byModel[model] = append(byModel[model], serial)
	}
	for i := range f.cfg.Devices {
		d := f.sim.Device(i)
		add(d.Model().ID, d.Identity(ctx).Serial)
	}
	add("this-machine", thisSerial)
	have, err := f.serials(ctx)
	if err != nil {
		return err
	}
	for i, model := range models {
		var missing []string
		for _, serial := range byModel[model] {
			if have[serial] == "" {
				missing = append(missing, serial)
			}
		}
		if len(missing) == 0 {
			continue
		}
		number := fmt.Sprintf("PO-%s-%03d", time.Now().Format("2006-0102-150405"), i+1)
		if err := f.order(ctx, number, model, missing); err != nil {
			return err
		}
	}
	if len(have) > 0 {
		return nil
	}
	return f.overdue(ctx)
}

func (f *fleet) order(ctx context.Context, number, model string, serials []string) error {
	var order struct {
		ID string `json:"id"`
	}
	err := f.do(ctx, http.MethodPost, "/orders", client.Object{
		"number": number, "supplier": "northwind", "currency": "EUR",
		"lines": []client.Object{{"model": model, "quantity": len(serials), "unit_price": 18900}},
	}, &order)
	if err != nil {
		return err
	}
	if err := f.do(ctx, http.MethodPost, "/orders/"+order.ID+"/place", client.Object{}, nil); err != nil {
		return err
	}
	var csv strings.Builder
	csv.WriteString("serial,model\n")
	for _, s := range serials {
		fmt.Fprintf(&csv, "%s,%s\n", s, model)
	}
	return f.node.api.Do(ctx, client.Call{
		Method: http.MethodPost, Path: "/orders/" + order.ID + "/deliveries", Type: "text/csv",
		Body: strings.NewReader(csv.String()), Query: url.Values{"mode": {"book"}},
	}, nil)
}

func (f *fleet) overdue(ctx context.Context) error {
	var order struct {
		ID string `json:"id"`
	}
	err := f.do(ctx, http.MethodPost, "/orders", client.Object{
		"number": "PO-LATE-001", "supplier": "embedded-eu", "currency": "EUR", "due": time.Now().AddDate(0, 0, -6).Format(time.DateOnly),
		"note": "Promised for last week", "lines": []client.Object{{"model": "osprey-g3", "quantity": 4, "unit_price": 31900}},
	}, &order)
	if err != nil {
		return err
	}
	return f.do(ctx, http.MethodPost, "/orders/"+order.ID+"/place", client.Object{}, nil)
}

// serials returns the device ID of each known serial number.
func (f *fleet) serials(ctx context.Context) (map[string]string, error) {
	devices, err := f.node.api.All(ctx, "/devices", nil, 0)
	have := map[string]string{}
	for _, d := range devices {
		serial, _ := d["serial"].(string)
		id, _ := d["id"].(string)
		if serial != "" {
			have[serial] = id
		}
	}
	return have, err
}

func (f *fleet) groups(ctx context.Context) error {
	for name, selector := range map[string]string{"canary": "ring=canary", "berlin": "site=berlin"} {
		err := f.do(ctx, http.MethodPost, "/groups", client.Object{"name": name, "selector": selector}, nil)
		if err != nil && !conflict(err) {
			return err
		}
	}
	return nil
}

// tokens labels the devices that are still in stock and makes a token for each.
func (f *fleet) tokens(ctx context.Context) (map[string]string, error) {
	var stock []client.Object // listed before the first token, which moves its device on to staged
	for _, stage := range []string{"received", "staged"} {
		devices, err := f.node.api.All(ctx, "/devices", url.Values{"stage": {stage}}, 0)
		if err != nil {
			return nil, err
		}
		stock = append(stock, devices...)
	}
	out := map[string]string{}
	for n, d := range stock {
		id, _ := d["id"].(string)
		serial, _ := d["serial"].(string)
		if err := f.do(ctx, http.MethodPatch, "/devices/"+id, client.Object{"labels": demoLabels(serial, n)}, nil); err != nil {
			return nil, err
		}
		var token struct {
			Token string `json:"token"`
		}
		if err := f.do(ctx, http.MethodPost, "/enrollment-tokens", client.Object{"device": id}, &token); err != nil {
			return nil, err
		}
		out[serial] = token.Token
	}
	return out, nil
}

// demoLabels spreads the devices over three sites; every fifth is a canary.
func demoLabels(serial string, n int) client.Object {
	if serial == thisSerial {
		return client.Object{"site": "here", "ring": "canary"}
	}
	ring := "stable"
	if n%5 == 0 {
		ring = "canary"
	}
	return client.Object{"site": []string{"berlin", "lyon", "porto"}[n%3], "ring": ring}
}

// releases pushes a good release for everybody and, for the canaries, one whose health command fails.
func (f *fleet) releases(ctx context.Context) error {
	err := f.push(ctx, "1.0.0", "", []wire.Command{{Argv: []string{"test", "-f", "version"}}})
	if err != nil || ctx.Err() != nil {
		return err
	}
	// The good one first, as in life.
	err = until(ctx, time.Minute, "the first release is out", func() (bool, error) {
		list, err := f.node.api.All(ctx, "/device-updates", url.Values{"state": {"committed"}}, 1000)
		return len(list) > f.cfg.Devices/2, err
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		fmt.Fprintln(f.cfg.Log, "demo:", err)
	}
	return f.push(ctx, "1.1.0", "ring=canary", []wire.Command{{Argv: []string{"false"}}})
}

func (f *fleet) push(ctx context.Context, version, selector string, health []wire.Command) error {
	dir, err := os.MkdirTemp("", "steward-demo-build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // in the temporary directory
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte(version+"\n"), 0o644); err != nil {
		return err
	}
	_, err = push.Pusher{API: f.node.api}.Push(ctx, push.Spec{
		Name: "edge-app", Version: version, Notes: "Demo application",
		Components: []push.Component{{Name: "edge-app", Dir: dir, Commands: wire.ComponentCommands{Health: health, HealthSeconds: 3}}},
	})
	if conflict(err) {
		return nil // an earlier start has done it
	}
	if err != nil {
		return err
	}
	before, err := f.node.api.All(ctx, "/assignments", url.Values{"name": {"edge-app"}}, 0)
	if err != nil {
		return err
	}
	for _, a := range before {
		if a["version"] == version {
			return nil // as made by an earlier start, or changed since
		}
	}
	body := client.Object{"name": "edge-app", "version": version, "selector": selector, "note": "demo"}
	return f.do(ctx, http.MethodPost, "/assignments", body, nil)
}
