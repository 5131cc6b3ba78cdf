package provisioning

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"

	"steward/internal/device"
)

// sealer marks certificates as issued by us. A row of the table says so too, but writing to the database
// must not be enough to become a device. The other proof, the chain of signatures, costs a hundred times
// as much for each of the devices that come back at once after a restart.
type sealer struct{ key []byte }

// sealKeyName is the secret in the key store.
const sealKeyName = "certificate-seal"

func openSealer(ctx context.Context, store KeyStore) (sealer, error) {
	key, err := store.Secret(ctx, sealKeyName, sha256.Size)
	if err != nil {
		return sealer{}, fmt.Errorf("open the key that seals certificates: %w", err)
	}
	return sealer{key}, nil
}

func (s sealer) seal(tenant device.TenantID, der []byte) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(tenant))
	h.Write([]byte{0}) // no tenant's name has one
	h.Write(der)
	return h.Sum(nil)
}

func (s sealer) holds(c Certificate) bool { return hmac.Equal(c.seal, s.seal(c.tenant, c.body)) }
