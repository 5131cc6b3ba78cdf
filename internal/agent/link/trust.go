package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"steward/internal/wire"
)

// Trust fetches the trust document before anything is trusted: the connection is not verified, the
// document is, by its hash. It returns the document's bytes too, for the state directory. The server's
// clock comes back with it, unauthenticated.
func (c *Client) Trust(ctx context.Context, pin wire.Hash) (trust wire.Trust, raw []byte, serverTime time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Patience)
	defer cancel()
	// InsecureSkipVerify is safe here and only here: nothing secret is sent, and what comes back is
	// believed for its SHA-256 alone, which the operator handed over with the token.
	transport := c.newTransport(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer transport.CloseIdleConnections()
	req, err := c.build(ctx, request{method: http.MethodGet, path: wire.PathTrust + string(pin)})
	if err != nil {
		return trust, nil, serverTime, err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return trust, nil, serverTime, fmt.Errorf("fetch the trust document from %s: %w", c.base.Host, err)
	}
	defer func() { _ = res.Body.Close() }()
	got, err := c.read(res, wire.MaxTrustBytes)
	if err != nil {
		return trust, nil, serverTime, fmt.Errorf("fetch the trust document: %w", err)
	}
	if wire.HashOf(got.body) != pin {
		return trust, nil, serverTime, fmt.Errorf("%w: the trust document has the hash %s, the token %s", ErrPin, wire.HashOf(got.body), pin)
	}
	if err := wire.Decode(got.body, &trust); err != nil {
		return trust, nil, serverTime, fmt.Errorf("trust document: %w", err)
	}
	serverTime, _ = http.ParseTime(got.header.Get("Date"))
	return trust, got.body, serverTime, nil
}

// RootsOf reads a trust document's link roots, for diagnosis.
func RootsOf(trust wire.Trust) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for _, text := range trust.LinkRoots {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("a link root is no PEM certificate")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("link root: %w", err)
		}
		roots = append(roots, cert)
	}
	return roots, nil
}
