package keys

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
)

// Movable is a Store whose keys can be taken to another: Dir and Sealed. A token that never gives its
// keys out is none.
type Movable interface {
	Store
	// Import puts a key that was kept elsewhere into the store. The same one again changes nothing;
	// another under the name is refused with ErrOther.
	Import(ctx context.Context, name string, key crypto.Signer) error
	movable() keeper
}

func (s store) movable() keeper { return s.keeper }

// Copy puts all keys and secrets of one store into another and returns how many the other one then
// has of them. It can be repeated. A name under which the other store has something else is refused with
// ErrOther before anything is copied.
func Copy(ctx context.Context, from, to Movable) (int, error) {
	src, dst := from.movable(), to.movable()
	names, err := src.names(ctx)
	if err != nil {
		return 0, fmt.Errorf("list the keys of %s: %w", src.place(), err)
	}
	missing := map[string][]byte{}
	for _, name := range names {
		encoded, err := src.read(ctx, name)
		if err != nil {
			return 0, fmt.Errorf("read key %s of %s: %w", name, src.place(), err)
		}
		there, err := dst.read(ctx, name)
		switch {
		case err == nil && !bytes.Equal(there, encoded):
			return 0, fmt.Errorf("copy key %s to %s: %w", name, dst.place(), ErrOther)
		case errors.Is(err, ErrNoKey):
			missing[name] = encoded
		case err != nil:
			return 0, fmt.Errorf("read key %s of %s: %w", name, dst.place(), err)
		}
	}
	for name, encoded := range missing {
		if err := dst.add(ctx, name, encoded); err != nil {
			return 0, fmt.Errorf("copy key %s to %s: %w", name, dst.place(), err)
		}
		if there, err := dst.read(ctx, name); err != nil || !bytes.Equal(there, encoded) {
			return 0, fmt.Errorf("copy key %s to %s: %w", name, dst.place(), ErrOther)
		}
	}
	return len(names), nil
}
