package monitoring

import (
	"context"
	"fmt"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// Counting how a group is doing must not read the group: of a million devices nearly all are online. So
// large groups are counted from the other side: how many there are is kept by the registry, and the few that
// are late, offline or were never in contact are found by indexes that hold little else.

const (
	// countDirectly is up to how many devices are simply counted.
	countDirectly = 5000
	// costly is from how many looked-at devices on an answer is kept for a minute.
	costly = 20_000
)

// Counts returns how many devices of the scope are in each state; devices that were never in contact
// are not known here and so not counted. Without a selector it reads kept counts.
func (s *Service) Counts(ctx context.Context, scope device.Scope) (map[State]int64, error) {
	if !scope.Selector.Empty() {
		return s.presenceOf(ctx, scope, device.Selector{})
	}
	return s.keptCounts(ctx, scope.Tenant)
}

func (s *Service) keptCounts(ctx context.Context, tenant device.TenantID) (map[State]int64, error) {
	return readCounts(s.cfg.DB.QueryContext(ctx, "SELECT state, n FROM monitoring_count WHERE tenant = $1", string(tenant)))
}

// presenceOf counts the devices in service that match, those never in contact included.
func (s *Service) presenceOf(ctx context.Context, scope device.Scope, sel device.Selector) (map[State]int64, error) {
	narrow := device.Scope{Tenant: scope.Tenant, Selector: scope.Selector.And(sel)}
	if _, _, sole := narrow.Selector.Sole(); !sole && !narrow.Selector.Empty() {
		// The registry keeps no counts of these; it would look at the devices of the rarest label as well.
		return s.counted.getIf(ctx, countedKey{scope.Tenant, narrow.Selector.String()}, s.now, isCostly,
			func() (map[State]int64, error) { return s.countsOf(ctx, narrow) })
	}
	stages, err := s.cfg.Devices.Counts(ctx, s.cfg.DB, narrow)
	if err != nil {
		return nil, fmt.Errorf("count presence: %w", err)
	}
	var total int64
	for _, stage := range inService {
		total += stages[stage]
	}
	if total <= countDirectly {
		return s.countsOf(ctx, narrow)
	}
	kept, err := s.keptCounts(ctx, scope.Tenant)
	if err != nil {
		return nil, err
	}
	count := func() (map[State]int64, error) { return s.countFew(ctx, narrow, total) }
	few := kept[Late] + kept[Offline]
	if few > total {
		count = func() (map[State]int64, error) { return s.countsOf(ctx, narrow) }
	}
	if min(few, total) < costly || narrow.Selector.Empty() {
		return count()
	}
	return s.counted.get(ctx, countedKey{scope.Tenant, narrow.Selector.String()}, s.now, count)
}

func isCostly(counts map[State]int64) bool {
	return counts[Never]+counts[Online]+counts[Late]+counts[Offline] >= costly
}

// countedKey names a group whose counts are kept for a minute.
type countedKey struct {
	tenant   device.TenantID
	selector string
}

// countsOf looks at each device that matches.
func (s *Service) countsOf(ctx context.Context, scope device.Scope) (map[State]int64, error) {
	nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, inService)
	q := sqldb.NewQuery("SELECT COALESCE(ms.state, 0), COUNT(*) FROM (").Add(nums, args...).
		Add(") m LEFT JOIN monitoring_seen ms ON ms.num = m.num GROUP BY COALESCE(ms.state, 0)")
	return readCounts(s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...))
}

// countFew looks at the late and the offline ones, and at those in the stages around the active one that
// have no row yet; the rest of total is online. An active device has been in contact: that made it active.
func (s *Service) countFew(ctx context.Context, scope device.Scope, total int64) (map[State]int64, error) {
	counts, err := s.silent(ctx, scope)
	if err != nil {
		return nil, err
	}
	cond, args := scope.Selector.Where(labelTable, "m.num")
	nums, numArgs := s.cfg.Devices.Matching(device.Scope{Tenant: scope.Tenant}, device.Selector{}, notActive)
	q := sqldb.NewQuery("SELECT COUNT(*) FROM (").Add(nums, numArgs...).
		Add(") m WHERE NOT EXISTS (SELECT 1 FROM monitoring_seen ms WHERE ms.num = m.num) AND "+cond, args...)
	var never int64
	if err := s.cfg.DB.QueryRowContext(ctx, q.SQL(), q.Args()...).Scan(&never); err != nil {
		return nil, fmt.Errorf("count presence: %w", err)
	}
	counts[Never] = never
	counts[Online] = max(0, total-never-counts[Late]-counts[Offline])
	return counts, nil
}

// silent counts the devices that are late and offline. State > 1 is written as the partial index has it.
func (s *Service) silent(ctx context.Context, scope device.Scope) (map[State]int64, error) {
	if scope.Selector.Empty() {
		kept, err := s.keptCounts(ctx, scope.Tenant)
		return map[State]int64{Late: kept[Late], Offline: kept[Offline]}, err
	}
	cond, args := scope.Selector.Where(labelTable, "ms.num")
	q := sqldb.NewQuery("SELECT ms.state, COUNT(*) FROM monitoring_seen ms WHERE ms.tenant = ? AND ms.state > 1", string(scope.Tenant)).
		Add("AND "+cond+" GROUP BY ms.state", args...)
	return readCounts(s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...))
}

// labelTable is the registry's, for conditions on labels; only the registry writes it.
const labelTable = "registry_label"

// notActive are the stages in service but the one in which nearly all devices are.
var notActive = []device.Stage{device.Enrolled, device.Quarantined, device.InTransfer, device.Retired}
