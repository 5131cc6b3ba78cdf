package bench

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"steward/internal/bench/swarm"
	"steward/internal/client"
)

// Bounds of the public API that seeding keeps to.
const (
	maxUnits  = 100_000 // of an order
	maxTokens = 1000    // of a call
	maxBulk   = 5000    // devices of a bulk change
)

var seedModels = []string{"kestrel-g1", "kestrel-g2", "osprey-g3"}

func (n *node) do(ctx context.Context, method, path string, body, out any) error {
	if err := n.api.Do(ctx, client.Call{Method: method, Path: path, Body: body}, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// catalogue makes a supplier and the models.
func (n *node) catalogue(ctx context.Context) error {
	if err := n.do(ctx, http.MethodPut, "/suppliers/northwind", client.Object{"name": "Northwind Industrial Supply"}, nil); err != nil {
		return err
	}
	for _, m := range seedModels {
		body := client.Object{"maker": "Northwind", "name": m, "architecture": "arm64", "interfaces": []string{"ethernet"}, "warranty_months": 24}
		if err := n.do(ctx, http.MethodPut, "/models/"+m, body, nil); err != nil {
			return err
		}
	}
	return nil
}

// order is one purchase order and the serial numbers that it will be delivered with.
type order struct {
	id, model, prefix string
	units             int
}

func (o order) serial(i int) string { return fmt.Sprintf("%s-%05d", o.prefix, i) }

// draft writes the draft of the n-th order.
func (n *node) draft(ctx context.Context, number, units int) (order, error) {
	o := order{model: seedModels[number%len(seedModels)], prefix: fmt.Sprintf("%s-%03d", n.run, number), units: units}
	var out struct {
		ID string `json:"id"`
	}
	err := n.do(ctx, http.MethodPost, "/orders", client.Object{
		"number": fmt.Sprintf("PO-%s-%03d", n.run, number), "supplier": "northwind", "currency": "EUR",
		"lines": []client.Object{{"model": o.model, "quantity": units, "unit_price": 18900}},
	}, &out)
	o.id = out.ID
	return o, err
}

func (n *node) place(ctx context.Context, o order) error {
	return n.do(ctx, http.MethodPost, "/orders/"+o.id+"/place", client.Object{}, nil)
}

// deliver books all units of the order from CSV.
func (n *node) deliver(ctx context.Context, o order) error {
	var csv strings.Builder
	csv.WriteString("serial,model\n")
	for i := range o.units {
		fmt.Fprintf(&csv, "%s,%s\n", o.serial(i), o.model)
	}
	return n.api.Do(ctx, client.Call{
		Method: http.MethodPost, Path: "/orders/" + o.id + "/deliveries", Type: "text/csv",
		Body: strings.NewReader(csv.String()), Query: url.Values{"mode": {"book"}, "note": {"LS-" + o.prefix}},
	}, nil)
}

// buy registers devices as a customer does: orders of at most so many units, placed and delivered.
func (n *node) buy(ctx context.Context, devices, units int, done func(order) error) error {
	if err := n.catalogue(ctx); err != nil {
		return err
	}
	for number := 0; devices > 0; number++ {
		o, err := n.draft(ctx, number, min(devices, units))
		if err != nil {
			return err
		}
		if err := n.place(ctx, o); err != nil {
			return err
		}
		if err := n.deliver(ctx, o); err != nil {
			return err
		}
		if err := done(o); err != nil {
			return err
		}
		devices -= o.units
	}
	return nil
}

// label gives all devices of an order a site, and the tenth of them whose number begins with 0 a ring.
func (n *node) label(ctx context.Context, o order, site string) error {
	if err := n.bulk(ctx, o.prefix, client.Object{"site": site}); err != nil {
		return err
	}
	return n.bulk(ctx, o.prefix+"-00", client.Object{"ring": "canary"})
}

// bulk labels the devices whose serial number begins so, by preview and confirmation.
func (n *node) bulk(ctx context.Context, prefix string, labels client.Object) error {
	wish := client.Object{"action": "label", "filter": client.Object{"search": prefix}, "labels": labels, "reason": "bench"}
	var preview struct {
		Token string `json:"token"`
	}
	if err := n.do(ctx, http.MethodPost, "/devices/bulk/preview", wish, &preview); err != nil {
		return err
	}
	wish["token"] = preview.Token
	var result struct {
		Refused int `json:"refused"`
	}
	if err := n.do(ctx, http.MethodPost, "/devices/bulk", wish, &result); err != nil {
		return err
	}
	if result.Refused > 0 {
		return fmt.Errorf("%d devices refused labels", result.Refused)
	}
	return nil
}

// tickets makes enrollment tokens for so many devices in stock.
func (n *node) tickets(ctx context.Context, count int) ([]swarm.Ticket, error) {
	found, err := n.api.All(ctx, "/devices", url.Values{"stage": {"received"}, "q": {n.run + "-"}}, count)
	if err != nil {
		return nil, err
	}
	if len(found) < count {
		return nil, fmt.Errorf("%d devices are in stock, %d are needed", len(found), count)
	}
	var out []swarm.Ticket
	for len(out) < count {
		var wish []client.Object
		for _, d := range found[len(out):min(count, len(out)+maxTokens)] {
			wish = append(wish, client.Object{"device": d["id"]})
		}
		var made struct {
			Items []struct {
				Device, Serial, Token string
			} `json:"items"`
		}
		if err := n.do(ctx, http.MethodPost, "/enrollment-tokens/bulk", client.Object{"tokens": wish}, &made); err != nil {
			return nil, err
		}
		if len(made.Items) != len(wish) {
			return nil, fmt.Errorf("%d tokens were made of %d", len(made.Items), len(wish))
		}
		for _, t := range made.Items {
			out = append(out, swarm.Ticket{Device: t.Device, Serial: t.Serial, Token: t.Token})
		}
	}
	return out, nil
}
