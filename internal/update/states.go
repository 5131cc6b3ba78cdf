package update

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// DeviceFilter of DeviceStates. Without an assignment it lists what devices are asked for now.
type DeviceFilter struct {
	Assignment string
	Release    string
	Version    string
	State      State
	Cause      string // only those that failed for it
	Busy       bool   // only those that rest in the middle of an update for too long
	Limit      int    // 0 means 50
	Cursor     string
}

// stretch is all devices in one state of one assignment: an index has them in the order of their numbers.
type stretch struct {
	Assignment int64 `json:"a"`
	State      State `json:"s"`
}

type devicePosition struct {
	stretch
	Num int64 `json:"n"`
}

// DeviceStates lists the devices behind a number, by assignment, state and the order in which they were
// created. Kept counters tell which stretches have devices, so that no page looks at any that it does
// not show but for a cause or the part of the fleet that the caller sees.
func (s *Service) DeviceStates(ctx context.Context, scope device.Scope, f DeviceFilter) ([]DeviceState, string, error) {
	if f.Limit <= 0 {
		f.Limit = 50
	}
	var pos devicePosition
	if err := httpapi.DecodeCursor(f.Cursor, &pos); err != nil {
		return nil, "", err
	}
	stretches, err := s.stretches(ctx, scope.Tenant, f)
	if err != nil {
		return nil, "", err
	}
	var list []DeviceState
	var last []devicePosition
	for _, st := range stretches {
		after := int64(0)
		switch order := compareStretches(st, pos.stretch); {
		case order < 0:
			continue // shown on a page before
		case order == 0:
			after = pos.Num
		}
		some, err := s.statesIn(ctx, scope, f, devicePosition{st, after}, f.Limit+1-len(list))
		if err != nil {
			return nil, "", err
		}
		for _, d := range some {
			list, last = append(list, d), append(last, devicePosition{st, d.num})
		}
		if len(list) > f.Limit {
			list, err = s.named(ctx, list[:f.Limit])
			return list, httpapi.EncodeCursor(last[f.Limit-1]), err
		}
	}
	list, err = s.named(ctx, list)
	return list, "", err
}

func compareStretches(a, b stretch) int {
	if a.Assignment != b.Assignment {
		return int(a.Assignment - b.Assignment)
	}
	return strings.Compare(string(a.State), string(b.State))
}

// stretches lists those that have devices which the filter may pick, in their order.
func (s *Service) stretches(ctx context.Context, tenant device.TenantID, f DeviceFilter) ([]stretch, error) {
	b := sqldb.NewQuery(`SELECT t.assignment, t.state FROM update_assignment a JOIN update_tally t ON t.assignment = a.num WHERE a.tenant = ?`, tenant)
	if f.Assignment == "" {
		b.Add(`AND t.current = 1`)
	}
	for _, c := range []struct{ column, value string }{{"a.id", f.Assignment}, {"a.name", f.Release}, {"a.version", f.Version}, {"t.state", string(f.State)}} {
		if c.value != "" {
			b.Add(`AND `+c.column+` = ?`, c.value)
		}
	}
	list, err := sqldb.Collect(ctx, s.cfg.DB, func(rows *sql.Rows) (st stretch, err error) {
		err = rows.Scan(&st.Assignment, &st.State)
		return st, err
	}, b.SQL()+` GROUP BY t.assignment, t.state HAVING SUM(t.n) > 0`, b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	list = slices.DeleteFunc(list, func(st stretch) bool {
		return f.Cause != "" && !failed(st.State) || f.Busy && (!Open(st.State) || st.State == wire.UpdatePending)
	})
	slices.SortFunc(list, compareStretches)
	return list, nil
}

const stateListColumns = `SELECT s.num, a.id, s.name, s.version, s.attempt, s.current, s.state, s.step, s.cause, s.changed
	FROM update_state s JOIN update_assignment a ON a.num = s.assignment WHERE `

func scanDeviceState(rows *sql.Rows) (d DeviceState, err error) {
	err = rows.Scan(&d.num, &d.Assignment, &d.Release, &d.Version, &d.Attempt, &d.Current, &d.State, &d.Step, &d.Cause, sqldb.ScanMicros(&d.Changed))
	return d, err
}

// statesIn reads the devices of one stretch behind a number.
func (s *Service) statesIn(ctx context.Context, scope device.Scope, f DeviceFilter, from devicePosition, limit int) ([]DeviceState, error) {
	b := sqldb.NewQuery(stateListColumns+`s.assignment = ? AND s.state = ? AND s.num > ?`, from.Assignment, from.State, from.Num)
	if f.Assignment == "" {
		b.Add(`AND s.current = 1`)
	}
	if f.Cause != "" {
		b.Add(`AND s.cause = ?`, f.Cause)
	}
	if f.Busy {
		b.Add(`AND s.changed < ?`, sqldb.Micros(s.now().Add(-s.cfg.StuckAfter)))
	}
	cond, args := s.within(scope)
	b.Add(`AND `+cond, args...).Add(`ORDER BY s.num LIMIT ?`, limit)
	list, err := sqldb.Collect(ctx, s.cfg.DB, scanDeviceState, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return list, nil
}

// named fills in what people call the devices.
func (s *Service) named(ctx context.Context, list []DeviceState) ([]DeviceState, error) {
	nums := make([]int64, len(list))
	for i, d := range list {
		nums[i] = d.num
	}
	devices, err := s.cfg.Devices.ByNums(ctx, s.cfg.DB, nums)
	if err != nil {
		return nil, fmt.Errorf("name devices: %w", err)
	}
	byNum := make(map[int64]device.Device, len(devices))
	for _, d := range devices {
		byNum[d.Num] = d
	}
	for i := range list {
		d := byNum[list[i].num]
		list[i].Device, list[i].Name = d.ID, d.DisplayName()
	}
	return list, nil
}
