package provisioning

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// linkCertificateLife is short, since it renews itself and there is nobody to revoke it to.
const linkCertificateLife = 90 * 24 * time.Hour

// linkCertificate is the link's TLS certificate. Each node makes its own at start, with a key that
// never leaves its memory, and renews it within the handshake that finds it past two thirds of its
// life. When that fails, the old one serves on while it is valid.
type linkCertificate struct {
	authorities *authorities
	names       []string
	now         func() time.Time
	log         *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	renew   time.Time
}

// retryLink is how long the old certificate is served before the next attempt after a failed one.
const retryLink = time.Minute

func (l *linkCertificate) get(ctx context.Context) (*tls.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.current != nil && now.Before(l.renew) {
		return l.current, nil
	}
	cert, err := l.issue(ctx, now)
	if err != nil {
		if l.current != nil && now.Before(l.current.Leaf.NotAfter) {
			l.log.ErrorContext(ctx, "renew the link's certificate", "error", err)
			l.renew = now.Add(retryLink)
			return l.current, nil
		}
		return nil, fmt.Errorf("issue the link's certificate: %w", err)
	}
	l.current, l.renew = cert, now.Add(cert.Leaf.NotAfter.Sub(now)*2/3)
	return cert, nil
}

func (l *linkCertificate) issue(ctx context.Context, now time.Time) (*tls.Certificate, error) {
	a, err := l.authorities.get(ctx, linkOwner)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	issuer := a.current().cert
	t := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{Organization: []string{"Steward"}, CommonName: l.names[0]},
		NotBefore: now.Add(-backdate), NotAfter: earlier(now.Add(linkCertificateLife), issuer.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, SubjectKeyId: keyIdentifier(key.Public()),
	}
	for _, name := range l.names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key.Public(), a.signer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, issuer.Raw}, PrivateKey: crypto.PrivateKey(key), Leaf: leaf}, nil
}

// checkLinkNames refuses a list from which no certificate can be made.
func checkLinkNames(names []string) error {
	if len(names) == 0 {
		return errors.New("the link's certificate needs at least one name or address")
	}
	for _, n := range names {
		if n == "" || len(n) > 253 {
			return fmt.Errorf("link name %q: want a DNS name or an IP address", n)
		}
	}
	return nil
}
