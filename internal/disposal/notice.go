package disposal

import (
	"context"
	"fmt"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

// Notices tells which retired devices need somebody.
func (s *Service) Notices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	// A failed disposal counts while nothing later of the device is open or done.
	failed, err := s.countRetired(ctx, scope, "EXISTS (SELECT 1 FROM disposal_record x WHERE x.num = m.num AND x.state = 'failed')"+
		" AND NOT EXISTS (SELECT 1 FROM disposal_record x WHERE x.num = m.num AND x.state IN ('ordered', 'accepted'))")
	if err != nil {
		return nil, err
	}
	waiting, err := s.countRetired(ctx, scope, "NOT EXISTS (SELECT 1 FROM disposal_record x WHERE x.num = m.num AND x.state <> 'superseded')")
	if err != nil {
		return nil, err
	}
	var list []ui.Notice
	if failed > 0 {
		list = append(list, ui.Notice{
			Level: ui.Bad, Count: failed, Href: "/disposal?state=failed",
			Title:  numbered(failed, "device could not be sanitized", "devices could not be sanitized"),
			Detail: "Their data may still be there: order it again, or destroy the media and attest it.",
		})
	}
	if waiting > 0 {
		list = append(list, ui.Notice{
			Level: ui.Warn, Count: waiting, Href: "/disposal#waiting",
			Title:  numbered(waiting, "retired device waits to be sanitized", "retired devices wait to be sanitized"),
			Detail: "They keep data and certificate until then: order their sanitization, or attest it.",
		})
	}
	return list, nil
}

// countRetired counts delivered devices in stage retired for which the condition on m.num holds.
func (s *Service) countRetired(ctx context.Context, scope device.Scope, condition string) (n int64, err error) {
	nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, []device.Stage{device.Retired})
	b := sqldb.NewQuery("SELECT COUNT(*) FROM ("+nums+") m WHERE "+condition, args...)
	if s.cfg.Undelivered != nil {
		never, args := s.cfg.Undelivered(scope.Tenant)
		b.Add("AND NOT EXISTS (SELECT 1 FROM ("+never+") n WHERE n.num = m.num)", args...)
	}
	if err = s.cfg.DB.QueryRowContext(ctx, b.SQL(), b.Args()...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count retired devices: %w", err)
	}
	return n, nil
}

func numbered(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
