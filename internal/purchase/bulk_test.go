package purchase_test

import (
	"context"

	"steward/internal/device"
	"steward/internal/registry"
	"steward/internal/sqldb"
)

type oneByOne struct{ *registry.Service }

func (o oneByOne) CreateMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.New) ([]device.Device, error) {
	out := make([]device.Device, 0, len(list))
	for _, n := range list {
		d, err := o.Create(ctx, tx, actor, n)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}
