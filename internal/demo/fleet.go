package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/host/sim"
	"steward/internal/run"
	"steward/internal/server"
)

// FleetConfig of Fleet. Agent, Out and Log are required.
type FleetConfig struct {
	Agent                 string    // the steward-agent program
	Dir                   string    // "" means steward-demo in the user's state directory
	ConsoleAddr, LinkAddr string    // a taken port is replaced by a free one
	Devices               int       // how many to simulate
	Out                   io.Writer // for people
	Log                   io.Writer // the server's log
	Version               string
}

// maxDevices bounds what one process simulates: each device holds a connection.
const maxDevices = 5000

// Fleet runs the demo until ctx ends. What it makes is kept in Dir and found again at the next start.
func Fleet(ctx context.Context, cfg FleetConfig) (err error) {
	if cfg.Devices < 0 || cfg.Devices > maxDevices {
		return fmt.Errorf("%d devices: want 0 to %d", cfg.Devices, maxDevices)
	}
	if cfg.Dir == "" {
		if cfg.Dir, err = stateDir(); err != nil {
			return err
		}
	}
	fmt.Fprintf(cfg.Out, "Starting Steward %s on %s …\n", cfg.Version, cfg.Dir)
	n, err := startNode(ctx, server.Config{
		DataDir: filepath.Join(cfg.Dir, "server"), ConsoleAddr: freeAddr(cfg.ConsoleAddr), LinkAddr: freeAddr(cfg.LinkAddr),
		ManagedKeys: true, Version: cfg.Version,
		Log: slog.New(slog.NewTextHandler(cfg.Log, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	f := &fleet{cfg: cfg, node: n, sim: sim.NewFleet(sim.Config{Seed: 7})}
	f.greet()
	return f.run(ctx)
}

// stateDir follows the XDG base directory specification.
func stateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "steward-demo"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("where to keep the demo's data: %w", err)
	}
	return filepath.Join(home, ".local", "state", "steward-demo"), nil
}

// freeAddr returns the address, or one with a free port when its own is taken.
func freeAddr(addr string) string {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		if l.Close() == nil {
			return addr
		}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return net.JoinHostPort(host, "0")
}

// fleet is a running demo.
type fleet struct {
	cfg  FleetConfig
	node *node
	sim  *sim.Fleet
}

func (f *fleet) greet() {
	b := f.node.boot
	password := b.Admin.Password
	if password == "" {
		password = "(as you have set it)"
	}
	fmt.Fprintf(f.cfg.Out, `
  Console   %s
  User      %s
  Password  %s

  Devices reach the link at %s.
  For the command line: export STEWARD_DATA=%s

  DEMO: the release keys lie on this server. Whoever has it can sign releases. For a real fleet, make
  them offline: steward release init-keys --help

`, b.Console, b.Admin.Name, password, b.Link, filepath.Join(f.cfg.Dir, "server"))
}

// run seeds the fleet, then runs the agents until ctx ends.
func (f *fleet) run(ctx context.Context) error {
	tokens, err := f.seed(ctx)
	if err != nil {
		return fmt.Errorf("seed the demo: %w", err)
	}
	var g run.Group
	for i := range f.cfg.Devices {
		device := f.sim.Device(i)
		g.Add("device "+device.Identity(ctx).Serial, func(ctx context.Context) error {
			return f.simulate(ctx, i, device, tokens[device.Identity(ctx).Serial])
		})
	}
	g.Add("this machine", func(ctx context.Context) error { return f.thisMachine(ctx, tokens[thisSerial]) })
	g.Add("releases", f.releases)
	fmt.Fprintf(f.cfg.Out, "%d simulated devices, each with a day of made-up measurements, and this machine are enrolling. Stop with Ctrl-C; the data is kept.\n", f.cfg.Devices)
	return g.Run(ctx)
}

// Simulated devices come with a day of measurements, as if they had been offline until now, so that the
// charts have something to show. Each five minutes hold two of them, as rates need.
const (
	historySpan = 24 * time.Hour
	historyStep = 150 * time.Second
)

// simulate runs one device's agent. One that was disposed of in the console ends without ending the demo.
func (f *fleet) simulate(ctx context.Context, i int, device *sim.Device, token string) error {
	if token != "" { // its first start
		device.Remember(historySpan, historyStep)
	}
	a, err := agent.New(agent.Config{
		StateDir: filepath.Join(f.cfg.Dir, "devices", device.Identity(ctx).Serial), Server: f.node.boot.Link, Token: token,
		Serial: device.Identity(ctx).Serial, Host: device, Log: quiet(), Version: f.cfg.Version,
	})
	if err != nil {
		return err
	}
	// They come one after the other, as boxes are opened.
	select {
	case <-time.After(time.Duration(i) * 150 * time.Millisecond):
	case <-ctx.Done():
		return nil
	}
	if err := a.Run(ctx); err != nil && !errors.Is(err, agent.ErrDecommissioned) {
		return err
	}
	return nil
}

// thisMachine runs the real agent on this machine as a process of its own.
func (f *fleet) thisMachine(ctx context.Context, token string) error {
	p := &agentProcess{program: f.cfg.Agent, state: filepath.Join(f.cfg.Dir, "this-machine")}
	if err := os.MkdirAll(f.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := p.start(f.node.boot.Link, thisSerial, token); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return p.stop()
	case err := <-p.ended:
		if err != nil {
			return fmt.Errorf("the agent of this machine ended: %w; see %s.log", err, p.state)
		}
		return p.log.Close() // disposed of in the console
	}
}
