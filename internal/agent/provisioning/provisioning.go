// Package provisioning is the device's identity: it makes the key, enrolls with the token, renews the
// certificate, and keeps what the device trusts.
//
//	token ─► trust.json ─► next.pem (key) ─► EST ─► next.pem (key+certificate) ─► probe ─► identity.pem
//	                          ▲                                                              │
//	                          └──────────── two thirds of the certificate's life ────────────┘
//
// The key is on stable storage before its request is sent, so an answer that was lost can be asked for
// again; the new certificate has been used before the old one goes; the switch is one rename. A kill at
// any instruction leaves an identity with which the server still speaks.
package provisioning

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Files of the room in the state directory.
const (
	identityFile = "identity.pem" // the certificate in use with its key
	nextFile     = "next.pem"     // the key of the next one, with its certificate once it has come
	trustFile    = "trust.json"   // what the token's pin names
)

// Keys of the journal.
const (
	keyTokenUsed  = "provisioning/token" // hash of the token that the present identity came by
	keyTokenAsked = "provisioning/asked" // hash of the token for which next.pem was made
)

// ErrNoToken says that the device has no identity and nothing to get one with.
var ErrNoToken = errors.New("the device is not enrolled and no enrollment token was given (--token)")

// Config of a Room.
type Config struct {
	Dir     string // the state directory
	Journal *journal.Journal
	Client  *link.Client // gets trust and identity from the room
	Serial  string       // user name at enrollment
	Token   string       // enrollment token; empty once enrolled
	// Now is the agent's clock, which the server has set right.
	Now func() time.Time
	// ClockHint is told the unverified time of the server while the local clock is before the
	// server's own root certificate; nil ignores it.
	ClockHint func(serverTime time.Time)
	Log       *slog.Logger
	Changed   func() // called after a renewal
}

// Room is safe for use by several goroutines.
type Room struct {
	cfg Config

	mu       sync.Mutex
	identity *Identity
	trust    wire.Trust
	problem  string

	hinted bool // the clock was given an unverified time; only Enroll's goroutine uses it
}

// Identity is an operational certificate (LDevID in the words of IEEE 802.1AR) and its key.
type Identity struct {
	Device      string // the device's ID, the certificate's common name
	Certificate *x509.Certificate
	TLS         *tls.Certificate
	Key         crypto.Signer
}

// New loads what the state directory holds and gives it to the client. A damaged identity is an
// error: enrolling over it would lose the device's name.
func New(cfg Config) (*Room, error) {
	r := &Room{cfg: cfg}
	trust, err := readTrust(r.path(trustFile))
	if err != nil {
		return nil, err
	}
	if trust != nil {
		if err := r.useTrust(*trust); err != nil {
			return nil, err
		}
	}
	identity, err := readIdentity(r.path(identityFile))
	if err != nil {
		return nil, err
	}
	if identity != nil {
		r.use(identity)
	}
	return r, nil
}

func (r *Room) path(name string) string { return filepath.Join(r.cfg.Dir, name) }

func (r *Room) use(identity *Identity) {
	r.mu.Lock()
	r.identity = identity
	r.mu.Unlock()
	r.cfg.Client.UseIdentity(identity.TLS)
}

func (r *Room) useTrust(trust wire.Trust) error {
	if err := r.cfg.Client.UseTrust(trust); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trust = trust
	return nil
}

// Name of the room.
func (r *Room) Name() string { return "provisioning" }

// Section is empty: nothing about the identity is desired by documents.
func (r *Room) Section() wire.Section { return "" }

// Apply has nothing to take.
func (r *Room) Apply(context.Context, []byte) error { return nil }

// Reported is empty: the certificate's end stands in the agent's section.
func (r *Room) Reported(context.Context) (map[wire.Section]any, error) { return nil, nil }

// Identity returns the identity in use, or nil before enrollment.
func (r *Room) Identity() *Identity {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.identity
}

// Trust returns what the token's pin named.
func (r *Room) Trust() wire.Trust {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trust
}

// Problem says why the identity is not renewed, or is empty.
func (r *Room) Problem() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

func (r *Room) setProblem(problem string) {
	r.mu.Lock()
	changed := r.problem != problem
	r.problem = problem
	r.mu.Unlock()
	if changed && r.cfg.Changed != nil {
		r.cfg.Changed()
	}
}

// NeedsToken tells whether the device must enroll: it has no identity, or the one it has was refused
// or has ended and a token that was not used yet is at hand.
func (r *Room) NeedsToken(refused error) bool {
	identity := r.Identity()
	if identity == nil {
		return true
	}
	fresh := r.cfg.Token != "" && r.tokenUsed() != wire.HashOf([]byte(r.cfg.Token))
	return fresh && (refused != nil || !r.cfg.Now().Before(identity.Certificate.NotAfter))
}

