// Package server is the composition root: the only package that sees all rooms. It opens the engines,
// makes each room, joins what one room needs of another, and serves console, API and link.
package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"steward/internal/bus"
)

// Config of a Server. Only DataDir is required.
type Config struct {
	DataDir string // holds database, keys, artifacts and metrics; made with mode 0700

	ConsoleAddr string // host:port of console and API; "" means 127.0.0.1:8080; port 0 picks a free one
	LinkAddr    string // host:port of the devices' door; "" means 0.0.0.0:8443
	// MQTTAddr is the host:port of a further door for MQTT alone, which the link's port serves, too. "auto" is
	// the standard port 8883 of the link's address, when it is free and the link has a fixed port; "" and "off"
	// mean none.
	MQTTAddr string

	// LinkURL is how devices reach the link, e.g. "https://devices.example.com:8443". "" means
	// the host's name, or 127.0.0.1 when the link listens on a loopback address, and the link's port.
	LinkURL string
	// LinkNames are further DNS names and addresses for the link's certificate.
	LinkNames []string

	// ConsoleCert and ConsoleKey are PEM files for the console's TLS. Without them a console on a
	// loopback address speaks HTTP, and any other gets a certificate of the link's authority.
	ConsoleCert, ConsoleKey string
	// BehindProxy says that a reverse proxy ends TLS in front of the console, so that HTTP on other
	// than loopback addresses is meant, and that X-Forwarded-For of TrustedProxies is believed.
	BehindProxy    bool
	TrustedProxies []netip.Prefix

	Database string // "" means sqlite:DataDir/steward.db; else postgres://…
	NATS     string // "" means one inside the process; else nats://…
	// NATSOptions are credentials and certificates for an outside NATS.
	NATSOptions bus.Outside

	// NodeName is what people call this node; "" means the machine's name.
	NodeName string
	// BusListen is the host:port at which the buses inside other nodes connect, by mutual TLS; "" means
	// that there is one node, or an outside NATS. BusAdvertise is how they reach it, when it isn't that.
	BusListen, BusAdvertise string
	// Artifacts is where release artifacts are kept: a directory that all nodes share, or
	// s3://bucket/prefix?endpoint=…; "" means DataDir/artifacts.
	Artifacts string

	// MasterKeyFile holds the key under which all others are sealed in the database, so that nodes share
	// nothing but that. "" means that they are files in DataDir/keys.
	MasterKeyFile string
	// NewLedgerKey goes on with a new key for the log on PostgreSQL after the old one was lost; the
	// ledger tells of it. Otherwise such a node is refused, since another one may sign the log.
	NewLedgerKey bool

	CertificateLife  time.Duration // of devices; 0 means 90 days
	MetricsRetention time.Duration // 0 means 15 days
	// MetricsStore is a Prometheus-compatible store that all nodes share, https://[user:password@]host[/path];
	// "" keeps metrics in DataDir/metrics. MetricsWrite is its address for remote writes, when that isn't
	// MetricsStore/api/v1/write, and MetricsHeaders go with each request: "X-Scope-OrgID: fleet".
	MetricsStore, MetricsWrite string
	MetricsHeaders             []string
	ReportInterval             time.Duration // how often devices report; 0 means 60 s
	// ManagedKeys keeps the release keys on the server. For demos only: whoever has the server then
	// can sign releases. Pages and API say so.
	ManagedKeys bool

	// Serving is called once the server serves and the bootstrap file is written; nil is fine.
	Serving func()

	Version string
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil means time.Now
}

// DefaultConsoleAddr and DefaultLinkAddr are what a server listens on when it isn't told.
const (
	DefaultConsoleAddr = "127.0.0.1:8080"
	DefaultLinkAddr    = "0.0.0.0:8443"
)

func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		return c, errors.New("a data directory is required")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return c, err
	}
	c.DataDir = dir
	if c.ConsoleAddr == "" {
		c.ConsoleAddr = DefaultConsoleAddr
	}
	if c.LinkAddr == "" {
		c.LinkAddr = DefaultLinkAddr
	}
	if c.Database == "" {
		c.Database = c.embedded()
	}
	if c.Artifacts == "" {
		c.Artifacts = c.path("artifacts")
	}
	if (c.ConsoleCert == "") != (c.ConsoleKey == "") {
		return c, errors.New("console certificate and key are given together or not at all")
	}
	if c.CertificateLife == 0 {
		c.CertificateLife = 90 * 24 * time.Hour
	}
	if c.ReportInterval == 0 {
		c.ReportInterval = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// path returns a path inside the data directory.
func (c Config) path(parts ...string) string {
	return filepath.Join(append([]string{c.DataDir}, parts...)...)
}

// makeDirs makes the data directory; one that others may read is refused, since keys are in it.
func (c Config) makeDirs() error {
	for _, dir := range []string{c.DataDir, c.path("keys"), c.path("artifacts"), c.path("metrics")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
	}
	info, err := os.Stat(c.DataDir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("data directory %s is open to others (mode %o): it holds keys; chmod 700 it", c.DataDir, info.Mode().Perm())
	}
	return nil
}

// isLoopback tells whether an address is reachable from this machine only.
func isLoopback(addr net.Addr) bool {
	ap, err := netip.ParseAddrPort(addr.String())
	return err == nil && ap.Addr().IsLoopback()
}

// linkURL is where devices are sent, given the address that the link listens on.
func (c Config) linkURL(addr net.Addr) string {
	if c.LinkURL != "" {
		return strings.TrimSuffix(c.LinkURL, "/")
	}
	_, port, _ := net.SplitHostPort(addr.String())
	host := "127.0.0.1"
	if !isLoopback(addr) {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// linkNames are all names and addresses that the certificate of our own link authority should be valid
// for: those of the link, and of the console, which uses the same one when it has none of its own.
func (c Config) linkNames(link, console net.Addr) []string {
	names := append([]string{"localhost", "127.0.0.1", "::1"}, c.LinkNames...)
	if host, _, err := net.SplitHostPort(strings.TrimPrefix(c.linkURL(link), "https://")); err == nil {
		names = append(names, host)
	}
	if isLoopback(link) && isLoopback(console) {
		return names
	}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return names
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			names = append(names, p.Addr().String())
		}
	}
	return names
}

// mqttListener opens the door for MQTT alone, if there is to be one.
func (c Config) mqttListener() (net.Listener, error) {
	addr := c.MQTTAddr
	switch host, port, err := net.SplitHostPort(c.LinkAddr); {
	case addr == "" || addr == "off":
		return nil, nil
	case addr != "auto":
	case err != nil || port == "0":
		return nil, nil
	default:
		l, err := net.Listen("tcp", net.JoinHostPort(host, "8883"))
		if err != nil {
			c.Log.Warn("the standard port of MQTT can't be had; the link's port serves MQTT by ALPN", "error", err)
			return nil, nil
		}
		return l, nil
	}
	return net.Listen("tcp", addr)
}
