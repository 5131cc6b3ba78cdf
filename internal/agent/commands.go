package agent

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"steward/internal/agent/remote"
	"steward/internal/wire"
)

// commands are what an operator can ask of this agent.
func (a *Agent) commands() map[string]remote.Command {
	return map[string]remote.Command{
		wire.CommandPing:     a.ping,
		wire.CommandReport:   a.reportNow,
		wire.CommandDiagnose: a.diagnose,
	}
}

// pong is the output of ping.
type pong struct {
	Boot          string    `json:"boot"` // as in the reports
	UptimeSeconds int64     `json:"uptime_seconds"`
	Version       string    `json:"version"`
	Link          string    `json:"link"` // how messages travel
	Time          time.Time `json:"time"` // the device's own clock
}

func (a *Agent) ping(context.Context, json.RawMessage) (any, error) {
	return pong{
		Boot: a.boot, UptimeSeconds: int64(time.Since(a.started) / time.Second), Version: a.cfg.Version,
		Link: a.client.Way().Via, Time: a.cfg.Now().UTC(),
	}, nil
}

// diagnose answers what steward-agent diagnose prints.
func (a *Agent) diagnose(ctx context.Context, _ json.RawMessage) (any, error) {
	return Diagnose(ctx, a.cfg), nil
}

// reportNow has everything reported and returns when the server has taken it.
func (a *Agent) reportNow(ctx context.Context, _ json.RawMessage) (any, error) {
	done := a.full.ask()
	a.change()
	select {
	case err := <-done:
		return nil, err
	case <-ctx.Done():
		return nil, errors.New("the report was not taken in time")
	}
}

// fullReports are those who wait for a full report. Safe for use by several goroutines.
type fullReports struct {
	mu      sync.Mutex
	waiting []chan error
}

func (f *fullReports) ask() <-chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := make(chan error, 1)
	f.waiting = append(f.waiting, done)
	return done
}

// take returns who is to be told about the report that is made next.
func (f *fullReports) take() []chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.waiting
	f.waiting = nil
	return asked
}

func (f *fullReports) done(asked []chan error, err error) {
	for _, done := range asked {
		done <- err
	}
}
