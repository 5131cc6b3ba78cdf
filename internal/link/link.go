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

// Reports takes what a device is, and keeps the documents of both directions.
type Reports interface {
	Report(ctx context.Context, d device.Device, r wire.Report) (wire.ReportAnswer, error)
	Upload(ctx context.Context, d device.Device, hash wire.Hash, body []byte) error
	Document(ctx context.Context, d device.Device, hash wire.Hash) ([]byte, error)
}

// Bus tells of revocations on any node.
type Bus interface {
	Subscribe(subject string, handle func(subject string, data []byte)) (cancel func(), err error)
}

// RevokedSubject carries the decimal number of a device whose certificates were revoked.
const RevokedSubject = "provisioning.revoked"

// Handler answers a request or returns why it can't; then it has written nothing.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Config of a Server. Everything is required unless it says what its zero value means.
type Config struct {
	Listener    net.Listener // TCP; the server closes it
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Identify tells whose certificate it is. The TLS handshake has proven that the peer has its key,
	// and nothing else. It must refuse unknown, expired and revoked certificates and devices out of
	// service.
	Identify func(ctx context.Context, cert *x509.Certificate) (device.Device, error)

	Trust   func(ctx context.Context, pin wire.Hash) ([]byte, error)
	EST     Handler // below /.well-known/est/; does its own authentication
	PKI     Handler // below /pki/; public
	Desired Desired
	Reports Reports

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

	MaxConnections int           // 0 means 20,000; more are closed at once
	Rate           float64       // requests per second of one device; 0 means 20
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
		c.Bus == nil, c.Log == nil:
		return errors.New("link: a required field of Config is missing")
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 20_000
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
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}
