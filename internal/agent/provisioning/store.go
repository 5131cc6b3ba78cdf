package provisioning

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"

	"steward/internal/wire"
)

// maxFileBytes bounds the files of the room.
const maxFileBytes = 1 << 20

var devicePattern = regexp.MustCompile(`^dev-[0-9a-z]{16}$`)

// readBounded returns nil when there is no such file.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s has %d bytes, at most %d", path, info.Size(), maxFileBytes)
	}
	return os.ReadFile(path)
}

func readTrust(path string) (*wire.Trust, error) {
	raw, err := readBounded(path)
	if raw == nil || err != nil {
		return nil, err
	}
	var trust wire.Trust
	if err := wire.Decode(raw, &trust); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &trust, nil
}

func trustHash(path string) (wire.Hash, error) {
	raw, err := readBounded(path)
	if raw == nil || err != nil {
		return "", err
	}
	return wire.HashOf(raw), nil
}

// EnvelopeKeys parses the keys that sign desired state.
func EnvelopeKeys(trust wire.Trust) ([]crypto.PublicKey, error) {
	var keys []crypto.PublicKey
	for i, text := range trust.EnvelopeKeys {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, fmt.Errorf("envelope key %d is no PEM", i+1)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("envelope key %d: %w", i+1, err)
		}
		switch key.(type) {
		case ed25519.PublicKey, *ecdsa.PublicKey:
			keys = append(keys, key)
		default:
			return nil, fmt.Errorf("envelope key %d is neither Ed25519 nor ECDSA", i+1)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("trust document without envelope keys")
	}
	return keys, nil
}

// encodeIdentity writes the key and the chain, the device's own certificate first, as PEM.
func encodeIdentity(key crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, cert := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out, nil
}

// readIdentity returns nil when there is no such file, and an identity with a key only when the
// certificate has not come yet.
func readIdentity(path string) (*Identity, error) {
	rest, err := readBounded(path)
	if rest == nil || err != nil {
		return nil, err
	}
	var key crypto.Signer
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			key, _ = parsed.(crypto.Signer)
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			chain = append(chain, cert)
		}
	}
	if key == nil {
		return nil, fmt.Errorf("%s holds no private key", path)
	}
	if len(chain) == 0 {
		return &Identity{Key: key}, nil
	}
	identity, err := newIdentity(key, chain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return identity, nil
}

// newIdentity checks that certificate and key belong together and reads the device's ID.
func newIdentity(key crypto.Signer, chain []*x509.Certificate) (*Identity, error) {
	leaf := chain[0]
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if !devicePattern.MatchString(leaf.Subject.CommonName) {
		return nil, fmt.Errorf("the certificate names %.80q, which is no device ID", leaf.Subject.CommonName)
	}
	tlsCert := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, cert := range chain {
		tlsCert.Certificate = append(tlsCert.Certificate, cert.Raw)
	}
	return &Identity{Device: leaf.Subject.CommonName, Certificate: leaf, TLS: tlsCert, Key: key}, nil
}

// ReadIdentity and ReadTrust are for `status` and `diagnose`, which look at a state directory without
// taking its lock. Both return nil when there is none.
func ReadIdentity(dir string) (*Identity, error) { return readIdentity(dir + "/" + identityFile) }

// ReadTrust reads the trust document of a state directory.
func ReadTrust(dir string) (*wire.Trust, error) { return readTrust(dir + "/" + trustFile) }

// Destroy wipes the keys, certificates and the trust document: the end of a disposal.
func (r *Room) Destroy(context.Context) error {
	var failed []error
	for _, name := range []string{identityFile, nextFile, identityFile + ".new", nextFile + ".new", trustFile} {
		_, err := r.cfg.Journal.Wipe(r.path(name))
		failed = append(failed, err)
	}
	r.cfg.Client.UseIdentity(nil)
	return errors.Join(failed...)
}
