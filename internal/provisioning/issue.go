package provisioning

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// issuance is what one certificate is made from.
type issuance struct {
	authority *authority
	device    device.Device
	request   *request
	address   string
}

// issue signs a certificate for the device and stores it in the transaction. Of the request it takes
// the public key; every other field is ours.
func (s *Service) issue(ctx context.Context, tx *sqldb.Tx, in issuance) (Certificate, error) {
	if err := in.request.checkNames(in.device); err != nil {
		return Certificate{}, err
	}
	other, revoked, err := keyOwner(ctx, tx, in.request.keyID, in.device.Num)
	if err != nil {
		return Certificate{}, err
	}
	if other != 0 {
		return Certificate{}, fault.Coded(fault.Conflict, wire.CodeKeyRefused,
			"another device has this key: was its disk copied? Delete the agent's state directory and enroll again")
	}
	if revoked {
		return Certificate{}, fault.Coded(fault.Conflict, wire.CodeKeyRefused, "this key was revoked: make a new one")
	}
	c, err := s.sign(in)
	if err != nil {
		return Certificate{}, err
	}
	return c, insertCertificate(ctx, tx, c, in.authority.current().id)
}

func (s *Service) sign(in issuance) (Certificate, error) {
	now, issuer := s.cfg.Now(), in.authority.current()
	uri, err := url.Parse(deviceURI(in.device))
	if err != nil {
		return Certificate{}, fmt.Errorf("name the device: %w", err)
	}
	life := s.cfg.CertificateLife
	t := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: string(in.device.ID)},
		NotBefore: now.Add(-min(backdate, life/10)), NotAfter: earlier(now.Add(life), issuer.cert.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{uri}, SubjectKeyId: keyIdentifier(in.request.csr.PublicKey),
	}
	if s.cfg.CRLBase != "" {
		t.CRLDistributionPoints = []string{s.cfg.CRLBase + "/pki/" + string(in.device.Tenant) + "/" + issuer.id + ".crl"}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer.cert, in.request.csr.PublicKey, in.authority.signer)
	if err != nil {
		return Certificate{}, fmt.Errorf("sign certificate: %w", err)
	}
	return Certificate{
		Serial: serialText(t), Device: in.device.ID, KeyID: in.request.keyID, KeyKind: in.request.kind, State: CertificateIssued,
		Issued: now, Expires: t.NotAfter.Truncate(time.Second), Address: in.address,
		tenant: in.device.Tenant, num: in.device.Num, body: der, seal: s.seals.seal(in.device.Tenant, der),
	}, nil
}

// serialText is how a serial number is stored and shown: lower case hex without leading zeros.
func serialText(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// living are the certificates of a device that still work, newest first.
func living(certs []Certificate) []Certificate {
	var out []Certificate
	for _, c := range certs {
		if c.State == CertificateIssued || c.State == CertificateInUse {
			out = append(out, c)
		}
	}
	return out
}

// makeRoom supersedes what is more than MaxLiving, counting the one just issued: first the oldest that
// were never used, whose answers were lost. It returns their serial numbers.
func (s *Service) makeRoom(ctx context.Context, tx *sqldb.Tx, d device.Device) ([]string, error) {
	now := s.cfg.Now()
	certs, err := certificatesOf(ctx, tx, d.Num, now)
	if err != nil {
		return nil, err
	}
	alive := living(certs)
	var gone []string
	for _, wanted := range []CertificateState{CertificateIssued, CertificateInUse} {
		for i := len(alive) - 1; i > 0 && len(alive)-len(gone) > MaxLiving; i-- {
			if alive[i].State == wanted {
				gone = append(gone, alive[i].Serial)
			}
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	if err := supersede(ctx, tx, now, gone); err != nil {
		return nil, err
	}
	return gone, touchCRL(ctx, tx, d.Tenant)
}

// again finds a certificate that was issued for this very key and never used: its answer was lost.
func again(certs []Certificate, keyID string) (Certificate, bool) {
	for _, c := range certs {
		if c.KeyID == keyID && c.State == CertificateIssued {
			return c, true
		}
	}
	return Certificate{}, false
}
