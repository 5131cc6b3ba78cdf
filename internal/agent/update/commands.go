package update

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"steward/internal/wire"
)

// manifest reads the run's manifest from the state directory. It was verified before its hash was
// written into the journal.
func (r *Room) manifest(hash wire.Hash) (wire.ReleaseManifest, error) {
	var m wire.ReleaseManifest
	data, err := os.ReadFile(r.manifestPath(hash))
	if err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if wire.HashOf(data) != hash {
		return m, fmt.Errorf("manifest %s was changed on disk", hash)
	}
	return m, wire.Decode(data, &m)
}

// commandsOf are the component's commands of a phase.
func commandsOf(c wire.Component, p phase) []wire.Command {
	switch p {
	case preparing:
		return c.Commands.Pre
	case finishing:
		return c.Commands.Post
	case checking:
		return c.Commands.Health
	}
	return nil
}

// commands runs a phase's commands of all parts that change, in the manifest's order; the first failure
// is a refusal.
func (r *Room) commands(ctx context.Context, x *run, p phase) error {
	m, err := r.manifest(x.Manifest)
	if err != nil {
		return refuse(string(p), "%v", err)
	}
	for _, part := range x.Parts {
		if !part.changes() {
			continue
		}
		if err := r.commandList(ctx, r.versionDir(part), p, commandsOf(m.Components[part.Index], p)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Room) commandList(ctx context.Context, dir string, p phase, list []wire.Command) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for _, c := range list {
		timeout := time.Duration(c.Timeout()) * time.Second
		output, code, err := r.cfg.Host.Exec(ctx, abs, c.Argv, timeout)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name := clip(strings.Join(c.Argv, " "), 120)
		if err != nil {
			return &refusal{step: string(p), cause: fmt.Sprintf("%s command %q: %v", p, name, err), output: string(output)}
		}
		if code != 0 {
			return &refusal{step: string(p), cause: fmt.Sprintf("%s command %q ended with code %d", p, name, code), output: string(output)}
		}
	}
	return nil
}

// health repeats the health commands until all pass, for as long as the component that allows most
// time. The cause is that of the last round.
func (r *Room) health(ctx context.Context, x *run) error {
	m, err := r.manifest(x.Manifest)
	if err != nil {
		return refuse(string(checking), "%v", err)
	}
	limit := time.Duration(0)
	for _, p := range x.Parts {
		if p.changes() {
			limit = max(limit, time.Duration(m.Components[p.Index].Commands.HealthTimeout())*r.cfg.HealthSecond)
		}
	}
	deadline, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last *refusal
	for {
		err := r.commands(deadline, x, checking)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var no *refusal
		if errors.As(err, &no) {
			last = no
		}
		if deadline.Err() == nil {
			rest(deadline, r.cfg.HealthPause)
		}
		if deadline.Err() == nil {
			continue
		}
		if last == nil {
			return refuse(string(checking), "the health commands did not end within %s", limit)
		}
		last.cause += fmt.Sprintf(", for %s", limit)
		return last
	}
}

func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// restartPrevious runs the post commands of the release that ran before, for the components that the
// run would have changed.
func (r *Room) restartPrevious(ctx context.Context, x *run) error {
	s, _, _ := r.snapshot()
	before, ok := s.Installed[x.Ref.Name]
	if !ok {
		return nil
	}
	m, err := r.manifest(before.Manifest)
	if err != nil {
		return err
	}
	changed := map[string]bool{}
	for _, p := range x.Parts {
		changed[p.Component] = p.changes()
	}
	var failed []error
	for _, p := range before.Parts {
		if changed[p.Component] {
			failed = append(failed, r.commandList(ctx, r.versionDir(p), finishing, m.Components[p.Index].Commands.Post))
		}
	}
	return errors.Join(failed...)
}
