package update

import (
	"context"
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
	b := sqldb.NewQuery(`SELECT `+assignmentColumns+` FROM update_assignment WHERE tenant = ?`, scope.Tenant)
	if f.Release != "" {
		b.Add(`AND name = ?`, f.Release)
	}
	if f.State != "" {
		b.Add(`AND state = ?`, f.State)
	}
	if pos.Num > 0 {
		b.Add(`AND num < ?`, pos.Num)
	}
	list, err := queryAssignments(ctx, s.cfg.DB, b.Add(`ORDER BY num DESC LIMIT ?`, f.Limit+1))
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
	b := sqldb.NewQuery(`SELECT state, SUM(n) FROM update_count WHERE assignment = ? GROUP BY state`, a.num)
	if !scope.Selector.Empty() {
		cond, args := s.within(scope)
		b = sqldb.NewQuery(`SELECT s.state, COUNT(*) FROM update_state s WHERE s.assignment = ? AND`, a.num).Add(cond, args...).Add(`GROUP BY s.state`)
	}
	return countStates(ctx, s.cfg.DB, b)
}

func countStates(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) (map[State]int64, error) {
	rows, err := q.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("count states: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := map[State]int64{}
	for rows.Next() {
		var state State
		var n int64
		if err := rows.Scan(&state, &n); err != nil {
			return nil, err
		}
		if n > 0 {
			out[state] = n
		}
	}
	return out, rows.Err()
}

// Failures groups an assignment's failures by their first cause, the most frequent first.
func (s *Service) Failures(ctx context.Context, scope device.Scope, a Assignment) ([]Failure, error) {
	cond, args := s.within(scope)
	b := sqldb.NewQuery(`SELECT s.state, s.step, s.cause, COUNT(*) AS n FROM update_state s WHERE s.assignment = ? AND s.state IN (?, ?) AND`,
		a.num, wire.UpdateFailed, wire.UpdateRolledBack).Add(cond, args...).
		Add(`GROUP BY s.state, s.step, s.cause ORDER BY n DESC, s.cause LIMIT 100`)
	rows, err := s.cfg.DB.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("group failures: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []Failure
	for rows.Next() {
		var f Failure
		if err := rows.Scan(&f.State, &f.Step, &f.Cause, &f.Count); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, rows.Err()
}

// DeviceFilter of DeviceStates. Without an assignment it lists what devices are asked for now.
type DeviceFilter struct {
	Assignment string
	Release    string
	Version    string
	State      State
	Cause      string
	Busy       bool // only those that rest in the middle of an update for too long
	Limit      int  // 0 means 50
	Cursor     string
}

type devicePosition struct {
	Num        int64 `json:"n"`
	Assignment int64 `json:"a"`
}

// DeviceStates lists the devices behind a number.
func (s *Service) DeviceStates(ctx context.Context, scope device.Scope, f DeviceFilter) ([]DeviceState, string, error) {
	if f.Limit <= 0 {
		f.Limit = 50
	}
	var pos devicePosition
	if err := httpapi.DecodeCursor(f.Cursor, &pos); err != nil {
		return nil, "", err
	}
	cond, args := s.within(scope)
	b := sqldb.NewQuery(`SELECT s.num, s.assignment, a.id, s.name, s.version, s.attempt, s.current, s.state, s.step, s.cause, s.changed
		FROM update_state s JOIN update_assignment a ON a.num = s.assignment WHERE a.tenant = ? AND`, scope.Tenant).Add(cond, args...)
	if f.Assignment != "" {
		b.Add(`AND a.id = ?`, f.Assignment)
	} else {
		b.Add(`AND s.current = 1`)
	}
	if f.Busy {
		b.Add(`AND s.state IN ('downloading', 'downloaded', 'installed', 'healthy') AND s.changed < ?`, sqldb.Micros(s.now().Add(-s.cfg.StuckAfter)))
	}
	for _, c := range []struct{ column, value string }{{"s.name", f.Release}, {"s.version", f.Version}, {"s.state", string(f.State)}, {"s.cause", f.Cause}} {
		if c.value != "" {
			b.Add(`AND `+c.column+` = ?`, c.value)
		}
	}
	b.Add(`AND (s.num, s.assignment) > (?, ?) ORDER BY s.num, s.assignment LIMIT ?`, pos.Num, pos.Assignment, f.Limit+1)
	return s.deviceStates(ctx, b, f.Limit)
}

func (s *Service) deviceStates(ctx context.Context, b *sqldb.Builder, limit int) ([]DeviceState, string, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, "", fmt.Errorf("list devices: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var list []DeviceState
	var last []devicePosition
	for rows.Next() {
		var d DeviceState
		var assignment int64
		if err := rows.Scan(&d.num, &assignment, &d.Assignment, &d.Release, &d.Version, &d.Attempt, &d.Current, &d.State, &d.Step, &d.Cause,
			sqldb.ScanMicros(&d.Changed)); err != nil {
			return nil, "", err
		}
		list, last = append(list, d), append(last, devicePosition{d.num, assignment})
	}
	if err := rows.Err(); err != nil {
		return nil, "", err
	}
	next := ""
	if len(list) > limit {
		list, next = list[:limit], httpapi.EncodeCursor(last[limit-1])
	}
	for i := range list {
		d, err := s.cfg.Devices.ByNum(ctx, s.cfg.DB, list[i].num)
		if err != nil {
			return nil, "", fmt.Errorf("name device: %w", err)
		}
		list[i].Device, list[i].Name = d.ID, d.DisplayName()
	}
	return list, next, nil
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
	b := sqldb.NewQuery(`SELECT s.num, s.assignment, a.id, s.name, s.version, s.attempt, s.current, s.state, s.step, s.cause, s.changed
		FROM update_state s JOIN update_assignment a ON a.num = s.assignment WHERE s.num = ? AND s.current = 1 ORDER BY s.name`, d.Num)
	if u.Wanted, _, err = s.deviceStates(ctx, b, maxReleases); err != nil {
		return u, err
	}
	rows, err := s.cfg.DB.QueryContext(ctx, `SELECT a.id, h.attempt, h.name, h.version, h.state, h.step, h.cause, h.output, h.reached, h.received
		FROM update_history h JOIN update_assignment a ON a.num = h.assignment
		WHERE h.num = $1 ORDER BY h.received DESC, h.reached DESC, h.assignment DESC LIMIT $2`, d.Num, historyLimit)
	if err != nil {
		return u, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var e HistoryEntry
		if err := rows.Scan(&e.Assignment, &e.Attempt, &e.Release, &e.Version, &e.State, &e.Step, &e.Cause, &e.Output,
			sqldb.ScanMicros(&e.Reached), sqldb.ScanMicros(&e.Received)); err != nil {
			return u, err
		}
		u.History = append(u.History, e)
	}
	return u, rows.Err()
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
	rows, err := s.cfg.DB.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return p, fmt.Errorf("preview: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var r Replaced
		if err := rows.Scan(&r.Version, &r.Devices); err != nil {
			return p, err
		}
		p.Replaces = append(p.Replaces, r)
	}
	return p, rows.Err()
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
	rows, err := s.cfg.DB.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var g Misfit
		if err := rows.Scan(&g.Architecture, &g.Product, &g.Devices); err != nil {
			return err
		}
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
	return rows.Err()
}

// InUse counts the active assignments of a release, and the devices that are asked for it or run it.
func (s *Service) InUse(ctx context.Context, q sqldb.Reader, tenant device.TenantID, name, version string) (assignments, devices int64, err error) {
	if err = q.QueryRowContext(ctx, `SELECT COUNT(*) FROM update_assignment WHERE tenant = $1 AND name = $2 AND version = $3 AND state = $4`,
		tenant, name, version, Active).Scan(&assignments); err != nil {
		return 0, 0, err
	}
	err = q.QueryRowContext(ctx, `SELECT COUNT(*) FROM (
			SELECT s.num FROM update_state s JOIN update_assignment a ON a.num = s.assignment
				WHERE a.tenant = $1 AND a.name = $2 AND a.version = $3 AND s.current = 1
			UNION SELECT i.num FROM update_installed i JOIN update_device d ON d.num = i.num
				WHERE d.tenant = $4 AND i.name = $5 AND i.version = $6) used`,
		tenant, name, version, tenant, name, version).Scan(&devices)
	return assignments, devices, err
}

// ReleaseStates counts the scope's devices that are asked for a release now by how far they are.
func (s *Service) ReleaseStates(ctx context.Context, scope device.Scope, name, version string) (map[string]int64, error) {
	cond, args := s.within(scope)
	b := sqldb.NewQuery(`SELECT s.state, COUNT(*) FROM update_assignment a JOIN update_state s ON s.assignment = a.num
		WHERE a.tenant = ? AND a.name = ? AND a.version = ? AND s.current = 1 AND`, scope.Tenant, name, version).
		Add(cond, args...).Add(`GROUP BY s.state`)
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
