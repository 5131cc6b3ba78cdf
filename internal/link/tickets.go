package link

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// TLS session resumption: a device that comes back shows a ticket and spares both sides the certificates
// and their signatures. The keys that tickets are sealed with follow from one secret and the day, so that
// all nodes know each other's, also after a restart, and an old key is of no use after a week, which is
// as long as crypto/tls lets a session live. Which device it is, the ticket says with the certificate of
// the first handshake; Identify judges that one anew each time.

// ticketDays is how many days' keys are accepted: today's and those of the week before.
const ticketDays = 8

const secondsPerDay = 24 * 60 * 60 // a day here is one of UTC

// ticketKeys returns the keys of a day since 1970, its own first, which seals new tickets. Of tomorrow there is one
// too, for the ticket of a node whose clock is ahead.
func ticketKeys(secret []byte, day int64) ([][32]byte, error) {
	keys := make([][32]byte, 0, ticketDays+1)
	for _, d := range append([]int64{0}, offsets()...) {
		key, err := hkdf.Key(sha256.New, secret, nil, fmt.Sprintf("steward link tickets of day %d", day+d), 32)
		if err != nil {
			return nil, fmt.Errorf("derive ticket keys: %w", err)
		}
		keys = append(keys, [32]byte(key))
	}
	return keys, nil
}

// offsets are the other days than today: tomorrow, then the week before, newest first.
func offsets() []int64 {
	days := []int64{1}
	for d := int64(-1); d > -ticketDays; d-- {
		days = append(days, d)
	}
	return days
}
