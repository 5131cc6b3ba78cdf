package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"steward/internal/device"
	"steward/internal/wire"
)

// Desired is what a device should be.
type Desired interface {
	Envelope(ctx context.Context, d device.Device) (envelope []byte, epoch int64, err error)
	Epoch(ctx context.Context, num int64) (int64, error)
	// WaitEpoch returns once the epoch is higher than the given one, or when ctx ends.
	WaitEpoch(ctx context.Context, num int64, than int64) (int64, error)
}

// Changes tells of new desired states and looks them up for many devices at a time.
type Changes interface {
	// Watch has fn called, quickly, after each change of a device's epoch on any node; 0 means any number
	// of devices. A call may be lost.
	Watch(fn func(num int64)) (cancel func())
	Epochs(ctx context.Context, nums []int64) (map[int64]int64, error)
	Envelopes(ctx context.Context, ds []device.Device) ([]wire.Sealed, error)
}

// Commands are what operators ask a device to do.
type Commands interface {
	// Waiting lists what the device has still to answer, oldest first, and counts as handing it out.
	Waiting(ctx context.Context, d device.Device) ([]wire.RemoteCommand, error)
	// Pending counts it without handing anything out.
	Pending(ctx context.Context, d device.Device) (int, error)
	// Result returns after the commit; a repeated one is fine.
	Result(ctx context.Context, d device.Device, id string, r wire.RemoteResult) error
	// Watch has fn called, quickly, when a device was given a command on any node. A call may be lost.
	Watch(fn func(num int64)) (cancel func())
}

// Events takes what devices tell beside their reports; both return when it is stored.
type Events interface {
	Event(ctx context.Context, d device.Device, e wire.DeviceEvent) error
	Telemetry(ctx context.Context, d device.Device, t wire.Telemetry) error
}

// Presence hears of connections of MQTT. It never blocks.
type Presence interface {
	Connected(d device.Device, via, address string)
	Disconnected(d device.Device, why string)
	Alive(d device.Device) // a sign of life, passed on once a minute at most
}

// nobody is the Presence of a link that was given none.
type nobody struct{}

func (nobody) Connected(device.Device, string, string) {}
func (nobody) Disconnected(device.Device, string)      {}
func (nobody) Alive(device.Device)                     {}

// Reports takes what a device is, and keeps the documents of both directions.
type Reports interface {
	Report(ctx context.Context, d device.Device, r wire.Report) (wire.ReportAnswer, error)
	Upload(ctx context.Context, d device.Device, hash wire.Hash, body []byte) error
	Document(ctx context.Context, d device.Device, hash wire.Hash) ([]byte, error)
}

// Bus joins the nodes; its messages may be lost.
type Bus interface {
	Publish(subject string, data []byte) error
	Subscribe(subject string, handle func(subject string, data []byte)) (cancel func(), err error)
}

// Handler answers a request or returns why it can't; then it has written nothing.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Config of a Server. Everything is required unless it says what its zero value means.
type Config struct {
	Listener net.Listener // TCP: HTTPS, WebSocket, and MQTT by ALPN; the server closes it
	// MQTTListener is for MQTT only, also without ALPN: port 8883. nil means that there is none. The server
	// closes it.
	MQTTListener net.Listener
	Certificate  func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Identify tells whose certificate it is. The TLS handshake has proven that the peer has its key,
	// and nothing else. It must refuse unknown, expired and revoked certificates and devices out of
	// service.
	Identify func(ctx context.Context, cert *x509.Certificate) (device.Device, error)

	Trust   func(ctx context.Context, pin wire.Hash) ([]byte, error)
	EST     Handler // below /.well-known/est/; does its own authentication
	PKI     Handler // below /pki/; public
	Desired Desired
	Changes Changes
	Reports Reports

	Commands Commands // nil means that there are none
	Events   Events   // nil means that none are taken
	Presence Presence // nil means that nobody wants to know

	// Metrics takes an OTLP ExportMetricsServiceRequest in the given encoding (application/json or
	// application/x-protobuf) and returns the response in the same one.
	Metrics func(ctx context.Context, d device.Device, contentType string, body []byte) (answer []byte, err error)
	// Artifact opens a file of the device's tenant, or returns fault.NotFound.
	Artifact func(ctx context.Context, d device.Device, sha256 string) (io.ReadSeekCloser, error)
	// Metadata returns a file of the tenant's TUF repository, or fault.NotFound.
	Metadata func(ctx context.Context, tenant device.TenantID, name string) ([]byte, error)
	// Disposal stores the sealed statement of sanitization and revokes the device before it returns.
	Disposal func(ctx context.Context, d device.Device, envelope []byte) error

	Bus Bus

	// TicketSecret, shared by all nodes and kept over restarts, is what the keys of TLS sessions are derived
	// from; at least 32 bytes. nil means a random one: sessions then end with the process.
	TicketSecret []byte

	MaxConnections int           // 0 means 50,000; more are closed at once
	Rate           float64       // requests and packets per second of one device; 0 means 20
	Burst          int           // at once; 0 means 100
	Concurrent     int           // requests of one device at a time; 0 means 16
	BodyTimeout    time.Duration // between two pieces of a body, and for a small one in all; 0 means 30 s
	Now            func() time.Time
	Log            *slog.Logger
}

func (c *Config) complete() error {
	switch {
	case c.Listener == nil, c.Certificate == nil, c.Identify == nil, c.Trust == nil, c.EST == nil, c.PKI == nil,
		c.Desired == nil, c.Reports == nil, c.Metrics == nil, c.Artifact == nil, c.Metadata == nil, c.Disposal == nil,
		c.Changes == nil, c.Bus == nil, c.Log == nil:
		return errors.New("link: a required field of Config is missing")
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 50_000
	}
	if c.Rate == 0 {
		c.Rate = 20
	}
	if c.Burst == 0 {
		c.Burst = 100
	}
	if c.Concurrent == 0 {
		c.Concurrent = 16
	}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 30 * time.Second
	}
	if len(c.TicketSecret) > 0 && len(c.TicketSecret) < 32 {
		return errors.New("link: a ticket secret of less than 32 bytes")
	}
	if c.Presence == nil {
		c.Presence = nobody{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}
