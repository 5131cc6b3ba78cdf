package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// device is one of many. What it does by itself is in life and in inbox.go; orders call report, publish
// and drop.
//
//	life: ──connect──▶ served ──lost──▶ wait (told by the server, with chance) ──▶ connect …
//	           │ refused                                                            ▲
//	           └──────▶ wait (1 s, doubling, with chance, at most 30 s) ────────────┘
type device struct {
	squad *squad
	index int // in the fleet: gives it its address and its node
	id    identity
	keep  ticketKeeper

	mu        sync.Mutex // guards all below; never held while something is sent
	client    *mqtt.Client
	raw       *tls.Conn
	door      string        // of this connection, or of the last
	told      time.Duration // the server's wish: wait at most so long before connecting again
	enveloped chan struct{} // closed when the first envelope has come; nil when it has, or none is waited for

	have     map[wire.Section]wire.Hash // desired documents that it holds
	next     map[wire.Section]wire.Hash // those of the newest envelope; nil when it holds them all
	lacks    map[wire.Hash]struct{}     // of them, what it is fetching
	epoch    int64                      // of the newest envelope
	accepted int64                      // the epoch that it holds all documents of
	known    int64                      // the accepted epoch that the server has acknowledged

	sequence int64     // of reports
	side     int       // of the documents in its last changed report
	greeting *greeting // a hello that is not over

	// Since the mark: Unix microseconds, 0 when not yet.
	markKnown, knownAt, servedAt int64
	markDoor                     string
}

var (
	errLost     = errors.New("the connection was lost")
	errNotThere = errors.New("the device is not connected")
)

func newDevice(s *squad, index int, id identity) *device {
	return &device{squad: s, index: index, id: id}
}

