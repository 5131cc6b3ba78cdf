package provisioning

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// MaxCSRBytes bounds the body of an EST request.
const MaxCSRBytes = 16 << 10

// request is what we take from a PKCS#10 request: the key, and the names to compare.
type request struct {
	csr   *x509.CertificateRequest
	keyID string
	kind  string // of the key, for people
}

// parseRequest reads the body of an EST request: base64 of a PKCS#10 request with or without line
// breaks (RFC 8951, section 3.1), or PEM, which people send by mistake and which is as clear. It checks
// the proof of possession and the strength of the key.
func parseRequest(body []byte) (*request, error) {
	if len(body) > MaxCSRBytes {
		return nil, fault.Coded(fault.TooLarge, wire.CodeRequestInvalid, "a certificate request has at most %d bytes", MaxCSRBytes)
	}
	der, err := requestDER(body)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, badRequest("the body is no PKCS#10 certificate request: %s", err)
	}
	kind, err := checkKey(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, badRequest("the certificate request is not signed by its own key: %s", err)
	}
	keyID, err := wire.KeyIDOf(csr.PublicKey)
	if err != nil {
		return nil, badRequest("the public key cannot be read: %s", err)
	}
	return &request{csr: csr, keyID: keyID, kind: kind}, nil
}

func requestDER(body []byte) ([]byte, error) {
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("-----BEGIN")) {
		block, _ := pem.Decode(body)
		if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
			return nil, badRequest("the PEM body holds no CERTIFICATE REQUEST")
		}
		return block.Bytes, nil
	}
	compact := bytes.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\r\n", r) {
			return -1
		}
		return r
	}, body)
	if len(compact) == 0 {
		return nil, badRequest("the body is empty: send a PKCS#10 request in base64")
	}
	der, err := base64.StdEncoding.DecodeString(string(compact))
	if err != nil {
		return nil, badRequest("the body is not base64 of a PKCS#10 request: %s", err)
	}
	return der, nil
}

func badRequest(format string, args ...any) error {
	return fault.Coded(fault.Unprocessable, wire.CodeRequestInvalid, format, args...)
}

// checkKey accepts the keys that a device's identity may have and names their kind.
func checkKey(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return "EC P-256", nil
		case elliptic.P384():
			return "EC P-384", nil
		}
	case ed25519.PublicKey:
		return "Ed25519", nil
	}
	return "", fault.Coded(fault.Unprocessable, wire.CodeKeyRefused, "this kind of key is not accepted: make an EC key on P-256 or P-384, or an Ed25519 key")
}

// Object identifiers of what a request may ask for.
var (
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
)

// checkNames refuses a request that names somebody else or asks for an authority's powers. Nothing but
// the key is taken over, so what passes here has no effect; the refusal tells the sender that the
// certificate would not be what was asked for.
func (r *request) checkNames(d device.Device) error {
	own := []string{"", d.Serial, string(d.ID)}
	if cn := r.csr.Subject.CommonName; !slices.Contains(own, cn) {
		return badRequest("the request names %.80q: leave the name empty, or use the serial number or the device ID", cn)
	}
	if sn := r.csr.Subject.SerialNumber; !slices.Contains(own, sn) {
		return badRequest("the request's serialNumber is %.80q, not this device's", sn)
	}
	for _, name := range r.csr.DNSNames {
		if !slices.Contains(own, name) {
			return badRequest("the request asks for the DNS name %.80q: a device certificate has none", name)
		}
	}
	for _, u := range r.csr.URIs {
		if u.String() != deviceURI(d) {
			return badRequest("the request asks for the URI %.120q, not this device's", u)
		}
	}
	if len(r.csr.IPAddresses) > 0 || len(r.csr.EmailAddresses) > 0 {
		return badRequest("the request asks for an IP or e-mail address: a device certificate has none")
	}
	return r.checkPowers()
}

func (r *request) checkPowers() error {
	for _, ext := range r.csr.Extensions {
		switch {
		case ext.Id.Equal(oidBasicConstraints):
			var bc struct {
				IsCA       bool `asn1:"optional"`
				MaxPathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(ext.Value, &bc); err != nil || len(rest) > 0 || bc.IsCA {
				return badRequest("the request asks to be an authority")
			}
		case ext.Id.Equal(oidKeyUsage):
			var bits asn1.BitString
			if rest, err := asn1.Unmarshal(ext.Value, &bits); err != nil || len(rest) > 0 || bits.At(5) == 1 || bits.At(6) == 1 {
				return badRequest("the request asks to sign certificates or revocation lists")
			}
		}
	}
	return nil
}

// deviceURI is the name of the device in its certificate, unique across tenants.
func deviceURI(d device.Device) string {
	return "urn:steward:device:" + string(d.Tenant) + ":" + string(d.ID)
}
