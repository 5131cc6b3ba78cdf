package update

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Bounds of a report. A device that says more is not believed to be one of ours.
const (
	maxReleases    = 64
	maxCauseBytes  = 1 << 10
	maxOutputBytes = 2 << 10
	maxStepBytes   = 64
)

// OnReported takes the reported section "update" in the transaction of the report. What is no such
// document wraps fault.Unprocessable. Progress with an assignment that the device was never asked for,
// or of an attempt that is not the current one, is left out: it is old news or none of ours.
func (s *Service) OnReported(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
	var r wire.UpdateReported
	if err := wire.Decode(body, &r); err != nil {
		return fault.New(fault.Unprocessable, "section update: %v", err)
	}
	if err := checkReported(r); err != nil {
		return err
	}
	if err := meetDevice(ctx, tx, d); err != nil {
		return err
	}
	if err := s.noteInstalled(ctx, tx, d, r.Installed); err != nil {
		return fmt.Errorf("keep what is installed on %s: %w", d.ID, err)
	}
	for _, p := range r.Updates {
		if err := s.noteProgress(ctx, tx, d, p); err != nil {
			return fmt.Errorf("keep the progress of %s: %w", d.ID, err)
		}
	}
	return nil
}

func checkReported(r wire.UpdateReported) error {
	invalid := &fault.Invalid{}
	if len(r.Installed) > maxReleases || len(r.Updates) > maxReleases {
		return fault.Bad("update", "more than %d releases", maxReleases)
	}
	for i, in := range r.Installed {
		if err := nameAndVersion(in.Name, in.Version); err != nil {
			invalid.Add(fmt.Sprintf("update.installed[%d]", i), "%v", err)
		}
	}
	for i, p := range r.Updates {
		at := fmt.Sprintf("update.updates[%d]", i)
		if err := nameAndVersion(p.Name, p.Version); err != nil {
			invalid.Add(at, "%v", err)
		}
		if _, known := rank[p.State]; !known {
			invalid.Add(at+".state", "%.40q is no state of an update", p.State)
		}
		if p.Attempt < 1 || len(p.Reached) > 4*len(rank) {
			invalid.Add(at, "attempt %d with %d states", p.Attempt, len(p.Reached))
		}
	}
	return invalid.OrNil()
}

func nameAndVersion(name, version string) error {
	if err := wire.CheckReleaseName(name); err != nil {
		return err
	}
	return wire.CheckReleaseVersion(version)
}

func (s *Service) noteInstalled(ctx context.Context, tx *sqldb.Tx, d device.Device, now []Installed) error {
	before, err := installedOn(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	now = slices.Clone(now)
	slices.SortFunc(now, func(a, b Installed) int { return strings.Compare(a.Name, b.Name) })
	same := slices.EqualFunc(before, now, func(a, b Installed) bool {
		return a.Name == b.Name && a.Version == b.Version && sqldb.Micros(a.Since) == sqldb.Micros(b.Since)
	})
	if same {
		return nil
	}
	return replaceInstalled(ctx, tx, d.Num, now)
}

// noteProgress takes one update's state, if it says something new.
func (s *Service) noteProgress(ctx context.Context, tx *sqldb.Tx, d device.Device, p wire.UpdateProgress) error {
	row, ok, err := stateOf(ctx, tx, d, p.Assignment)
	if err != nil || !ok || row.name != p.Name || row.version != p.Version || row.attempt != p.Attempt {
		return err
	}
	p.Cause, p.Step, p.Output = clip(p.Cause, maxCauseBytes), clip(p.Step, maxStepBytes), clip(p.Output, maxOutputBytes)
	if !advances(row.state, p.State) {
		if row.state != p.State && failed(row.state) && p.State == wire.UpdateCommitted {
			s.cfg.Log.Warn("a failed attempt is reported as committed and not counted", "device", d.ID, "assignment", p.Assignment, "attempt", p.Attempt)
		}
		return nil
	}
	if failed(p.State) && p.Cause == "" {
		p.Cause = "the device named no cause"
	}
	now := s.now()
	events, err := s.noteReached(ctx, tx, d, progress{row: row, p: p, now: now})
	if err != nil {
		return err
	}
	if err := moveCount(ctx, tx, row, d.Num, p.State); err != nil {
		return err
	}
	if err := storeProgress(ctx, tx, row, d.Num, p, now); err != nil {
		return err
	}
	return s.cfg.Ledger.Append(ctx, tx, events...)
}

type progress struct {
	row stateRow
	p   wire.UpdateProgress
	now time.Time
}

// noteReached writes the states that were passed on the way, each once for ever, and returns their
// events.
func (s *Service) noteReached(ctx context.Context, tx *sqldb.Tx, d device.Device, g progress) ([]ledger.Event, error) {
	p := g.p
	var events []ledger.Event
	reached := append(slices.Clone(p.Reached), wire.UpdateReached{State: p.State, At: p.Changed})
	for _, r := range reached {
		if _, known := rank[r.State]; !known || r.State == wire.UpdatePending || (r.State != p.State && rank[r.State] >= rank[p.State]) {
			continue
		}
		e := HistoryEntry{Attempt: p.Attempt, State: r.State, Reached: r.At, Received: g.now}
		if r.State == p.State {
			e.Step, e.Cause, e.Output = p.Step, p.Cause, p.Output
		}
		fresh, err := insertHistory(ctx, tx, g.row, d.Num, e)
		if err != nil {
			return nil, err
		}
		if fresh && told(r.State) {
			events = append(events, reachedEvent(d, p, e))
		}
	}
	return events, nil
}

func reachedEvent(d device.Device, p wire.UpdateProgress, e HistoryEntry) ledger.Event {
	facts := map[string]any{"release": p.Name, "version": p.Version, "attempt": p.Attempt, "reached": e.Reached}
	if e.Cause != "" {
		facts["cause"], facts["step"] = e.Cause, e.Step
	}
	return ledger.Event{
		Tenant: d.Tenant, Device: d.ID, Kind: eventReached + string(e.State), Subject: p.Assignment, Reason: e.Cause,
		Actor: device.Actor{Kind: device.ActorDevice, ID: string(d.ID), Name: d.DisplayName()}, Data: ledger.Facts(facts),
	}
}

// clip cuts a text of the device's to n bytes and to what a database and a page can hold.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) <= n {
		return s
	}
	s = s[:n]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// OnInventory remembers what decides whether a release fits, in the transaction of the report.
func (s *Service) OnInventory(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
	var inv wire.Inventory
	if err := wire.Decode(body, &inv); err != nil {
		return fault.New(fault.Unprocessable, "section inventory: %v", err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO update_device (num, tenant, architecture, product) VALUES ($1, $2, $3, $4)
		ON CONFLICT (num) DO UPDATE SET architecture = excluded.architecture, product = excluded.product`,
		d.Num, d.Tenant, clip(inv.Architecture, maxStepBytes), clip(inv.Machine.Product, 200))
	return err
}
