package provisioning

import (
	"context"
	"crypto"
	"fmt"

	"steward/internal/keys"
)

// KeyStore holds the authorities' keys and the one of envelopes. Nodes that share a database must share
// it; see package keys.
type KeyStore = keys.Store

// EnvelopeKeyName is the key that signs desired state (Ed25519).
const EnvelopeKeyName = "envelope"

// EnvelopeSigner returns the key that signs desired state, made when there is none. The twin needs it
// too, and may be made before this room.
func EnvelopeSigner(ctx context.Context, store KeyStore) (crypto.Signer, error) {
	s, err := store.Ensure(ctx, EnvelopeKeyName, keys.Ed25519)
	if err != nil {
		return nil, fmt.Errorf("open the envelope key: %w", err)
	}
	return s, nil
}
