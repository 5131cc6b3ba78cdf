package bus

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// AuthorityName is the key of the node authority in the key store (P-256).
const AuthorityName = "node-authority"

// nodeName stands in every node's certificate. Nodes are told apart by nothing in it: whoever has the key
// of the authority is one.
const nodeName = "node.steward.internal"

// Lives of the authority, which is as old as its key, and of a node's certificate, which lives in memory
// only. They reach back since the clocks of nodes differ.
const (
	nodeBackdate = 30 * 24 * time.Hour
	nodeLife     = 90 * 24 * time.Hour
	nodeRenew    = 24 * time.Hour
)

var (
	authorityFrom  = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	authorityUntil = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// NodeTLS makes the TLS between nodes from the key that all of them share: each makes itself the same
// authority and a short-lived certificate of it, so that nothing has to be handed around.
func NodeTLS(authority crypto.Signer, now func() time.Time) (*tls.Config, error) {
	root, err := nodeAuthority(authority)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	n := &nodeCertificate{root: root, authority: authority, now: now}
	if _, err := n.get(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: nodeName, RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.get() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.get() },
	}, nil
}

// nodeAuthority is a certificate that follows from the key alone, but for the signature's randomness.
func nodeAuthority(key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the node authority's key: %w", err)
	}
	sum := sha256.Sum256(der)
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:16]), Subject: pkix.Name{Organization: []string{"Steward"}, CommonName: "nodes"},
		NotBefore: authorityFrom, NotAfter: authorityUntil, KeyUsage: x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, SubjectKeyId: sum[:20],
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{nodeName},
	}
	return signed(t, t, key.Public(), key)
}

func signed(t, parent *x509.Certificate, public crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, by)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate between nodes: %w", err)
	}
	return x509.ParseCertificate(der)
}

// nodeCertificate renews itself.
type nodeCertificate struct {
	root      *x509.Certificate
	authority crypto.Signer
	now       func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
	made    time.Time
}

func (n *nodeCertificate) get() (*tls.Certificate, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	if age := now.Sub(n.made); n.current != nil && age.Abs() < nodeRenew {
		return n.current, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails (crypto/rand)
	serial[0] |= 1           // not zero
	cert, err := signed(&x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{Organization: []string{"Steward"}, CommonName: nodeName},
		DNSNames: []string{nodeName}, NotBefore: now.Add(-nodeBackdate), NotAfter: now.Add(nodeLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, n.root, key.Public(), n.authority)
	if err != nil {
		return nil, err
	}
	n.current = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	n.made = now
	return n.current, nil
}
