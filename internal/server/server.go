package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"steward/internal/client"
	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/link"
	"steward/internal/run"
	"steward/internal/ui"
)

// Server is one node. Make it with Open, serve with Run, and Close it after Run has returned.
type Server struct {
	cfg     Config
	rooms   *rooms
	api     *httpapi.API
	console *ui.Console
	link    *link.Server
	handler http.Handler

	consoleListener, linkListener net.Listener
	mqttListener                  net.Listener // nil when there is none
	consoleURL                    string
	door                          linkDoor
	admin                         client.BootstrapAdmin
	token                         string
	unlock                        func() error // of the data directory
}

// linkDoor is where and under which names devices reach the link.
type linkDoor struct {
	url   string
	names []string
}

// Open opens the engines, brings the database up to date, makes the rooms and listens; it serves nothing
// before Run. On an error everything is closed again.
func Open(ctx context.Context, cfg Config) (s *Server, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	if err := cfg.makeDirs(); err != nil {
		return nil, err
	}
	s = &Server{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if s.unlock, err = Lock(cfg.DataDir); err != nil {
		return s, err
	}
	if err = cfg.refuseHeld(); err != nil {
		return s, err
	}
	if err = s.listen(); err != nil {
		return s, err
	}
	e, err := openEngines(ctx, cfg)
	if err != nil {
		return s, err
	}
	s.rooms = &rooms{cfg: cfg, engines: e} // for Close
	if s.rooms, err = makeRooms(ctx, cfg, e, s.door); err != nil {
		return s, err
	}
	if err = s.makeDoors(ctx); err != nil {
		return s, err
	}
	if err = s.prepare(ctx); err != nil {
		return s, err
	}
	return s, s.join(ctx)
}

// listen opens both ports, so that a taken one is told at once and port 0 is known to everybody.
func (s *Server) listen() (err error) {
	if s.consoleListener, err = net.Listen("tcp", s.cfg.ConsoleAddr); err != nil {
		return fmt.Errorf("listen for the console: %w", err)
	}
	if s.linkListener, err = net.Listen("tcp", s.cfg.LinkAddr); err != nil {
		return fmt.Errorf("listen for the link: %w", err)
	}
	if s.mqttListener, err = s.cfg.mqttListener(); err != nil {
		return fmt.Errorf("listen for MQTT: %w", err)
	}
	s.door = linkDoor{url: s.cfg.linkURL(s.linkListener.Addr()), names: s.cfg.linkNames(s.linkListener.Addr(), s.consoleListener.Addr())}
	return nil
}

// makeDoors makes API, console and link over the rooms.
func (s *Server) makeDoors(ctx context.Context) (err error) {
	r, cfg := s.rooms, s.cfg
	s.api = r.newAPI(newRegistry(gauges{rooms: r, connections: func() link.Counts { return s.link.Counts() }}))
	s.console = ui.New(ui.Config{Auth: r.access, Log: cfg.Log, Nav: navigation, Events: r.ledger, Now: cfg.Now, Version: cfg.Version})
	r.routes(s.api, r.pages(s.console))
	s.handler = s.api.Observe(s.mux())
	tickets, err := r.keys.Secret(ctx, "link-tickets", 32)
	if err != nil {
		return fmt.Errorf("open the secret of TLS sessions: %w", err)
	}
	s.link, err = link.New(link.Config{
		Listener: s.linkListener, MQTTListener: s.mqttListener, Certificate: r.provisioning.LinkCertificate, Identify: r.provisioning.Identify,
		Trust: r.provisioning.Trust, EST: r.provisioning.EST, PKI: r.provisioning.PKI, Desired: r.twin, Changes: r.twin, Reports: r.twin,
		Commands: r.remote, Events: r.monitoring, Presence: r.monitoring, TicketSecret: tickets,
		Metrics: r.metrics, Artifact: r.artifact, Metadata: r.release.Metadata, Disposal: r.disposal.Accept,
		Bus: r.bus, Now: cfg.Now, Log: cfg.Log,
	})
	return err
}

func (r *rooms) newAPI(metrics *prometheus.Registry) *httpapi.API {
	return httpapi.New(httpapi.Config{
		Version: r.cfg.Version, Auth: r.access, Log: r.cfg.Log, DB: r.db, Now: r.cfg.Now, Proxies: r.cfg.TrustedProxies,
		Ready: r.ready(), Metrics: metrics, OpenMetricsToLoopback: !r.cfg.BehindProxy,
	})
}

func (r *rooms) artifact(ctx context.Context, d device.Device, sha256 string) (io.ReadSeekCloser, error) {
	content, _, err := r.release.Artifact(ctx, d.Tenant, sha256)
	return content, err
}

// mux puts console, API and what stands beside them on one port.
func (s *Server) mux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/api/", s.api)
	mux.Handle("GET /healthz", s.api.Healthz())
	mux.Handle("GET /readyz", s.api.Readyz())
	mux.Handle("GET /metrics", s.api.Metrics())
	mux.HandleFunc("GET /pki/", func(w http.ResponseWriter, r *http.Request) {
		if err := s.rooms.provisioning.PKI(w, r); err != nil {
			http.Error(w, http.StatusText(httpapi.Status(err)), httpapi.Status(err))
		}
	})
	mux.Handle("/", s.console)
	return mux
}

