package agent

import (
	"context"
	"crypto"
	"fmt"
	"path/filepath"
	"time"

	"steward/internal/agent/disposal"
	"steward/internal/agent/monitoring"
	"steward/internal/agent/remote"
	"steward/internal/agent/update"
)

// furnish makes the rooms, once there is an identity; again after the device has enrolled anew, when
// nothing of the rooms before runs any more.
func (a *Agent) furnish(ctx context.Context) error {
	a.quiesce, a.stopped = make(chan struct{}), make(chan struct{})
	a.desired.mu.Lock()
	a.desired.accepted, a.desired.expires, a.desired.refresh = acceptedState{}, time.Time{}, time.Time{}
	a.desired.mu.Unlock()
	identity := a.provisioning.Identity()
	root := a.cfg.ReleaseRoot
	switch {
	case root != nil:
		a.releaseTrust = "pinned"
	case a.provisioning.Trust().ReleaseRoot != nil:
		root, a.releaseTrust = a.provisioning.Trust().ReleaseRoot, "token"
	default:
		a.releaseTrust = "none"
	}
	a.monitoring = monitoring.New(monitoring.Config{
		Host: a.cfg.Host, Sender: a.client, Journal: a.journal, Device: identity.Device,
		Now: a.clock.Now, Log: a.cfg.Log.With("room", "monitoring"), Changed: a.change, FactsInterval: a.cfg.FactsInterval,
	})
	inventory, err := a.cfg.Host.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("read the machine: %w", err)
	}
	components := a.cfg.ComponentsDir
	if components == "" {
		components = filepath.Join(a.cfg.StateDir, componentsDir)
	}
	updates, err := update.New(update.Config{
		Journal: a.journal, StateDir: filepath.Join(a.cfg.StateDir, updateDir), Dir: components,
		Source: a.client, Host: a.cfg.Host, Root: func() []byte { return root }, Changed: a.change,
		Architecture: inventory.Architecture, HealthPause: a.cfg.HealthPause,
		Log: a.cfg.Log.With("room", "update"), Now: a.clock.Now,
	})
	if err != nil {
		return fmt.Errorf("room update: %w", err)
	}
	a.remote, err = remote.New(remote.Config{
		Journal: a.journal, Sender: a.client, Commands: a.commands(), Now: a.clock.Now, Retry: a.cfg.Retry,
		Log: a.cfg.Log.With("room", "remote"),
	})
	if err != nil {
		return fmt.Errorf("room remote: %w", err)
	}
	a.rooms = []Room{a.provisioning, a.monitoring, updates, a.remote}
	a.disposal, err = disposal.New(disposal.Config{
		Dir: a.cfg.StateDir, Journal: a.journal, Device: identity.Device, Serial: a.cfg.Serial, Signer: a.operationalKey,
		Sender: a.client, Quiesce: a.stopRooms, Sources: a.sources(), Destroy: a.destroyIdentity,
		Keep:     []string{lockFile, journalDir, "identity.pem", "next.pem", "trust.json", StatusFile},
		KeepKeys: []string{keyServer, keySerial, keyInstance},
		Retry:    a.cfg.Retry, Now: a.clock.Now, Log: a.cfg.Log.With("room", "disposal"), Changed: a.change,
	})
	if err != nil {
		return fmt.Errorf("room disposal: %w", err)
	}
	a.rooms = append(a.rooms, a.disposal)
	return nil
}

// operationalKey returns the key that the server knows. A certificate that a renewal had fetched when
// it was stopped may have been used already: then the server takes no other.
func (a *Agent) operationalKey(ctx context.Context) (crypto.Signer, error) {
	if _, err := a.provisioning.Recover(ctx); err != nil {
		return nil, fmt.Errorf("finish a renewal: %w", err)
	}
	return a.provisioning.Identity().Key, nil
}

// destroyIdentity is the end of a disposal: from here on nothing is written to the state directory.
func (a *Agent) destroyIdentity(ctx context.Context) error {
	a.status.silence()
	return a.provisioning.Destroy(ctx)
}

// sources lists the rooms that hold data.
func (a *Agent) sources() []disposal.Source {
	var out []disposal.Source
	for _, room := range a.rooms {
		if s, ok := room.(Sanitizer); ok {
			out = append(out, disposal.Source{Name: room.Name(), Sanitize: s.Sanitize})
		}
	}
	return out
}

// roomNames of the agent's section.
func (a *Agent) roomNames() []string {
	var names []string
	for _, room := range a.rooms {
		names = append(names, room.Name())
	}
	return names
}
