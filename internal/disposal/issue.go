package disposal

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// consumerName is the ledger's cursor of this room.
const consumerName = "disposal-certificates"

// Run makes the certificate of each disposal once its events are in the ledger's signed tree. It ends
// with the context.
func (s *Service) Run(ctx context.Context) error {
	return s.cfg.Ledger.Consume(ctx, consumerName, func(ctx context.Context, tx *sqldb.Tx, events []ledger.Event) error {
		for _, e := range events {
			if e.Kind != "disposal.sanitized" && e.Kind != "disposal.attested" {
				continue
			}
			x, err := byID(ctx, tx, e.Tenant, e.Subject)
			if err == nil {
				_, err = s.issue(ctx, tx, x)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			// One certificate that can't be made must not keep the others waiting; it is made on demand.
			if err != nil {
				s.cfg.Log.ErrorContext(ctx, "disposal certificate not made", "disposal", e.Subject, "error", err)
			}
		}
		return nil
	})
}

// Certificate returns the signed certificate of a disposal, made now when it is not there yet. It
// returns fault.Conflict while the device is not disposed of, and fault.Unavailable while the ledger
// has not placed the events in its tree (some milliseconds).
func (s *Service) Certificate(ctx context.Context, scope device.Scope, disposal string) ([]byte, error) {
	x, err := byID(ctx, s.cfg.DB, scope.Tenant, disposal)
	if err != nil {
		return nil, err
	}
	if _, err := s.device(ctx, s.cfg.DB, scope, x.Device); err != nil {
		return nil, fault.New(fault.NotFound, "there is no disposal %q", disposal)
	}
	if !x.State.Done() {
		return nil, fault.New(fault.Conflict, "disposal %s is %s: there is a certificate once the device is disposed of", x.ID, x.State)
	}
	document, err := readCertificate(ctx, s.cfg.DB, x.ID)
	if !errors.Is(err, fault.NotFound) {
		return document, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		document, err = s.issue(ctx, tx, x)
		return err
	})
	return document, err
}

// CertificateOf is Certificate by the device.
func (s *Service) CertificateOf(ctx context.Context, scope device.Scope, id device.ID) ([]byte, error) {
	d, err := s.device(ctx, s.cfg.DB, scope, id)
	if err != nil {
		return nil, err
	}
	tries, err := ofDevice(ctx, s.cfg.DB, d.Num)
	if err != nil {
		return nil, err
	}
	for _, x := range tries {
		if x.State.Done() {
			return s.Certificate(ctx, scope, x.ID)
		}
	}
	return nil, fault.New(fault.Conflict, "%s is %s: there is a certificate once it is disposed of", d.DisplayName(), d.Stage)
}

// issue makes and keeps the certificate, or returns the one that is kept.
func (s *Service) issue(ctx context.Context, tx *sqldb.Tx, x Disposal) ([]byte, error) {
	document, err := readCertificate(ctx, tx, x.ID)
	if !errors.Is(err, fault.NotFound) {
		return document, err
	}
	d, err := s.cfg.Devices.ByNum(ctx, tx, x.num)
	if err != nil {
		return nil, err
	}
	c, err := s.certify(ctx, tx, d, x)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of disposal %s: %w", x.ID, err)
	}
	if document, err = wire.Seal(wire.DisposalType, c, s.cfg.Key); err != nil {
		return nil, err
	}
	// What is handed out must convince others: better none than a wrong one.
	if report, err := VerifyCertificate(document, VerifyOptions{}); err != nil {
		return nil, fmt.Errorf("the certificate of disposal %s does not verify: %w (%v)", x.ID, err, report.Failed())
	}
	inserted, err := insertCertificate(ctx, tx, x, c.ID, sqldb.Micros(c.Issued), document)
	if err != nil {
		return nil, fmt.Errorf("keep certificate %s: %w", c.ID, err)
	}
	if !inserted {
		return readCertificate(ctx, tx, x.ID)
	}
	return document, s.record(ctx, tx, device.System("disposal"), d, ledger.Event{Kind: "disposal.certified", Subject: x.ID,
		Data: ledger.Facts(map[string]any{"certificate": c.ID, "sha256": wire.HashOf(document)})})
}

