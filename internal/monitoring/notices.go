package monitoring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/monitoring/series"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

func asInvalid(err error, to **fault.Invalid) bool { return errors.As(err, to) }

// Attention is a device that needs somebody, and why.
type Attention struct {
	Device device.Device
	Detail string
	Since  time.Time // last sign; zero when it is now
}

// diskFull is the part of a file system from which on it is nearly full.
const diskFull = 0.9

var nearlyFullExpr = fmt.Sprintf("topk(%d, max by (device) (last_over_time(%s[15m]) / last_over_time(%s[15m])) >= %g)", maxAttention, diskUsed, diskAll, diskFull)

// maxAttention bounds what is looked at for a list or a notice.
const maxAttention = 500

// NearlyFull lists devices of the scope with a file system that is nearly full.
func (s *Service) NearlyFull(ctx context.Context, scope device.Scope) ([]Attention, error) {
	// It reads every device's disks, so it is asked once a minute for the tenant and narrowed here.
	lines, err := s.full.get(ctx, scope.Tenant, s.now, func() ([]series.Line, error) {
		return s.series.Instant(ctx, series.Scope{Tenant: string(scope.Tenant)}, nearlyFullExpr, s.now())
	})
	if err != nil {
		return nil, fmt.Errorf("nearly full disks: %w", err)
	}
	lines = slices.Clone(lines)
	slices.SortFunc(lines, func(a, b series.Line) int {
		if a.Points[0].Value > b.Points[0].Value {
			return -1
		}
		return 1
	})
	var out []Attention
	for _, l := range lines {
		id := device.ID(l.Labels[series.LabelDevice])
		detail := fmt.Sprintf("%.0f %% of a file system is in use", 100*l.Points[0].Value)
		if out, err = s.attend(ctx, scope, out, Attention{Device: device.Device{ID: id}, Detail: detail}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// attend appends the device when it exists and is in the scope.
func (s *Service) attend(ctx context.Context, scope device.Scope, list []Attention, a Attention) ([]Attention, error) {
	d, err := s.cfg.Devices.ByID(ctx, s.cfg.DB, scope.Tenant, a.Device.ID)
	if missing(err) || err == nil && !scope.Allows(d) {
		return list, nil
	}
	a.Device = d
	return append(list, a), err
}

// InTrouble lists devices of the scope that had the trouble in the last hour, the newest first.
func (s *Service) InTrouble(ctx context.Context, scope device.Scope, kind string) ([]Attention, error) {
	nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, nil)
	q := sqldb.NewQuery("SELECT t.num, t.detail, t.last FROM monitoring_trouble t WHERE t.tenant = ? AND t.kind = ? AND t.last > ?",
		string(scope.Tenant), kind, sqldb.Micros(s.now().Add(-troubleFresh)))
	if !scope.Selector.Empty() {
		q.Add("AND t.num IN (").Add(nums, args...).Add(")")
	}
	q.Add("ORDER BY t.last DESC LIMIT ?", maxAttention)
	rows, err := s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...)
	if err != nil {
		return nil, fmt.Errorf("devices in trouble: %w", err)
	}
	defer rows.Close()
	var out []Attention
	var ids []int64
	for rows.Next() {
		var a Attention
		var num int64
		if err := rows.Scan(&num, &a.Detail, sqldb.ScanMicros(&a.Since)); err != nil {
			return nil, fmt.Errorf("devices in trouble: %w", err)
		}
		out, ids = append(out, a), append(ids, num)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, fmt.Errorf("devices in trouble: %w", err)
	}
	kept := out[:0]
	for i, num := range ids {
		d, err := s.cfg.Devices.ByNum(ctx, s.cfg.DB, num)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[i].Device = d
		kept = append(kept, out[i])
	}
	return kept, nil
}

// Notices says on the home page which devices need somebody.
func (s *Service) Notices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	var notices []ui.Notice
	counts, err := s.Counts(ctx, scope)
	if err != nil {
		return nil, err
	}
	if n := counts[Offline]; n > 0 {
		notices = append(notices, ui.Notice{
			Level: ui.Bad, Count: n, Href: "/devices?presence=offline", Title: plural(n, "device is offline", "devices are offline"),
			Detail: "Silent for more than five of their reporting intervals. Look at power and network first; the last events say what happened before.",
		})
	}
	n, err := s.TroubledDevices(ctx, scope, s.now().Add(-day))
	if err != nil {
		return nil, err
	}
	if n > 0 {
		notices = append(notices, ui.Notice{
			Level: ui.Warn, Count: n, Href: "/monitoring/events?severity=error", Title: plural(n, "device has told of errors", "devices have told of errors"),
			Detail: "In the last 24 hours, by their own events.",
		})
	}
	full, err := s.NearlyFull(ctx, scope)
	if errors.Is(err, fault.Unavailable) && s.cfg.Outside != nil { // the other notices don't need it
		notices = append(notices, ui.Notice{
			Level: ui.Warn, Title: "The metrics store does not answer", Href: "/groups",
			Detail: "Charts are empty, and devices keep what they measure until it is back.",
		})
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if n := int64(len(full)); n > 0 {
		notices = append(notices, ui.Notice{
			Level: ui.Warn, Count: n, Href: "/monitoring/disk", Title: plural(n, "device has a disk that is nearly full", "devices have a disk that is nearly full"),
			Detail: "An update needs room for a second version. Free some space, or replace the device.",
		})
	}
	wrong, err := s.InTrouble(ctx, scope, TroubleClock)
	if err != nil {
		return nil, err
	}
	if n := int64(len(wrong)); n > 0 {
		notices = append(notices, ui.Notice{
			Level: ui.Warn, Count: n, Href: "/monitoring/clock", Title: plural(n, "device has a wrong clock", "devices have a wrong clock"),
			Detail: "Their samples are refused, and certificates may look expired to them. Check NTP on the device.",
		})
	}
	return notices, nil
}

// day is how far back events make a notice.
const day = 24 * time.Hour

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatInt(n, 10) + " " + many
}
