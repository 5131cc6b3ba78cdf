package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"time"

	"steward/internal/access"
	"steward/internal/device"
	"steward/internal/disposal"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/monitoring"
	"steward/internal/provisioning"
	"steward/internal/purchase"
	"steward/internal/registry"
	"steward/internal/release"
	"steward/internal/remote"
	"steward/internal/sqldb"
	"steward/internal/twin"
	"steward/internal/ui"
	"steward/internal/update"
	"steward/internal/wire"
)

// This file holds what one room needs of another and neither may know.

// publicIDs is the ledger's view of a scope.
func (r *rooms) publicIDs(scope device.Scope) (string, []any) {
	nums, args := r.registry.Matching(scope, device.Selector{}, nil)
	return "SELECT id FROM registry_device WHERE num IN (" + nums + ")", args
}

// moved tells the rooms of a device's move, in its transaction.
func (r *rooms) moved(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
	tx.AfterCommit(func() { r.changed(d.Num) })
	if err := r.twin.StageMoved(ctx, tx, d, from); err != nil {
		return err
	}
	if err := r.remote.Moved(ctx, tx, d, from); err != nil {
		return err
	}
	return r.monitoring.Moved(ctx, tx, d, from)
}

// group is the selector of a named group, for commands to a selection.
func (r *rooms) group(ctx context.Context, tenant device.TenantID, name string) (device.Selector, error) {
	g, err := r.monitoring.Group(ctx, tenant, name)
	return g.Selector, err
}

// movedMany tells the rooms of all devices that moved in one go, in their transaction.
func (r *rooms) movedMany(ctx context.Context, tx *sqldb.Tx, moved []device.Moved) error {
	return r.purchase.Moved(ctx, tx, moved)
}

// changed has every node's link forget what it knows of the device. A lost message is made good by time:
// links keep nothing for long.
func (r *rooms) changed(num int64) {
	if err := r.bus.Publish("device.changed", strconv.AppendInt(nil, num, 10)); err != nil {
		r.cfg.Log.Warn("the links were not told of a changed device", "device.num", num, "error", err)
	}
}

// contact is each report that changes something: it makes a freshly enrolled device active.
func (r *rooms) contact(ctx context.Context, tx *sqldb.Tx, d device.Device, rep wire.Report) error {
	if d.Stage == device.Enrolled {
		m := device.Move{Num: d.Num, To: device.Active, Reason: "first report"}
		if _, err := r.registry.Move(ctx, tx, device.System("registry"), m); err != nil && !errors.Is(err, device.ErrMove) {
			return err
		}
	}
	return r.monitoring.Contact(ctx, tx, d, rep)
}

// interval is how often a device should report: its tenant's policy, else the server's configuration.
func (r *rooms) interval(ctx context.Context, d device.Device) time.Duration {
	return r.monitoring.Interval(ctx, d)
}

// releaseRoots gives trust documents the tenant's TUF root.
type releaseRoots struct{ r *rooms }

func (x releaseRoots) ReleaseRoot(ctx context.Context, tenant device.TenantID) (json.RawMessage, error) {
	root, err := x.r.release.Root(ctx, tenant)
	if errors.Is(err, fault.NotFound) {
		return nil, nil // no release keys yet: devices get the root with a later token
	}
	return root, err
}

// releaseUsage tells the room release who uses a release.
type releaseUsage struct{ r *rooms }

func (x releaseUsage) InUse(ctx context.Context, q sqldb.Reader, tenant device.TenantID, ref release.Ref) (assignments, devices int64, err error) {
	return x.r.update.InUse(ctx, q, tenant, ref.Name, ref.Version)
}

func (x releaseUsage) States(ctx context.Context, scope device.Scope, ref release.Ref) (map[string]int64, error) {
	return x.r.update.ReleaseStates(ctx, scope, ref.Name, ref.Version)
}

// presence gives the registry's lists what monitoring knows.
type presence struct{ m *monitoring.Service }

func (p presence) Of(ctx context.Context, nums []int64) (map[int64]registry.Presence, error) {
	known, err := p.m.Of(ctx, nums)
	out := make(map[int64]registry.Presence, len(known))
	for num, k := range known {
		out[num] = registry.Presence{State: k.State.String(), LastContact: k.LastContact}
	}
	return out, err
}

func (p presence) Where(numColumn, state string) (string, []any) { return p.m.Where(numColumn, state) }

func (r *rooms) presenceCounts(ctx context.Context, scope device.Scope) (map[string]int64, error) {
	counts, err := r.monitoring.Counts(ctx, scope)
	out := make(map[string]int64, len(counts))
	for state, n := range counts {
		out[state.String()] = n
	}
	return out, err
}

func (r *rooms) modelNames(ctx context.Context, tenant device.TenantID, ids []string) (map[string]string, error) {
	return r.purchase.ModelNames(ctx, tenant, ids)
}

// provenance tells a disposal certificate where its device came from.
func (r *rooms) provenance(ctx context.Context, q sqldb.Reader, num int64) (disposal.Provenance, bool, error) {
	p, ok, err := r.purchase.Provenance(ctx, q, num)
	return disposal.Provenance(p), ok, err
}

// effects tell what retiring a device would hit.
func (r *rooms) effects() []func(context.Context, device.Device) ([]ui.Notice, error) {
	return []func(context.Context, device.Device) ([]ui.Notice, error){
		func(ctx context.Context, d device.Device) ([]ui.Notice, error) {
			known, err := r.monitoring.Of(ctx, []int64{d.Num})
			if err != nil || known[d.Num].State != monitoring.Online {
				return nil, err
			}
			return []ui.Notice{{Level: ui.Warn, Title: "The device is online", Detail: "It reported at " + known[d.Num].LastContact.UTC().Format(time.DateTime) + " UTC."}}, nil
		},
	}
}

// sentences collects how the rooms tell their events to people.
func sentences() map[string]func(ledger.Event) string {
	all := map[string]func(ledger.Event) string{}
	for _, room := range []map[string]func(ledger.Event) string{
		access.Describe(), provisioning.Describe(), registry.Describe(), twin.Describe(), purchase.Describe(),
		release.Describe(), update.Describe(), monitoring.Describe(), disposal.Describe(), remote.Describe(),
	} {
		maps.Copy(all, room)
	}
	return all
}

// metrics takes a device's OTLP request and answers it as OTLP wants: an empty response message.
func (r *rooms) metrics(ctx context.Context, d device.Device, contentType string, body []byte) ([]byte, error) {
	if err := r.monitoring.Ingest(ctx, d, contentType, bytes.NewReader(body)); err != nil {
		return nil, err
	}
	if contentType == "application/x-protobuf" {
		return []byte{}, nil
	}
	return []byte("{}"), nil
}
