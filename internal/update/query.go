package update

import (
	"context"
	"database/sql"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/ui"
	"steward/internal/wire"
)

// Filter of Assignments.
type Filter struct {
	Release string
	State   AssignmentState
	Limit   int // 0 means 50
	Cursor  string
}

type assignmentPosition struct {
	Num int64 `json:"n"`
}

// Assignment returns one with its counts within the scope. It wraps fault.NotFound.
func (s *Service) Assignment(ctx context.Context, scope device.Scope, id string) (Assignment, error) {
	a, err := assignmentByID(ctx, s.cfg.DB, scope.Tenant, id)
	if err != nil {
		return a, err
	}
	a.Counts, err = s.counts(ctx, scope, a)
	return a, err
}

// Assignments returns a page, newest first.
func (s *Service) Assignments(ctx context.Context, scope device.Scope, f Filter) ([]Assignment, string, error) {
	if f.Limit <= 0 {
		f.Limit = 50
	}
	var pos assignmentPosition
	if err := httpapi.DecodeCursor(f.Cursor, &pos); err != nil {
		return nil, "", err
	}
	b := sqldb.NewQuery(assignmentColumns+`a.tenant = ?`, scope.Tenant)
	if f.Release != "" {
		b.Add(`AND a.name = ?`, f.Release)
	}
	if f.State != "" {
		b.Add(`AND a.state = ?`, f.State)
	}
	if pos.Num > 0 {
		b.Add(`AND a.num < ?`, pos.Num)
	}
	list, err := queryAssignments(ctx, s.cfg.DB, b.Add(`ORDER BY a.num DESC LIMIT ?`, f.Limit+1))
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(list) > f.Limit {
		list = list[:f.Limit]
		next = httpapi.EncodeCursor(assignmentPosition{list[f.Limit-1].num})
	}
	for i := range list {
		if list[i].Counts, err = s.counts(ctx, scope, list[i]); err != nil {
			return nil, "", err
		}
	}
	return list, next, nil
}

// within limits a query over s (update_state) to the scope; a whole tenant needs no condition, since
// its assignments reach its own devices only.
func (s *Service) within(scope device.Scope) (string, []any) {
	if scope.Selector.Empty() {
		return "TRUE", nil
	}
	nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, nil)
	return "s.num IN (" + nums + ")", args
}

// counts reads the kept counters, or counts when the scope is a part of the tenant.
func (s *Service) counts(ctx context.Context, scope device.Scope, a Assignment) (map[State]int64, error) {
	b := sqldb.NewQuery(`SELECT state, SUM(n) FROM update_tally WHERE assignment = ? GROUP BY state`, a.num)
	if !scope.Selector.Empty() {
		cond, args := s.within(scope)
		b = sqldb.NewQuery(`SELECT s.state, COUNT(*) FROM update_state s WHERE s.assignment = ? AND`, a.num).Add(cond, args...).Add(`GROUP BY s.state`)
	}
	return countStates(ctx, s.cfg.DB, b)
}

func countStates(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) (map[State]int64, error) {
	out := map[State]int64{}
	_, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (struct{}, error) {
		var state State
		var n int64
		err := rows.Scan(&state, &n)
		if n > 0 {
			out[state] = n
		}
		return struct{}{}, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("count states: %w", err)
	}
	return out, nil
}

