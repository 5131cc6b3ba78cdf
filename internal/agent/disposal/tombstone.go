package disposal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"steward/internal/agent/journal"
)

// TombstoneFile is what stays in the state directory of a decommissioned device.
const TombstoneFile = "decommissioned.json"

// Tombstone keeps the agent from ever enrolling again with this state directory.
type Tombstone struct {
	Order     string          `json:"order"`
	Device    string          `json:"device"`
	Serial    string          `json:"serial"`
	At        time.Time       `json:"at"`
	Statement json.RawMessage `json:"statement"` // the signed envelope; it holds no secret
}

// ReadTombstone returns nil when the device is not decommissioned.
func ReadTombstone(dir string) (*Tombstone, error) {
	raw, err := os.ReadFile(filepath.Join(dir, TombstoneFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var t Tombstone
	if err := json.Unmarshal(raw, &t); err != nil {
		// Whatever it says, it was written for one reason only.
		return &Tombstone{Order: "unreadable"}, nil
	}
	return &t, nil
}

func (r *Room) bury(context.Context) error {
	envelope, err := r.statement()
	if err != nil {
		return err
	}
	stone, err := json.MarshalIndent(Tombstone{
		Order: r.order.Order, Device: r.cfg.Device, Serial: r.cfg.Serial, At: r.cfg.Now().UTC(), Statement: envelope,
	}, "", "  ")
	if err != nil {
		return err
	}
	return r.cfg.Journal.WriteFile(filepath.Join(r.cfg.Dir, TombstoneFile), append(stone, '\n'), 0o600)
}

// destroy wipes key, certificate, trust and journal. After a kill within, Finish does the rest: the
// tombstone stands.
func (r *Room) destroy(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // half a destruction helps nobody, and it takes no time
	if err := r.cfg.Destroy(ctx); err != nil {
		return fmt.Errorf("destroy the key: %w", err)
	}
	if err := r.cfg.Journal.Close(); err != nil {
		return err
	}
	return Finish(ctx, r.cfg.Dir, r.cfg.Journal)
}

// Finish wipes everything in the state directory but the tombstone and files that begin with "lock".
// The agent calls it at each start on a tombstone, with a journal of no directory.
func Finish(ctx context.Context, dir string, j *journal.Journal) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	keep := []string{TombstoneFile}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "lock") {
			keep = append(keep, e.Name())
		}
	}
	_, err = (&Room{cfg: Config{Dir: dir, Journal: j}}).wipeAllBut(ctx, keep)
	return err
}
