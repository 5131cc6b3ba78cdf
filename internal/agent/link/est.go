package link

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"steward/internal/wire"
)

// Enroll asks for the first certificate: EST simpleenroll (RFC 7030, section 4.2.1) with the token's
// secret in HTTP Basic authentication, the serial number as user name. The same CSR may be sent again
// after a lost answer. A *Problem with Code "enrollment-pending" (EST's 202) says to come back later.
func (c *Client) Enroll(ctx context.Context, serial, secret string, csrDER []byte) ([]*x509.Certificate, error) {
	return c.est(ctx, request{path: wire.PathESTEnroll, basic: url.UserPassword(serial, secret)}, csrDER)
}

// Reenroll asks for the next certificate with the present one: EST simplereenroll.
func (c *Client) Reenroll(ctx context.Context, csrDER []byte) ([]*x509.Certificate, error) {
	return c.est(ctx, request{path: wire.PathESTReenroll}, csrDER)
}

func (c *Client) est(ctx context.Context, r request, csrDER []byte) ([]*x509.Certificate, error) {
	r.method = http.MethodPost
	r.contentType = "application/pkcs10"
	r.header = map[string]string{"Content-Transfer-Encoding": "base64"}
	r.body = []byte(base64.StdEncoding.EncodeToString(csrDER))
	r.limit = maxESTBytes
	got, err := c.do(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	if got.status == http.StatusAccepted {
		res := &http.Response{StatusCode: got.status, Header: got.header}
		p := problemOf(res, got.body, c.cfg.Now())
		p.Code = wire.CodePending
		return nil, fmt.Errorf("ask for a certificate: %w", p)
	}
	certs, err := ParseCertsOnly(got.body)
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	return certs, nil
}

// The parts of a certs-only CMS message (RFC 5652, sections 3 and 5.1; RFC 7030, section 4.2.3) that
// hold certificates.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version      int
		Digests      asn1.RawValue
		Encapsulated asn1.RawValue
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      asn1.RawValue
	}
)

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// ParseCertsOnly reads the base64 of a certs-only message, with or without line breaks. The first
// certificate is the device's own (RFC 7030 asks for it first), the rest its chain.
func ParseCertsOnly(body []byte) ([]*x509.Certificate, error) {
	text := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, string(body))
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("the answer is not base64: %w", err)
	}
	var outer contentInfo
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return nil, errors.Join(errors.New("the answer is no PKCS#7 message"), err)
	}
	if !outer.Type.Equal(oidSignedData) {
		return nil, fmt.Errorf("the answer holds %s, not PKCS#7 signed data", outer.Type)
	}
	var inner signedData
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &inner); err != nil {
		return nil, fmt.Errorf("PKCS#7 signed data: %w", err)
	}
	certs, err := x509.ParseCertificates(inner.Certificates.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificates in the answer: %w", err)
	}
	if len(certs) == 0 {
		return nil, errors.New("the answer holds no certificate")
	}
	return certs, nil
}