// Failures groups an assignment's failures by their first cause, the most frequent first.
func (s *Service) Failures(ctx context.Context, scope device.Scope, a Assignment) ([]Failure, error) {
	cond, args := s.within(scope)
	b := sqldb.NewQuery(`SELECT s.state, s.step, s.cause, COUNT(*) AS n FROM update_state s WHERE s.assignment = ? AND s.state IN (?, ?) AND`,
		a.num, wire.UpdateFailed, wire.UpdateRolledBack).Add(cond, args...).
		Add(`GROUP BY s.state, s.step, s.cause ORDER BY n DESC, s.cause LIMIT 100`)
	list, err := sqldb.Collect(ctx, s.cfg.DB, func(rows *sql.Rows) (f Failure, err error) {
		err = rows.Scan(&f.State, &f.Step, &f.Cause, &f.Count)
		return f, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("group failures: %w", err)
	}
	return list, nil
}

// DeviceUpdates is what one device runs, should run and went through.
type DeviceUpdates struct {
	Installed []Installed    `json:"installed"`
	Wanted    []DeviceState  `json:"wanted" doc:"What it is asked for now and how far it is"`
	History   []HistoryEntry `json:"history" doc:"Newest first"`
}

// historyLimit bounds the history that is shown with a device.
const historyLimit = 200

// OfDevice returns a device's updates.
func (s *Service) OfDevice(ctx context.Context, d device.Device) (u DeviceUpdates, err error) {
	if u.Installed, err = installedOn(ctx, s.cfg.DB, d.Num); err != nil {
		return u, err
	}
	if u.Wanted, err = sqldb.Collect(ctx, s.cfg.DB, scanDeviceState, stateListColumns+`s.num = $1 AND s.current = 1 ORDER BY s.name LIMIT $2`, d.Num, maxReleases); err != nil {
		return u, err
	}
	for i := range u.Wanted {
		u.Wanted[i].Device, u.Wanted[i].Name = d.ID, d.DisplayName()
	}
	u.History, err = sqldb.Collect(ctx, s.cfg.DB, func(rows *sql.Rows) (e HistoryEntry, err error) {
		err = rows.Scan(&e.Assignment, &e.Attempt, &e.Release, &e.Version, &e.State, &e.Step, &e.Cause, &e.Output,
			sqldb.ScanMicros(&e.Reached), sqldb.ScanMicros(&e.Received))
		return e, err
	}, `SELECT a.id, h.attempt, h.name, h.version, h.state, h.step, h.cause, h.output, h.reached, h.received
		FROM update_history h JOIN update_assignment a ON a.num = h.assignment
		WHERE h.num = $1 ORDER BY h.received DESC, h.reached DESC, h.assignment DESC LIMIT $2`, d.Num, historyLimit)
	return u, err
}

// Preview tells what an assignment would do, without doing it.
func (s *Service) Preview(ctx context.Context, scope device.Scope, n NewAssignment) (Preview, error) {
	p := Preview{Release: n.Release, Version: n.Version}
	m, sizes, err := s.cfg.Releases.Manifest(ctx, s.cfg.DB, scope.Tenant, n.Release, n.Version)
	if err != nil {
		return p, err
	}
	matching, args := s.cfg.Devices.Matching(device.Scope{Tenant: scope.Tenant}, scope.Selector.And(n.Selector), stages)
	if err := s.previewFit(ctx, &p, sqldb.NewQuery(`WITH matching (num) AS (`).Add(matching, args...), fit{m, sizes}); err != nil {
		return p, err
	}
	b := sqldb.NewQuery(`WITH matching (num) AS (`).Add(matching, args...).Add(`)
		SELECT s.version, COUNT(*) AS n FROM matching m JOIN update_state s ON s.num = m.num AND s.name = ? AND s.current = 1
		GROUP BY s.version ORDER BY n DESC LIMIT 20`, n.Release)
	p.Replaces, err = sqldb.Collect(ctx, s.cfg.DB, func(rows *sql.Rows) (r Replaced, err error) {
		err = rows.Scan(&r.Version, &r.Devices)
		return r, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return p, fmt.Errorf("preview: %w", err)
	}
	return p, nil
}

type fit struct {
	manifest wire.ReleaseManifest
	sizes    map[string]int64
}

// all is what a device of unknown architecture may have to download at most.
func (f fit) all() (bytes int64) {
	for _, n := range f.sizes {
		bytes += n
	}
	return bytes
}

func (s *Service) previewFit(ctx context.Context, p *Preview, b *sqldb.Builder, f fit) error {
	b.Add(`) SELECT COALESCE(u.architecture, ''), COALESCE(u.product, ''), COUNT(*) AS n FROM matching m
		LEFT JOIN update_device u ON u.num = m.num GROUP BY COALESCE(u.architecture, ''), COALESCE(u.product, '') ORDER BY n DESC`)
	groups, err := sqldb.Collect(ctx, s.cfg.DB, func(rows *sql.Rows) (g Misfit, err error) {
		err = rows.Scan(&g.Architecture, &g.Product, &g.Devices)
		return g, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	for _, g := range groups {
		p.Devices += g.Devices
		if g.Architecture == "" {
			p.Unknown += g.Devices
			p.Bytes += g.Devices * f.all()
			continue
		}
		bytes, ok := fitting(f.manifest, f.sizes, g.Architecture, g.Product)
		p.Bytes += g.Devices * bytes
		if !ok {
			g.Reason = misfitReason(f.manifest, g.Architecture, g.Product)
			p.Incompatible += g.Devices
			p.Misfits = append(p.Misfits, g)
		}
	}
	return nil
}

// InUse counts the active assignments of a release, and the devices that are asked for it or run it, up to
// some ten thousand.
func (s *Service) InUse(ctx context.Context, q sqldb.Reader, tenant device.TenantID, name, version string) (assignments, devices int64, err error) {
	if err = q.QueryRowContext(ctx, `SELECT COUNT(*) FROM update_assignment WHERE tenant = $1 AND name = $2 AND version = $3 AND state = $4`,
		tenant, name, version, Active).Scan(&assignments); err != nil {
		return 0, 0, err
	}
	err = q.QueryRowContext(ctx, `SELECT COUNT(*) FROM (
			SELECT num FROM (SELECT s.num AS num FROM update_assignment a JOIN update_state s ON s.assignment = a.num
				WHERE a.tenant = $1 AND a.name = $2 AND a.version = $3 AND s.current = 1 LIMIT $4) asked
			UNION SELECT num FROM (SELECT i.num AS num FROM update_installed i JOIN update_device d ON d.num = i.num
				WHERE d.tenant = $5 AND i.name = $6 AND i.version = $7 LIMIT $8) running) used`,
		tenant, name, version, maxInUse, tenant, name, version, maxInUse).Scan(&devices)
	return assignments, devices, err
}

// maxInUse is how many of the devices that are asked for a release, and of those that run it, are counted:
// that many are reason enough to keep it.
const maxInUse = 10_000

// ReleaseStates counts the scope's devices that are asked for a release now by how far they are.
func (s *Service) ReleaseStates(ctx context.Context, scope device.Scope, name, version string) (map[string]int64, error) {
	b := sqldb.NewQuery(`SELECT t.state, SUM(t.n) FROM update_assignment a JOIN update_tally t ON t.assignment = a.num
		WHERE a.tenant = ? AND a.name = ? AND a.version = ? AND t.current = 1 GROUP BY t.state`, scope.Tenant, name, version)
	if !scope.Selector.Empty() {
		cond, args := s.within(scope)
		b = sqldb.NewQuery(`SELECT s.state, COUNT(*) FROM update_assignment a JOIN update_state s ON s.assignment = a.num
			WHERE a.tenant = ? AND a.name = ? AND a.version = ? AND s.current = 1 AND`, scope.Tenant, name, version).
			Add(cond, args...).Add(`GROUP BY s.state`)
	}
	counts, err := countStates(ctx, s.cfg.DB, b)
	out := map[string]int64{}
	for state, n := range counts {
		out[string(state)] = n
	}
	return out, err
}

// Notices tells of rollbacks, failures and devices that rest in the middle of an update.
func (s *Service) Notices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	var out []ui.Notice
	list, _, err := s.Assignments(ctx, scope, Filter{State: Active, Limit: 200})
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if n := a.Counts[wire.UpdateRolledBack]; n > 0 {
			out = append(out, ui.Notice{Level: ui.Bad, Count: n, Title: fmt.Sprintf("%s rolled back from %s %s", ui.Plural(n, "device", "devices"), a.Release, a.Version),
				Detail: "They run again what ran before. Look at the causes, then cancel the assignment or try again.", Href: "/updates/" + a.ID})
		}
		if n := a.Counts[wire.UpdateFailed]; n > 0 {
			out = append(out, ui.Notice{Level: ui.Bad, Count: n, Title: fmt.Sprintf("%s could not install %s %s", ui.Plural(n, "device", "devices"), a.Release, a.Version),
				Detail: "Nothing was changed on them. Look at the causes, then try again.", Href: "/updates/" + a.ID})
		}
	}
	cond, args := s.within(scope)
	b := sqldb.NewQuery(`SELECT COUNT(*) FROM update_state s JOIN update_assignment a ON a.num = s.assignment
		WHERE s.current = 1 AND s.state IN ('downloading', 'downloaded', 'installed', 'healthy') AND s.changed < ? AND a.tenant = ? AND`,
		sqldb.Micros(s.now().Add(-s.cfg.StuckAfter)), scope.Tenant).Add(cond, args...)
	var stuck int64
	if err := s.cfg.DB.QueryRowContext(ctx, b.SQL(), b.Args()...).Scan(&stuck); err != nil {
		return nil, fmt.Errorf("count stuck updates: %w", err)
	}
	if stuck > 0 {
		out = append(out, ui.Notice{Level: ui.Warn, Count: stuck, Title: ui.Plural(stuck, "device rests", "devices rest") + " in the middle of an update",
			Detail: fmt.Sprintf("They have not come further for %s. They may be offline or out of reach.", s.cfg.StuckAfter), Href: "/updates/devices?busy=1"})
	}
	return out, nil
}

// checkDevice reads a device within the scope.
func (s *Service) checkDevice(ctx context.Context, scope device.Scope, id string) (device.Device, error) {
	parsed, err := device.ParseID(id)
	if err != nil {
		return device.Device{}, fault.Bad("path.id", "%v", err)
	}
	d, err := s.cfg.Devices.ByID(ctx, s.cfg.DB, scope.Tenant, parsed)
	if err == nil && !scope.Allows(d) {
		return device.Device{}, fault.New(fault.NotFound, "there is no device %s", id)
	}
	return d, err
}
