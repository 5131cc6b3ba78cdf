package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// Whatever is done to one device can be done to many in one transaction for a fixed number of
// statements per 200 devices: what one device asks for is the same with a list of one. A caller with
// more than some thousand does it in steps (package job), so that other writers don't wait.

// change is a device before and after; before has no stage, ID or labels when the device is new.
type change struct{ before, after device.Device }

// CreateMany is Create for many devices, of one or several tenants. After a conflict that is not about
// the first of them the caller has to give up the transaction.
func (s *Service) CreateMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.New) ([]device.Device, error) {
	devices := make([]device.Device, len(list))
	for i, n := range list {
		var err error
		if devices[i], err = s.fresh(actor, n); err != nil {
			return nil, err
		}
	}
	if at, err := insertDevices(ctx, tx, devices); errors.Is(err, errTaken) {
		return nil, taken(ctx, tx, devices[at].Tenant, devices[at].Model, devices[at].Serial)
	} else if err != nil {
		return nil, fmt.Errorf("create devices: %w", err)
	}
	changes, events := make([]change, len(devices)), make([]ledger.Event, len(devices))
	for i, d := range devices {
		changes[i] = change{device.Device{}, d}
		events[i] = s.created(actor, d)
	}
	if err := index(ctx, tx, changes); err != nil {
		return nil, fmt.Errorf("create devices: %w", err)
	}
	return devices, s.tell(ctx, tx, events...)
}

func (s *Service) created(actor device.Actor, d device.Device) ledger.Event {
	return s.event(actor, d, "device.created", d.Reason, ledger.Facts(struct {
		Serial string            `json:"serial,omitempty"`
		Model  string            `json:"model,omitempty"`
		Name   string            `json:"name,omitempty"`
		Stage  device.Stage      `json:"stage"`
		Labels map[string]string `json:"labels,omitempty"`
	}{d.Serial, d.Model, d.Name, d.Stage, d.Labels}))
}

func (s *Service) identified(actor device.Actor, d device.Device) ledger.Event {
	return s.event(actor, d, "device.identified", "", ledger.Facts(map[string]string{"serial": d.Serial}))
}

// MoveMany is Move for many devices, each named once: all of them move or none. The result is in the
// order of their numbers.
func (s *Service) MoveMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, moves []device.Move) ([]device.Device, error) {
	return s.moveAll(ctx, tx, actor, moves, nil)
}

// ReceiveMany gives ordered devices their serial numbers and moves them to received. It returns
// fault.Conflict when a serial number belongs to another device of the model.
func (s *Service) ReceiveMany(ctx context.Context, tx *sqldb.Tx, actor device.Actor, list []device.Arrival) ([]device.Device, error) {
	moves, serials := make([]device.Move, len(list)), make(map[int64]string, len(list))
	for i, a := range list {
		serial, err := device.ParseSerial(a.Serial)
		if err != nil {
			return nil, fault.Bad("body.serial", "%s", err)
		}
		moves[i], serials[a.Num] = device.Move{Num: a.Num, To: device.Received, Reason: a.Reason}, serial
	}
	return s.moveAll(ctx, tx, actor, moves, serials)
}

// moveAll moves devices and gives those that serials names theirs.
func (s *Service) moveAll(ctx context.Context, tx *sqldb.Tx, actor device.Actor, moves []device.Move, serials map[int64]string) ([]device.Device, error) {
	changes, err := s.planMoves(ctx, tx, actor, moves, serials)
	if err != nil {
		return nil, err
	}
	if err := s.writeAll(ctx, tx, changes); err != nil {
		return nil, fmt.Errorf("move devices: %w", err)
	}
	devices, told := make([]device.Device, len(changes)), make([]device.Moved, len(changes))
	var events []ledger.Event
	for i, c := range changes {
		d := c.after
		devices[i], told[i] = d, device.Moved{Device: d, From: c.before.Stage}
		if d.Serial != c.before.Serial {
			events = append(events, s.identified(actor, d))
		}
		facts := ledger.Facts(map[string]device.Stage{"from": c.before.Stage, "to": d.Stage})
		events = append(events, s.event(actor, d, "device.moved", d.Reason, facts))
	}
	if err := s.tell(ctx, tx, events...); err != nil {
		return nil, err
	}
	return devices, s.tellMoved(ctx, tx, told)
}

