package registry

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// Matching returns a SELECT of the numbers of all devices in the scope that match the selector and are
// in one of the stages (none means any), with "?" placeholders for a sqldb.Builder. It begins with a
// label where the selectors have one, so that its cost goes with the devices that match and not with
// the fleet.
func (s *Service) Matching(scope device.Scope, sel device.Selector, stages []device.Stage) (query string, args []any) {
	sel = scope.Selector.And(sel)
	if a, ok := bestAnchor(sel); ok {
		return matchingFrom(&a, scope.Tenant, sel, stages)
	}
	return matchingFrom(nil, scope.Tenant, sel, stages)
}

// matchingFrom is the query of Matching that begins with the devices of an anchor, or with all when
// there is none.
func matchingFrom(a *device.Anchor, tenant device.TenantID, sel device.Selector, stages []device.Stage) (query string, args []any) {
	var from, conds []string
	if a != nil {
		from = append(from, "registry_label a")
		cond, anchorArgs := anchorCondition(tenant, *a)
		conds, args = append(conds, cond, "d.num = a.num"), append(args, anchorArgs...)
		sel = sel.Without(*a, false)
	}
	from = append(from, "registry_device d")
	conds, args = append(conds, "d.tenant = ?"), append(args, tenant)
	if len(stages) > 0 {
		conds = append(conds, "d.stage IN ("+marks(len(stages))+")")
		for _, st := range stages {
			args = append(args, st)
		}
	}
	cond, selArgs := sel.Where("registry_label", "d.num")
	conds, args = append(conds, cond), append(args, selArgs...)
	// CROSS JOIN keeps SQLite to the written order; PostgreSQL has its statistics and decides by itself.
	return "SELECT d.num AS num FROM " + strings.Join(from, " CROSS JOIN ") + " WHERE " + strings.Join(conds, " AND "), args
}

// bestAnchor picks, without looking at the data, the requirement that most likely has the fewest
// devices: a single value before several values before any value.
func bestAnchor(sel device.Selector) (best device.Anchor, ok bool) {
	rank := func(a device.Anchor) int {
		if len(a.Values) == 0 {
			return 1 << 20
		}
		return len(a.Values)
	}
	for _, a := range sel.Anchors() {
		if !ok || rank(a) < rank(best) {
			best, ok = a, true
		}
	}
	return best, ok
}

// anchorCondition is the condition on registry_label a that an anchor stands for.
func anchorCondition(tenant device.TenantID, a device.Anchor) (string, []any) {
	cond, args := "a.tenant = ? AND a.key = ?", []any{tenant, a.Key}
	switch len(a.Values) {
	case 0:
		return cond, args
	case 1:
		return cond + " AND a.value = ?", append(args, a.Values[0])
	}
	for _, v := range a.Values {
		args = append(args, v)
	}
	return cond + " AND a.value IN (" + marks(len(a.Values)) + ")", args
}

// marks returns n placeholders.
func marks(n int) string { return "?" + strings.Repeat(", ?", n-1) }

// Counts returns how many devices of the scope are in each stage; stages without devices are left out.
// For a whole tenant, and for a selector of one requirement, these are kept counts; with more
// requirements the devices that the rarest of them picks are looked at.
func (s *Service) Counts(ctx context.Context, q sqldb.Reader, scope device.Scope) (map[device.Stage]int64, error) {
	sel := scope.Selector
	if a, excluded, sole := sel.Sole(); sel.Empty() || sole && !excluded {
		return keptStages(ctx, q, scope.Tenant, a)
	} else if sole {
		all, err := keptStages(ctx, q, scope.Tenant, device.Anchor{})
		if err != nil {
			return nil, err
		}
		without, err := keptStages(ctx, q, scope.Tenant, a)
		for stage, n := range without {
			// Read one after the other, so a device may be in one of them only.
			if all[stage] -= n; all[stage] <= 0 {
				delete(all, stage)
			}
		}
		return all, err
	}
	var rarest *device.Anchor
	least := int64(-1)
	for _, a := range sel.Anchors() {
		n, err := labelCount(ctx, q, scope.Tenant, a)
		if err != nil {
			return nil, err
		}
		if least < 0 || n.devices < least {
			rarest, least = &a, n.devices
		}
	}
	matching, args := matchingFrom(rarest, scope.Tenant, sel, nil)
	query := sqldb.NewQuery("SELECT d.stage, COUNT(*) FROM registry_device d WHERE d.num IN ("+matching+") GROUP BY d.stage", args...)
	return stageCounts(ctx, q, query)
}

// keptStages reads kept counts by stage: of all devices when the anchor has no key, else of those that
// it picks.
func keptStages(ctx context.Context, q sqldb.Reader, tenant device.TenantID, a device.Anchor) (map[device.Stage]int64, error) {
	if a.Key == "" {
		return stageCounts(ctx, q, sqldb.NewQuery("SELECT stage, SUM(devices) FROM registry_count WHERE tenant = ? GROUP BY stage", tenant))
	}
	cond, args := anchorCondition(tenant, a)
	return stageCounts(ctx, q, sqldb.NewQuery("SELECT a.stage, SUM(a.devices) FROM registry_label_stage a WHERE "+cond+" GROUP BY a.stage", args...))
}

func stageCounts(ctx context.Context, q sqldb.Reader, query *sqldb.Builder) (map[device.Stage]int64, error) {
	out := map[device.Stage]int64{}
	_, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (struct{}, error) {
		var stage device.Stage
		var n int64
		err := rows.Scan(&stage, &n)
		if n != 0 {
			out[stage] = n
		}
		return struct{}{}, err
	}, query.SQL(), query.Args()...)
	if err != nil {
		return nil, fmt.Errorf("count devices: %w", err)
	}
	return out, nil
}

