package provisioning

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// Lives of authorities. An issuing authority is followed by the next generation while it still has
// issuingSpare left, so that what it issued never outlives it.
const (
	rootLife     = 20 * 365 * 24 * time.Hour
	issuingLife  = 5 * 365 * 24 * time.Hour
	issuingSpare = 365 * 24 * time.Hour
)

// linkOwner stands in the place of a tenant for the authority of the link's own TLS certificate. It
// is no valid tenant name, so the two can't meet.
const linkOwner device.TenantID = ""

// authority is one owner's root with its issuing authorities, as loaded from the database.
type authority struct {
	owner    device.TenantID
	root     stored
	issuing  []stored // by generation; the last one signs
	signer   crypto.Signer
	roots    *x509.CertPool
	middle   *x509.CertPool
	purposes []x509.ExtKeyUsage
}

// stored is one row of provisioning_authority.
type stored struct {
	id, kind, key string
	generation    int
	created       time.Time
	cert          *x509.Certificate
}

func (a *authority) current() stored { return a.issuing[len(a.issuing)-1] }

// verify checks that the certificate chains to the root. When it was valid is not its business: the
// caller knows the row in the table.
func (a *authority) verify(cert *x509.Certificate, now time.Time) error {
	at := now
	if at.After(cert.NotAfter) {
		at = cert.NotAfter
	}
	if at.Before(cert.NotBefore) {
		at = cert.NotBefore
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: a.roots, Intermediates: a.middle, CurrentTime: at, KeyUsages: a.purposes})
	return err
}

// chain is root first, then all issuing authorities.
func (a *authority) chain() []*x509.Certificate {
	out := []*x509.Certificate{a.root.cert}
	for _, s := range a.issuing {
		out = append(out, s.cert)
	}
	return out
}

// authorities makes, loads and renews them. It keeps them in memory: a certificate never changes, and
// another node's new generation is found when a certificate of it comes.
type authorities struct {
	db     *sqldb.DB
	keys   KeyStore
	ledger Ledger
	now    func() time.Time
	log    *slog.Logger

	mu    sync.Mutex // held while one is made, so that a node makes it once
	known map[device.TenantID]*authority
}

// get returns the owner's authority, which it makes at first use. It must not be called within a
// transaction, since it may write.
func (as *authorities) get(ctx context.Context, owner device.TenantID) (*authority, error) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a, err := as.cached(ctx, owner)
	if errors.Is(err, fault.NotFound) {
		if err = as.makeRoot(ctx, owner); err == nil {
			a, err = as.load(ctx, owner)
		}
	}
	if err != nil {
		return nil, err
	}
	if a.current().cert.NotAfter.Sub(as.now()) > issuingSpare {
		return a, nil
	}
	if err := as.nextGeneration(ctx, a); err != nil {
		return nil, err
	}
	return as.load(ctx, owner)
}

// find returns the owner's authority or fault.NotFound; it never makes one.
func (as *authorities) find(ctx context.Context, owner device.TenantID) (*authority, error) {
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.cached(ctx, owner)
}

// reload reads the owner's authority again, for a generation that another node has made.
func (as *authorities) reload(ctx context.Context, owner device.TenantID) (*authority, error) {
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.load(ctx, owner)
}

func (as *authorities) cached(ctx context.Context, owner device.TenantID) (*authority, error) {
	if a := as.known[owner]; a != nil {
		return a, nil
	}
	return as.load(ctx, owner)
}

func (as *authorities) load(ctx context.Context, owner device.TenantID) (*authority, error) {
	rows, err := readAuthorities(ctx, as.db, owner)
	if err != nil {
		return nil, err
	}
	a := &authority{owner: owner, roots: x509.NewCertPool(), middle: x509.NewCertPool(), purposes: []x509.ExtKeyUsage{purposeOf(owner)}}
	for _, r := range rows {
		if r.kind == "root" {
			a.root = r
			a.roots.AddCert(r.cert)
			continue
		}
		a.issuing = append(a.issuing, r)
		a.middle.AddCert(r.cert)
	}
	if a.root.cert == nil || len(a.issuing) == 0 {
		return nil, fault.New(fault.NotFound, "tenant %q has no certificate authority yet; its first enrollment token makes it", owner)
	}
	a.signer, err = as.keys.Open(ctx, a.current().key)
	if err != nil {
		return nil, fmt.Errorf("key of authority %s (%s): restore it from the backup of the key store: %w", a.current().id, a.current().cert.Subject, err)
	}
	if pub, ok := a.current().cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(a.signer.Public()) {
		return nil, fmt.Errorf("key of authority %s is not the one of its certificate", a.current().id)
	}
	as.known[owner] = a
	return a, nil
}

