package stewardtest_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
)

// counted counts what an agent writes to the net.
type counted struct {
	net.Conn
	writes *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// Of a device in quarantine nothing is desired, so that its epoch is 0: it waits for news as any other.
func TestDeviceOfWhichNothingIsDesiredIsQuiet(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := uninvited(h, 0)
	var writes atomic.Int64
	dial := d.Machine.Dial
	d.Tune(func(c *agent.Config) {
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return counted{conn, &writes}, err
		}
	})
	a := d.Start()
	h.Until("the device is in quarantine", func() bool { return a.Status().Device != "" && h.Stage(a.Status().Device) == "quarantined" })
	h.Until("it has said everything", func() bool { // no write for most of a second
		before := writes.Load()
		return !poll(700*time.Millisecond, func() bool { return writes.Load() != before })
	})
}

// poll tells whether the condition comes true within the time.
func poll(limit time.Duration, ok func() bool) bool {
	end := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if ok() {
				return true
			}
		case <-end:
			return false
		}
	}
}
