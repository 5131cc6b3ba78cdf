package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// Bounds of connections.
const (
	headerTimeout   = 10 * time.Second
	idleTimeout     = 5 * time.Minute // devices report once a minute and want to keep their connection
	maxHeaderBytes  = 16 << 10
	streamsPerConn  = 32 // of HTTP/2
	shutdownTimeout = 10 * time.Second
	sweepEvery      = time.Minute
	busyMost        = 2048 // messages of MQTT that are with their rooms at a time
)

// Server is the door. Make it with New, run it once with Run.
type Server struct {
	cfg     Config
	node    string // random: tells this process from others on the bus
	doors   *doors
	gate    *gate
	who     *identities
	push    *pusher
	polls   *polls
	strange *buckets // per network address, for who has not shown a valid certificate
	large   *semaphore.Weighted
	busy    chan struct{}
	crew    *crew

	linkTLS, mqttTLS *tls.Config // of the two listeners
	ticketDay        int64
	handed           *handed
	http             *http.Server

	stopping context.Context // ends when the server shuts down: long polls answer at once
	stop     context.CancelFunc
	base     context.Context // of messages; ends when those that run have had their time
	cut      context.CancelFunc

	running sync.WaitGroup // handshakes and sessions
	mu      sync.Mutex
	closed  bool // no session begins any more
}

// New checks the configuration; nothing runs before Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, node: rand.Text(), doors: newDoors(cfg), gate: newGate(knockersMost), who: newIdentities(cfg), polls: newPolls(cfg.Now),
		strange: newBuckets(cfg.Now), large: semaphore.NewWeighted(largeTotal), busy: make(chan struct{}, busyMost),
		handed: newHanded(cfg.Listener.Addr()),
	}
	s.push = newPusher(s)
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.crew = newCrew(s.stopping.Done())
	s.base, s.cut = context.WithCancel(context.Background())
	s.linkTLS = s.tlsConfig("h2", "http/1.1", wire.ALPNMQTT)
	s.mqttTLS = s.tlsConfig(wire.ALPNMQTT)
	s.http = &http.Server{
		Handler:           s.observe(s.routes()),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streamsPerConn},
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}, // says that h2 is served
	}
	return s, s.rotateTickets()
}

func (s *Server) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: s.cfg.Certificate,
		NextProtos:     protocols,
		// Asked for, and judged by Identify on each request; see the package's comment.
		ClientAuth: tls.RequestClientCert,
		Time:       s.cfg.Now,
		// Small records at a connection's begin are for browsers that render; here they are system calls.
		DynamicRecordSizingDisabled: true,
	}
}

// rotateTickets sets the keys of the day.
func (s *Server) rotateTickets() error {
	day := s.cfg.Now().Unix() / secondsPerDay
	if day == s.ticketDay {
		return nil
	}
	if len(s.cfg.TicketSecret) == 0 {
		s.cfg.TicketSecret = make([]byte, 32)
		_, _ = rand.Read(s.cfg.TicketSecret) // never fails
	}
	keys, err := ticketKeys(s.cfg.TicketSecret, day)
	if err != nil {
		return err
	}
	s.linkTLS.SetSessionTicketKeys(keys)
	s.mqttTLS.SetSessionTicketKeys(keys)
	s.ticketDay = day
	return nil
}

// Run serves until ctx ends, then lets running requests finish for a while. It returns nil after an
// orderly end.
func (s *Server) Run(ctx context.Context) error {
	defer s.cut()
	defer s.stop()
	cancel, err := s.subscribe()
	if err != nil {
		return fmt.Errorf("listen to the bus: %w", err)
	}
	defer cancel()
	served := make(chan error, 3)
	var accepting sync.WaitGroup
	serve := func(l net.Listener, config *tls.Config) {
		accepting.Go(func() {
			if err := s.accept(s.stopping, l, config); err != nil {
				served <- err
			}
		})
	}
	go func() { served <- s.http.Serve(s.handed) }()
	serve(s.cfg.Listener, s.linkTLS)
	if s.cfg.MQTTListener != nil {
		serve(s.cfg.MQTTListener, s.mqttTLS)
	}
	s.running.Go(func() { s.push.run(s.stopping) })
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case err := <-served:
			return errors.Join(fmt.Errorf("serve the link: %w", err), s.shutdown(&accepting, nil))
		case <-sweep.C:
			s.sweep()
		case <-ctx.Done():
			return s.shutdown(&accepting, served)
		}
	}
}

