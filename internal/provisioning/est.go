package provisioning

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// The media types of RFC 7030, sections 4.1.3 and 4.2.3.
const (
	caCertsType = "application/pkcs7-mime"
	enrollType  = "application/pkcs7-mime; smime-type=certs-only"
)

const estPrefix = "/.well-known/est/"

// EST answers the paths below /.well-known/est/ (RFC 7030): cacerts, simpleenroll and simplereenroll,
// each also behind a label that names the tenant. Who calls it has bounded the body's time and reads
// the error: nothing has been written then.
func (s *Service) EST(w http.ResponseWriter, r *http.Request) error {
	label, op := "", strings.TrimPrefix(r.URL.Path, estPrefix)
	if before, after, ok := strings.Cut(op, "/"); ok {
		label, op = before, after
		if _, err := device.ParseTenantID(label); err != nil {
			return fault.New(fault.NotFound, "the label of the path must be a tenant's name")
		}
	}
	switch {
	case op == "cacerts" && r.Method == http.MethodGet:
		return s.estCACerts(w, r, device.TenantID(label))
	case op == "simpleenroll" && r.Method == http.MethodPost:
		return s.estEnroll(w, r, label)
	case op == "simplereenroll" && r.Method == http.MethodPost:
		return s.estReenroll(w, r)
	}
	return fault.New(fault.NotFound, "EST here has GET cacerts, POST simpleenroll and POST simplereenroll")
}

// estCACerts answers for the tenant of the label, else of the client's certificate, else for the
// default tenant. The roots come first.
func (s *Service) estCACerts(w http.ResponseWriter, r *http.Request, tenant device.TenantID) error {
	if tenant == "" {
		tenant = device.DefaultTenant
		if cert := peer(r); cert != nil {
			if d, err := s.Identify(r.Context(), cert); err == nil {
				tenant = d.Tenant
			}
		}
	}
	a, err := s.authorities.find(r.Context(), tenant) // never made for a stranger
	if err != nil {
		return err
	}
	body, err := estBody(a.chain()...)
	if err != nil {
		return err
	}
	return writeEST(w, caCertsType, body)
}

func peer(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

// estEnroll authenticates by HTTP Basic: the serial number and the token's secret (RFC 7030, section
// 3.2.3).
func (s *Service) estEnroll(w http.ResponseWriter, r *http.Request, label string) error {
	serial, secret, ok := basicAuth(r)
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="enrollment: serial number and token"`)
		return fault.Coded(fault.Unauthorized, wire.CodeTokenInvalid, "send the serial number and the secret of an enrollment token (HTTP Basic)")
	}
	body, err := readCSR(r)
	if err != nil {
		return err
	}
	der, err := s.enroll(r.Context(), enrollment{serial: serial, secret: secret, label: label, address: r.RemoteAddr, body: body})
	if err != nil {
		if errors.Is(err, fault.Unauthorized) {
			w.Header().Set("WWW-Authenticate", `Basic realm="enrollment: serial number and token"`)
		}
		return err
	}
	return writeCertificate(w, der)
}

// basicAuth splits at the last colon, not at the first as http.Request.BasicAuth does: a serial number
// may hold colons, the secret of a token never does.
func basicAuth(r *http.Request) (serial, secret string, ok bool) {
	scheme, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	i := bytes.LastIndexByte(raw, ':')
	if !strings.EqualFold(scheme, "Basic") || err != nil || i < 0 {
		return "", "", false
	}
	return string(raw[:i]), string(raw[i+1:]), true
}

func (s *Service) estReenroll(w http.ResponseWriter, r *http.Request) error {
	body, err := readCSR(r)
	if err != nil {
		return err
	}
	der, err := s.reenroll(r.Context(), peer(r), r.RemoteAddr, body)
	if err != nil {
		return err
	}
	return writeCertificate(w, der)
}

// readCSR bounds the body by what parseRequest takes.
func readCSR(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxCSRBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the request's body: %w", err)
	}
	if len(body) > MaxCSRBytes {
		return nil, fault.Coded(fault.TooLarge, wire.CodeRequestInvalid, "a certificate request has at most %d bytes", MaxCSRBytes)
	}
	return body, nil
}

func writeCertificate(w http.ResponseWriter, der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	body, err := estBody(cert)
	if err != nil {
		return err
	}
	return writeEST(w, enrollType, body)
}

func writeEST(w http.ResponseWriter, mime string, body []byte) error {
	w.Header().Set("Content-Type", mime)
	// RFC 8951, section 3 dropped this header; clients of RFC 7030 still look for it.
	w.Header().Set("Content-Transfer-Encoding", "base64")
	w.Header().Set("Cache-Control", "no-store")
	_, err := w.Write(body)
	return err
}
