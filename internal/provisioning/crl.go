package provisioning

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
)

// A revocation list is signed anew when something was revoked and, at the latest, at half of its life.
const crlLife = 24 * time.Hour

// Reasons of RFC 5280, section 5.3.1.
const (
	reasonSuperseded = 4
	reasonCessation  = 5
)

// crlRow is the state of one authority's list.
type crlRow struct {
	changes, signed, number int64
	next                    time.Time
	body                    []byte
}

func (c crlRow) fresh(now time.Time) bool {
	return c.signed == c.changes && c.next.Sub(now) > crlLife/2
}

func readCRL(ctx context.Context, q sqldb.Reader, authority string) (crlRow, error) {
	var c crlRow
	err := q.QueryRowContext(ctx, "SELECT changes, signed, number, next_update, body FROM provisioning_crl WHERE authority = $1", authority).
		Scan(&c.changes, &c.signed, &c.number, sqldb.ScanMicros(&c.next), &c.body)
	if errors.Is(err, sql.ErrNoRows) {
		return c, fault.New(fault.NotFound, "there is no such revocation list")
	}
	return c, err
}

// CRL returns the tenant's revocation list (DER) of one issuing authority, by its ID, or of the current
// one when the ID is empty. Superseded certificates are on it too.
func (s *Service) CRL(ctx context.Context, tenant device.TenantID, id string) ([]byte, error) {
	a, err := s.authorities.find(ctx, tenant)
	if err != nil {
		return nil, err
	}
	by := a.current()
	for _, i := range a.issuing {
		if i.id == id {
			by = i
		}
	}
	if id != "" && by.id != id {
		return nil, fault.New(fault.NotFound, "there is no such revocation list")
	}
	c, err := readCRL(ctx, s.cfg.DB, by.id)
	if err != nil {
		return nil, fmt.Errorf("read revocation list: %w", err)
	}
	if c.fresh(s.cfg.Now()) {
		return c.body, nil
	}
	return s.signCRL(ctx, by)
}

func (s *Service) signCRL(ctx context.Context, by stored) ([]byte, error) {
	signer, err := s.cfg.Keys.Open(ctx, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	var out []byte
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		now := s.cfg.Now()
		// Taking the number first makes other nodes wait for this row.
		if _, err := tx.Exec(ctx, "UPDATE provisioning_crl SET number = number + 1 WHERE authority = $1", by.id); err != nil {
			return fmt.Errorf("number revocation list: %w", err)
		}
		c, err := readCRL(ctx, tx, by.id)
		if err != nil {
			return err
		}
		entries, err := voidEntries(ctx, tx, by.id, now)
		if err != nil {
			return err
		}
		next := now.Add(crlLife)
		out, err = x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(c.number), ThisUpdate: now, NextUpdate: next, RevokedCertificateEntries: entries,
		}, by.cert, signer)
		if err != nil {
			return fmt.Errorf("sign revocation list: %w", err)
		}
		_, err = tx.Exec(ctx, "UPDATE provisioning_crl SET signed = $1, next_update = $2, body = $3 WHERE authority = $4",
			c.changes, sqldb.Micros(next), out, by.id)
		return err
	})
	return out, err
}

// voidEntries lists what was revoked or superseded and has not expired by itself.
func voidEntries(ctx context.Context, q sqldb.Reader, authority string, now time.Time) ([]x509.RevocationListEntry, error) {
	rows, err := q.QueryContext(ctx, `SELECT serial, superseded, revoked FROM provisioning_certificate
		WHERE authority = $1 AND expires > $2 AND (superseded > 0 OR revoked > 0) ORDER BY serial`, authority, sqldb.Micros(now))
	if err != nil {
		return nil, fmt.Errorf("list revoked certificates: %w", err)
	}
	defer rows.Close()
	var out []x509.RevocationListEntry
	for rows.Next() {
		var serial string
		var superseded, revoked time.Time
		if err := rows.Scan(&serial, sqldb.ScanMicros(&superseded), sqldb.ScanMicros(&revoked)); err != nil {
			return nil, fmt.Errorf("list revoked certificates: %w", err)
		}
		n, ok := new(big.Int).SetString(serial, 16)
		if !ok {
			return nil, fmt.Errorf("certificate serial number %q is not hex", serial)
		}
		e := x509.RevocationListEntry{SerialNumber: n, RevocationTime: superseded, ReasonCode: reasonSuperseded}
		if superseded.IsZero() {
			e.RevocationTime, e.ReasonCode = revoked, reasonCessation
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// PKI serves what verifiers fetch without a certificate: GET /pki/<tenant>/crl, /pki/<tenant>/<id>.crl
// and /pki/<tenant>/ca (PEM). An error is for the caller to answer.
func (s *Service) PKI(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return fault.New(fault.NotFound, "there is nothing but GET here")
	}
	tenant, name, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/pki/"), "/")
	if _, err := device.ParseTenantID(tenant); !ok || err != nil {
		return fault.New(fault.NotFound, "want /pki/<tenant>/crl or /pki/<tenant>/ca")
	}
	var body []byte
	var err error
	mime := "application/pkix-crl"
	id, isCRL := strings.CutSuffix(name, ".crl")
	switch {
	case name == "crl":
		body, err = s.CRL(r.Context(), device.TenantID(tenant), "")
	case isCRL && id != "":
		body, err = s.CRL(r.Context(), device.TenantID(tenant), id)
	case name == "ca":
		mime = "application/x-pem-file"
		body, err = s.caFile(r.Context(), device.TenantID(tenant))
	default:
		return fault.New(fault.NotFound, "want /pki/<tenant>/crl or /pki/<tenant>/ca")
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mime)
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, err = w.Write(body)
	return err
}

func (s *Service) caFile(ctx context.Context, tenant device.TenantID) ([]byte, error) {
	a, err := s.authorities.find(ctx, tenant)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, c := range a.chain() {
		b.WriteString(pemOf(c))
	}
	return []byte(b.String()), nil
}
