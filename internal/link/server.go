package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"steward/internal/wire"
)

// Bounds of connections.
const (
	headerTimeout   = 10 * time.Second // also of the TLS handshake
	idleTimeout     = 5 * time.Minute  // devices report once a minute and want to keep their connection
	maxHeaderBytes  = 16 << 10
	streamsPerConn  = 32 // of HTTP/2
	shutdownTimeout = 10 * time.Second
	sweepEvery      = time.Minute
)

// Server is the door. Make it with New, run it once with Run.
type Server struct {
	cfg      Config
	doors    *doors
	strange  *buckets // per network address, for who has not shown a valid certificate
	http     *http.Server
	stopping context.Context // ends when the server shuts down: long polls answer at once
	stop     context.CancelFunc
}

// New checks the configuration; nothing runs before Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, doors: newDoors(cfg), strange: newBuckets(cfg.Now)}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.observe(s.routes()),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streamsPerConn},
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug), // scanners' handshakes and such
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: cfg.Certificate,
			// Asked for, and judged by Identify on each request; see the package's comment.
			ClientAuth: tls.RequestClientCert,
			Time:       cfg.Now,
		},
	}
	return s, nil
}

// Run serves until ctx ends, then lets running requests finish for a while. It returns nil after an
// orderly end.
func (s *Server) Run(ctx context.Context) error {
	defer s.stop()
	cancel, err := s.cfg.Bus.Subscribe(RevokedSubject, func(_ string, data []byte) { s.revoked(data) })
	if err != nil {
		return fmt.Errorf("listen for revocations: %w", err)
	}
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.http.ServeTLS(s.listener(), "", "") }()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case err := <-served:
			return fmt.Errorf("serve the link: %w", err)
		case <-sweep.C:
			s.doors.sweep()
		case <-ctx.Done():
			return s.shutdown(served)
		}
	}
}

func (s *Server) shutdown(served <-chan error) error {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.cfg.Log.Warn("link: requests were cut off at shutdown", "error", err)
		_ = s.http.Close()
	}
	s.doors.closeAll() // what net/http has handed over, like connections within their handshake
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the link: %w", err)
	}
	return nil
}

func (s *Server) revoked(data []byte) {
	num, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		s.cfg.Log.Error("link: a revocation that names no device", "data", string(data))
		return
	}
	if n := s.doors.revoke(num); n > 0 {
		s.cfg.Log.Info("link: closed connections of a revoked device", "device.num", num, "connections", n)
	}
}

// Connections is how many are open now.
func (s *Server) Connections() int { return s.doors.count() }

// Running is how many requests of the device are being served now.
func (s *Server) Running(num int64) int { return s.doors.running(num) }

// listener bounds and watches connections.
func (s *Server) listener() net.Listener {
	return &listener{Listener: s.cfg.Listener, doors: s.doors, max: s.cfg.MaxConnections, log: s.cfg.Log}
}

// routes is the table of paths. What it doesn't name is answered with a problem, too.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	open := func(pattern string, h Handler) { mux.Handle(pattern, s.stranger(h)) }
	open("GET "+wire.PathTrust+"{pin}", s.trust)
	open("/.well-known/est/", s.cfg.EST)
	open("/pki/", s.cfg.PKI)
	own := func(pattern string, h deviceHandler) { mux.Handle(pattern, s.known(h, false)) }
	own("GET "+wire.PathDesired, s.desired)
	own("POST "+wire.PathReport, s.report)
	own("GET "+wire.PathDocuments+"{hash}", s.document)
	own("PUT "+wire.PathDocuments+"{hash}", s.upload)
	own("POST "+wire.PathMetrics, s.metrics)
	own("POST /otlp/v1/metrics", s.metrics)
	own("GET "+wire.PathArtifacts+"{hash}", s.artifact)
	own("GET "+wire.PathTUF+"{name...}", s.metadata)
	mux.Handle("POST "+wire.PathDisposal, s.known(s.disposal, true))
	open("/", func(_ http.ResponseWriter, r *http.Request) error { return errNoPath(r) })
	return mux
}