func purposeOf(owner device.TenantID) x509.ExtKeyUsage {
	if owner == linkOwner {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

// makeRoot makes root and first issuing authority. Of two nodes that do it at once, the one whose
// commit comes second throws its own away.
func (as *authorities) makeRoot(ctx context.Context, owner device.TenantID) error {
	root, rootKey, err := as.newAuthority(ctx, owner, "root", 1, nil)
	if err != nil {
		return err
	}
	issuing, _, err := as.newAuthority(ctx, owner, "issuing", 1, &parent{root.cert, rootKey})
	if err != nil {
		return err
	}
	return as.store(ctx, owner, root, issuing)
}

func (as *authorities) nextGeneration(ctx context.Context, a *authority) error {
	rootKey, err := as.keys.Open(ctx, a.root.key)
	if err != nil {
		return fmt.Errorf("renew the issuing authority of %q: %w", a.owner, err)
	}
	next, _, err := as.newAuthority(ctx, a.owner, "issuing", a.current().generation+1, &parent{a.root.cert, rootKey})
	if err != nil {
		return err
	}
	return as.store(ctx, a.owner, next)
}

// store inserts all or, when another node was faster, none, and then destroys their keys.
func (as *authorities) store(ctx context.Context, owner device.TenantID, made ...stored) error {
	var lost bool
	err := as.db.Write(ctx, func(tx *sqldb.Tx) error {
		for i, s := range made {
			n, err := insertAuthority(ctx, tx, owner, s)
			if err != nil {
				return err
			}
			if lost = n == 0; lost {
				return nil // only the first can lose: the others follow from it
			}
			if err := as.tell(ctx, tx, owner, made[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && lost { // after an error the outcome may be unknown: an unused key does no harm
		for _, s := range made {
			if derr := as.keys.Delete(ctx, s.key); derr != nil {
				as.log.ErrorContext(ctx, "delete the key of an unused authority", "key", s.key, "error", derr)
			}
		}
	}
	return err
}

func (as *authorities) tell(ctx context.Context, tx *sqldb.Tx, owner device.TenantID, s stored) error {
	tenant := owner
	if owner == linkOwner {
		tenant = device.DefaultTenant
	}
	sum := sha256.Sum256(s.cert.Raw)
	return as.ledger.Append(ctx, tx, ledger.Event{
		Tenant: tenant, Kind: "provisioning.authority_created", Subject: s.id, Actor: device.System("provisioning"),
		Data: ledger.Facts(map[string]any{
			"kind": kindName(owner, s.kind), "subject": s.cert.Subject.String(), "fingerprint": fmt.Sprintf("%x", sum), "expires": s.cert.NotAfter.UTC(),
		}),
	})
}

func kindName(owner device.TenantID, kind string) string {
	if owner == linkOwner {
		return "link " + kind
	}
	return kind
}

type parent struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newAuthority makes key and certificate; a nil parent makes a root.
func (as *authorities) newAuthority(ctx context.Context, owner device.TenantID, kind string, generation int, by *parent) (stored, crypto.Signer, error) {
	id := "ca-" + device.RandomName(10)
	key, err := as.keys.Ensure(ctx, id, keys.P256)
	if err != nil {
		return stored{}, nil, fmt.Errorf("make the %s authority's key: %w", kind, err)
	}
	now := as.now()
	t := &x509.Certificate{
		SerialNumber: newSerial(), Subject: authorityName(owner, kind, id),
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1, SubjectKeyId: keyIdentifier(key.Public()),
	}
	if by == nil {
		by = &parent{t, key}
		t.KeyUsage &^= x509.KeyUsageDigitalSignature
	} else {
		t.NotAfter = earlier(now.Add(issuingLife), by.cert.NotAfter)
		t.MaxPathLen, t.MaxPathLenZero = 0, true
		t.ExtKeyUsage = []x509.ExtKeyUsage{purposeOf(owner)} // binds what it issues (RFC 5280 leaves that open, verifiers do it)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, key.Public(), by.key)
	if err != nil {
		return stored{}, nil, fmt.Errorf("sign the %s authority: %w", kind, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return stored{}, nil, fmt.Errorf("read the %s authority back: %w", kind, err)
	}
	return stored{id: id, kind: kind, key: id, generation: generation, created: now, cert: cert}, key, nil
}

// authorityName is unique by the random ID, so that a new installation's authority is never taken for
// an old one's of the same tenant.
func authorityName(owner device.TenantID, kind, id string) pkix.Name {
	what := "device " + kind + " of " + string(owner)
	if owner == linkOwner {
		what = "link " + kind
	}
	return pkix.Name{Organization: []string{"Steward"}, CommonName: what + " " + id[3:11]}
}

// newSerial returns 128 random bits, at least 1 (RFC 5280, section 4.1.2.2 asks for positive numbers of
// at most 20 bytes; CA/Browser rules for 64 random bits).
func newSerial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return new(big.Int).Add(new(big.Int).SetBytes(b), big.NewInt(1))
}

// keyIdentifier is method 1 of RFC 7093, section 2.
func keyIdentifier(key crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(fmt.Sprintf("provisioning: encode a public key of our own: %v", err)) // kinds are checked before
	}
	sum := sha256.Sum256(der)
	return sum[:20]
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func pemOf(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}