// certify puts the document together.
func (s *Service) certify(ctx context.Context, q sqldb.Reader, d device.Device, x Disposal) (Certificate, error) {
	issuer, err := s.issuer()
	if err != nil {
		return Certificate{}, err
	}
	c := Certificate{
		Format: CertificateFormat, ID: certificateID(x.ID), Tenant: d.Tenant, Issued: s.now(), Issuer: issuer,
		Device:       CertifiedDevice{ID: d.ID, Serial: d.Serial, Name: d.Name, Model: d.Model},
		Sanitization: Sanitization{Order: x.ID, Method: x.Method, Reason: x.Reason, Ordered: x.Created, Techniques: []string{}},
	}
	if err := c.Sanitization.say(x); err != nil {
		return Certificate{}, err
	}
	life, err := s.lifeOf(ctx, d, x)
	if err != nil {
		return Certificate{}, err
	}
	if s.cfg.Provenance != nil {
		p, ok, err := s.cfg.Provenance(ctx, q, d.Num)
		if err != nil {
			return Certificate{}, err
		}
		if ok && life.received != nil {
			c.Device.Maker, c.Device.ModelName = p.Maker, p.ModelName
			c.Provenance = &CertifiedOrigin{
				Order: p.Number, OrderID: p.Order, Line: p.Line, Supplier: p.Supplier, Ordered: p.Ordered,
				Delivery: p.Delivery, Delivered: life.received.At,
			}
		}
	}
	if err := life.write(&c); err != nil {
		return Certificate{}, err
	}
	if c.Ledger.Verifier, err = s.cfg.Ledger.Verifier(); err != nil {
		return Certificate{}, err
	}
	for _, e := range life.events {
		proof, err := s.cfg.Ledger.Inclusion(ctx, e.ID)
		if err != nil {
			return Certificate{}, err
		}
		c.Ledger.Events = append(c.Ledger.Events, proof)
	}
	return c, nil
}

func (s *Service) issuer() (Issuer, error) {
	keyID, err := wire.KeyIDOf(s.cfg.Key.Public())
	if err != nil {
		return Issuer{}, err
	}
	text, err := publicPEM(s.cfg.Key.Public())
	return Issuer{Name: s.cfg.Issuer, KeyID: keyID, PublicKey: text}, err
}

func publicPEM(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// IssuerKey returns the public key that verifies this server's certificates, in PEM: what people keep
// outside of the server to pin it.
func (s *Service) IssuerKey() (string, error) { return publicPEM(s.cfg.Key.Public()) }

// say fills in who says that the data is destroyed.
func (z *Sanitization) say(x Disposal) error {
	if x.Attestation != nil {
		z.Kind, z.Attestation, z.Techniques = KindAttestation, x.Attestation, []string{x.Attestation.Technique}
		return nil
	}
	statement, err := statementIn(x.statement)
	if err != nil {
		return err
	}
	z.Kind, z.Techniques, z.Statement = KindStatement, techniques(*statement), x.statement
	for _, der := range x.chain {
		z.Chain = append(z.Chain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	return nil
}

// statementIn reads a statement that was verified before.
func statementIn(envelope []byte) (*wire.SanitizationStatement, error) {
	var e wire.Envelope
	if err := wire.Decode(envelope, &e); err != nil {
		return nil, fmt.Errorf("read the statement again: %w", err)
	}
	var s wire.SanitizationStatement
	if err := wire.Decode(e.Payload, &s); err != nil {
		return nil, fmt.Errorf("read the statement again: %w", err)
	}
	return &s, nil
}
