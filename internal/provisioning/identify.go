package provisioning

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// refusedRetry keeps a device that is refused from knocking every few seconds.
const refusedRetry = 10 * time.Minute

func errRevoked() error {
	return fault.Later(fault.Forbidden, wire.CodeRevoked, refusedRetry, "this certificate was revoked; to come back the device needs a new enrollment token")
}

// Identify tells which device a client certificate belongs to, or refuses it with a code that the
// device acts on. The caller has proof that the peer has the certificate's key, by the TLS handshake.
// It is called on every request, so that a revocation counts from the next one on.
func (s *Service) Identify(ctx context.Context, cert *x509.Certificate) (device.Device, error) {
	d, _, err := s.identify(ctx, cert)
	return d, err
}

func (s *Service) identify(ctx context.Context, cert *x509.Certificate) (device.Device, Certificate, error) {
	none := device.Device{}
	if cert == nil {
		return none, Certificate{}, fault.Coded(fault.Unauthorized, wire.CodeCertificateRequired, "this path needs the device's certificate")
	}
	c, err := certificateBySerial(ctx, s.cfg.DB, serialText(cert), s.cfg.Now())
	if errors.Is(err, fault.NotFound) {
		return none, c, errUnknownDevice()
	}
	if err != nil {
		return none, c, err
	}
	if !bytes.Equal(c.body, cert.Raw) {
		return none, c, errUnknownDevice() // somebody else's with our serial number
	}
	if err := s.checkChain(ctx, c, cert); err != nil {
		return none, c, err
	}
	d, err := s.cfg.Devices.ByNum(ctx, s.cfg.DB, c.num)
	if errors.Is(err, fault.NotFound) {
		return none, c, errUnknownDevice()
	}
	if err != nil {
		return none, c, fmt.Errorf("read the device of certificate %s: %w", c.Serial, err)
	}
	if cert.Subject.CommonName != string(d.ID) {
		return none, c, errUnknownDevice() // the row was bent to another device
	}
	if err := admit(d, c); err != nil {
		return none, c, err
	}
	if c.FirstUsed.IsZero() {
		if err := s.markFirstUse(ctx, d, c); err != nil {
			return none, c, err
		}
	}
	return d, c, nil
}

// admit judges the device's stage and the certificate's state.
func admit(d device.Device, c Certificate) error {
	switch {
	case d.Stage == device.Disposed:
		return errDecommissioned(d)
	case d.Tenant != c.tenant:
		return errUnknownDevice() // it has a new owner, whose authority it must enroll with
	case c.State == CertificateRevoked:
		return errRevoked()
	case c.State == CertificateSuperseded:
		return fault.Later(fault.Forbidden, wire.CodeSuperseded, refusedRetry, "a newer certificate of this device has been used since %s", c.Superseded.UTC().Format(time.RFC3339))
	case c.State == CertificateExpired:
		return fault.Later(fault.Forbidden, wire.CodeExpired, refusedRetry, "this certificate ended at %s; the device needs a new enrollment token, or its clock was wrong when it should have renewed", c.Expires.UTC().Format(time.RFC3339))
	case !d.Stage.InService():
		return fault.Later(fault.Forbidden, wire.CodeUnknownDevice, refusedRetry, "device %s is %s, not in service: it must enroll with a new token", d.ID, d.Stage)
	}
	return nil
}

// checkChain makes sure that we have issued the certificate: by our seal on it, or by the signatures up to
// the tenant's root, once per certificate and process.
func (s *Service) checkChain(ctx context.Context, c Certificate, cert *x509.Certificate) error {
	if s.seals.holds(c) || s.chains.has(cert.Raw) {
		return nil
	}
	a, err := s.authorities.find(ctx, c.tenant)
	if err != nil {
		return err
	}
	if err := a.verify(cert, s.cfg.Now()); err != nil {
		// Another node may have made a new generation of the issuing authority.
		if a, err = s.authorities.reload(ctx, c.tenant); err != nil {
			return err
		}
		if err := a.verify(cert, s.cfg.Now()); err != nil {
			s.cfg.Log.WarnContext(ctx, "a stored certificate does not chain to its authority", "certificate", c.Serial, "error", err)
			return errUnknownDevice()
		}
	}
	s.chains.add(cert.Raw)
	return nil
}

