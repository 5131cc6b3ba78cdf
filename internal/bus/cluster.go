package bus

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Cluster lets the buses inside several processes be one. The zero Cluster is a bus of its own.
type Cluster struct {
	// Listen is the host:port at which the other nodes' buses connect; port 0 picks a free one. "" means
	// that there are none.
	Listen string
	// Advertise is the host:port by which the others reach it. "" means the one of Listen, or with an
	// unspecified host the first address of this machine that others can reach.
	Advertise string
	// Peers are the advertised addresses of others that are known at the start; see SetPeers.
	Peers []string
	// TLS must ask for the others' certificates and show one of its own in both directions; see NodeTLS.
	TLS *tls.Config
}

// How a broken link between two nodes is noticed and mended. A cut that drops packets is noticed after
// at most (routePings+1) × routePing; a node keeps trying to reach its peers until SetPeers takes them away.
const (
	routePing         = 3 * time.Second
	routePings        = 2
	routeHandshake    = 5 // seconds
	routeWriteTimeout = 5 * time.Second
	routeReports      = 60 // tries a second apart, of which the first and then one is told in the log
)

// startServer runs a NATS server that takes clients from inside the process only.
func startServer(cfg Config) (*server.Server, *server.Options, error) {
	o := &server.Options{
		ServerName: "steward", DontListen: true, NoSigs: true, NoLog: cfg.Cluster.Listen == "", NoSystemAccount: true,
	}
	if cfg.Cluster.Listen != "" {
		if err := cfg.Cluster.options(cfg.Name, o); err != nil {
			return nil, nil, err
		}
	}
	s, err := server.NewServer(o.Clone())
	if err != nil {
		return nil, nil, fmt.Errorf("make the bus: %w", err)
	}
	if !o.NoLog {
		s.SetLoggerV2(natsLog{cfg.Log}, false, false, false)
	}
	s.Start()
	if !s.ReadyForConnections(startTimeout) {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, nil, errors.New("start the bus: not ready in time")
	}
	return s, o, nil
}

// options are those of a server whose peers come and go.
func (c Cluster) options(name string, o *server.Options) error {
	if c.TLS == nil || c.TLS.ClientAuth != tls.RequireAndVerifyClientCert {
		return errors.New("the bus between nodes needs mutual TLS")
	}
	// The server would only log that it can't listen, much later.
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen for the bus of other nodes: %w", err)
	}
	addr := l.Addr().(*net.TCPAddr) //nolint:forcetypeassert // of a TCP listener
	if err := l.Close(); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("listen for the bus of other nodes: %w", err)
	}
	advertise := c.Advertise
	if advertise == "" {
		if advertise, err = reachable(host, addr.Port); err != nil {
			return err
		}
	}
	if h, _, err := net.SplitHostPort(advertise); err != nil || h == "" {
		return fmt.Errorf("advertised address of the bus %q: want host:port", advertise)
	}
	o.ConnectErrorReports, o.ReconnectErrorReports = routeReports, routeReports
	o.ServerName = name // must be unique in the cluster
	// A server that listens for no clients never gets to its routes: it has a port that lets nobody in.
	o.DontListen, o.Host, o.Port = false, "127.0.0.1", server.RANDOM_PORT
	o.CustomClientAuthentication = insideOnly{}
	o.Cluster = server.ClusterOpts{
		Name: "steward", Host: host, Port: addr.Port, Advertise: advertise, TLSConfig: c.TLS, TLSTimeout: routeHandshake,
		ConnectRetries: 5, PingInterval: routePing, MaxPingsOut: routePings, WriteDeadline: routeWriteTimeout,
		PoolSize: -1, // one connection per pair: wake-ups are small, and a handshake is not
	}
	if host == "" {
		o.Cluster.Host = "0.0.0.0"
		if addr.IP.To4() == nil {
			o.Cluster.Host = "::"
		}
	}
	o.Routes, err = routes(c.Peers, advertise)
	return err
}

// insideOnly lets clients of this process in, which come over a pipe, and nobody from a network.
type insideOnly struct{}

// Check implements server.Authentication.
func (insideOnly) Check(c server.ClientAuthentication) bool {
	addr := c.RemoteAddress()
	return addr != nil && addr.Network() == "pipe"
}

// reachable is the address by which others may reach a port of this machine.
func reachable(host string, port int) (string, error) {
	p := strconv.Itoa(port)
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return net.JoinHostPort(host, p), nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("find this machine's addresses: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return net.JoinHostPort(n.IP.String(), p), nil
		}
	}
	return net.JoinHostPort("127.0.0.1", p), nil // a machine without network: others can only be on it
}

func routes(peers []string, self string) (out []*url.URL, err error) {
	peers = slices.Clone(peers)
	slices.Sort(peers)
	for _, p := range slices.Compact(peers) {
		if p == self || p == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(p); err != nil {
			return nil, fmt.Errorf("bus of another node %q: want host:port", p)
		}
		out = append(out, &url.URL{Scheme: "nats-route", Host: p})
	}
	return out, nil
}

// SetPeers says which other nodes there are, by their advertised addresses: they are connected to, again
// and again, until another call leaves them out. On a bus that is no cluster it does nothing.
func (b *Bus) SetPeers(addrs []string) error {
	if b.Address() == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := routes(addrs, b.options.Cluster.Advertise)
	if err != nil {
		return err
	}
	if slices.EqualFunc(next, b.options.Routes, func(x, y *url.URL) bool { return x.Host == y.Host }) {
		return nil
	}
	o := b.options.Clone()
	o.Routes = next
	if err := b.server.ReloadOptions(o.Clone()); err != nil {
		return fmt.Errorf("set the peers of the bus: %w", err)
	}
	b.options = o
	return nil
}

// Address is where other nodes reach this bus; "" when they can't.
func (b *Bus) Address() string {
	if b.server == nil || b.options.Cluster.Port == 0 {
		return ""
	}
	return b.options.Cluster.Advertise
}

// Peers counts the other nodes that the bus is connected to; 0 with an outside server.
func (b *Bus) Peers() int {
	if b.server == nil {
		return 0
	}
	return b.server.NumRemotes()
}

// Outside tells whether the bus is a NATS server or cluster of the operator's.
func (b *Bus) Outside() bool { return b.server == nil }

// natsLog gives the server's words to our log. Routes that come and go are its notices.
type natsLog struct{ log *slog.Logger }

func (l natsLog) say(level func(string, ...any), format string, v []any) {
	level("bus between nodes", "detail", fmt.Sprintf(format, v...))
}

func (l natsLog) Noticef(format string, v ...any) { l.say(l.log.Debug, format, v) }
func (l natsLog) Warnf(format string, v ...any)   { l.say(l.log.Warn, format, v) }
func (l natsLog) Errorf(format string, v ...any)  { l.say(l.log.Warn, format, v) }
func (l natsLog) Fatalf(format string, v ...any)  { l.say(l.log.Error, format, v) }
func (l natsLog) Debugf(string, ...any)           {}
func (l natsLog) Tracef(string, ...any)           {}
