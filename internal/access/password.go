package access

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"steward/internal/fault"
	"steward/internal/httpapi"
)

// costs are the parameters of argon2id (RFC 9106).
type costs struct {
	memoryKiB uint32
	passes    uint32
	lanes     uint8
}

// currentCosts are those that OWASP's cheat sheet on password storage recommends where many sign in at
// a time: with 64 MiB, a burst of sign-ins would take the memory that devices need.
var currentCosts = costs{memoryKiB: 19 << 10, passes: 2, lanes: 1}

const (
	saltBytes = 16
	hashBytes = 32
	// maxWaiting bounds how many passwords may wait to be checked.
	maxWaiting = 64
)

// hasher checks passwords, a few at a time, so that a burst takes time and not memory: each takes 19 MiB
// and some 20 ms of a core.
type hasher struct {
	slots   chan struct{}
	waiting atomic.Int64
	dummy   string // of a password that nobody knows, for accounts that don't exist
}

func newHasher() *hasher {
	h := &hasher{slots: make(chan struct{}, min(max(1, runtime.GOMAXPROCS(0)), 4))}
	h.dummy = encode(currentCosts, randomBytes(saltBytes), randomBytes(hashBytes))
	return h
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return b
}

// slot waits for one of the slots; the caller calls the returned function when done.
func (h *hasher) slot(ctx context.Context) (release func(), err error) {
	if h.waiting.Add(1) > maxWaiting {
		h.waiting.Add(-1)
		return nil, &httpapi.Later{After: 2 * time.Second,
			Err: fault.New(fault.Unavailable, "too many people sign in just now; try again in a few seconds")}
	}
	defer h.waiting.Add(-1)
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hash returns how the password is stored.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	release, err := h.slot(ctx)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	defer release()
	salt := randomBytes(saltBytes)
	return encode(currentCosts, salt, derive(currentCosts, password, salt, hashBytes)), nil
}

// verify tells whether the password is the stored one, and whether it should be stored anew. An empty
// stored takes as long as any other and never matches.
func (h *hasher) verify(ctx context.Context, stored, password string) (ok, old bool, err error) {
	release, err := h.slot(ctx)
	if err != nil {
		return false, false, fmt.Errorf("check a password: %w", err)
	}
	defer release()
	known := stored != ""
	if !known {
		stored = h.dummy
	}
	c, salt, want, err := decode(stored)
	if err != nil {
		return false, false, err
	}
	got := derive(c, password, salt, len(want))
	same := subtle.ConstantTimeCompare(got, want) == 1
	return same && known, c != currentCosts, nil
}

func derive(c costs, password string, salt []byte, n int) []byte {
	return argon2.IDKey([]byte(password), salt, c.passes, c.memoryKiB, c.lanes, uint32(n))
}

var b64 = base64.RawStdEncoding

// encode writes the PHC string format: $argon2id$v=19$m=19456,t=2,p=1$salt$hash
func encode(c costs, salt, hash []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.memoryKiB, c.passes, c.lanes,
		b64.EncodeToString(salt), b64.EncodeToString(hash))
}

var errStored = errors.New("stored password has an unknown form")

// decode reads what encode writes, and refuses costs that would stop the server.
func decode(stored string) (c costs, salt, hash []byte, err error) {
	parts := strings.Split(stored, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return c, nil, nil, errStored
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &c.memoryKiB, &c.passes, &c.lanes); err != nil || n != 3 {
		return c, nil, nil, errStored
	}
	if c.memoryKiB < 8 || c.memoryKiB > 256<<10 || c.passes < 1 || c.passes > 10 || c.lanes < 1 || c.lanes > 8 {
		return c, nil, nil, errStored
	}
	salt, errSalt := b64.DecodeString(parts[4])
	hash, errHash := b64.DecodeString(parts[5])
	if errSalt != nil || errHash != nil || len(salt) < 8 || len(hash) < 16 || len(hash) > 64 {
		return c, nil, nil, errStored
	}
	return c, salt, hash, nil
}
