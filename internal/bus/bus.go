// Package bus carries wake-ups between the parts of one node and between nodes: "something was
// appended", "this device has a new desired state". It is core NATS, inside the process by default.
//
// A message may be lost or come twice; whoever waits for one also looks into the database on a slow
// timer. So nothing is stored here (no JetStream), and a subscriber that is too slow loses messages
// instead of holding others up.
package bus

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Config of a Bus.
type Config struct {
	URL  string       // of an outside NATS server or cluster (nats://…, comma separated); empty means one inside this process
	Name string       // of this node, as shown by the NATS server; unique in a cluster, else may be empty
	Log  *slog.Logger // nil means no log

	Outside Outside // how to be let in by the server at URL
	Cluster Cluster // lets the server inside this process be one with those of other nodes
}

// Outside says how an outside NATS server knows us and we know it; all fields are paths of files and may
// be empty.
type Outside struct {
	Credentials string // of NATS (.creds: JWT and seed)
	CA          string // PEM: who may sign the server's certificate; "" means the system's authorities
	Cert, Key   string // PEM: our certificate, for servers that ask for one
}

func (o Outside) options() (out []nats.Option, err error) {
	if (o.Cert == "") != (o.Key == "") {
		return nil, errors.New("certificate and key for NATS are given together or not at all")
	}
	// nats.go reads these files at each connect, and would only then tell that one is missing.
	for _, file := range []string{o.Credentials, o.CA, o.Cert, o.Key} {
		if file == "" {
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("file for NATS: %w", err)
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	if o.Credentials != "" {
		out = append(out, nats.UserCredentials(o.Credentials))
	}
	if o.CA != "" {
		out = append(out, nats.RootCAs(o.CA))
	}
	if o.Cert != "" {
		out = append(out, nats.ClientCert(o.Cert, o.Key))
	}
	return out, nil
}

// Bus is a connection to NATS; safe for concurrent use.
type Bus struct {
	conn   *nats.Conn
	server *server.Server // nil with an outside server
	closed chan struct{}  // closed when the connection is gone for good
	log    *slog.Logger

	mu      sync.Mutex      // held while the peers change
	options *server.Options // as the server inside runs with

	hearersMu sync.Mutex
	hearers   map[*hearer]struct{}
}

const (
	startTimeout = 10 * time.Second
	drainTimeout = 5 * time.Second
	// A subscriber may lag behind by this much before it loses messages.
	pendingMessages = 64 << 10
	pendingBytes    = 16 << 20
)

// Start opens the bus. With an outside server that can't be reached now it succeeds all the same and
// connects as soon as it can: the node works without wake-ups, only slower.
func Start(cfg Config) (*Bus, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.URL != "" && cfg.Cluster.Listen != "" {
		return nil, errors.New("with an outside NATS server there is no bus between nodes to listen for")
	}
	b := &Bus{closed: make(chan struct{}), log: cfg.Log, hearers: map[*hearer]struct{}{}}
	options := []nats.Option{
		nats.Name("steward " + cfg.Name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(time.Second),
		nats.ReconnectJitter(500*time.Millisecond, time.Second),
		nats.DrainTimeout(drainTimeout),
		nats.ClosedHandler(func(*nats.Conn) { close(b.closed) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				cfg.Log.Warn("bus disconnected", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { cfg.Log.Info("bus reconnected") }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			cfg.Log.Warn("bus error", "subject", subject, "error", err)
		}),
	}
	url := cfg.URL
	if url == "" {
		s, o, err := startServer(cfg)
		if err != nil {
			return nil, err
		}
		b.server, b.options = s, o
		options = append(options, nats.InProcessServer(s))
	} else {
		outside, err := cfg.Outside.options()
		if err != nil {
			return nil, err
		}
		options = append(options, outside...)
	}
	conn, err := nats.Connect(url, options...)
	if err != nil {
		b.stopServer()
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	b.conn = conn
	return b, nil
}

// Publish sends to everyone subscribed on any node and returns before they have got it. The subject
// has parts joined by dots ("ledger.appended"), without blanks or wildcards.
func (b *Bus) Publish(subject string, data []byte) error {
	if err := b.conn.Publish(subject, data); err != nil {
		return fmt.Errorf("publish %s: %w", subject, err)
	}
	return nil
}

// Subscribe has handle called for each message whose subject matches; "*" stands for one part and a
// final ">" for the rest. Calls of one subscription come one after the other, from its own goroutine.
// A message published anywhere after Subscribe has returned arrives, when it isn't lost. After
// cancel no further call begins.
func (b *Bus) Subscribe(subject string, handle func(subject string, data []byte)) (cancel func(), err error) {
	h := &hearer{subject: subject, handle: handle}
	sub, err := b.conn.Subscribe(subject, func(m *nats.Msg) { h.hear(m.Subject, m.Data) })
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	if err := b.settle(sub); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	b.hearersMu.Lock()
	defer b.hearersMu.Unlock()
	b.hearers[h] = struct{}{}
	return func() {
		b.hearersMu.Lock()
		delete(b.hearers, h)
		b.hearersMu.Unlock()
		_ = sub.Unsubscribe() // fails only when the connection is closed, and then nothing arrives any more
	}, nil
}

// settle bounds the subscription and waits until the server has it; without a connection to an outside
// server it is sent when there is one.
func (b *Bus) settle(sub *nats.Subscription) error {
	err := sub.SetPendingLimits(pendingMessages, pendingBytes)
	if err == nil && b.conn.IsConnected() {
		if err = b.conn.FlushTimeout(startTimeout); !b.conn.IsConnected() {
			err = nil
		}
	}
	if err != nil {
		return errors.Join(err, sub.Unsubscribe())
	}
	return nil
}

// Connected tells whether messages can flow; for readiness and the console.
func (b *Bus) Connected() bool { return b.conn.IsConnected() }

// Close delivers what subscribers have been sent already, waits for them for some seconds, and ends
// the server inside the process.
func (b *Bus) Close() {
	if err := b.conn.Drain(); err != nil {
		b.conn.Close() // not connected: nothing to drain
	}
	select {
	case <-b.closed:
	case <-time.After(drainTimeout + time.Second):
		b.conn.Close()
		<-b.closed
	}
	b.stopServer()
}

func (b *Bus) stopServer() {
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}
}
