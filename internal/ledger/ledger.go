// Package ledger is the append-only log of all that happens to devices and to Steward itself. Rooms
// append an event in the transaction of the change it tells. A sequencer then gives each committed
// event its place in an RFC 6962 Merkle tree, so that audit view, device passport, live pages and
// webhooks read one gapless row by cursor, and every entry can be proven with a signed tree head.
//
//	Append ──commit──▶ pending ──Sequence──▶ leaf n of the tree ──▶ Events, Consume, Wait
//	                                              └─▶ signed checkpoint ──▶ Inclusion, Consistency
package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"steward/internal/device"
)

// Event is one entry. ID, At and Sequence are set by the ledger when left empty.
type Event struct {
	ID       string          `json:"id"`       // unique, random: "evt-…"
	Sequence int64           `json:"sequence"` // leaf index in the tree, from 0; -1 until sequenced
	At       time.Time       `json:"at"`       // kept to the microsecond
	Tenant   device.TenantID `json:"tenant"`
	Kind     string          `json:"kind"`              // "room.verb": "purchase.received", "update.committed"
	Device   device.ID       `json:"device,omitempty"`  // whose passport it belongs to; empty when none's
	Subject  string          `json:"subject,omitempty"` // ID of the room's own thing: an order, a release
	Actor    device.Actor    `json:"actor"`
	Reason   string          `json:"reason,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"` // the room's own facts, a JSON object; never a secret
}

var kindPattern = regexp.MustCompile(`^[a-z]+(\.[a-z_]+)+$`)

// Bounds of one event, in bytes.
const (
	MaxDataBytes    = 16 << 10
	MaxKindBytes    = 64
	MaxSubjectBytes = 256
	MaxActorBytes   = 256 // of the actor's ID and name each
	MaxReasonBytes  = 4 << 10
)

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
	case len(e.Kind) > MaxKindBytes || !kindPattern.MatchString(e.Kind):
		return fmt.Errorf("event kind %.80q: want room.verb", e.Kind)
	case e.Tenant == "":
		return fmt.Errorf("event %s without a tenant", e.Kind)
	case e.Actor.Kind == "" || e.Actor.ID == "":
		return fmt.Errorf("event %s without an actor", e.Kind)
	case len(e.Data) > MaxDataBytes:
		return fmt.Errorf("event %s with %d bytes of facts: at most %d", e.Kind, len(e.Data), MaxDataBytes)
	case len(e.Subject) > MaxSubjectBytes || len(e.Actor.ID) > MaxActorBytes || len(e.Device) > MaxSubjectBytes:
		return fmt.Errorf("event %s: subject, device or actor of more than %d bytes", e.Kind, MaxSubjectBytes)
	}
	return nil
}

// settle returns the event as it is stored: with ID and time, texts that both databases and JSON keep
// unchanged, and canonical facts. So what is hashed now is what anyone reads later.
func (e Event) settle(id string, now time.Time) (Event, error) {
	if err := e.check(); err != nil {
		return e, err
	}
	if e.ID == "" {
		e.ID = id
	}
	if e.At.IsZero() {
		e.At = now
	}
	e.At = e.At.UTC().Truncate(time.Microsecond)
	e.Sequence = -1
	for _, s := range []*string{&e.ID, (*string)(&e.Tenant), (*string)(&e.Device), &e.Subject, (*string)(&e.Actor.Kind), &e.Actor.ID} {
		*s = cleanText(*s)
	}
	e.Actor.Name = cutText(cleanText(e.Actor.Name), MaxActorBytes)
	e.Reason = cutText(cleanText(e.Reason), MaxReasonBytes)
	if len(e.Data) == 0 || string(e.Data) == "null" {
		e.Data = nil
		return e, nil
	}
	data, err := canonical(e.Data)
	if err != nil {
		return e, fmt.Errorf("event %s: facts: %w", e.Kind, err)
	}
	e.Data = data
	return e, nil
}

// cleanText replaces what PostgreSQL refuses in a text: NUL and bytes that are not UTF-8.
func cleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

// cutText shortens a text that is too long and says so at its end. A reason may come from a program's
// output on a device, and its length must not keep the event out of the ledger.
func cutText(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const mark = " … (cut)"
	end := limit - len(mark)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// canonical writes a JSON object with sorted keys and without blanks.
func canonical(data []byte) (json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var tree map[string]any
	if err := dec.Decode(&tree); err != nil {
		return nil, fmt.Errorf("want a JSON object: %w", err)
	}
	if dec.More() {
		return nil, fmt.Errorf("want one JSON object, not more")
	}
	return encodePlain(tree)
}

// encodePlain encodes without HTML escapes; maps are written in the order of their keys.
func encodePlain(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
