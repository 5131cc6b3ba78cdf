package provisioning

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"time"

	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Enroll makes one attempt to become a device: fetch the trust that the token's pin names, make the
// key, ask for the certificate. Refusals are *link.Problem; who calls decides how long to wait.
func (r *Room) Enroll(ctx context.Context) error {
	if r.cfg.Token == "" {
		return ErrNoToken
	}
	token, err := wire.ParseEnrollmentToken(r.cfg.Token)
	if err != nil {
		return err
	}
	if err := r.fetchTrust(ctx, token.Pin); err != nil {
		return err
	}
	if err := r.startWith(r.cfg.Token); err != nil {
		return err
	}
	client := r.cfg.Client
	if r.Identity() != nil {
		// A device that enrolls again does so as nobody: the certificate that it has is refused.
		client = client.Probe(nil)
		defer client.Close()
	}
	identity, err := r.prepare(r.cfg.Serial, func(csr []byte) ([]*x509.Certificate, error) {
		return client.Enroll(ctx, r.cfg.Serial, token.Secret, csr)
	})
	if err != nil {
		return r.afterRefusal(err)
	}
	if err := r.cfg.Journal.Put(keyTokenUsed, wire.HashOf([]byte(r.cfg.Token))); err != nil {
		return err
	}
	if err := r.promote(identity); err != nil {
		return err
	}
	r.cfg.Log.Info("enrolled", "device", identity.Device, "serial", r.cfg.Serial, "expires", identity.Certificate.NotAfter)
	return nil
}

// startWith throws away what was prepared for another token: its certificate may be of another
// server, and its key may be known there.
func (r *Room) startWith(token string) error {
	var asked wire.Hash
	if _, err := r.cfg.Journal.Get(keyTokenAsked, &asked); err != nil {
		return err
	}
	hash := wire.HashOf([]byte(token))
	if asked == hash {
		return nil
	}
	if err := r.dropNext(); err != nil {
		return err
	}
	return r.cfg.Journal.Put(keyTokenAsked, hash)
}

// afterRefusal throws the prepared key away when it can never be enrolled: the token was used by
// another key, or the server does not take this one. The next attempt starts with a new one.
func (r *Room) afterRefusal(err error) error {
	switch link.CodeOf(err) {
	case wire.CodeTokenUsed, wire.CodeKeyRefused:
		return errors.Join(err, r.dropNext())
	}
	return err
}

// fetchTrust gets the trust document unless the one at hand has the pin. A device whose clock is before
// its server's certificates fetches it again for the time that comes with it: a kill between trust and
// certificate must not leave it without one.
func (r *Room) fetchTrust(ctx context.Context, pin wire.Hash) error {
	if have, err := trustHash(r.path(trustFile)); err != nil || have == pin && !r.needsTime() {
		return err
	}
	trust, raw, serverTime, err := r.cfg.Client.Trust(ctx, pin)
	if err != nil {
		return err
	}
	roots, err := link.RootsOf(trust)
	if err != nil {
		return err
	}
	if _, err := EnvelopeKeys(trust); err != nil {
		return err
	}
	r.hint(roots, serverTime)
	if err := r.cfg.Journal.WriteFile(r.path(trustFile), raw, 0o600); err != nil {
		return fmt.Errorf("store the trust document: %w", err)
	}
	return r.useTrust(trust)
}

// hint tells the agent's clock the server's time when the machine has none. Without a battery the clock
// starts in 1970: no certificate would be valid. The time is not authenticated, but all it can do is to
// let an older certificate of the pinned roots pass, or none, until the first verified answer.
func (r *Room) hint(roots []*x509.Certificate, serverTime time.Time) {
	if r.cfg.ClockHint == nil {
		return
	}
	for _, root := range roots {
		if (r.hinted || r.cfg.Now().Before(root.NotBefore)) && serverTime.After(root.NotBefore) && serverTime.Before(root.NotAfter) {
			r.hinted = true
			r.cfg.ClockHint(serverTime)
		}
	}
}

// needsTime tells whether the clock is before the server's certificates, or goes by a hint only: then
// each attempt asks for another one, since the hint itself may be what makes it fail.
func (r *Room) needsTime() bool {
	roots, err := link.RootsOf(r.Trust())
	if err != nil || r.cfg.ClockHint == nil {
		return false
	}
	early := slices.ContainsFunc(roots, func(root *x509.Certificate) bool { return r.cfg.Now().Before(root.NotBefore) })
	return early || r.hinted && r.Identity() == nil
}

// prepare returns the next identity, complete on stable storage in next.pem. It makes the key only
// when there is none and asks only when there is no certificate for it.
func (r *Room) prepare(subject string, ask func(csr []byte) ([]*x509.Certificate, error)) (*Identity, error) {
	next, err := readIdentity(r.path(nextFile))
	if err != nil {
		// Unlike the identity in use, a damaged preparation can be made again.
		r.cfg.Log.Warn("prepared key is damaged; making another", "error", err)
		next = nil
	}
	if next == nil {
		if next, err = r.makeKey(); err != nil {
			return nil, err
		}
	}
	if next.Certificate != nil && r.cfg.Now().Before(next.Certificate.NotAfter) {
		return next, nil
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: subject},
	}, next.Key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	chain, err := ask(csr)
	if err != nil {
		return nil, err
	}
	identity, err := newIdentity(next.Key, chain)
	if err != nil {
		return nil, err
	}
	if err := r.checkIssued(identity); err != nil {
		return nil, err
	}
	content, err := encodeIdentity(identity.Key, chain)
	if err != nil {
		return nil, err
	}
	if err := r.cfg.Journal.WriteFile(r.path(nextFile), content, 0o600); err != nil {
		return nil, fmt.Errorf("store the certificate: %w", err)
	}
	return identity, nil
}

func (r *Room) makeKey() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	content, err := encodeIdentity(key, nil)
	if err != nil {
		return nil, err
	}
	if err := r.cfg.Journal.WriteFile(r.path(nextFile), content, 0o600); err != nil {
		return nil, fmt.Errorf("store the new key: %w", err)
	}
	return &Identity{Key: key}, nil
}

// checkIssued refuses a certificate that has ended by the agent's clock: using it would be pointless
// and would hide that the clock is wrong.
func (r *Room) checkIssued(identity *Identity) error {
	if now := r.cfg.Now(); !now.Before(identity.Certificate.NotAfter) {
		return fmt.Errorf("the server issued a certificate that ended at %s; the device's clock says %s",
			identity.Certificate.NotAfter.UTC().Format("2006-01-02 15:04"), now.UTC().Format("2006-01-02 15:04"))
	}
	return nil
}
