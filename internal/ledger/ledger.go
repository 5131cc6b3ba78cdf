// Package ledger is the append-only log of all that happens to devices and to Steward itself. Rooms
// append an event in the transaction of the change it tells. A sequencer then gives each committed
// event its place in an RFC 6962 Merkle tree, so that audit view, device passport, live pages and
// webhooks read one gapless row by cursor, and every entry can be proven with a signed tree head.
package ledger

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"steward/internal/device"
)

// Event is one entry. ID, At and Sequence are set by the ledger when left empty.
type Event struct {
	ID       string          `json:"id"`       // unique, random: "evt-…"
	Sequence int64           `json:"sequence"` // leaf index in the tree, from 0; -1 until sequenced
	At       time.Time       `json:"at"`
	Tenant   device.TenantID `json:"tenant"`
	Kind     string          `json:"kind"`              // "room.verb": "purchase.received", "update.committed"
	Device   device.ID       `json:"device,omitempty"`  // whose passport it belongs to; empty when none's
	Subject  string          `json:"subject,omitempty"` // ID of the room's own thing: an order, a release
	Actor    device.Actor    `json:"actor"`
	Reason   string          `json:"reason,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"` // the room's own facts; never a secret
}

var kindPattern = regexp.MustCompile(`^[a-z]+(\.[a-z_]+)+$`)

// MaxDataBytes bounds the facts of one event.
const MaxDataBytes = 16 << 10

// Facts encodes the room's facts for Event.Data; it panics when v can't be encoded, which is a mistake
// in the code.
func Facts(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("ledger: encode facts: %v", err))
	}
	return b
}

func (e Event) check() error {
	switch {
	case !kindPattern.MatchString(e.Kind):
		return fmt.Errorf("event kind %q: want room.verb", e.Kind)
	case e.Tenant == "":
		return fmt.Errorf("event %s without a tenant", e.Kind)
	case e.Actor.Kind == "" || e.Actor.ID == "":
		return fmt.Errorf("event %s without an actor", e.Kind)
	case len(e.Data) > MaxDataBytes:
		return fmt.Errorf("event %s with %d bytes of facts: at most %d", e.Kind, len(e.Data), MaxDataBytes)
	}
	return nil
}
