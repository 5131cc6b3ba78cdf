package purchase

import (
	"context"
	"errors"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// Suppliers lists all suppliers of the caller's tenant.
func (s *Service) Suppliers(ctx context.Context, who httpapi.Principal) ([]Supplier, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return nil, err
	}
	return readSuppliers(ctx, s.cfg.DB, tenant)
}

// Supplier returns one supplier.
func (s *Service) Supplier(ctx context.Context, who httpapi.Principal, id string) (Supplier, error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Supplier{}, err
	}
	return readSupplier(ctx, s.cfg.DB, tenant, id)
}

// SaveSupplier creates the supplier or replaces what is written about it.
func (s *Service) SaveSupplier(ctx context.Context, who httpapi.Principal, id string, spec SupplierSpec, ifMatch string) (saved Supplier, err error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Supplier{}, err
	}
	if err := joined(CheckID("path.id", id), spec.Check()); err != nil {
		return Supplier{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		saved = Supplier{ID: id, SupplierSpec: spec, Created: s.cfg.Now(), Revision: 1}
		kind := "purchase.supplier_created"
		old, err := readSupplier(ctx, tx, tenant, id)
		switch {
		case err == nil:
			if err := httpapi.CheckMatch(ifMatch, old.Revision); err != nil {
				return err
			}
			if saved.Created, saved.Revision = old.Created, old.Revision+1; old.SupplierSpec == spec {
				saved = old // nothing changes, so nothing happened
				return nil
			}
			kind = "purchase.supplier_changed"
		case !errors.Is(err, fault.NotFound):
			return err
		case ifMatch != "":
			return fault.New(fault.Precondition, "supplier %s does not exist any more", id)
		}
		if err := writeSupplier(ctx, tx, tenant, saved); err != nil {
			return err
		}
		return s.record(ctx, tx, who, ledger.Event{Kind: kind, Subject: id, Data: ledger.Facts(spec)})
	})
	return saved, err
}

// DeleteSupplier forgets a supplier that no order names.
func (s *Service) DeleteSupplier(ctx context.Context, who httpapi.Principal, id string) error {
	tenant, err := wholeTenant(who)
	if err != nil {
		return err
	}
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := readSupplier(ctx, tx, tenant, id); err != nil {
			return err
		}
		n, err := count(ctx, tx, sqldb.NewQuery("SELECT COUNT(*) FROM purchase_order WHERE tenant = ? AND supplier = ?", tenant, id))
		if err != nil {
			return err
		}
		if n > 0 {
			return fault.New(fault.Conflict, "supplier %s has %d orders and stays for their sake", id, n)
		}
		if _, err := tx.Exec(ctx, "DELETE FROM purchase_supplier WHERE tenant = $1 AND id = $2", tenant, id); err != nil {
			return err
		}
		return s.record(ctx, tx, who, ledger.Event{Kind: "purchase.supplier_deleted", Subject: id})
	})
}

// Models lists all hardware models of the caller's tenant.
func (s *Service) Models(ctx context.Context, who httpapi.Principal) ([]Model, error) {
	return readModels(ctx, s.cfg.DB, who.Scope.Tenant) // no secret: the device page shows it too
}

// Model returns one hardware model.
func (s *Service) Model(ctx context.Context, who httpapi.Principal, id string) (Model, error) {
	return readModel(ctx, s.cfg.DB, who.Scope.Tenant, id)
}

// SaveModel creates the hardware model or replaces what is written about it. Warranties of units that
// were delivered keep the end that they had.
func (s *Service) SaveModel(ctx context.Context, who httpapi.Principal, id string, spec ModelSpec, ifMatch string) (saved Model, err error) {
	tenant, err := wholeTenant(who)
	if err != nil {
		return Model{}, err
	}
	if err := joined(CheckID("path.id", id), spec.Check()); err != nil {
		return Model{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		saved = Model{ID: id, ModelSpec: spec, Created: s.cfg.Now(), Revision: 1}
		kind := "purchase.model_created"
		old, err := readModel(ctx, tx, tenant, id)
		switch {
		case err == nil:
			if err := httpapi.CheckMatch(ifMatch, old.Revision); err != nil {
				return err
			}
			saved.Created, saved.Revision = old.Created, old.Revision+1
			kind = "purchase.model_changed"
		case !errors.Is(err, fault.NotFound):
			return err
		case ifMatch != "":
			return fault.New(fault.Precondition, "hardware model %s does not exist any more", id)
		}
		if err := uniqueNames(ctx, tx, tenant, saved); err != nil {
			return err
		}
		if err := writeModel(ctx, tx, tenant, saved); err != nil {
			return err
		}
		return s.record(ctx, tx, who, ledger.Event{Kind: kind, Subject: id, Data: ledger.Facts(spec)})
	})
	return saved, err
}

// uniqueNames keeps each name that a delivery file may use to one model.
func uniqueNames(ctx context.Context, q sqldb.Reader, tenant device.TenantID, m Model) error {
	names, err := modelNames(ctx, q, tenant)
	if err != nil {
		return err
	}
	if other, taken := names[m.ID]; taken && other != m.ID {
		return fault.New(fault.Conflict, "%s is the part number of the hardware model %s: delivery files could mean either", m.ID, other)
	}
	if other, taken := names[m.PartNumber]; taken && other != m.ID {
		return fault.New(fault.Conflict, "the part number %s belongs to the hardware model %s", m.PartNumber, other)
	}
	return nil
}

// DeleteModel forgets a hardware model that no order names.
func (s *Service) DeleteModel(ctx context.Context, who httpapi.Principal, id string) error {
	tenant, err := wholeTenant(who)
	if err != nil {
		return err
	}
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := readModel(ctx, tx, tenant, id); err != nil {
			return err
		}
		n, err := count(ctx, tx, sqldb.NewQuery("SELECT COUNT(*) FROM purchase_line l JOIN purchase_order o ON o.id = l.order_id WHERE o.tenant = ? AND l.model = ?", tenant, id))
		if err != nil {
			return err
		}
		if n > 0 {
			return fault.New(fault.Conflict, "hardware model %s stands in %d order lines and stays for their sake", id, n)
		}
		if _, err := tx.Exec(ctx, "DELETE FROM purchase_model WHERE tenant = $1 AND id = $2", tenant, id); err != nil {
			return err
		}
		return s.record(ctx, tx, who, ledger.Event{Kind: "purchase.model_deleted", Subject: id})
	})
}
