package provisioning

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// enrollment is one request to simpleenroll.
type enrollment struct {
	serial, secret string // HTTP Basic
	label          string // path segment of EST (RFC 7030, section 3.2.2): the tenant, or empty
	address        string // of the network, for the limit and the record
	body           []byte
}

// errRaced says that the token changed between reading and taking it: look again.
var errRaced = errors.New("token changed meanwhile")

// Enroll turns a token into a certificate (DER). The answer to the same token and key is the same for
// as long as the token lives.
func (s *Service) enroll(ctx context.Context, in enrollment) ([]byte, error) {
	if err := s.failures.check(in.address); err != nil {
		return nil, err
	}
	der, err := s.tryEnroll(ctx, in)
	if errors.Is(err, errRaced) {
		der, err = s.tryEnroll(ctx, in)
	}
	if refused(err) {
		s.failures.add(in.address)
	}
	return der, err
}

// refused tells whether the failure counts against the caller: a wrong token, an unreadable request.
func refused(err error) bool {
	return errors.Is(err, fault.Unauthorized) || errors.Is(err, fault.Forbidden) || errors.Is(err, fault.Unprocessable)
}

func (s *Service) tryEnroll(ctx context.Context, in enrollment) ([]byte, error) {
	t, err := s.openToken(ctx, in)
	if err != nil {
		return nil, err
	}
	req, err := parseRequest(in.body)
	if err != nil {
		return nil, err
	}
	if t.State == TokenUsed {
		return s.enrollAgain(ctx, t, req, in)
	}
	a, err := s.authorities.get(ctx, t.Tenant)
	if err != nil {
		return nil, err
	}
	var c Certificate
	err = s.cfg.DB.WriteShared(ctx, func(tx *sqldb.Tx) error {
		c, err = s.enrollTx(ctx, tx, t, issuance{authority: a, request: req, address: in.address})
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.body, nil
}

// openToken returns the token whose secret and serial number were sent, open or used. All other cases
// are one and the same refusal. The row is found by the hash of a secret of 136 bits, so the time that
// takes tells nothing; the serial number is compared in constant time.
func (s *Service) openToken(ctx context.Context, in enrollment) (Token, error) {
	secret := in.secret
	if whole, err := wire.ParseEnrollmentToken(secret); err == nil {
		secret = whole.Secret // people paste the whole token
	}
	now := s.cfg.Now()
	t, err := tokenBySecret(ctx, s.cfg.DB, secretHash(secret), now)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return Token{}, err
	}
	sameSerial := subtle.ConstantTimeCompare([]byte(t.Serial), []byte(strings.TrimSpace(in.serial))) == 1
	sameTenant := in.label == "" || string(t.Tenant) == in.label
	if err != nil || !sameSerial || !sameTenant || t.State == TokenRevoked || !now.Before(t.Expires) {
		return Token{}, errTokenInvalid()
	}
	return t, nil
}

// enrollAgain answers a used token: the same key gets the same certificate, another one is told off
// and the operator learns of it.
func (s *Service) enrollAgain(ctx context.Context, t Token, req *request, in enrollment) ([]byte, error) {
	d, err := s.cfg.Devices.ByNum(ctx, s.cfg.DB, t.num)
	if err != nil {
		return nil, err
	}
	if d.Stage == device.Retired || d.Stage == device.Disposed {
		return nil, errDecommissioned(d)
	}
	if subtle.ConstantTimeCompare([]byte(t.usedKey), []byte(req.keyID)) != 1 {
		if err := s.tellReused(ctx, t, req, in.address); err != nil {
			return nil, err
		}
		return nil, errTokenUsed()
	}
	c, err := certificateBySerial(ctx, s.cfg.DB, t.Certificate, s.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("find the certificate of token %s: %w", t.ID, err)
	}
	if c.State == CertificateRevoked {
		return nil, errRevoked()
	}
	return c.body, nil
}

// reuseQuiet is how long further tries of one token add nothing to the ledger.
const reuseQuiet = time.Hour

func (s *Service) tellReused(ctx context.Context, t Token, req *request, address string) error {
	return s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		now := s.cfg.Now()
		first, err := markReused(ctx, tx, t.ID, now, now.Add(-reuseQuiet))
		if err != nil || !first {
			return err
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: t.Tenant, Kind: "provisioning.token_reused", Device: t.Device, Subject: t.ID, Actor: device.System("provisioning"),
			Reason: "a used enrollment token was tried with another key: it may have leaked",
			Data:   ledger.Facts(map[string]any{"serial": t.Serial, "address": address, "key_id": req.keyID, "used_key_id": t.usedKey}),
		})
	})
}

