package stewardtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/host/sim"
	"steward/internal/agent/link"
)

// Device is a bought device with its agent, which runs in this process on a simulated machine.
type Device struct {
	ID, Serial, Token string
	State             string // directory
	Machine           *sim.Device

	t    testing.TB
	cfg  agent.Config
	mu   sync.Mutex
	stop func() error
}

// Device makes the agent of the n-th simulated device; it isn't started yet.
func (h *House) Device(n int, token string) *Device {
	h.t.Helper()
	machine := h.Sim.Device(n)
	serial := machine.Identity(context.Background()).Serial
	state := filepath.Join(h.t.TempDir(), "state")
	return &Device{
		Serial: serial, Token: token, State: state, Machine: machine, t: h.t,
		cfg: agent.Config{
			StateDir: state, Server: h.Boot.Link, Serial: serial, Token: token, Host: machine, Dial: machine.Dial, Log: logOf(h.t),
			Version: "1.0.0", HealthPause: 10 * time.Millisecond, SlowRetry: 500 * time.Millisecond,
			Retry: link.Backoff{Least: 20 * time.Millisecond, Most: 500 * time.Millisecond},
		},
	}
}

// Serials are the serial numbers of the simulated devices from first on.
func (h *House) Serials(first, n int) []string {
	var out []string
	for i := range n {
		out = append(out, h.Sim.Device(first+i).Identity(context.Background()).Serial)
	}
	return out
}

// Prepare buys n devices in one order and makes their tokens; nothing is started.
func (h *House) Prepare(api *API, first, n int) []*Device {
	h.t.Helper()
	ids := api.Buy(h.Serials(first, n)...)
	var out []*Device
	for i, id := range ids {
		d := h.Device(first+i, api.EnrollmentToken(id))
		d.ID = id
		out = append(out, d)
	}
	return out
}

// Enlist takes n devices from the order to service: when it returns all are active.
func (h *House) Enlist(api *API, first, n int) []*Device {
	h.t.Helper()
	out := h.Prepare(api, first, n)
	for _, d := range out {
		d.Start()
	}
	for _, d := range out {
		api.AwaitStage(d.ID, "active")
	}
	return out
}

// Tune changes the agent's configuration before its next start.
func (d *Device) Tune(change func(*agent.Config)) { change(&d.cfg) }

// Start runs the agent until Stop or the end of the test.
func (d *Device) Start() *agent.Agent {
	d.t.Helper()
	a, err := agent.New(d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	var once sync.Once
	var result error
	stop := func() error {
		once.Do(func() {
			cancel()
			result = <-ended
		})
		return result
	}
	d.mu.Lock()
	d.stop = stop
	d.mu.Unlock()
	d.t.Cleanup(func() {
		if err := stop(); err != nil && !errors.Is(err, agent.ErrDecommissioned) {
			d.t.Logf("agent of %s: %v", d.Serial, err)
		}
	})
	return a
}

// Stop ends the agent and returns what Run returned.
func (d *Device) Stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop == nil {
		return nil
	}
	return d.stop()
}

// Run runs the agent until it ends by itself or the time is up, and returns what Run returned.
func (d *Device) Run(limit time.Duration) error {
	d.t.Helper()
	a, err := agent.New(d.cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return a.Run(ctx)
}

// Clone is another agent on another machine with a copy of this one's state directory.
func (d *Device) Clone(machine *sim.Device) *Device {
	d.t.Helper()
	to := filepath.Join(d.t.TempDir(), "clone")
	if err := os.CopyFS(to, os.DirFS(d.State)); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		d.t.Fatal(err)
	}
	c := &Device{ID: d.ID, Serial: d.Serial, State: to, Machine: machine, t: d.t, cfg: d.cfg}
	c.cfg.StateDir, c.cfg.Token, c.cfg.Host, c.cfg.Dial = to, "", machine, machine.Dial
	return c
}

// Identity is the PEM file with the device's key and certificate.
func (d *Device) Identity() []byte {
	d.t.Helper()
	pem, err := os.ReadFile(filepath.Join(d.State, "identity.pem"))
	if err != nil {
		d.t.Fatal(err)
	}
	return pem
}

// Runs is the content of the file "version" of the component that is installed; "" when there is none.
func Runs(state, component string) string {
	data, err := os.ReadFile(filepath.Join(state, "components", component, "current", "version"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
