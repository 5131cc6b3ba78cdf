package swarm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"steward/internal/agent/link"
	"steward/internal/wire"
)

// perConnection is how many enrollments a shared connection carries: the server takes 200 requests at
// once from an address that shows no certificate, then 20 a second.
const perConnection = 150

// identity is what a device needs to connect.
type identity struct {
	device string
	cert   tls.Certificate
}

// address gives the i-th device of a fleet an address of its own in 127.0.0.0/8, as devices in the field
// have: a single one would run out of ports at 28,000 connections, and the server limits what strangers
// may ask by their address.
func address(i int) net.IP {
	n := uint32(i + 1)
	return net.IPv4(127, byte(1+n>>16), byte(n>>8), byte(n))
}

func dialFrom(i int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: address(i)}, KeepAlive: -1}
	return d.DialContext
}

// enrolling is one order's state.
type enrolling struct {
	Enroll
	trust wire.Trust
	mu    sync.Mutex
	tally Tally
	made  []*device // by ticket; nil where it failed
}

// enroll gets a certificate for each ticket and makes a device of it.
func (s *squad) enroll(ctx context.Context, e Enroll) (*Tally, error) {
	if len(e.Tickets) == 0 {
		return &Tally{}, nil
	}
	trust, err := fetchTrust(ctx, e)
	if err != nil {
		return nil, err
	}
	if err := s.trustIn(trust); err != nil {
		return nil, err
	}
	en := &enrolling{Enroll: e, trust: trust, made: make([]*device, len(e.Tickets))}
	batch := 1
	if e.Shared {
		batch = perConnection
	}
	forEach(ctx, max(1, e.AtOnce), (len(e.Tickets)+batch-1)/batch, func(n int) {
		en.batch(ctx, s, n*batch, min((n+1)*batch, len(e.Tickets)))
	})
	for _, d := range en.made {
		if d != nil {
			s.devices = append(s.devices, d)
		}
	}
	en.tally.Missed(len(e.Tickets)-en.tally.Count, "not tried: "+errText(ctx.Err()))
	return &en.tally, nil
}

// fetchTrust believes the trust document for the pin in the first token, as a device does.
func fetchTrust(ctx context.Context, e Enroll) (wire.Trust, error) {
	token, err := wire.ParseEnrollmentToken(e.Tickets[0].Token)
	if err != nil {
		return wire.Trust{}, err
	}
	c, err := link.New(link.Config{Server: e.Link, Version: "bench", Dial: dialFrom(e.First)})
	if err != nil {
		return wire.Trust{}, err
	}
	defer c.Close()
	trust, _, _, err := c.Trust(ctx, token.Pin)
	return trust, err
}

// batch enrolls tickets [from, to) over one connection.
func (en *enrolling) batch(ctx context.Context, s *squad, from, to int) {
	keys := make([]*ecdsa.PrivateKey, to-from)
	requests := make([][]byte, to-from)
	for i := range keys {
		var err error
		if keys[i], requests[i], err = newRequest(en.Tickets[from+i].Serial); err != nil {
			en.done(time.Now(), err)
			return
		}
	}
	c, err := link.New(link.Config{Server: en.Link, Version: "bench", Dial: dialFrom(en.First + from)})
	if err == nil {
		defer c.Close()
		err = c.UseTrust(en.trust)
	}
	if err != nil {
		en.done(time.Now(), err)
		return
	}
	for i := range keys {
		began := time.Now() // the first includes the handshake
		en.done(began, en.one(ctx, s, c, from+i, keys[i], requests[i]))
		if ctx.Err() != nil {
			return
		}
	}
}

func (en *enrolling) done(began time.Time, err error) {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.tally.Done(began, time.Now(), err)
}

// newRequest makes a key and its certificate request (PKCS #10).
func newRequest(serial string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: serial}}, key)
	return key, csr, err
}

// one sends one request and makes the device of its answer.
func (en *enrolling) one(ctx context.Context, s *squad, c *link.Client, i int, key *ecdsa.PrivateKey, csr []byte) error {
	t := en.Tickets[i]
	token, err := wire.ParseEnrollmentToken(t.Token)
	if err != nil {
		return err
	}
	chain, err := c.Enroll(ctx, t.Serial, token.Secret, csr)
	if err != nil {
		return fmt.Errorf("enroll %s: %w", t.Serial, err)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return fmt.Errorf("enroll %s: the certificate has another key", t.Serial)
	}
	if chain[0].Subject.CommonName != t.Device {
		return fmt.Errorf("enroll %s: the certificate names %s, not %s", t.Serial, chain[0].Subject.CommonName, t.Device)
	}
	id := identity{device: t.Device, cert: tls.Certificate{PrivateKey: key}}
	id.cert.Certificate = append(id.cert.Certificate, bytes.Clone(chain[0].Raw))
	for _, cert := range chain[1:] {
		id.cert.Certificate = append(id.cert.Certificate, s.shared(cert.Raw)) // one copy of the authority's
	}
	en.made[i] = newDevice(s, en.First+i, id)
	return nil
}

func errText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

var errTimeUp = errors.New("not within the time")
