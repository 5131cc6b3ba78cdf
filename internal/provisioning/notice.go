package provisioning

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

// reuseNotice is how long a tried reuse stays among what needs attention.
const reuseNotice = 7 * 24 * time.Hour

// maxLatePage bounds the list behind the notice of late renewals.
const maxLatePage = 500

// lateQuery picks the newest certificates of devices in service that should have been renewed: three
// quarters of their life are over, agents ask at two thirds.
func (s *Service) lateQuery(scope device.Scope, columns string) *sqldb.Builder {
	q := sqldb.NewQuery("SELECT "+columns+" FROM provisioning_certificate c WHERE tenant = ? AND superseded = 0 AND revoked = 0 AND renewal_late < ?",
		string(scope.Tenant), sqldb.Micros(s.cfg.Now()))
	nums, args := s.cfg.Fleet.Matching(scope, device.Selector{}, inService)
	return q.Add("AND EXISTS (SELECT 1 FROM ("+nums+") m WHERE m.num = c.num)", args...).Add(newestOnly)
}

// inScope adds the reader's part of the fleet to a query of a table with the name t and a column num. Each
// of its few rows is looked at: the devices of a whole tenant may be a million.
func (s *Service) inScope(q *sqldb.Builder, scope device.Scope, stages []device.Stage) *sqldb.Builder {
	nums, args := s.cfg.Fleet.Matching(scope, device.Selector{}, stages)
	return q.Add("AND EXISTS (SELECT 1 FROM ("+nums+") m WHERE m.num = t.num)", args...)
}

// Notices tells what needs somebody: late renewals, clones, reused tokens, devices that nobody bought.
func (s *Service) Notices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	tenant := string(scope.Tenant)
	reused := sqldb.NewQuery("SELECT COUNT(*) FROM provisioning_token t WHERE tenant = ? AND reused > ?", tenant, sqldb.Micros(s.cfg.Now().Add(-reuseNotice)))
	if !scope.Selector.Empty() {
		s.inScope(reused, scope, nil)
	}
	var out []ui.Notice
	for _, n := range []struct {
		query  *sqldb.Builder
		notice ui.Notice
		one    string // title for one, the notice's own is for several
	}{
		{
			s.inScope(sqldb.NewQuery("SELECT COUNT(*) FROM provisioning_clone t WHERE tenant = ? AND cleared = 0", tenant), scope, nil),
			ui.Notice{Level: ui.Bad, Title: "%d devices may have been cloned", Href: "/enrollment/clones",
				Detail: "Two machines report with the same identity. Find out which is the original, revoke the identity and enroll both anew."},
			"A device may have been cloned",
		},
		{
			reused,
			ui.Notice{Level: ui.Bad, Title: "%d used enrollment tokens were tried again", Href: "/enrollment?reused=1",
				Detail: "Another key tried them: they may have leaked, or a disk was copied before its first start."},
			"A used enrollment token was tried again",
		},
		{
			s.lateQuery(scope, "COUNT(*)"),
			ui.Notice{Level: ui.Warn, Title: "%d certificates are late for renewal", Href: "/enrollment/certificates?late=1",
				Detail: "Agents renew at two thirds of a certificate's life; these are past three quarters. A device whose certificate ends needs a new token."},
			"A certificate is late for renewal",
		},
		{
			s.inScope(sqldb.NewQuery("SELECT COUNT(*) FROM provisioning_unpurchased t WHERE tenant = ?", tenant), scope, []device.Stage{device.Quarantined}),
			ui.Notice{Level: ui.Warn, Title: "%d devices enrolled that nobody bought", Href: "/devices?stage=quarantined",
				Detail: "They are in quarantine: put them into service or retire them."},
			"A device enrolled that nobody bought",
		},
	} {
		c, err := count(ctx, s.cfg.DB, n.query)
		if err != nil {
			return nil, fmt.Errorf("count for the notice %q: %w", n.one, err)
		}
		if c == 0 {
			continue
		}
		n.notice.Count = c
		if c == 1 {
			n.notice.Title = n.one
		} else {
			n.notice.Title = fmt.Sprintf(n.notice.Title, c)
		}
		out = append(out, n.notice)
	}
	return out, nil
}

// maxClones bounds the list of suspected clones.
const maxClones = 200

// clones lists the open flags of the reader's devices, the latest first.
func (s *Service) clones(ctx context.Context, scope device.Scope) ([]CloneFlag, error) {
	q := s.inScope(sqldb.NewQuery("SELECT device, instances, since, last FROM provisioning_clone t WHERE tenant = ? AND cleared = 0", string(scope.Tenant)), scope, nil)
	q.Add("ORDER BY last DESC LIMIT ?", maxClones)
	rows, err := s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list clone flags: %w", err)
	}
	defer rows.Close()
	var out []CloneFlag
	for rows.Next() {
		var c CloneFlag
		var instances string
		if err := rows.Scan(&c.Device, &instances, sqldb.ScanMicros(&c.Since), sqldb.ScanMicros(&c.Last)); err != nil {
			return nil, fmt.Errorf("list clone flags: %w", err)
		}
		if err := json.Unmarshal([]byte(instances), &c.Instances); err != nil {
			return nil, fmt.Errorf("list clone flags: %w", err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}