// planMoves locks the devices and asks lifecycle and guards about each.
func (s *Service) planMoves(ctx context.Context, tx *sqldb.Tx, actor device.Actor, moves []device.Move, serials map[int64]string) ([]change, error) {
	wish, nums := make(map[int64]device.Move, len(moves)), make([]int64, len(moves))
	for i, m := range moves {
		reason, err := checkReason(actor, m.Reason)
		if err != nil {
			return nil, err
		}
		m.Reason = reason
		wish[m.Num], nums[i] = m, m.Num
	}
	if len(wish) != len(moves) {
		return nil, errors.New("a device is to be moved twice in one go")
	}
	found, err := lockDevices(ctx, tx, nums)
	if err != nil {
		return nil, fmt.Errorf("lock devices: %w", err)
	}
	now := s.now().UTC().Truncate(time.Microsecond)
	changes := make([]change, len(found))
	for i, before := range found {
		m, d := wish[before.Num], before
		delete(wish, before.Num)
		if serial, given := serials[d.Num]; given && d.Serial != serial {
			if d.Serial != "" {
				return nil, fault.New(fault.Conflict, "%s has the serial number %s already; it can't become %s", d.ID, d.Serial, serial)
			}
			d.Serial = serial
		}
		if err := s.MayMove(ctx, tx, d, m.To); err != nil {
			return nil, err
		}
		d.Stage, d.Reason, d.StageSince = m.To, m.Reason, now
		changes[i] = change{before, d}
	}
	for num := range wish {
		return nil, fault.New(fault.NotFound, "no device number %d", num)
	}
	return changes, nil
}

// tellMoved tells the listeners: first each device to those that want to know of each, then all
// together.
func (s *Service) tellMoved(ctx context.Context, tx *sqldb.Tx, moved []device.Moved) error {
	for _, m := range moved {
		for _, told := range s.moved {
			if err := told(ctx, tx, m.Device, m.From); err != nil {
				return fmt.Errorf("after the move of %s to %s: %w", m.ID, m.Stage, err)
			}
		}
	}
	for _, told := range s.movedMany {
		if err := told(ctx, tx, moved); err != nil {
			return fmt.Errorf("after the move of %d devices: %w", len(moved), err)
		}
	}
	return nil
}

// writeAll stores devices with their next revisions and what is found and counted by them. It leaves out
// what is so already.
func (s *Service) writeAll(ctx context.Context, tx *sqldb.Tx, list []change) error {
	if err := checkSerials(ctx, tx, list); err != nil {
		return err
	}
	changed := make([]change, 0, len(list))
	for i := range list {
		if same(list[i].before, list[i].after) {
			continue
		}
		list[i].after.Revision++
		changed = append(changed, list[i])
	}
	if err := updateDevices(ctx, tx, changed); err != nil {
		if sqldb.IsUnique(err) {
			return fault.New(fault.Conflict, "a serial number was given to another device meanwhile")
		}
		return err
	}
	return index(ctx, tx, changed)
}

// same tells whether nothing of a device's record differs that can change.
func same(a, b device.Device) bool {
	return a.Stage == b.Stage && a.Serial == b.Serial && a.Name == b.Name && a.Reason == b.Reason && a.StageSince.Equal(b.StageSince) &&
		maps.Equal(a.Labels, b.Labels)
}

// checkSerials refuses serial numbers that belong to others. They are asked for first: on PostgreSQL a
// refused row would end the caller's whole transaction.
func checkSerials(ctx context.Context, tx *sqldb.Tx, list []change) error {
	type key struct {
		tenant        device.TenantID
		model, serial string
	}
	owner, serials := map[key]int64{}, map[device.TenantID][]string{}
	for _, c := range list {
		if d := c.after; d.Serial != "" && d.Serial != c.before.Serial {
			k := key{d.Tenant, d.Model, d.Serial}
			if _, twice := owner[k]; twice {
				return fault.New(fault.Conflict, "the serial number %s is given twice", d.Serial)
			}
			owner[k] = d.Num
			serials[d.Tenant] = append(serials[d.Tenant], d.Serial)
		}
	}
	for tenant, some := range serials {
		found, err := bySerials(ctx, tx, tenant, some)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(found, func(d device.Device) bool {
			num, given := owner[key{tenant, d.Model, d.Serial}]
			return given && num != d.Num
		})
		if i >= 0 {
			return taken(ctx, tx, tenant, found[i].Model, found[i].Serial)
		}
	}
	return nil
}

// BySerials returns the tenant's devices that have one of the serial numbers, in the order of serial
// numbers and models.
func (s *Service) BySerials(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serials []string) ([]device.Device, error) {
	found, err := bySerials(ctx, q, tenant, serials)
	if err != nil {
		return nil, fmt.Errorf("look for %d serial numbers: %w", len(serials), err)
	}
	return found, nil
}

// ByNums returns devices by their numbers inside this database, in the order of the numbers; one that does
// not exist is left out.
func (s *Service) ByNums(ctx context.Context, q sqldb.Reader, nums []int64) ([]device.Device, error) {
	var out []device.Device
	for chunk := range slices.Chunk(slices.Compact(slices.Sorted(slices.Values(nums))), batchRows) {
		b := sqldb.NewQuery("SELECT "+deviceColumns+" FROM registry_device d WHERE d.num IN ("+marks(len(chunk))+") ORDER BY d.num", anys(chunk)...)
		some, err := manyDevices(ctx, q, b.SQL(), b.Args()...)
		if err != nil {
			return nil, fmt.Errorf("read %d devices: %w", len(nums), err)
		}
		out = append(out, some...)
	}
	return out, nil
}