// labelled is how many devices have a label, from kept counts.
type labelled struct {
	devices int64
	all     int64 // of the tenant, at the same moment
	exact   bool  // false when there were too many rows of counts to read all
}

// labelCount returns how many devices of the tenant have the key with one of the values, any when none
// is named. It reads at most maxCountRows rows of kept counts, which is enough to tell that a label is a
// common one; and all in one statement, so that the numbers belong together.
func labelCount(ctx context.Context, q sqldb.Reader, tenant device.TenantID, a device.Anchor) (n labelled, err error) {
	cond, args := anchorCondition(tenant, a)
	query := sqldb.NewQuery(`SELECT COALESCE(SUM(c.devices), 0), COUNT(*),
		(SELECT COALESCE(SUM(devices), 0) FROM registry_count WHERE tenant = ?)
		FROM (SELECT a.devices AS devices FROM registry_label_stage a WHERE`, tenant).Add(cond, args...).Add("LIMIT ?) c", maxCountRows)
	var rows int64
	if err := q.QueryRowContext(ctx, query.SQL(), query.Args()...).Scan(&n.devices, &rows, &n.all); err != nil {
		return n, fmt.Errorf("count label %s: %w", a.Key, err)
	}
	n.exact = rows < maxCountRows
	return n, nil
}

// maxCountRows bounds how many rows of kept counts one estimate reads.
const maxCountRows = 2 * smallSet

// LabelValue is a value of one key in use.
type LabelValue struct {
	Value   string `json:"value"`
	Devices int64  `json:"devices"`
}

// maxLabelKeys bounds the list of keys of one tenant.
const maxLabelKeys = 1000

// LabelKeys lists the keys of labels that devices of the tenant have, in their order. It steps from key
// to key in the index of kept counts, so that it costs as much as there are keys. A key that the last
// device has lost may still have counts there, which come to nothing together; PostgreSQL would make a
// join over all labels of an EXISTS, and walk them without an ORDER BY.
func (s *Service) LabelKeys(ctx context.Context, q sqldb.Reader, tenant device.TenantID) ([]string, error) {
	return labelKeys(ctx, q, sqldb.NewQuery(`WITH RECURSIVE step (key) AS (
			SELECT MIN(key) FROM registry_label_stage WHERE tenant = ?
			UNION ALL
			SELECT (SELECT MIN(c.key) FROM registry_label_stage c WHERE c.tenant = ? AND c.key > step.key)
			FROM step WHERE step.key IS NOT NULL)
		SELECT key FROM step WHERE key IS NOT NULL AND (SELECT l.num FROM registry_label l WHERE l.tenant = ? AND l.key = step.key ORDER BY l.value, l.num LIMIT 1) IS NOT NULL LIMIT ?`,
		tenant, tenant, tenant, maxLabelKeys))
}

// LabelKeysWithin is LabelKeys for a scope. When that is a part of the tenant it looks at the part's
// devices: kept counts would tell of the others.
func (s *Service) LabelKeysWithin(ctx context.Context, q sqldb.Reader, scope device.Scope) ([]string, error) {
	if scope.Selector.Empty() {
		return s.LabelKeys(ctx, q, scope.Tenant)
	}
	matching, args := s.Matching(scope, device.Selector{}, nil)
	return labelKeys(ctx, q, sqldb.NewQuery("SELECT DISTINCT l.key FROM registry_label l WHERE l.num IN ("+matching+")", args...).
		Add("ORDER BY l.key LIMIT ?", maxLabelKeys))
}

func labelKeys(ctx context.Context, q sqldb.Reader, query *sqldb.Builder) ([]string, error) {
	keys, err := sqldb.Collect(ctx, q, sqldb.Value[string], query.SQL(), query.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list label keys: %w", err)
	}
	return append([]string{}, keys...), nil
}

// LabelValues lists values of a key behind the given one, with how many devices of the tenant have each.
func (s *Service) LabelValues(ctx context.Context, q sqldb.Reader, tenant device.TenantID, key string, after *string, limit int) ([]LabelValue, error) {
	return s.LabelValuesWithin(ctx, q, device.Scope{Tenant: tenant}, LabelPage{Key: key, After: after, Limit: limit})
}

// LabelPage asks for the values of a key behind After.
type LabelPage struct {
	Key   string
	After *string
	Limit int
}

// LabelValuesWithin is LabelValues for a scope; see LabelKeysWithin.
func (s *Service) LabelValuesWithin(ctx context.Context, q sqldb.Reader, scope device.Scope, page LabelPage) ([]LabelValue, error) {
	key := page.Key
	query, counted := sqldb.NewQuery("SELECT value, SUM(devices) FROM registry_label_stage WHERE tenant = ? AND key = ?", scope.Tenant, key), "SUM(devices)"
	if !scope.Selector.Empty() {
		matching, args := s.Matching(scope, device.Selector{}, nil)
		query, counted = sqldb.NewQuery("SELECT value, COUNT(*) FROM registry_label WHERE tenant = ? AND key = ?", scope.Tenant, key).
			Add("AND num IN ("+matching+")", args...), "COUNT(*)"
	}
	if page.After != nil {
		query.Add("AND value > ?", *page.After)
	}
	query.Add("GROUP BY value HAVING "+counted+" > 0 ORDER BY value LIMIT ?", page.Limit)
	values, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (v LabelValue, err error) {
		err = rows.Scan(&v.Value, &v.Devices)
		return v, err
	}, query.SQL(), query.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list values of label %s: %w", key, err)
	}
	return append([]LabelValue{}, values...), nil
}
