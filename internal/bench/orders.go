package bench

import (
	"context"
	"fmt"
	"time"
)

// orders measures one order of as many units as the API allows: placing it and booking its delivery.
func (b *bench) orders(ctx context.Context) ([]Result, error) {
	if b.devices > maxUnits {
		return nil, fmt.Errorf("an order has at most %d units", maxUnits)
	}
	var rows []Result
	err := b.withNode(ctx, func(n *node) error {
		if err := n.catalogue(ctx); err != nil {
			return err
		}
		o, err := n.draft(ctx, 0, b.devices)
		if err != nil {
			return err
		}
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"orders/place", func() error { return n.place(ctx, o) }},
			{"orders/book delivery", func() error { return n.deliver(ctx, o) }},
		} {
			n.self.resetPeak()
			began := time.Now()
			used, err := n.during(step.do)
			if err != nil {
				return err
			}
			took := time.Since(began)
			row, err := b.withMemory(n, Result{
				Scenario: step.name, Devices: b.devices, Seconds: took.Seconds(), PerSecond: float64(b.devices) / took.Seconds(),
				P50: milliseconds(took), P99: milliseconds(took), // of the one request
				CPUPerDevice: milliseconds(used.server) / float64(b.devices), DatabaseCPUPerDevice: milliseconds(used.database) / float64(b.devices),
			})
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	})
	return rows, err
}
