package provisioning

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// secretBytes gives 136 random bits, 28 characters of base 32.
const secretBytes = 17

func secretHash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// IssueTokens makes all tokens or none. Each is for a device in stock, which becomes staged, for one in
// service, which may then enroll again with a new key, or for a serial number that is not in stock. An
// older open token of the same serial number is revoked.
func (s *Service) IssueTokens(ctx context.Context, actor device.Actor, scope device.Scope, orders []NewToken) ([]IssuedToken, error) {
	if len(orders) == 0 || len(orders) > MaxBulk {
		return nil, fault.Bad("body", "%d tokens: ask for 1 to %d", len(orders), MaxBulk)
	}
	for i := range orders {
		if err := orders[i].check(); err != nil {
			return nil, at(i, len(orders), err)
		}
	}
	trust, err := s.trustBody(ctx, scope.Tenant)
	if err != nil {
		return nil, err
	}
	var out []IssuedToken
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		out = out[:0]
		if err := insertTrust(ctx, tx, scope.Tenant, trust, s.cfg.Now()); err != nil {
			return err
		}
		for i, o := range orders {
			t, err := s.issueToken(ctx, tx, actor, scope, issueToken{NewToken: o, pin: wire.HashOf(trust)})
			if err != nil {
				return at(i, len(orders), err)
			}
			out = append(out, t)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// at names the order that was refused when there were several.
func at(i, of int, err error) error {
	var refusal *fault.Error
	if of == 1 {
		return err
	}
	if invalid := (*fault.Invalid)(nil); errors.As(err, &invalid) {
		return fault.Bad(fmt.Sprintf("body.tokens[%d]", i), "%s", invalid)
	}
	if errors.As(err, &refusal) {
		return fault.New(refusal.Kind, "token %d of %d: %s; none was made", i+1, of, refusal.Detail)
	}
	return fmt.Errorf("token %d of %d: %w", i+1, of, err)
}

type issueToken struct {
	NewToken
	pin wire.Hash
}

func (s *Service) issueToken(ctx context.Context, tx *sqldb.Tx, actor device.Actor, scope device.Scope, o issueToken) (IssuedToken, error) {
	d, err := s.tokenDevice(ctx, tx, scope, o.NewToken)
	if err != nil {
		return IssuedToken{}, err
	}
	now := s.cfg.Now()
	if d.Stage == device.Received {
		d, err = s.cfg.Devices.Move(ctx, tx, actor, device.Move{Num: d.Num, To: device.Staged, Reason: "enrollment token issued"})
		if err != nil {
			return IssuedToken{}, err
		}
	}
	replaced, err := revokeTokens(ctx, tx, d, now)
	if err != nil {
		return IssuedToken{}, err
	}
	t := Token{
		ID: "tok-" + device.RandomName(10), Tenant: scope.Tenant, Serial: d.Serial, Device: d.ID, Note: o.Note, State: TokenOpen,
		Created: now, CreatedBy: actorName(actor), Expires: now.Add(o.Life), num: d.Num,
	}
	secret := wire.EnrollmentToken{Secret: device.RandomName(secretBytes), Pin: o.pin}
	if err := insertToken(ctx, tx, tokenInsert{token: t, secretHash: secretHash(secret.Secret), pin: o.pin}); err != nil {
		return IssuedToken{}, err
	}
	err = s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: scope.Tenant, Kind: "provisioning.token_issued", Device: d.ID, Subject: t.ID, Actor: actor, Reason: o.Note,
		Data: ledger.Facts(map[string]any{"serial": t.Serial, "expires": t.Expires.UTC(), "replaced": replaced, "pin": o.pin}),
	})
	return IssuedToken{Token: t, Secret: secret.String()}, err
}

