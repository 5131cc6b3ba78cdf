package bus_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"steward/internal/bus"
)

func newAuthority(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func nodeTLS(t *testing.T, authority crypto.Signer, ahead time.Duration) *tls.Config {
	t.Helper()
	c, err := bus.NodeTLS(authority, func() time.Time { return time.Now().Add(ahead) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func node(t *testing.T, name string, c *tls.Config, peers ...string) *bus.Bus {
	t.Helper()
	return start(t, bus.Config{Name: name, Cluster: bus.Cluster{Listen: "127.0.0.1:0", Peers: peers, TLS: c}})
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not in time: " + what)
		}
	}
}

// meet waits until a message of one reaches the other.
func meet(t *testing.T, from, to *bus.Bus) {
	t.Helper()
	got, cancel := subscribe(t, to, "meet")
	defer cancel()
	eventually(t, "a message between two nodes", func() bool {
		publish(t, from, "meet", "")
		return len(got) > 0
	})
}

func TestNodesAreOneBusAndLaterOnesJoin(t *testing.T) {
	defer goleak.VerifyNone(t)
	authority := newAuthority(t)
	a := node(t, "a", nodeTLS(t, authority, 0))
	defer a.Close()
	b := node(t, "b", nodeTLS(t, authority, 48*time.Hour), a.Address()) // its clock is wrong
	defer b.Close()
	meet(t, a, b)
	meet(t, b, a)
	c := node(t, "c", nodeTLS(t, authority, -48*time.Hour))
	defer c.Close()
	if err := a.SetPeers([]string{a.Address(), b.Address(), c.Address()}); err != nil {
		t.Fatal(err)
	}
	meet(t, a, c)
	meet(t, c, b) // b learns of c from a
	eventually(t, "all know both others", func() bool { return a.Peers() == 2 && b.Peers() == 2 && c.Peers() == 2 })
}

func TestNodeThatIsLeftOutGoesAndMayComeBack(t *testing.T) {
	defer goleak.VerifyNone(t)
	authority := newAuthority(t)
	a := node(t, "a", nodeTLS(t, authority, 0))
	defer a.Close()
	b := node(t, "b", nodeTLS(t, authority, 0))
	for range 3 {
		if err := a.SetPeers([]string{b.Address()}); err != nil {
			t.Fatal(err)
		}
		meet(t, a, b)
		if err := a.SetPeers(nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the route is closed", func() bool { return a.Peers() == 0 && b.Peers() == 0 })
	}
	b.Close()
	for _, bad := range []string{"nonsense", "a:b:c"} {
		if err := a.SetPeers([]string{bad}); err == nil {
			t.Errorf("peer %q was taken", bad)
		}
	}
}

func TestStrangerIsNotLetIntoTheBus(t *testing.T) {
	defer goleak.VerifyNone(t)
	authority := newAuthority(t)
	a := node(t, "a", nodeTLS(t, authority, 0))
	defer a.Close()
	stranger := node(t, "x", nodeTLS(t, newAuthority(t), 0), a.Address())
	defer stranger.Close()
	for name, c := range map[string]*tls.Config{
		"another authority": nodeTLS(t, newAuthority(t), 0),
		"no certificate":    {InsecureSkipVerify: true}, //nolint:gosec // the attacker's choice
	} {
		c.InsecureSkipVerify = true
		// The server speaks first in clear, as NATS does, and then wants TLS.
		conn, err := net.Dial("tcp", a.Address())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(conn, c)
		err = tc.Handshake()
		if err == nil {
			_, err = io.ReadAll(tc)
		}
		if err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		_ = tc.Close()
	}
	if conn, err := nats.Connect(a.ClientURL()); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a client on the same machine: %v, want a refusal", err)
		conn.Close()
	}
	b := node(t, "b", nodeTLS(t, authority, 0), a.Address())
	defer b.Close()
	heard, _ := subscribe(t, stranger, ">")
	meet(t, a, b)
	if a.Peers() != 1 || stranger.Peers() != 0 || len(heard) != 0 {
		t.Errorf("%d peers of the node, %d of the stranger, which heard %d messages", a.Peers(), stranger.Peers(), len(heard))
	}
}

func TestClusterIsRefusedWithoutMutualTLSAndOnATakenPort(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only held
	good := nodeTLS(t, newAuthority(t), 0)
	oneWay := good.Clone()
	oneWay.ClientAuth = tls.NoClientCert
	for name, cfg := range map[string]bus.Config{
		"no TLS":            {Cluster: bus.Cluster{Listen: "127.0.0.1:0"}},
		"no client's":       {Cluster: bus.Cluster{Listen: "127.0.0.1:0", TLS: oneWay}},
		"taken":             {Cluster: bus.Cluster{Listen: l.Addr().String(), TLS: good}},
		"no port":           {Cluster: bus.Cluster{Listen: "127.0.0.1", TLS: good}},
		"bad advertisement": {Cluster: bus.Cluster{Listen: "127.0.0.1:0", Advertise: "here", TLS: good}},
		"bad peer":          {Cluster: bus.Cluster{Listen: "127.0.0.1:0", Peers: []string{"here"}, TLS: good}},
		"both":              {URL: "nats://127.0.0.1:4222", Cluster: bus.Cluster{Listen: "127.0.0.1:0", TLS: good}},
		"absent file":       {URL: "nats://127.0.0.1:4222", Outside: bus.Outside{Credentials: "/nonexistent/creds"}},
		"half a pair":       {URL: "nats://127.0.0.1:4222", Outside: bus.Outside{Cert: "/nonexistent/cert"}},
	} {
		if b, err := bus.Start(cfg); err == nil {
			b.Close()
			t.Errorf("%s: it started", name)
		}
	}
}

func TestRequestIsAnsweredByWhicheverNodeResponds(t *testing.T) {
	defer goleak.VerifyNone(t)
	authority := newAuthority(t)
	a := node(t, "a", nodeTLS(t, authority, 0))
	defer a.Close()
	b := node(t, "b", nodeTLS(t, authority, 0), a.Address())
	defer b.Close()
	meet(t, a, b)
	meet(t, b, a)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if _, err := a.Request(ctx, "device.7.ask", nil); !errors.Is(err, bus.ErrNobody) {
		t.Errorf("nobody responds: %v", err)
	}
	if _, err := a.Request(t.Context(), "device.7.ask", nil); err == nil || errors.Is(err, bus.ErrNobody) {
		t.Errorf("without a deadline: %v", err)
	}
	gate := make(chan struct{})
	cancel, err := b.Respond("device.*.ask", func(ctx context.Context, subject string, data []byte) ([]byte, error) {
		switch string(data) {
		case "no":
			return nil, errors.New("the device is away")
		case "slow":
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return []byte(subject + " " + string(data)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer", func() bool {
		got, err := a.Request(ctx, "device.7.ask", []byte("x"))
		return err == nil && string(got) == "device.7.ask x"
	})
	var refusal bus.Refusal
	if _, err := a.Request(ctx, "device.7.ask", []byte("no")); !errors.As(err, &refusal) || refusal != "the device is away" {
		t.Errorf("a refusal: %v", err)
	}
	short, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	if _, err := a.Request(short, "device.7.ask", []byte("slow")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a slow answer: %v", err)
	}
	var all sync.WaitGroup // a slow one holds nobody up
	for i := range 20 {
		all.Go(func() {
			want := fmt.Sprintf("device.%d.ask q", i)
			if got, err := a.Request(ctx, fmt.Sprintf("device.%d.ask", i), []byte("q")); err != nil || string(got) != want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	cancel() // waits for the slow one, whose context ends
	cancel()
	close(gate)
	eventually(t, "nobody responds any more", func() bool {
		try, end := context.WithTimeout(t.Context(), 500*time.Millisecond) // one may still be sent where nobody is now
		defer end()
		_, err := a.Request(try, "device.7.ask", []byte("x"))
		return errors.Is(err, bus.ErrNobody)
	})
}

// gate is a TCP relay that can be shut.
type gate struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, to: to, conns: map[net.Conn]bool{}}
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.wg.Go(func() { g.relay(c) })
		}
	})
	return g
}

func (g *gate) keep(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		_ = c.Close()
		return false
	}
	g.conns[c] = true
	return true
}

func (g *gate) relay(c net.Conn) {
	d, err := net.Dial("tcp", g.to)
	if err != nil {
		_ = c.Close()
		return
	}
	if !g.keep(c) || !g.keep(d) {
		_, _ = c.Close(), d.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(c, d); _ = c.Close() })
	both.Go(func() { _, _ = io.Copy(d, c); _ = d.Close() })
	both.Wait()
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	for c := range g.conns {
		_ = c.Close()
	}
	clear(g.conns)
}

