package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"steward/internal/agent"
	"steward/internal/bench/swarm"
)

// size measures the built programs: their files, the real agent at rest with this machine as its device,
// and the server that only this one device visits.
func (b *bench) size(ctx context.Context) ([]Result, error) {
	programs := map[string]string{}
	for _, name := range []string{"steward", "steward-agent"} {
		path, err := beside(name)
		if err != nil {
			return nil, err
		}
		programs[name] = path
	}
	n, err := b.startNode(ctx, []string{programs["steward"], "server"})
	if err != nil {
		return nil, err
	}
	rows, err := b.atRest(ctx, n, programs)
	return rows, errors.Join(err, n.stop())
}

func (b *bench) atRest(ctx context.Context, n *node, programs map[string]string) ([]Result, error) {
	if err := pause(ctx, b.settle); err != nil {
		return nil, err
	}
	server, err := b.rest(ctx, "steward", programs["steward"], n.self)
	if err != nil {
		return nil, err
	}
	if err := n.buy(ctx, 1, 1, func(order) error { return nil }); err != nil {
		return nil, err
	}
	tickets, err := n.tickets(ctx, 1)
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp(b.dir, "agent-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(state) //nolint:errcheck // in the scratch directory, which is removed as a whole
	stop, pid, err := startAgent(programs["steward-agent"], filepath.Join(state, "state"), n.boot.Link, tickets[0])
	if err != nil {
		return nil, err
	}
	defer stop()
	err = until(ctx, comeTime, func() (bool, error) {
		status, err := agent.ReadStatus(filepath.Join(state, "state"))
		return err == nil && status.State == agent.StateOnline, nil // not there before the first contact
	})
	if err != nil {
		return nil, fmt.Errorf("the agent did not come online: %w", err)
	}
	if err := pause(ctx, b.settle); err != nil {
		return nil, err
	}
	device, err := b.rest(ctx, "steward-agent", programs["steward-agent"], pid)
	return []Result{server, device}, err
}

// startAgent runs the real agent; stop ends it and waits.
func startAgent(program, state, server string, t swarm.Ticket) (stop func(), pid process, err error) {
	cmd := exec.Command(program, "--state", state, "--server", server, "--serial", t.Serial, "--log", "warn")
	cmd.Env = append(os.Environ(), "STEWARD_TOKEN="+t.Token)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, 0, fmt.Errorf("start the agent: %w", err)
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was measured; how it ended tells nothing
	}, process(cmd.Process.Pid), nil
}

// rest is what a process takes with nothing to do.
func (b *bench) rest(ctx context.Context, name, program string, p process) (Result, error) {
	row := Result{Scenario: "size/" + name, Program: name}
	info, err := os.Stat(program)
	if err != nil {
		return row, err
	}
	row.Bytes = info.Size()
	before, err := p.cpu()
	if err != nil {
		return row, err
	}
	began := time.Now()
	if err := pause(ctx, b.span); err != nil {
		return row, err
	}
	after, err := p.cpu()
	if err != nil {
		return row, err
	}
	m, err := p.memory()
	row.Seconds = time.Since(began).Seconds()
	row.CPUPerMinute = milliseconds(after-before) / time.Since(began).Minutes()
	row.KiB, row.AnonKiB, row.ServerPeakKiB = m.Resident, m.Anonymous, 0
	return row, err
}
