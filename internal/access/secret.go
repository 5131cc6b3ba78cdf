package access

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"steward/internal/device"
)

const (
	// tokenPrefix lets secret scanners and people recognise a token of ours.
	tokenPrefix = "stp_"
	secretBytes = 32
)

// newTokenSecret returns a fresh token with 256 random bits.
func newTokenSecret() string { return tokenPrefix + device.RandomName(secretBytes) }

// newSessionSecret returns a fresh cookie value with 256 random bits.
func newSessionSecret() string { return device.RandomName(secretBytes) }

// newPassword returns one with 100 random bits in groups that can be read out.
func newPassword() string {
	s := device.RandomName(13)[:20]
	return s[:5] + "-" + s[5:10] + "-" + s[10:15] + "-" + s[15:]
}

// hashSecret is what is stored of a token or cookie. They are random, so a plain hash is enough.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// plausible tells whether a secret has the length of ours, so that nonsense costs no query.
func plausible(secret, prefix string) bool {
	rest, ok := strings.CutPrefix(secret, prefix)
	return ok && len(rest) == (secretBytes*8+4)/5
}
