package provisioning

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
)

// Object identifiers of PKCS#7 (RFC 2315, section 14).
var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
)

type contentInfo struct {
	ContentType asn1.ObjectIdentifier
	Content     asn1.RawValue `asn1:"optional"`
}

// signedData is RFC 5652, section 5.1, in its degenerate form: no content and no signers.
type signedData struct {
	Version          int
	DigestAlgorithms asn1.RawValue
	Content          contentInfo
	Certificates     asn1.RawValue
	SignerInfos      asn1.RawValue
}

var emptySet = asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSet, IsCompound: true}

// certsOnly encodes certificates as the "certs-only CMC Simple PKI Response" of RFC 7030, section
// 4.1.3: a PKCS#7 message that carries certificates and nothing else.
func certsOnly(certs ...*x509.Certificate) ([]byte, error) {
	var raw []byte
	for _, c := range certs {
		raw = append(raw, c.Raw...)
	}
	inner, err := asn1.Marshal(signedData{
		Version: 1, DigestAlgorithms: emptySet, Content: contentInfo{ContentType: oidData},
		Certificates: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: raw},
		SignerInfos:  emptySet,
	})
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#7: %w", err)
	}
	out, err := asn1.Marshal(contentInfo{ContentType: oidSignedData,
		Content: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}})
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#7: %w", err)
	}
	return out, nil
}

// estBody is certsOnly in base64 without line breaks, which every EST client reads (RFC 8951, section
// 3); strongSwan's refuses wrapped lines.
func estBody(certs ...*x509.Certificate) ([]byte, error) {
	der, err := certsOnly(certs...)
	if err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(der)), nil
}