// prepare makes the first administrator and the token of the bootstrap file.
func (s *Server) prepare(ctx context.Context) error {
	name, password, created, err := s.rooms.access.EnsureAdmin(ctx)
	if err != nil {
		return err
	}
	s.admin = client.BootstrapAdmin{Name: name, Password: password}
	if old, err := client.ReadBootstrap(s.cfg.DataDir); err == nil && !created && old.Admin.Name == name {
		s.admin.Password = old.Admin.Password // as it was made; the account may have another by now
	}
	// Whoever waits for the file must not read the addresses and the token of the start before.
	if err := removeBootstrap(s.cfg.DataDir); err != nil {
		return err
	}
	tokenName, err := s.rooms.bootstrapToken()
	if err != nil {
		return err
	}
	if s.token, err = s.rooms.access.BootstrapToken(ctx, name, tokenName); err != nil {
		return err
	}
	scheme := "http"
	tlsConfig, err := s.consoleTLS()
	if err != nil {
		return err
	}
	if tlsConfig != nil {
		scheme = "https"
		s.consoleListener = tls.NewListener(s.consoleListener, tlsConfig)
	}
	s.consoleURL = scheme + "://" + displayAddr(s.consoleListener.Addr())
	if s.cfg.ManagedKeys {
		s.cfg.Log.Warn("the release keys are kept on this server: whoever has it can sign releases; for trying out only")
		repo, err := s.rooms.release.Repository(ctx, device.DefaultTenant)
		if err == nil && !repo.Rooted {
			_, err = s.rooms.release.InitManaged(ctx, device.System("release"), device.DefaultTenant)
		}
		return err
	}
	return nil
}

// consoleTLS returns nil when the console speaks plain HTTP: on a loopback address, or behind a proxy.
func (s *Server) consoleTLS() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if s.cfg.ConsoleCert != "" {
		pair, err := tls.LoadX509KeyPair(s.cfg.ConsoleCert, s.cfg.ConsoleKey)
		c.Certificates = []tls.Certificate{pair}
		return c, err
	}
	if s.cfg.BehindProxy || isLoopback(s.consoleListener.Addr()) {
		return nil, nil
	}
	c.GetCertificate = s.rooms.provisioning.LinkCertificate
	return c, nil
}

