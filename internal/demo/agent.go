package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"steward/internal/wire"
)

// FindAgent returns the steward-agent beside this program, or the one on the PATH.
func FindAgent() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), "steward-agent")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	found, err := exec.LookPath("steward-agent")
	if err != nil {
		return "", fmt.Errorf("steward-agent is neither beside %s nor on the PATH: run `make build`", self)
	}
	return found, nil
}

// agentProcess is the real agent as a process of its own, on this machine.
type agentProcess struct {
	program, state string
	cmd            *exec.Cmd
	log            *os.File
	ended          chan error
}

// machine asks the agent what it would report of this machine and how it calls itself.
func machine(ctx context.Context, program, state string) (wire.Inventory, error) {
	var out struct {
		Inventory wire.Inventory `json:"inventory"`
	}
	data, err := exec.CommandContext(ctx, program, "--state", state, "inventory", "-o", "json").Output()
	if err != nil {
		return out.Inventory, fmt.Errorf("ask the agent for this machine's inventory: %w", err)
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return out.Inventory, fmt.Errorf("read this machine's inventory: %w", err)
	}
	return out.Inventory, nil
}

// start runs the agent; the token may be empty when the state directory has an identity.
func (a *agentProcess) start(link, serial, token string) error {
	log, err := os.OpenFile(a.state+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	a.log = log
	a.cmd = exec.Command(a.program, "--state", a.state, "--server", link, "--serial", serial, "--interval", "10s")
	a.cmd.Env = append(os.Environ(), "STEWARD_TOKEN="+token)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start the agent: %w", err), log.Close())
	}
	a.ended = make(chan error, 1)
	go func() { a.ended <- a.cmd.Wait() }()
	return nil
}

// stop ends the agent and waits for it.
func (a *agentProcess) stop() error {
	if a.cmd == nil {
		return nil
	}
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-a.ended:
	case <-time.After(10 * time.Second):
		_ = a.cmd.Process.Kill()
		<-a.ended
	}
	a.cmd = nil
	return a.log.Close()
}
