package registry

import (
	"context"
	"slices"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// What people and programs change is checked against their scope inside of the transaction.

// Register brings a device into being that was not bought through Steward; it begins as received.
func (dk *Desk) Register(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, n device.New) (device.Device, error) {
	n.Tenant, n.Stage = who.Scope.Tenant, device.Received
	if !who.Scope.Selector.Matches(n.Labels) {
		return device.Device{}, fault.New(fault.Forbidden, "with these labels the device would be outside of your scope %s", who.Scope.Selector)
	}
	return dk.Create(ctx, tx, who.Actor, n)
}

// Edit changes name and labels of one device. The device must be in the caller's scope before and
// after, and at the revision that ifMatch names unless that is empty.
func (dk *Desk) Edit(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, id device.ID, c Change, ifMatch string) (device.Device, error) {
	d, err := dk.inScope(ctx, tx, who.Scope, id)
	if err != nil {
		return device.Device{}, err
	}
	stays := staysIn(who.Scope)
	c.Check = func(before, after device.Device) error {
		if err := httpapi.CheckMatch(ifMatch, before.Revision); err != nil {
			return err
		}
		return stays(before, after)
	}
	return dk.Describe(ctx, tx, who.Actor, d.Num, c)
}

// MoveOne moves one device of the caller's scope.
func (dk *Desk) MoveOne(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, id device.ID, m device.Move, ifMatch string) (device.Device, error) {
	d, err := dk.inScope(ctx, tx, who.Scope, id)
	if err != nil {
		return device.Device{}, err
	}
	if d, err = lockDevice(ctx, tx, d.Num); err != nil {
		return device.Device{}, err
	}
	if err := httpapi.CheckMatch(ifMatch, d.Revision); err != nil {
		return device.Device{}, err
	}
	if err := byHand(m.To); err != nil {
		return device.Device{}, err
	}
	m.Num = d.Num
	return dk.Move(ctx, tx, who.Actor, m)
}

// notByHand are the stages that follow from something that happened, and what that is. Rooms move
// devices there; people can't.
var notByHand = map[device.Stage]string{
	device.Ordered:  "a device is ordered by placing an order",
	device.Enrolled: "a device becomes enrolled by enrolling: give it an enrollment token",
	device.Disposed: "a device is disposed of by a disposal order, which sanitizes it and issues the certificate",
}

// byHand refuses the stages that nobody can simply declare.
func byHand(to device.Stage) error {
	if how, refused := notByHand[to]; refused {
		return refuseMove("%s", how)
	}
	return nil
}

// movesByHand lists where somebody may take a device of the stage.
func movesByHand(from device.Stage) []device.Stage {
	return slices.DeleteFunc(from.Next(), func(to device.Stage) bool {
		// Whoever is enrolled becomes active by its first report.
		return byHand(to) != nil || from == device.Enrolled && to == device.Active
	})
}