// displayAddr is an address that a person can open: a host name in the place of "all addresses".
func displayAddr(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// Alive tells whether the process still answers, for a supervisor that would start it again.
func (s *Server) Alive(ctx context.Context) error {
	rec := &statusOnly{header: http.Header{}}
	s.api.Healthz().ServeHTTP(rec, (&http.Request{Method: http.MethodGet, Header: http.Header{}}).WithContext(ctx))
	if rec.status != http.StatusOK && rec.status != 0 {
		return fmt.Errorf("the server is not well: status %d", rec.status)
	}
	return ctx.Err()
}

// ConsoleURL is where people and programs reach console and API.
func (s *Server) ConsoleURL() string { return s.consoleURL }

// LinkURL is where devices reach the link.
func (s *Server) LinkURL() string { return s.door.url }

// Run serves until ctx ends or something fails, and waits for all of it.
func (s *Server) Run(ctx context.Context) error {
	r := s.rooms
	var g run.Group
	g.Add("nodes", r.nodes.Run)
	g.Add("bus between nodes", r.apart.Run)
	g.Add("console", s.serveConsole)
	g.Add("live pages", s.console.Run)
	g.Add("link", s.link.Run)
	g.Add("ledger", r.ledger.Run)
	g.Add("twin", r.twin.Run)
	g.Add("devices", r.registry.Run)
	g.Add("purchase", r.purchase.Run)
	g.Add("release", r.alone("release", r.release.Run))
	g.Add("update", r.update.Run)
	g.Add("monitoring", r.monitoring.Run)
	g.Add("disposal", r.disposal.Run)
	g.Add("remote", r.remote.Run)
	g.Add("artifacts", func(ctx context.Context) error { return r.blob.Run(ctx, s.cfg.Log) })
	g.Add("bootstrap", s.bootstrap)
	return g.Run(ctx)
}

// The bounds of the console's door; streams lift them for themselves.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 32 << 10
	shutdownTime  = 10 * time.Second
)

func (s *Server) serveConsole(ctx context.Context) error {
	srv := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		err := srv.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close()
		}
		stopped <- err
	}()
	if err := srv.Serve(s.consoleListener); !errors.Is(err, http.ErrServerClosed) {
		return err // the group ends ctx, and with it the goroutine above
	}
	return <-stopped
}

// bootstrap writes the bootstrap file once the server answers that it is ready.
func (s *Server) bootstrap(ctx context.Context) error {
	rec := &statusOnly{header: http.Header{}}
	s.api.Readyz().ServeHTTP(rec, (&http.Request{Method: http.MethodGet, Header: http.Header{}}).WithContext(ctx))
	if rec.status != http.StatusOK && rec.status != 0 {
		return fmt.Errorf("the server is not ready: status %d", rec.status)
	}
	ca, err := s.rooms.provisioning.LinkRoot(ctx)
	if err != nil {
		return err
	}
	ledgerKey, err := s.rooms.ledger.Verifier()
	if err != nil {
		return err
	}
	issuer, err := s.rooms.disposal.IssuerKey()
	if err != nil {
		return err
	}
	s.cfg.Log.Info("serving", "console", s.consoleURL, "link", s.door.url, "data", s.cfg.DataDir)
	err = writeBootstrap(s.cfg.DataDir, client.Bootstrap{
		Console: s.consoleURL, Link: s.door.url, CA: ca, Admin: s.admin, Token: s.token, LedgerKey: ledgerKey, IssuerKey: issuer,
		ServerPID: os.Getpid(), Version: s.cfg.Version, DataFormat: 1,
	})
	if err == nil && s.cfg.Serving != nil {
		s.cfg.Serving()
	}
	return err
}

// statusOnly is a ResponseWriter that keeps the status.
type statusOnly struct {
	header http.Header
	status int
}

func (w *statusOnly) Header() http.Header         { return w.header }
func (w *statusOnly) Write(p []byte) (int, error) { return len(p), nil }
func (w *statusOnly) WriteHeader(status int)      { w.status = status }

// Close closes the engines. Call it after Run has returned, or when Run was never called.
func (s *Server) Close() (err error) {
	for _, l := range []net.Listener{s.consoleListener, s.linkListener, s.mqttListener} {
		if l != nil {
			if cerr := l.Close(); !errors.Is(cerr, net.ErrClosed) {
				err = errors.Join(err, cerr)
			}
		}
	}
	if s.unlock != nil {
		defer func() { err = errors.Join(err, s.unlock()) }()
	}
	if s.rooms == nil {
		return err
	}
	if s.rooms.monitoring != nil {
		err = errors.Join(err, s.rooms.monitoring.Close())
	}
	return errors.Join(err, s.rooms.engines.close())
}