// verified remembers certificates whose chain was checked, by SHA-256; bounded by starting anew.
type verified struct {
	mu   sync.RWMutex
	seen map[[sha256.Size]byte]struct{}
}

const maxVerified = 1 << 16

func newVerified() *verified { return &verified{seen: map[[sha256.Size]byte]struct{}{}} }

func (v *verified) has(raw []byte) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, ok := v.seen[sha256.Sum256(raw)]
	return ok
}

func (v *verified) add(raw []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.seen) >= maxVerified {
		clear(v.seen)
	}
	v.seen[sha256.Sum256(raw)] = struct{}{}
}

// markFirstUse ends the certificates that came before this one: the device has proven that it has the
// new key.
func (s *Service) markFirstUse(ctx context.Context, d device.Device, c Certificate) error {
	return s.cfg.DB.WriteShared(ctx, func(tx *sqldb.Tx) error {
		now := s.cfg.Now()
		first, err := markUsed(ctx, tx, c.Serial, now)
		if err != nil || !first {
			return err
		}
		certs, err := certificatesOf(ctx, tx, d.Num, now)
		if err != nil {
			return err
		}
		var old []string
		for _, o := range living(certs) {
			if o.Serial != c.Serial && !o.Issued.After(c.Issued) {
				old = append(old, o.Serial)
			}
		}
		if len(old) == 0 {
			return nil
		}
		if err := supersede(ctx, tx, now, old); err != nil {
			return err
		}
		if err := touchCRL(ctx, tx, d.Tenant); err != nil {
			return err
		}
		s.afterCommit(ctx, tx, ChangedSubject, d.Num)
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: d.Tenant, Kind: "provisioning.superseded", Device: d.ID, Subject: c.Serial, Actor: deviceActor(d),
			Data: ledger.Facts(map[string]any{"certificate": c.Serial, "superseded": old}),
		})
	})
}

// DeviceKey returns the public key of the device's operational certificate, with which its statements
// are verified; see DeviceChain.
func (s *Service) DeviceKey(ctx context.Context, q sqldb.Reader, num int64) (crypto.PublicKey, error) {
	cert, _, err := s.operational(ctx, q, num)
	if err != nil {
		return nil, err
	}
	return cert.PublicKey, nil
}

// DeviceChain returns the device's operational certificate, then its issuing authority and the root:
// what others need to verify a statement of the device without us. fault.NotFound when the device has
// no valid certificate. It reads through q only, so it may be called within a transaction.
func (s *Service) DeviceChain(ctx context.Context, q sqldb.Reader, num int64) ([]*x509.Certificate, error) {
	cert, tenant, err := s.operational(ctx, q, num)
	if err != nil {
		return nil, err
	}
	rows, err := readAuthorities(ctx, q, tenant)
	if err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{cert, nil, nil}
	for _, r := range rows {
		switch {
		case r.kind == "root":
			chain[2] = r.cert
		case bytes.Equal(r.cert.SubjectKeyId, cert.AuthorityKeyId):
			chain[1] = r.cert
		}
	}
	if chain[1] == nil || chain[2] == nil {
		return nil, fmt.Errorf("the authorities of certificate %s are not in the database", serialText(cert))
	}
	return chain, nil
}

// operational is the certificate that the device used last and that is neither revoked nor superseded,
// expired or not; before its first use, the newest.
func (s *Service) operational(ctx context.Context, q sqldb.Reader, num int64) (*x509.Certificate, device.TenantID, error) {
	certs, err := certificatesOf(ctx, q, num, s.cfg.Now())
	if err != nil {
		return nil, "", err
	}
	var best *Certificate
	for i := range certs {
		c := &certs[i]
		if !c.Revoked.IsZero() || !c.Superseded.IsZero() {
			continue
		}
		if best == nil || (best.FirstUsed.IsZero() && !c.FirstUsed.IsZero()) {
			best = c
		}
	}
	if best == nil {
		return nil, "", fault.New(fault.NotFound, "the device has no valid certificate")
	}
	cert, err := x509.ParseCertificate(best.body)
	if err != nil {
		return nil, "", fmt.Errorf("parse certificate %s: %w", best.Serial, err)
	}
	return cert, best.tenant, nil
}
