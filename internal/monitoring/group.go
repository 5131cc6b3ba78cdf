package monitoring

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// RollUp is how a group is doing.
type RollUp struct {
	Devices int64 `json:"devices" doc:"Devices in service that match"`
	Online  int64 `json:"online"`
	Late    int64 `json:"late"`
	Offline int64 `json:"offline"`
	Never   int64 `json:"never" doc:"Enrolled, but never in contact"`
}

// maxGroups bounds a tenant's groups.
const maxGroups = 500

const groupColumns = "name, selector, note, revision, created"

func scanGroup(scan func(...any) error) (Group, error) {
	var g Group
	var selector string
	if err := scan(&g.Name, &selector, &g.Note, &g.Revision, sqldb.ScanMicros(&g.Created)); err != nil {
		return Group{}, err
	}
	err := g.Selector.UnmarshalText([]byte(selector))
	return g, err
}

// Groups lists the tenant's groups by name, from behind after on.
func (s *Service) Groups(ctx context.Context, tenant device.TenantID, after string, limit int) ([]Group, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, "SELECT "+groupColumns+" FROM monitoring_group WHERE tenant = $1 AND name > $2 ORDER BY name LIMIT $3", string(tenant), after, limit)
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	defer rows.Close()
	var out []Group
	for rows.Next() {
		g, err := scanGroup(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("list groups: %w", err)
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

// Group returns one group.
func (s *Service) Group(ctx context.Context, tenant device.TenantID, name string) (Group, error) {
	return readGroup(ctx, s.cfg.DB, tenant, name)
}

func readGroup(ctx context.Context, q sqldb.Reader, tenant device.TenantID, name string) (Group, error) {
	g, err := scanGroup(q.QueryRowContext(ctx, "SELECT "+groupColumns+" FROM monitoring_group WHERE tenant = $1 AND name = $2", string(tenant), name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return Group{}, fault.New(fault.NotFound, "there is no group %.60q", name)
	}
	if err != nil {
		return Group{}, fmt.Errorf("read group: %w", err)
	}
	return g, nil
}

// CreateGroup makes a group; fault.Conflict when the name is taken.
func (s *Service) CreateGroup(ctx context.Context, who httpapi.Principal, g Group) (Group, error) {
	if err := who.WholeTenant("a group"); err != nil {
		return Group{}, err
	}
	if err := g.check(); err != nil {
		return Group{}, err
	}
	tenant := who.Scope.Tenant
	g.Revision, g.Created = 1, s.now().UTC().Truncate(time.Microsecond)
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM monitoring_group WHERE tenant = $1", string(tenant)).Scan(&n); err != nil {
			return err
		}
		if n >= maxGroups {
			return fault.New(fault.Conflict, "there are %d groups already, as many as a tenant may have", n)
		}
		added, err := tx.Exec(ctx, `INSERT INTO monitoring_group (tenant, name, selector, note, revision, created) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (tenant, name) DO NOTHING`, string(tenant), g.Name, g.Selector.String(), g.Note, g.Revision, sqldb.Micros(g.Created))
		if err != nil {
			return err
		}
		if added == 0 {
			return fault.New(fault.Conflict, "there is a group %s already", g.Name)
		}
		return s.tellGroup(ctx, tx, who, "monitoring.group_created", g)
	})
	if err != nil {
		return Group{}, wrapUnlessFault(err, "create group")
	}
	return g, nil
}

// UpdateGroup changes a group's selector and note. ifMatch is the ETag that the caller has seen; empty takes any.
func (s *Service) UpdateGroup(ctx context.Context, who httpapi.Principal, g Group, ifMatch string) (Group, error) {
	if err := who.WholeTenant("a group"); err != nil {
		return Group{}, err
	}
	if err := g.check(); err != nil {
		return Group{}, err
	}
	tenant := who.Scope.Tenant
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		old, err := readGroup(ctx, tx, tenant, g.Name)
		if err != nil {
			return err
		}
		if err := httpapi.CheckMatch(ifMatch, old.Revision); err != nil {
			return err
		}
		g.Revision, g.Created = old.Revision+1, old.Created
		changed, err := tx.Exec(ctx, "UPDATE monitoring_group SET selector = $1, note = $2, revision = $3 WHERE tenant = $4 AND name = $5 AND revision = $6",
			g.Selector.String(), g.Note, g.Revision, string(tenant), g.Name, old.Revision)
		if err != nil {
			return err
		}
		if changed == 0 {
			return fault.New(fault.Precondition, "group %s was changed meanwhile", g.Name)
		}
		return s.tellGroup(ctx, tx, who, "monitoring.group_changed", g)
	})
	if err != nil {
		return Group{}, wrapUnlessFault(err, "change group")
	}
	return g, nil
}

// DeleteGroup deletes a group; its devices stay as they are.
func (s *Service) DeleteGroup(ctx context.Context, who httpapi.Principal, name string) error {
	if err := who.WholeTenant("a group"); err != nil {
		return err
	}
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		g, err := readGroup(ctx, tx, who.Scope.Tenant, name)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM monitoring_group WHERE tenant = $1 AND name = $2", string(who.Scope.Tenant), name); err != nil {
			return err
		}
		return s.tellGroup(ctx, tx, who, "monitoring.group_deleted", g)
	})
	return wrapUnlessFault(err, "delete group")
}

func (s *Service) tellGroup(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, kind string, g Group) error {
	return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: who.Scope.Tenant, Kind: kind, Subject: g.Name, Actor: who.Actor,
		Data: ledger.Facts(map[string]any{"name": g.Name, "selector": g.Selector.String()}),
	})
}

// wrapUnlessFault says what was being done, unless the error already says it for the caller.
func wrapUnlessFault(err error, doing string) error {
	var refused *fault.Error
	var invalid *fault.Invalid
	if err == nil || errors.As(err, &refused) || errors.As(err, &invalid) {
		return err
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// RollUp counts the devices of the scope that match the selector, by presence.
func (s *Service) RollUp(ctx context.Context, scope device.Scope, sel device.Selector) (RollUp, error) {
	counts, err := s.presenceOf(ctx, scope, sel)
	if err != nil {
		return RollUp{}, err
	}
	r := RollUp{Online: counts[Online], Late: counts[Late], Offline: counts[Offline], Never: counts[Never]}
	r.Devices = r.Online + r.Late + r.Offline + r.Never
	return r, nil
}
