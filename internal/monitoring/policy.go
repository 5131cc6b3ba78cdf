package monitoring

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// policyFresh is how long another node's change of a policy may stay unseen.
const policyFresh = 15 * time.Second

// Policy returns the tenant's policy, or the default when it has none.
func (s *Service) Policy(ctx context.Context, tenant device.TenantID) (Policy, error) {
	return s.policyIn(ctx, s.cfg.DB, tenant)
}

func (s *Service) policyIn(ctx context.Context, q sqldb.Reader, tenant device.TenantID) (Policy, error) {
	now := s.now()
	s.policies.mu.Lock()
	cached, has := s.policies.known[tenant]
	s.policies.mu.Unlock()
	if has && now.Before(cached.until) {
		return cached.Policy, nil
	}
	p, err := readPolicy(ctx, q, tenant)
	if err != nil {
		return Policy{}, err
	}
	s.policies.mu.Lock()
	s.policies.known[tenant] = cachedPolicy{p, now.Add(policyFresh)}
	s.policies.mu.Unlock()
	return p, nil
}

func readPolicy(ctx context.Context, q sqldb.Reader, tenant device.TenantID) (Policy, error) {
	p := defaultPolicy()
	row := q.QueryRowContext(ctx, "SELECT report_seconds, metrics_seconds, revision, changed FROM monitoring_policy WHERE tenant = $1", string(tenant))
	err := row.Scan(&p.ReportSeconds, &p.MetricsSeconds, &p.Revision, sqldb.ScanMicros(&p.Changed))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Policy{}, fmt.Errorf("read monitoring policy: %w", err)
	}
	return p, nil
}

// Interval is when the device should report next at the latest.
func (s *Service) Interval(ctx context.Context, d device.Device) time.Duration {
	p, err := s.Policy(ctx, d.Tenant)
	if err != nil {
		s.cfg.Log.ErrorContext(ctx, "monitoring policy not read, the default is used", "error", err)
		return DefaultInterval
	}
	return p.interval()
}

// SetPolicy changes how often the tenant's devices report and measure, and tells all that are in service.
// ifMatch is the ETag that the caller has seen; empty takes any.
func (s *Service) SetPolicy(ctx context.Context, who httpapi.Principal, p Policy, ifMatch string) (Policy, error) {
	if err := who.WholeTenant("the monitoring policy"); err != nil {
		return Policy{}, err
	}
	if err := p.check(); err != nil {
		return Policy{}, err
	}
	tenant := who.Scope.Tenant
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		old, err := readPolicy(ctx, tx, tenant)
		if err != nil {
			return err
		}
		if err := httpapi.CheckMatch(ifMatch, old.Revision); err != nil {
			return err
		}
		p.Revision, p.Changed = old.Revision+1, s.now().UTC().Truncate(time.Microsecond)
		if err := writePolicy(ctx, tx, tenant, p); err != nil {
			return fmt.Errorf("write monitoring policy: %w", err)
		}
		nums, args := s.cfg.Devices.Matching(device.Scope{Tenant: tenant}, device.Selector{}, inService)
		if _, err := s.cfg.Twin.SetDesiredWhere(ctx, tx, nums, args, wire.SectionMonitoring, p.desired()); err != nil {
			return fmt.Errorf("tell devices the monitoring policy: %w", err)
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: tenant, Kind: "monitoring.policy_changed", Actor: who.Actor,
			Data: ledger.Facts(map[string]any{
				"report_seconds": p.ReportSeconds, "metrics_seconds": p.MetricsSeconds,
				"report_seconds_before": old.ReportSeconds, "metrics_seconds_before": old.MetricsSeconds,
			}),
		})
	})
	if err != nil {
		return Policy{}, err
	}
	s.policies.mu.Lock()
	delete(s.policies.known, tenant)
	s.policies.mu.Unlock()
	return p, nil
}

// writePolicy also gives devices that are known the new interval: a longer one must not make them late.
func writePolicy(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, p Policy) error {
	q := sqldb.NewQuery(`INSERT INTO monitoring_policy (tenant, report_seconds, metrics_seconds, revision, changed) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (tenant) DO UPDATE SET report_seconds = excluded.report_seconds, metrics_seconds = excluded.metrics_seconds,
		revision = excluded.revision, changed = excluded.changed`,
		string(tenant), p.ReportSeconds, p.MetricsSeconds, p.Revision, sqldb.Micros(p.Changed))
	if err := exec(ctx, tx, q); err != nil {
		return err
	}
	// A device still reports in its old rhythm until it has heard of the new one, so the longer of both
	// holds until its next contact.
	return exec(ctx, tx, sqldb.NewQuery("UPDATE monitoring_seen SET interval_s = ? WHERE tenant = ? AND interval_s < ?", p.ReportSeconds, string(tenant), p.ReportSeconds))
}
