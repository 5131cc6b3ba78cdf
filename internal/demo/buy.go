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

	"steward/internal/client"
	"steward/internal/release/push"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

func (l *life) makeKeys(ctx context.Context) (string, error) {
	err := push.InitKeys(ctx, l.node.api, l.keys, signing.Options{RootKeys: 2, RootThreshold: 2})
	return "root keys (2 of 2) and targets key made outside of the server", err
}

func (l *life) placeOrder(ctx context.Context) (string, error) {
	inv, err := l.inventory(ctx)
	if err != nil {
		return "", err
	}
	maker, product := machineName(inv)
	for path, body := range map[string]client.Object{
		"/suppliers/acme": {"name": "ACME Edge Supplies"},
		"/models/this-machine": {
			"maker": maker, "name": product, "architecture": runtime.GOARCH, "interfaces": []string{"ethernet"}, "tpm": tpmVersion(inv.TPM),
			"secure_boot": inv.SecureBoot == "on", "support_end": time.Now().AddDate(5, 0, 0).Format(time.DateOnly), "warranty_months": 24,
		},
	} {
		if _, err := l.send(ctx, http.MethodPut, path, body); err != nil {
			return "", err
		}
	}
	order, err := l.send(ctx, http.MethodPost, "/orders", client.Object{
		"number": "PO-0001", "supplier": "acme", "currency": "EUR",
		"lines": []client.Object{{"model": "this-machine", "quantity": 1, "unit_price": 49900}},
	})
	if err != nil {
		return "", err
	}
	l.order, _ = order["id"].(string)
	if _, err := l.send(ctx, http.MethodPost, "/orders/"+l.order+"/place", client.Object{}); err != nil {
		return "", err
	}
	devices, err := l.node.api.All(ctx, "/devices", url.Values{"stage": {"ordered"}}, 2)
	if err != nil {
		return "", err
	}
	if len(devices) != 1 {
		return "", fmt.Errorf("one unit was ordered and %d devices are in stage ordered", len(devices))
	}
	l.device, _ = devices[0]["id"].(string)
	return fmt.Sprintf("PO-0001: 1 × %s %s", maker, product), nil
}

func tpmVersion(v string) string {
	if v == "1.2" || v == "2.0" {
		return v
	}
	return ""
}

// machineName is what the machine says that it is; firmware of virtual machines often says nothing.
func machineName(inv wire.Inventory) (maker, name string) {
	return orElse(inv.Machine.Vendor, "Unbranded"), orElse(inv.Machine.Product, runtime.GOARCH+" machine")
}

func orElse(s, otherwise string) string {
	if s = strings.TrimSpace(s); s != "" {
		return s
	}
	return otherwise
}

func (l *life) receive(ctx context.Context) (string, error) {
	l.serial = "DEMO-0001"
	csv := "serial,model,note\n" + l.serial + ",this-machine,delivered by hand\n"
	var out client.Object
	err := l.node.api.Do(ctx, client.Call{
		Method: http.MethodPost, Path: "/orders/" + l.order + "/deliveries", Type: "text/csv",
		Body: strings.NewReader(csv), Query: url.Values{"mode": {"book"}, "note": {"LS-1"}},
	}, &out)
	if err != nil {
		return "", err
	}
	return "serial number " + l.serial + " booked from CSV", l.stage(ctx, "received", 5*time.Second)
}

func (l *life) issueToken(ctx context.Context) (string, error) {
	token, err := l.send(ctx, http.MethodPost, "/enrollment-tokens", client.Object{"device": l.device, "life_seconds": 600})
	if err != nil {
		return "", err
	}
	secret, _ := token["token"].(string)
	if err := os.WriteFile(filepath.Join(l.dir, "token"), []byte(secret), 0o600); err != nil {
		return "", err
	}
	return "single-use token, bound to " + l.serial + ", good for 10 minutes", l.stage(ctx, "staged", 5*time.Second)
}