func (g *gate) close() {
	_ = g.l.Close()
	g.set(true)
	g.wg.Wait()
}

func TestCutBusHealsByItself(t *testing.T) {
	defer goleak.VerifyNone(t)
	authority := newAuthority(t)
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // only to learn a free port
		return l.Addr().String()
	}
	addrA, addrB := free(), free()
	gateA, gateB := newGate(t, addrA), newGate(t, addrB)
	defer gateA.close()
	defer gateB.close()
	c := nodeTLS(t, authority, 0)
	a := start(t, bus.Config{Name: "a", Cluster: bus.Cluster{Listen: addrA, Advertise: gateA.l.Addr().String(), TLS: c}})
	defer a.Close()
	b := start(t, bus.Config{Name: "b", Cluster: bus.Cluster{Listen: addrB, Advertise: gateB.l.Addr().String(), TLS: c}})
	defer b.Close()
	for _, n := range []*bus.Bus{a, b} { // each knows the other, as from the table of nodes
		if err := n.SetPeers([]string{a.Address(), b.Address()}); err != nil {
			t.Fatal(err)
		}
	}
	meet(t, a, b)
	got, _ := subscribe(t, b, "kept")
	for range 3 {
		gateA.set(true)
		gateB.set(true)
		eventually(t, "the cut is noticed", func() bool { return a.Peers() == 0 && b.Peers() == 0 })
		local, cancel := subscribe(t, a, "alone")
		publish(t, a, "alone", "x")
		receive(t, local) // the node itself goes on
		cancel()
		gateA.set(false)
		gateB.set(false)
		meet(t, a, b)
		meet(t, b, a)
		eventually(t, "subscriptions of before the cut are served", func() bool {
			publish(t, a, "kept", "")
			return len(got) > 0
		})
		for len(got) > 0 {
			<-got
		}
	}
}