func (r *Room) tokenUsed() (hash wire.Hash) {
	_, _ = r.cfg.Journal.Get(keyTokenUsed, &hash) // an unreadable value counts as none
	return hash
}

// Run renews the certificate at two thirds of its life until ctx ends.
func (r *Room) Run(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		wait = r.tend(ctx)
	}
}

// Waits of Run.
const (
	longestNap = time.Hour // the clock may be set right meanwhile
	retryFirst = 5 * time.Second
)

// tend renews when it is time and returns how long to wait.
func (r *Room) tend(ctx context.Context) time.Duration {
	due := r.renewal()
	if until := due.Sub(r.cfg.Now()); until > 0 {
		return min(until, longestNap)
	}
	err := r.Renew(ctx)
	switch {
	case err == nil:
		r.setProblem("")
		return time.Second // never a tight loop, whatever the server issues
	case ctx.Err() != nil:
		return 0
	}
	r.cfg.Log.Warn("certificate not renewed", "error", err)
	r.setProblem("certificate not renewed: " + err.Error())
	return max(link.RetryAfter(err), r.retryWait())
}

// renewal is when the certificate in use should be renewed: two thirds of its life, up to a
// thirtieth earlier so that a fleet that enrolled in one hour does not renew in one. The place within
// the thirtieth comes from the certificate's number, so that a restart does not move it.
func (r *Room) renewal() time.Time {
	cert := r.Identity().Certificate
	life := cert.NotAfter.Sub(cert.NotBefore)
	number := cert.SerialNumber.Bytes()
	share := float64(number[len(number)-1]) / 256
	return cert.NotBefore.Add(life*2/3 - time.Duration(float64(life)/30*share))
}

// retryWait grows with the life that is left: a certificate of an hour is asked for again after a
// minute, one of a year after half an hour; never later than a tenth of what is left.
func (r *Room) retryWait() time.Duration {
	left := r.Identity().Certificate.NotAfter.Sub(r.cfg.Now())
	wait := min(max(left/10, retryFirst), 30*time.Minute)
	return wait/2 + rand.N(wait/2+1)
}

// Renew gets the next certificate, tries it, and switches to it. After a kill or an error it goes on
// where it was.
func (r *Room) Renew(ctx context.Context) error {
	old := r.Identity()
	// RFC 7030, section 4.2.2: the subject of the certificate that is renewed.
	next, err := r.prepare(old.Device, func(csr []byte) ([]*x509.Certificate, error) { return r.cfg.Client.Reenroll(ctx, csr) })
	if err != nil {
		return err
	}
	if next.Device != old.Device {
		return errors.Join(fmt.Errorf("the new certificate names device %s, this is %s", next.Device, old.Device), r.dropNext())
	}
	if err := r.probe(ctx, next); err != nil {
		return err
	}
	if err := r.promote(next); err != nil {
		return err
	}
	r.cfg.Log.Info("certificate renewed", "device", next.Device, "expires", next.Certificate.NotAfter)
	if r.cfg.Changed != nil {
		r.cfg.Changed()
	}
	return nil
}

// probe uses the certificate once. The server gives up the old one on this first use, so from here on
// the new one must not be lost: it stands in next.pem.
func (r *Room) probe(ctx context.Context, next *Identity) error {
	client := r.cfg.Client.Probe(next.TLS)
	defer client.Close()
	_, err := client.Desired(ctx, link.Whole, 0)
	switch link.CodeOf(err) {
	case wire.CodeRevoked, wire.CodeUnknownDevice, wire.CodeSuperseded, wire.CodeExpired:
		// The server will never take it: begin anew, with the certificate that still works.
		return errors.Join(fmt.Errorf("try the new certificate: %w", err), r.dropNext())
	}
	if status := link.StatusOf(err); err != nil && (status == 0 || status >= 500) {
		return fmt.Errorf("try the new certificate: %w", err)
	}
	return nil // any other answer was given to this certificate's holder
}

func (r *Room) promote(next *Identity) error {
	if err := r.cfg.Journal.Rename(r.path(nextFile), r.path(identityFile)); err != nil {
		return fmt.Errorf("switch to the new certificate: %w", err)
	}
	r.use(next)
	return nil
}

func (r *Room) dropNext() error {
	_, err := r.cfg.Journal.Wipe(r.path(nextFile))
	return err
}

// Recover switches to a new certificate that was obtained before a kill, when the server refuses the
// present one because of it. It tells whether it did.
func (r *Room) Recover(ctx context.Context) (bool, error) {
	next, err := readIdentity(r.path(nextFile))
	if err != nil || next == nil || next.Certificate == nil {
		return false, err
	}
	if err := r.probe(ctx, next); err != nil {
		return false, err
	}
	return true, r.promote(next)
}
