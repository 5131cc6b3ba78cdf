package access

import (
	"context"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// Tenants lists the tenants in which who asks may act: all for operators of the installation, else the
// one.
func (s *Service) Tenants(ctx context.Context, who httpapi.Principal, page httpapi.PageIn) (list []Tenant, next string, err error) {
	if !who.Installation {
		t, err := readTenant(ctx, s.db, who.Scope.Tenant)
		return []Tenant{t}, "", err
	}
	var at tenantCursor
	if err := httpapi.DecodeCursor(page.Cursor, &at); err != nil {
		return nil, "", err
	}
	if list, err = listTenants(ctx, s.db, at.ID, page.Limit+1); err != nil {
		return nil, "", err
	}
	if len(list) > page.Limit {
		list = list[:page.Limit]
		next = httpapi.EncodeCursor(tenantCursor{list[page.Limit-1].ID})
	}
	return list, next, nil
}

type tenantCursor struct {
	ID device.TenantID `json:"i"`
}

// CreateTenant makes a tenant; name may be empty. Its first administrator is made by an operator of the
// installation who has switched to it.
func (s *Service) CreateTenant(ctx context.Context, who httpapi.Principal, id, name string) (Tenant, error) {
	if !who.Installation {
		return Tenant{}, fault.New(fault.Forbidden, "only administrators of the tenant %s make tenants", device.DefaultTenant)
	}
	t, err := checkTenant(id, name)
	if err != nil {
		return Tenant{}, err
	}
	t.Created = s.clock()
	err = s.write(ctx, who.Actor, func(tx *sqldb.Tx) (change, error) {
		made, err := insertTenant(ctx, tx, t)
		if err == nil && !made {
			err = fault.New(fault.Conflict, "there is a tenant %s already", t.ID)
		}
		return change{kind: kindTenantCreated, tenant: t.ID, subject: string(t.ID), data: map[string]string{"name": t.Name}}, err
	})
	if err != nil {
		return Tenant{}, err
	}
	return t, nil
}

// EnterTenant makes the session of a cookie's value act in a tenant from now on.
func (s *Service) EnterTenant(ctx context.Context, who httpapi.Principal, secret string, id device.TenantID) error {
	if !who.Installation {
		return fault.New(fault.Forbidden, "you may act in the tenant %s only", who.Scope.Tenant)
	}
	return s.write(ctx, who.Actor, func(tx *sqldb.Tx) (change, error) {
		t, err := readTenant(ctx, tx, id)
		if err != nil {
			return change{}, err
		}
		n, err := tx.Exec(ctx, "UPDATE access_session SET tenant = $1 WHERE hash = $2", t.ID, hashSecret(secret))
		if err == nil && n == 0 {
			err = errNoSession
		}
		return change{kind: kindTenantEntered, tenant: t.ID, subject: string(t.ID)}, err
	})
}
