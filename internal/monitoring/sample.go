package monitoring

import (
	"context"
	"fmt"
	"slices"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// idsOf lists the devices in service that match and were ever in contact, at most limit. Their order is
// that of their random IDs, so that a cut is a fair sample of a large group and the same one each time.
func (s *Service) idsOf(ctx context.Context, scope device.Scope, sel device.Selector, limit int) ([]string, error) {
	nums, args := s.cfg.Devices.Matching(scope, sel, inService)
	q := sqldb.NewQuery("SELECT ms.device FROM (").Add(nums, args...).
		Add(") m JOIN monitoring_seen ms ON ms.num = m.num ORDER BY ms.device LIMIT ?", limit)
	return texts(s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...))
}

const (
	// sampleFrom is from how many devices on a group's sample is taken by strides: sorting that many to
	// keep a few takes longer than what they measure.
	sampleFrom = 50_000
	strides    = 200
)

// sampleOf returns a group's devices, or a sample of about limit when there are more: of a group that makes up
// much of a large fleet some from each of many strides of their numbers, instead of reading them all.
func (s *Service) sampleOf(ctx context.Context, scope device.Scope, sel device.Selector, limit int) (ids []string, cut bool, err error) {
	narrow := device.Scope{Tenant: scope.Tenant, Selector: scope.Selector.And(sel)}
	counts, err := s.presenceOf(ctx, scope, sel)
	if err != nil {
		return nil, false, err
	}
	if counts[Online]+counts[Late]+counts[Offline] >= sampleFrom {
		if ids, err = s.strided(ctx, narrow, limit); err != nil || len(ids) >= limit/2 {
			return ids, true, err
		} // else it lies in few strides
	}
	if ids, err = s.idsOf(ctx, scope, sel, limit+1); len(ids) > limit {
		return ids[:limit], true, err
	}
	return ids, false, err
}

func (s *Service) strided(ctx context.Context, scope device.Scope, limit int) ([]string, error) {
	var least, most int64
	err := s.cfg.DB.QueryRowContext(ctx, "SELECT (SELECT COALESCE(MIN(num), 0) FROM monitoring_seen), (SELECT COALESCE(MAX(num), 0) FROM monitoring_seen)").Scan(&least, &most)
	if err != nil {
		return nil, fmt.Errorf("sample a group: %w", err)
	}
	cond, args := scope.Selector.Where(labelTable, "ms.num")
	stride := (most-least)/strides + 1
	var ids []string
	for from := least; from <= most; from += stride {
		q := sqldb.NewQuery("SELECT ms.device FROM monitoring_seen ms WHERE ms.num >= ? AND ms.num < ? AND ms.tenant = ?", from, from+stride, string(scope.Tenant)).
			Add("AND "+cond+" ORDER BY ms.num LIMIT ?", append(slices.Clone(args), max(1, limit/strides))...)
		some, err := texts(s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...))
		if err != nil {
			return nil, fmt.Errorf("sample a group: %w", err)
		}
		ids = append(ids, some...)
	}
	return ids, nil
}
