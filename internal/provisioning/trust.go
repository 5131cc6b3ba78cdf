package provisioning

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// trustBody encodes what a device of the tenant needs to believe now. The pin of a token is the hash
// of these bytes.
func (s *Service) trustBody(ctx context.Context, tenant device.TenantID) ([]byte, error) {
	own, err := s.authorities.get(ctx, tenant)
	if err != nil {
		return nil, err
	}
	link, err := s.authorities.get(ctx, linkOwner)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(s.envelope.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the envelope key: %w", err)
	}
	t := wire.Trust{
		Protocol: wire.Protocol, LinkRoots: []string{pemOf(link.root.cert)}, DeviceRoots: []string{pemOf(own.root.cert)},
		EnvelopeKeys: []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}, LedgerKey: s.cfg.LedgerKey,
	}
	if s.cfg.Releases != nil {
		t.ReleaseRoot, err = s.cfg.Releases.ReleaseRoot(ctx, tenant)
		if err != nil && !errors.Is(err, fault.NotFound) {
			return nil, fmt.Errorf("read the release root of %q: %w", tenant, err)
		}
	}
	body, err := wire.Canonical(t)
	if err != nil {
		return nil, fmt.Errorf("encode the trust document: %w", err)
	}
	if len(body) > wire.MaxTrustBytes {
		return nil, fmt.Errorf("the trust document of %q has %d bytes: devices accept %d", tenant, len(body), wire.MaxTrustBytes)
	}
	return body, nil
}

// Trust returns the document that a token pins, or fault.NotFound. It is public: it holds nothing secret,
// and its name is its content.
func (s *Service) Trust(ctx context.Context, pin wire.Hash) ([]byte, error) {
	return readTrust(ctx, s.cfg.DB, pin)
}