// enrollTx takes the token, brings the device to its stage and stores the certificate: all or nothing.
func (s *Service) enrollTx(ctx context.Context, tx *sqldb.Tx, t Token, in issuance) (Certificate, error) {
	took, err := takeToken(ctx, tx, t.ID, in.request.keyID, s.cfg.Now())
	if err != nil {
		return Certificate{}, err
	}
	if !took {
		return Certificate{}, errRaced
	}
	d, bought, err := s.enrollDevice(ctx, tx, t)
	if err != nil {
		return Certificate{}, err
	}
	in.device = d
	c, err := s.issue(ctx, tx, in)
	if err != nil {
		return Certificate{}, err
	}
	if err := settleToken(ctx, tx, t.ID, d, c.Serial); err != nil {
		return Certificate{}, err
	}
	gone, err := s.makeRoom(ctx, tx, d)
	if err != nil {
		return Certificate{}, err
	}
	if s.cfg.Enrolled != nil {
		if err := s.cfg.Enrolled(ctx, tx, d.Num); err != nil {
			return Certificate{}, fmt.Errorf("tell of the enrollment of %s: %w", d.ID, err)
		}
	}
	return c, s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: d.Tenant, Kind: "provisioning.enrolled", Device: d.ID, Subject: c.Serial, Actor: deviceActor(d),
		Data: ledger.Facts(map[string]any{
			"serial": d.Serial, "certificate": c.Serial, "key_id": c.KeyID, "key": c.KeyKind, "expires": c.Expires.UTC(),
			"token": t.ID, "address": in.address, "purchased": bought, "superseded": gone,
		}),
	})
}

func deviceActor(d device.Device) device.Actor {
	return device.Actor{Kind: device.ActorDevice, ID: string(d.ID), Name: d.DisplayName()}
}

// enrollDevice finds or makes the token's device and brings it to the stage that it enrolls into.
func (s *Service) enrollDevice(ctx context.Context, tx *sqldb.Tx, t Token) (d device.Device, bought bool, err error) {
	if t.num != 0 {
		d, err = s.cfg.Devices.ByNum(ctx, tx, t.num)
	} else {
		d, err = s.cfg.Devices.BySerial(ctx, tx, t.Tenant, t.Serial)
	}
	if errors.Is(err, fault.NotFound) && t.num == 0 {
		d, err = s.unpurchased(ctx, tx, t)
		return d, false, err
	}
	if err != nil {
		return device.Device{}, false, err
	}
	if d.Tenant != t.Tenant || d.Serial != t.Serial {
		return device.Device{}, false, errTokenInvalid() // sold or renumbered since
	}
	switch d.Stage {
	case device.Received:
		if d, err = s.move(ctx, tx, d, device.Staged); err == nil {
			d, err = s.move(ctx, tx, d, device.Enrolled)
		}
	case device.Staged:
		d, err = s.move(ctx, tx, d, device.Enrolled)
	case device.Enrolled, device.Active, device.Quarantined:
		// It has lost its key: it goes on where it was.
	case device.Retired, device.Disposed:
		err = errDecommissioned(d)
	default:
		err = fault.Later(fault.Conflict, wire.CodePending, pendingRetry, "device %s is %s: it can enroll once it is in stock", d.ID, d.Stage)
	}
	return d, d.Model != "", err
}

// pendingRetry is when a device asks again that must wait for people.
const pendingRetry = 5 * time.Minute

