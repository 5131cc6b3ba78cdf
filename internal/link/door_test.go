package link

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
	"io"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"steward/internal/device"
)

// Tests of what can't be seen from outside.

func TestTicketKeysOfAWeekAreKnownAndAgreeBetweenNodes(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	today, err := ticketKeys(secret, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := ticketKeys(bytes.Clone(secret), 20_000)
	if !slices.Equal(today, again) {
		t.Error("two nodes derive different keys")
	}
	for days, known := range map[int64]bool{1: true, 7: true, 8: false, -1: true, -2: false} {
		then, _ := ticketKeys(secret, 20_000-days)
		if slices.Contains(today, then[0]) != known {
			t.Errorf("a ticket of %d days ago: known %t", days, !known)
		}
	}
	for i, key := range today {
		if slices.Contains(today[i+1:], key) {
			t.Error("two days have the same key")
		}
	}
	other, _ := ticketKeys(bytes.Repeat([]byte{8}, 32), 20_000)
	if slices.Contains(other, today[0]) {
		t.Error("another secret gives the same key")
	}
}

// pair returns both ends of a TLS connection over TCP, after the handshake.
func pair(t *testing.T) (server, client *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client = tls.Client(near, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	server = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert})
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := errors.Join(server.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// TestSlimConnection fails with a Go whose crypto/tls has other fields: then see slim.go.
func TestSlimConnection(t *testing.T) {
	if f := tlsLayout; f.peerCertificates == 0 || f.verifiedChains == 0 || f.rawInput == 0 || f.hand == 0 || f.input == 0 {
		t.Fatalf("this Go's tls.Conn has other fields: %+v; idle devices cost more until slim.go knows them", f)
	}
	server, client := pair(t)
	if len(server.ConnectionState().PeerCertificates) != 1 {
		t.Fatal("no certificate came")
	}
	slimPeer(server)
	if n := len(server.ConnectionState().PeerCertificates); n != 0 {
		t.Errorf("%d certificates are kept", n)
	}
	large := make([]byte, 300_000)
	_, _ = rand.Read(large)
	for round := range 3 {
		go func() { _, _ = client.Write(large) }()
		got := make([]byte, len(large))
		// In odd pieces, and with a try to let go in the middle of a record, which must do nothing.
		for at := 0; at < len(got); {
			n, err := server.Read(got[at:min(at+10_007, len(got))])
			if err != nil {
				t.Fatal(err)
			}
			at += n
			slimBuffers(server)
		}
		if !bytes.Equal(got, large) {
			t.Fatalf("round %d: other bytes came", round)
		}
		if !slimBuffers(server) {
			t.Fatal("something is left over")
		}
		if buf := fieldOf[bytes.Buffer](server, tlsLayout.rawInput); buf.Cap() != 0 {
			t.Errorf("a buffer of %d bytes is kept", buf.Cap())
		}
		go func() { _, _ = server.Write(large) }()
		if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, large) {
			t.Fatalf("round %d, other way: %v", round, err)
		}
	}
}

func TestUnknownLayoutOfTLSLetsNothingGo(t *testing.T) {
	server, _ := pair(t)
	known := tlsLayout
	defer func() { tlsLayout = known }()
	tlsLayout = tlsFields{}
	slimPeer(server)
	if slimBuffers(server) || len(server.ConnectionState().PeerCertificates) != 1 {
		t.Error("something was dropped by a wrong place")
	}
}

func TestConnectionWithinItsHandshakeForLongMakesRoom(t *testing.T) {
	g := newGate(2)
	d := newDoors(Config{})
	var knockers []*knocker
	var ends []net.Conn
	for range 2 {
		if err := g.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		ends = append(ends, near)
		knockers = append(knockers, g.in(newConn(far, d)))
	}
	knockers[0].since = time.Now().Add(-2 * pressedTime)
	waited := make(chan error, 1)
	go func() { waited <- g.wait(t.Context()) }()
	if _, err := ends[0].Read(make([]byte, 1)); err == nil { // it is closed
		t.Error("the oldest was not closed")
	}
	g.out(knockers[0])
	if err := <-waited; err != nil {
		t.Error(err)
	}
	g.out(knockers[1])
	if g.first != nil || g.last != nil || g.now.Load() != 0 {
		t.Error("somebody is left within the gate")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.wait(t.Context()); err != nil { // room for one more
		t.Error(err)
	}
	if err := g.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("without room and time: %v", err)
	}
}

func TestIdentityIsKeptAMinuteAndNoLongerThanItIsTrue(t *testing.T) {
	now := time.Now()
	asked := 0
	var answer error
	i := newIdentities(Config{
		Now: func() time.Time { return now },
		Identify: func(context.Context, *x509.Certificate) (device.Device, error) {
			asked++
			return device.Device{Num: 5}, answer
		},
	})
	cert := &x509.Certificate{Raw: []byte("x"), NotAfter: now.Add(90 * time.Second)}
	want := func(what string, n int) {
		t.Helper()
		_, _ = i.certificate(t.Context(), cert)
		if asked != n {
			t.Errorf("%s: asked %d times, want %d", what, asked, n)
		}
	}
	want("first", 1)
	want("at once", 1)
	now = now.Add(59 * time.Second)
	want("after 59 s", 1)
	now = now.Add(time.Second)
	want("after a minute", 2)
	now = now.Add(30 * time.Second)
	want("when the certificate has ended", 3)
	cert.NotAfter = now.Add(time.Hour)
	want("renewed", 4)
	i.drop(5)
	want("dropped", 5)
	i.drop(6)
	want("another one dropped", 5)
	now = now.Add(-10 * time.Minute)
	want("with the clock set back", 6)
	now = now.Add(time.Hour)
	i.sweep()
	if len(i.by) != 0 || len(i.of) != 0 {
		t.Errorf("swept: %d, %d are left", len(i.by), len(i.of))
	}
	answer = errors.New("refused")
	want("refused", 7)
	want("refused again", 8)
}

func TestAnswerFromBeforeAChangeIsNotKept(t *testing.T) {
	asked := 0
	var i *identities
	i = newIdentities(Config{
		Now: time.Now,
		Identify: func(context.Context, *x509.Certificate) (device.Device, error) {
			if asked++; asked == 1 {
				i.drop(5) // while the database is asked
				i.sweep()
			}
			return device.Device{Num: 5}, nil
		},
	})
	cert := &x509.Certificate{Raw: []byte("x"), NotAfter: time.Now().Add(time.Hour)}
	for range 3 {
		_, _ = i.certificate(t.Context(), cert)
	}
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
}

func TestKeptIdentitiesAreBounded(t *testing.T) {
	i := newIdentities(Config{Now: time.Now, Identify: func(_ context.Context, c *x509.Certificate) (device.Device, error) {
		return device.Device{Num: c.SerialNumber.Int64()}, nil
	}})
	for n := range int64(identityMost + 100) {
		_, _ = i.certificate(t.Context(), &x509.Certificate{Raw: big.NewInt(n).Bytes(), SerialNumber: big.NewInt(n), NotAfter: time.Now().Add(time.Hour)})
	}
	if len(i.by) > identityMost || len(i.of) > identityMost {
		t.Errorf("%d, %d are kept", len(i.by), len(i.of))
	}
}