// tokenDevice finds the device a token is for. A Device without ID and Num stands for a serial number
// that is not in stock.
func (s *Service) tokenDevice(ctx context.Context, tx *sqldb.Tx, scope device.Scope, o NewToken) (device.Device, error) {
	var d device.Device
	var err error
	if o.Device != "" {
		d, err = s.deviceInScope(ctx, tx, scope, o.Device)
	} else {
		d, err = s.cfg.Devices.BySerial(ctx, tx, scope.Tenant, o.Serial)
		if errors.Is(err, fault.NotFound) {
			return device.Device{Tenant: scope.Tenant, Serial: o.Serial}, s.mayInvite(ctx, tx, scope)
		}
		if err == nil && !scope.Allows(d) {
			err = fault.New(fault.Forbidden, "serial number %s is not within your part of the fleet", o.Serial)
		}
	}
	if err != nil {
		return device.Device{}, err
	}
	switch {
	case d.Stage == device.Ordered || d.Serial == "":
		return device.Device{}, fault.New(fault.Conflict, "device %s has no serial number yet: book its delivery first (goods-in)", d.ID)
	case d.Stage == device.InTransfer:
		return device.Device{}, fault.New(fault.Conflict, "device %s is on its way to a new owner, who enrolls it", d.ID)
	case d.Stage == device.Retired || d.Stage == device.Disposed:
		return device.Device{}, fault.New(fault.Conflict, "device %s is %s and does not come back", d.ID, d.Stage)
	}
	return d, nil
}

// mayInvite tells whether somebody may let a device in that Steward does not know.
func (s *Service) mayInvite(ctx context.Context, tx *sqldb.Tx, scope device.Scope) error {
	if !scope.Selector.Empty() {
		return fault.New(fault.Forbidden, "this serial number is not in stock, and you see only a part of the fleet: ask somebody who sees all of it")
	}
	p, err := readPolicy(ctx, tx, scope.Tenant)
	if err == nil && p.Unpurchased == RefuseUnpurchased {
		err = fault.New(fault.Conflict, "this serial number is not in stock and the policy refuses devices that nobody bought: order it, or change the policy")
	}
	return err
}

// Tokens lists tokens, newest first; next is where the following page starts, nil on the last.
func (s *Service) Tokens(ctx context.Context, in tokenQuery) (page []Token, next *tokenPosition, err error) {
	limit := in.limit
	in.limit++
	page, err = s.queryTokens(ctx, in)
	if err == nil && len(page) > limit {
		page = page[:limit]
		last := page[limit-1]
		next = &tokenPosition{Created: sqldb.Micros(last.Created), ID: last.ID}
	}
	return page, next, err
}

// RevokeToken ends an open token. A device that waits for it stays staged.
func (s *Service) RevokeToken(ctx context.Context, actor device.Actor, scope device.Scope, id, reason string) error {
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		now := s.cfg.Now()
		t, err := tokenByID(ctx, tx, scope.Tenant, id, now)
		if err != nil {
			return err
		}
		if err := s.seesToken(ctx, tx, scope, t); err != nil {
			return err
		}
		switch t.State {
		case TokenRevoked:
			return nil // asked for twice
		case TokenUsed:
			return fault.New(fault.Conflict, "token %s was used at %s: revoke the device's certificate instead", id, t.Used.Format(time.RFC3339))
		}
		n, err := tx.Exec(ctx, "UPDATE provisioning_token SET revoked = $1 WHERE id = $2 AND used = 0 AND revoked = 0", sqldb.Micros(now), id)
		if err != nil {
			return fmt.Errorf("revoke token: %w", err)
		}
		if n == 0 {
			return fault.New(fault.Conflict, "token %s was used just now", id)
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: scope.Tenant, Kind: "provisioning.token_revoked", Device: t.Device, Subject: id, Actor: actor, Reason: reason,
			Data: ledger.Facts(map[string]any{"serial": t.Serial}),
		})
	})
}

// seesToken keeps a token outside of the scope unknown.
func (s *Service) seesToken(ctx context.Context, q sqldb.Reader, scope device.Scope, t Token) error {
	if scope.Selector.Empty() {
		return nil
	}
	if t.num != 0 {
		if d, err := s.cfg.Devices.ByNum(ctx, q, t.num); err != nil || scope.Allows(d) {
			return err
		}
	}
	return fault.New(fault.NotFound, "token %.40s is not known", t.ID)
}