// move turns a guard's refusal into one that the device understands: ask again later.
func (s *Service) move(ctx context.Context, tx *sqldb.Tx, d device.Device, to device.Stage) (device.Device, error) {
	moved, err := s.cfg.Devices.Move(ctx, tx, deviceActor(d), device.Move{Num: d.Num, To: to, Reason: "enrolled with a token"})
	if errors.Is(err, fault.Conflict) {
		return d, fault.Later(fault.Conflict, wire.CodePending, pendingRetry, "%s", err)
	}
	return moved, err
}

// unpurchased makes the device that nobody bought, as the tenant's policy says.
func (s *Service) unpurchased(ctx context.Context, tx *sqldb.Tx, t Token) (device.Device, error) {
	p, err := readPolicy(ctx, tx, t.Tenant)
	if err != nil {
		return device.Device{}, err
	}
	n := device.New{Tenant: t.Tenant, Serial: t.Serial, Stage: device.Quarantined, Reason: "enrolled without having been bought"}
	switch p.Unpurchased {
	case RefuseUnpurchased:
		return device.Device{}, fault.Coded(fault.Forbidden, wire.CodeUnknownDevice,
			"serial number %s is not in stock and the policy refuses devices that nobody bought", t.Serial)
	case AcceptUnpurchased:
		n.Stage, n.Reason = device.Staged, "enrolling; the policy accepts devices that nobody bought"
	}
	d, err := s.cfg.Devices.Create(ctx, tx, device.System("provisioning"), n)
	if err != nil {
		return device.Device{}, err
	}
	if p.Unpurchased == AcceptUnpurchased {
		return s.move(ctx, tx, d, device.Enrolled)
	}
	return d, insertUnpurchased(ctx, tx, d, sqldb.Micros(s.cfg.Now()))
}

// reenroll renews over mutual TLS (RFC 7030, section 4.2.2): with the same key or, better, a new one.
// The certificate that authenticated the request works until the new one has been used.
func (s *Service) reenroll(ctx context.Context, cert *x509.Certificate, address string, body []byte) ([]byte, error) {
	d, current, err := s.identify(ctx, cert)
	if err != nil {
		return nil, err
	}
	req, err := parseRequest(body)
	if err != nil {
		return nil, err
	}
	a, err := s.authorities.get(ctx, d.Tenant)
	if err != nil {
		return nil, err
	}
	var c Certificate
	err = s.cfg.DB.WriteShared(ctx, func(tx *sqldb.Tx) error {
		c, err = s.reenrollTx(ctx, tx, current, issuance{authority: a, device: d, request: req, address: address})
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.body, nil
}

func revokedOr(err error) error {
	if err != nil {
		return err
	}
	return errRevoked()
}

func (s *Service) reenrollTx(ctx context.Context, tx *sqldb.Tx, current Certificate, in issuance) (Certificate, error) {
	now := s.cfg.Now()
	if alive, err := holdCertificate(ctx, tx, current.Serial); err != nil || !alive {
		return Certificate{}, revokedOr(err) // between the check and this transaction
	}
	certs, err := certificatesOf(ctx, tx, in.device.Num, now)
	if err != nil {
		return Certificate{}, err
	}
	if lost, ok := again(certs, in.request.keyID); ok && lost.Serial != current.Serial {
		return lost, nil
	}
	if from := current.renewable(); now.Before(from) {
		return Certificate{}, fault.Later(fault.Conflict, wire.CodeRenewEarly, from.Sub(now), "this certificate can be renewed from %s on", from.UTC().Format(time.RFC3339))
	}
	c, err := s.issue(ctx, tx, in)
	if err != nil {
		return Certificate{}, err
	}
	gone, err := s.makeRoom(ctx, tx, in.device)
	if err != nil {
		return Certificate{}, err
	}
	return c, s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: in.device.Tenant, Kind: "provisioning.renewed", Device: in.device.ID, Subject: c.Serial, Actor: deviceActor(in.device),
		Data: ledger.Facts(map[string]any{
			"certificate": c.Serial, "previous": current.Serial, "key_id": c.KeyID, "expires": c.Expires.UTC(), "address": in.address, "superseded": gone,
		}),
	})
}
