package disposal

import (
	"context"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Attest disposes of a retired device by the word of two people, for devices that can't sign a
// statement: never enrolled, lost or broken. An order that stands is superseded.
func (s *Service) Attest(ctx context.Context, who httpapi.Principal, id device.ID, a Attestation, reason, confirm string) (x Disposal, err error) {
	if err := checkReason(reason); err != nil {
		return Disposal{}, err
	}
	if err := a.Check(s.now()); err != nil {
		return Disposal{}, err
	}
	canonical, err := wire.Canonical(a)
	if err != nil {
		return Disposal{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		d, err := s.device(ctx, tx, who.Scope, id)
		if err != nil {
			return err
		}
		if err := checkConfirmation(d, confirm); err != nil {
			return err
		}
		if d.Stage != device.Retired {
			return fault.New(fault.Conflict, "%s is %s: only a retired device can be disposed of", d.DisplayName(), d.Stage)
		}
		if err := s.supersede(ctx, tx, who.Actor, d, "attested instead"); err != nil {
			return err
		}
		x = s.fresh(who.Actor, d, reason)
		x.State, x.Method, x.Attestation, x.Ended = Attested, a.Method, &a, x.Created
		if err := insert(ctx, tx, x); err != nil {
			return raced(err, d)
		}
		return s.finish(ctx, tx, who.Actor, d, x, "disposal.attested", attestedFacts{
			Order: x.ID, Serial: d.Serial, Model: d.Model, Method: a.Method, Attestation: wire.HashOf(canonical),
			Performer: a.Performer, Witness: a.Witness,
		})
	})
	return x, err
}