func (s *Server) sweep() {
	s.doors.sweep()
	s.who.sweep()
	s.polls.sweep()
	if err := s.rotateTickets(); err != nil {
		s.cfg.Log.Error("link: new keys for TLS sessions", "error", err)
	}
}

// shutdown closes the doors, tells the devices when to come back, and waits for what runs.
func (s *Server) shutdown(accepting *sync.WaitGroup, served <-chan error) error {
	s.stop()
	_ = s.cfg.Listener.Close()
	if s.cfg.MQTTListener != nil {
		_ = s.cfg.MQTTListener.Close()
	}
	accepting.Wait()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.sayGoodbye()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.cfg.Log.Warn("link: requests were cut off at shutdown", "error", err)
		_ = s.http.Close()
	}
	late := context.AfterFunc(ctx, s.cut)
	s.doors.closeAll() // what net/http has handed over, like connections within their handshake
	s.running.Wait()
	late()
	if served == nil {
		return nil
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the link: %w", err)
	}
	return nil
}

// goodbyeWorkers write DISCONNECT at a time; each takes a moment of CPU for its encryption.
const goodbyeWorkers = 16

func (s *Server) sayGoodbye() {
	var g errgroup.Group
	g.SetLimit(goodbyeWorkers)
	for _, ss := range s.doors.everySession(downNames) {
		g.Go(func() error {
			ss.close("the server shuts down", mqtt.ServerShuttingDown)
			return nil
		})
	}
	_ = g.Wait() // no function returns an error
}

// open counts a session that begins; false when none begins any more.
func (s *Server) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

func (s *Server) done() { s.running.Done() }

// Connections is how many are open now.
func (s *Server) Connections() int {
	n, _ := s.doors.counts()
	return n
}

// Counts are numbers for the metrics.
type Counts struct {
	HTTPS      int // connections, also those that have not said what they want
	MQTT       int // sessions of devices
	Handshakes int // connections within their handshake
}

// Counts returns what is open now.
func (s *Server) Counts() Counts {
	all, sessions := s.doors.counts()
	shaking := int(s.gate.now.Load())
	return Counts{HTTPS: max(all-sessions-shaking, 0), MQTT: sessions, Handshakes: shaking}
}

// Running is how many requests of the device are being served now.
func (s *Server) Running(num int64) int { return s.doors.running(num) }

// Sessions is how many sessions of MQTT the device has here.
func (s *Server) Sessions(num int64) int { return len(s.doors.sessionsOf(num)) }

// routes is the table of paths. What it doesn't name is answered with a problem, too.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	open := func(pattern string, h Handler) { mux.Handle(pattern, s.stranger(h)) }
	open("GET "+wire.PathTrust+"{pin}", s.trust)
	open("/.well-known/est/", s.cfg.EST)
	open("/pki/", s.cfg.PKI)
	open("GET "+wire.PathMQTT, s.upgrade)
	own := func(pattern string, h deviceHandler) { mux.Handle(pattern, s.known(h, false)) }
	own("GET "+wire.PathDesired, s.desired)
	own("POST "+wire.PathReport, s.report)
	own("GET "+wire.PathDocuments+"{hash}", s.document)
	own("PUT "+wire.PathDocuments+"{hash}", s.upload)
	own("POST "+wire.PathMetrics, s.metrics)
	own("POST /otlp/v1/metrics", s.metrics)
	own("GET "+wire.PathArtifacts+"{hash}", s.artifact)
	own("GET "+wire.PathTUF+"{name...}", s.metadata)
	own("GET "+wire.PathCommands, s.commands)
	own("POST "+wire.PathCommands+"/{id}", s.result)
	own("POST "+wire.PathEvents, s.event)
	own("POST "+wire.PathTelemetry, s.telemetry)
	mux.Handle("POST "+wire.PathDisposal, s.known(s.disposal, true))
	open("/", func(_ http.ResponseWriter, r *http.Request) error { return errNoPath(r) })
	return mux
}