// Times of a connection.
const (
	keepAlive  = 10 * time.Minute // what devices promise in CONNECT
	serveTime  = 60 * time.Second // until CONNACK, SUBACK and the envelope have come
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// life keeps the device connected until ctx ends. gate bounds how many connect at a time; nil: no bound.
func (d *device) life(ctx context.Context, how Connect, gate chan struct{}) {
	retry := firstRetry
	for try := 0; ctx.Err() == nil; try++ {
		var wait time.Duration
		if err := d.attend(ctx, how, gate, try); errors.Is(err, errLost) {
			// As the contract says: a random time within what the server has told.
			retry, wait = firstRetry, rand.N(max(d.patience(), time.Millisecond))
		} else if err != nil {
			d.squad.note(err)
			wait = retry/2 + rand.N(retry)
			retry = min(2*retry, lastRetry)
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

func (d *device) patience() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told
}

// attend connects and stays until the connection is lost: errLost. Any other error means that it
// did not come about.
func (d *device) attend(ctx context.Context, how Connect, gate chan struct{}, try int) error {
	if gate != nil {
		select {
		case gate <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
	}
	client, err := d.come(ctx, how, try)
	if gate != nil {
		<-gate
	}
	if err != nil {
		return err
	}
	select {
	case <-client.Done():
	case <-ctx.Done():
		err := client.Close()
		d.gone(nil)
		return err
	}
	d.gone(client.Err())
	return errLost
}

// come connects. It does so in a goroutine of its own, whose stack grows with the handshake and goes with it:
// the one that stays is small.
func (d *device) come(ctx context.Context, how Connect, try int) (client *mqtt.Client, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeoutCause(ctx, serveTime, errTimeUp)
		defer cancel()
		client, err = d.connect(ctx, how, try)
		if err == nil {
			if err = d.subscribe(ctx, client, how.filters()); err != nil {
				_ = client.Close()
				d.gone(err)
			}
		}
	}()
	<-done
	return client, err
}

// connect makes TLS and MQTT stand.
func (d *device) connect(ctx context.Context, how Connect, try int) (*mqtt.Client, error) {
	door := how.Doors[(d.index+try)%len(how.Doors)] // another node when one doesn't answer
	raw, err := dialFrom(d.index)(ctx, "tcp", door)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, d.tlsConfig(how, door))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	d.squad.shook(conn.ConnectionState().DidResume)
	client, err := mqtt.Connect(ctx, conn, mqtt.Options{ClientID: d.id.device, KeepAlive: keepAlive, OnMessage: d.receive, UserProperties: d.announce()})
	if err != nil {
		var refused *mqtt.ReasonError
		if errors.As(err, &refused) {
			d.takeWish(refused.UserProperties)
		}
		return nil, err
	}
	d.mu.Lock()
	d.client, d.raw, d.door = client, conn, door
	d.mu.Unlock()
	d.takeWish(client.Connack().UserProperties)
	return client, nil
}

// announce says which desired state the device has, as agents do: the server then sends a newer one only. A device
// that has none waits for its first.
func (d *device) announce() []mqtt.UserProperty {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.enveloped = nil; d.accepted == 0 {
		d.enveloped = make(chan struct{})
		return nil
	}
	return []mqtt.UserProperty{{Key: wire.UserPropertyEpoch, Val: strconv.FormatInt(d.accepted, 10)}}
}

// subscribe asks for what the server has to say, and waits for the first desired state.
func (d *device) subscribe(ctx context.Context, client *mqtt.Client, filters []string) error {
	d.mu.Lock()
	enveloped := d.enveloped
	d.mu.Unlock()
	if err := client.Subscribe(ctx, 1, filters...); err != nil {
		return err
	}
	if enveloped != nil {
		select {
		case <-enveloped:
		case <-client.Done():
			return fmt.Errorf("before the desired state came: %w", client.Err())
		case <-ctx.Done():
			return fmt.Errorf("wait for the desired state: %w", context.Cause(ctx))
		}
	}
	d.mu.Lock()
	d.servedAt = time.Now().UnixMicro()
	d.mu.Unlock()
	if enveloped == nil {
		d.squad.note(d.tellAccepted())
	}
	return nil
}

func (d *device) tlsConfig(how Connect, door string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: d.squad.roots, ServerName: hostOf(door), NextProtos: []string{wire.ALPNMQTT},
		Certificates: []tls.Certificate{d.id.cert}, ClientSessionCache: &d.keep,
	}
	if !how.Hybrid {
		c.CurvePreferences = []tls.CurveID{tls.X25519}
	}
	return c
}

// takeWish notes when the server wants the device to come back.
func (d *device) takeWish(user []mqtt.UserProperty) {
	seconds, err := strconv.Atoi(mqtt.Property(user, wire.UserPropertyReconnect))
	if err != nil || seconds < 0 {
		return // it has none
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = time.Duration(seconds) * time.Second
}

// gone forgets the connection; why is what the client ended with.
func (d *device) gone(why error) {
	var said *mqtt.ReasonError
	if errors.As(why, &said) {
		d.takeWish(said.UserProperties)
		d.squad.fact("told: " + said.Reason.String())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.client, d.raw, d.lacks, d.next = nil, nil, nil, nil
	d.greeting = d.greeting.over(errLost)
	if d.accepted < d.epoch {
		d.epoch = d.accepted // the next envelope begins anew
	}
}

// drop closes the connection as a failing network does.
func (d *device) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.raw != nil {
		_ = d.raw.NetConn().Close()
	}
}

// ticketKeeper is a device's store of its newest TLS session (RFC 8446, section 2.2).
type ticketKeeper struct {
	mu      sync.Mutex
	session *tls.ClientSessionState
}

// Get returns the ticket; the next connection brings a new one.
func (k *ticketKeeper) Get(string) (*tls.ClientSessionState, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.session, k.session != nil
}

// Put keeps a new ticket; nil forgets.
func (k *ticketKeeper) Put(_ string, s *tls.ClientSessionState) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.session = s
}
