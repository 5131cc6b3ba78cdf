package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"steward/internal/device"
)

// leafFormat is the version of the leaf's form. A later form gets the next number; readers of proofs
// refuse numbers that they don't know.
const leafFormat = 1

// leafTime is RFC 3339 in UTC with exactly six digits of the second.
const leafTime = "2006-01-02T15:04:05.000000Z"

// leaf is what is hashed for an event: JSON in UTF-8 with exactly these keys in this order, without
// blanks, an absent value as "" or, for data, as null. It holds neither the leaf's index, which the
// tree proves, nor anything of the database. The leaf hash is SHA-256(0x00 ‖ leaf), RFC 6962 §2.1.
// Strings are escaped as Go's encoding/json does without HTML escapes: a verifier needs no encoder,
// since a proof carries the leaf's bytes.
type leaf struct {
	Actor   leafActor       `json:"actor"`
	At      string          `json:"at"`
	Data    json.RawMessage `json:"data"`
	Device  string          `json:"device"`
	Format  int             `json:"format"`
	ID      string          `json:"id"`
	Kind    string          `json:"kind"`
	Reason  string          `json:"reason"`
	Subject string          `json:"subject"`
	Tenant  string          `json:"tenant"`
}

type leafActor struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// encodeLeaf returns the bytes that are hashed for an event that has been settled.
func encodeLeaf(e Event) ([]byte, error) {
	data := e.Data
	if len(data) == 0 {
		data = json.RawMessage("null")
	}
	b, err := encodePlain(leaf{
		Actor: leafActor{ID: e.Actor.ID, Kind: string(e.Actor.Kind), Name: e.Actor.Name},
		At:    e.At.UTC().Format(leafTime), Data: data, Device: string(e.Device), Format: leafFormat,
		ID: e.ID, Kind: e.Kind, Reason: e.Reason, Subject: e.Subject, Tenant: string(e.Tenant),
	})
	if err != nil {
		return nil, fmt.Errorf("encode leaf of %s: %w", e.ID, err)
	}
	return b, nil
}

// decodeLeaf reads a leaf back; index becomes the event's Sequence.
func decodeLeaf(b []byte, index int64) (Event, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var l leaf
	if err := dec.Decode(&l); err != nil {
		return Event{}, fmt.Errorf("read ledger entry: %w", err)
	}
	if l.Format != leafFormat {
		return Event{}, fmt.Errorf("ledger entry has format %d: this program knows %d", l.Format, leafFormat)
	}
	at, err := time.Parse(leafTime, l.At)
	if err != nil {
		return Event{}, fmt.Errorf("ledger entry's time %.40q: %w", l.At, err)
	}
	e := Event{
		ID: l.ID, Sequence: index, At: at, Tenant: device.TenantID(l.Tenant), Kind: l.Kind,
		Device: device.ID(l.Device), Subject: l.Subject, Reason: l.Reason, Data: l.Data,
		Actor: device.Actor{Kind: device.ActorKind(l.Actor.Kind), ID: l.Actor.ID, Name: l.Actor.Name},
	}
	if string(e.Data) == "null" {
		e.Data = nil
	}
	return e, nil
}
