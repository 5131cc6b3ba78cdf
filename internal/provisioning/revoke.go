package provisioning

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

const maxReasonBytes = 500

// Revoke ends all certificates and open tokens of a device, in the caller's transaction. After the
// commit all nodes close what they hold open. It is no error when there is nothing left to revoke.
func (s *Service) Revoke(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, reason string) error {
	d, err := s.cfg.Devices.ByNum(ctx, tx, num)
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	// First the tokens, then the certificates twice: each statement waits for enrollments and renewals
	// that run now, and the one after it sees what they have brought.
	tokens, err := revokeTokens(ctx, tx, d, now)
	if err != nil {
		return err
	}
	var certs int64
	for range 2 {
		n, err := revokeCertificates(ctx, tx, num, now, reason)
		if err != nil {
			return err
		}
		certs += n
	}
	if certs == 0 && tokens == 0 {
		return nil
	}
	if err := touchCRL(ctx, tx, d.Tenant); err != nil {
		return err
	}
	s.wakeRevoked(ctx, tx, num)
	return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: d.Tenant, Kind: "provisioning.revoked", Device: d.ID, Actor: actor, Reason: reason,
		Data: ledger.Facts(map[string]any{"certificates": certs, "tokens": tokens}),
	})
}

// RevokeDevice is Revoke for an operator.
func (s *Service) RevokeDevice(ctx context.Context, actor device.Actor, scope device.Scope, id device.ID, reason string) error {
	if reason = strings.TrimSpace(reason); reason == "" || len(reason) > maxReasonBytes {
		return fault.Bad("body.reason", "say in 1 to %d bytes why; it is kept in the ledger", maxReasonBytes)
	}
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		d, err := s.deviceInScope(ctx, tx, scope, id)
		if err != nil {
			return err
		}
		return s.Revoke(ctx, tx, actor, d.Num, reason)
	})
}

// Certificates lists what a device was ever issued, newest first, at most 200.
func (s *Service) Certificates(ctx context.Context, scope device.Scope, id device.ID) ([]Certificate, error) {
	d, err := s.deviceInScope(ctx, s.cfg.DB, scope, id)
	if err != nil {
		return nil, err
	}
	return certificatesOf(ctx, s.cfg.DB, d.Num, s.cfg.Now())
}

// cloneQuiet is how often a flag that stands is written again.
const cloneQuiet = time.Minute

// Clone flags an identity that two machines use: the twin saw reports of both alternate. Which one is
// the original can't be told from here, so both are flagged; the device keeps working until somebody
// decides.
func (s *Service) Clone(ctx context.Context, tx *sqldb.Tx, d device.Device, old, new string) error {
	now := s.cfg.Now()
	c, err := readClone(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	known := len(c.Instances)
	if c.cleared {
		c.CloneFlag = CloneFlag{Device: d.ID, Since: now}
		known = 0
	}
	for _, instance := range []string{old, new} {
		if instance != "" && !slices.Contains(c.Instances, instance) && len(c.Instances) < maxInstances {
			c.Instances = append(c.Instances, instance)
		}
	}
	grown := len(c.Instances) > known
	if !grown && now.Sub(c.Last) < cloneQuiet {
		return nil
	}
	c.Last = now
	if err := writeClone(ctx, tx, d, c.CloneFlag); err != nil {
		return fmt.Errorf("flag a clone: %w", err)
	}
	if !grown {
		return nil
	}
	return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: d.Tenant, Kind: "provisioning.clone_suspected", Device: d.ID, Actor: device.System("provisioning"),
		Reason: "two machines use this device's identity", Data: ledger.Facts(map[string]any{"instances": c.Instances, "was": old, "now": new}),
	})
}

// CloneFlagOf returns the open flag of a device, or nil.
func (s *Service) CloneFlagOf(ctx context.Context, num int64) (*CloneFlag, error) {
	c, err := readClone(ctx, s.cfg.DB, num)
	if err != nil || c.cleared {
		return nil, err
	}
	return &c.CloneFlag, nil
}

// ClearClone takes the flag off after somebody has looked.
func (s *Service) ClearClone(ctx context.Context, actor device.Actor, scope device.Scope, id device.ID, reason string) error {
	if len(reason) > maxReasonBytes {
		return fault.Bad("body.reason", "at most %d bytes", maxReasonBytes)
	}
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		d, err := s.deviceInScope(ctx, tx, scope, id)
		if err != nil {
			return err
		}
		n, err := clearClone(ctx, tx, d.Num, sqldb.Micros(s.cfg.Now()))
		if err != nil {
			return fmt.Errorf("clear clone flag: %w", err)
		}
		if n == 0 {
			return nil // it is clear
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: d.Tenant, Kind: "provisioning.clone_cleared", Device: d.ID, Actor: actor, Reason: reason,
		})
	})
}
