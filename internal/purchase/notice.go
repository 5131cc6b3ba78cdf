package purchase

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

// How long before their end people are told.
const (
	supportNotice  = 180 * 24 * time.Hour
	warrantyNotice = 60 * 24 * time.Hour
)

// inService are the stages in which a model's support or a warranty matters.
var inService = []device.Stage{device.Enrolled, device.Active, device.Quarantined, device.InTransfer}

// underWarranty are the stages in which a defect can still be claimed.
var underWarranty = []device.Stage{device.Received, device.Staged, device.Enrolled, device.Active, device.Quarantined, device.InTransfer}

// Notices tells what purchasing needs somebody for.
func (s *Service) Notices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	var list []ui.Notice
	if scope.Selector.Empty() { // orders belong to the whole tenant
		orders, err := s.orderNotices(ctx, scope.Tenant)
		if err != nil {
			return nil, err
		}
		list = orders
	}
	support, err := s.supportNotices(ctx, scope)
	if err != nil {
		return nil, err
	}
	warranty, err := s.warrantyNotice(ctx, scope)
	if err != nil {
		return nil, err
	}
	return append(append(list, support...), warranty...), nil
}

func (s *Service) orderNotices(ctx context.Context, tenant device.TenantID) ([]ui.Notice, error) {
	var list []ui.Notice
	overdue, err := count(ctx, s.cfg.DB, sqldb.NewQuery("SELECT COUNT(*) FROM purchase_order WHERE tenant = ? AND state IN (?, ?) AND due <> '' AND due < ?",
		tenant, string(Placed), string(PartlyReceived), string(DateOf(s.cfg.Now()))))
	if err != nil {
		return nil, fmt.Errorf("count overdue orders: %w", err)
	}
	if overdue > 0 {
		list = append(list, ui.Notice{
			Level: ui.Warn, Count: overdue, Href: "/orders?overdue=1",
			Title:  numbered(overdue, "order is overdue", "orders are overdue"),
			Detail: "Units are open after the agreed day: ask the supplier, or cancel what will not come.",
		})
	}
	undecided, err := countUndecided(ctx, s.cfg.DB, tenant, "")
	if err != nil {
		return nil, fmt.Errorf("count discrepancies: %w", err)
	}
	if undecided > 0 {
		list = append(list, ui.Notice{
			Level: ui.Warn, Count: undecided, Href: "/orders?undecided=1",
			Title:  numbered(undecided, "delivered unit waits for a decision", "delivered units wait for a decision"),
			Detail: "They do not fit their order: accept, return or reject each.",
		})
	}
	return list, nil
}

// supportNotices names each model in service whose maker's support has ended or ends soon.
func (s *Service) supportNotices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	now := s.cfg.Now()
	units, args := s.unitsIn(scope, inService, "")
	b := sqldb.NewQuery("SELECT m.id, m.maker, m.name, m.support_end, CAST(SUM(s.units) AS BIGINT) FROM purchase_model m JOIN ("+units, args...).
		Add(") s ON s.model = m.id WHERE m.tenant = ? AND m.support_end <> '' AND m.support_end <= ?", scope.Tenant, string(DateOf(now.Add(supportNotice)))).
		Add("GROUP BY m.id, m.maker, m.name, m.support_end HAVING SUM(s.units) > 0 ORDER BY m.support_end, m.id")
	list, err := rowsOf(ctx, s.cfg.DB, b, func(rows *sql.Rows) (n ui.Notice, err error) {
		var id, maker, name string
		var end Date
		if err = rows.Scan(&id, &maker, &name, &end, &n.Count); err != nil {
			return n, err
		}
		n.Level, n.Href = ui.Warn, "/models#"+id
		n.Title = fmt.Sprintf("Support of %s %s ends on %s", maker, name, end)
		if end < DateOf(now) {
			n.Level, n.Title = ui.Bad, fmt.Sprintf("Support of %s %s ended on %s", maker, name, end)
		}
		n.Detail = numbered(n.Count, "device in service is", "devices in service are") + " of this model: plan their replacement."
		return n, nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for models without support: %w", err)
	}
	return list, nil
}

// unitsIn is a SELECT of model and units of what is in the stages: kept counts for a whole tenant, the
// devices themselves for a part of it. The condition is on warranty_end.
func (s *Service) unitsIn(scope device.Scope, stages []device.Stage, cond string, condArgs ...any) (query string, args []any) {
	if scope.Selector.Empty() {
		return keptStock(scope.Tenant, stages, cond, condArgs...)
	}
	nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, stages)
	return "SELECT model, 1 AS units FROM purchase_unit WHERE tenant = ? AND state = ? AND num IN (" + nums + ") " + cond,
		slices.Concat([]any{string(scope.Tenant), string(unitReceived)}, args, condArgs)
}

func (s *Service) warrantyNotice(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	cond, condArgs := s.warrantyEnding()
	units, args := s.unitsIn(scope, underWarranty, cond, condArgs...)
	n, err := count(ctx, s.cfg.DB, sqldb.NewQuery("SELECT CAST(COALESCE(SUM(w.units), 0) AS BIGINT) FROM ("+units+") w", args...))
	if err != nil {
		return nil, fmt.Errorf("count ending warranties: %w", err)
	}
	if n == 0 {
		return nil, nil
	}
	return []ui.Notice{{
		Level: ui.Info, Count: n, Href: "/stock#warranty",
		Title:  fmt.Sprintf("Warranty of %s ends within %d days", numbered(n, "device", "devices"), int(warrantyNotice.Hours()/24)),
		Detail: "Claim known defects before it does.",
	}}, nil
}

func numbered(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", n, many))
}
