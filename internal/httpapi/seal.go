package httpapi

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// sealer makes an AES-256-GCM cipher (random nonce in front) from a caller's idempotency key; the row
// is the salt, so that two rows never share a key.
func sealer(secret []byte, row string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, []byte(row), "steward idempotency answer 1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// seal encrypts; it panics on what can't happen with keys of this length.
func seal(secret []byte, row string, plain []byte) []byte {
	aead, err := sealer(secret, row)
	if err != nil {
		panic(err)
	}
	return aead.Seal(nil, nil, plain, []byte(row))
}

// open decrypts what seal made for the same secret and row.
func open(secret []byte, row string, sealed []byte) ([]byte, error) {
	aead, err := sealer(secret, row)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, sealed, []byte(row))
	if err != nil {
		return nil, errors.New("it was stored under another key")
	}
	return plain, nil
}
