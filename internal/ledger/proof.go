package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"steward/internal/fault"
)

// Checkpoint is what a signed tree head says (c2sp.org/tlog-checkpoint).
type Checkpoint struct {
	Origin string    // names the log
	Size   int64     // number of events in the tree
	Root   tlog.Hash // RFC 6962 §2.1
}

func (c Checkpoint) text() string { return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root) }

// parseCheckpoint reads the text of a checkpoint's note. Extension lines after the third are allowed
// by the format and ignored.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("checkpoint: want the lines origin, size and root")
	}
	var size int64
	if _, err := fmt.Sscanf(lines[1], "%d", &size); err != nil || size < 0 || fmt.Sprint(size) != lines[1] {
		return Checkpoint{}, fmt.Errorf("checkpoint: size %.30q", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: root %.60q: %w", lines[2], err)
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: root}, nil
}

// OpenCheckpoint checks the signature of a tree head with the ledger's verifier key.
func OpenCheckpoint(signed []byte, verifier string) (Checkpoint, error) {
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("ledger's verifier key: %w", err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	return parseCheckpoint(n.Text)
}

// ProofFormat is the version of Proof's form.
const ProofFormat = "steward-ledger-proof/1"

// Proof shows, without the server, that an event is in the ledger: the leaf's bytes and what it takes
// to compute from them the root that the checkpoint signs.
type Proof struct {
	Format     string      `json:"format"`     // ProofFormat
	Leaf       string      `json:"leaf"`       // the event's leaf, the exact text that was hashed
	Index      int64       `json:"index"`      // its place in the tree, from 0
	Hashes     []tlog.Hash `json:"hashes"`     // RFC 6962 §2.1.1 audit path in base64, from the leaf upwards
	Checkpoint string      `json:"checkpoint"` // the signed tree head
}

// Bounds of a proof that is read: 2^63 events need 63 hashes.
const (
	maxProofHashes     = 64
	maxLeafBytes       = 64 << 10
	maxCheckpointBytes = 8 << 10
	maxProofBytes      = 256 << 10
)

// ParseProof reads a proof from JSON. It refuses unknown fields and what no ledger makes.
func ParseProof(data []byte) (Proof, error) {
	if len(data) > maxProofBytes {
		return Proof{}, fmt.Errorf("ledger proof of %d bytes: at most %d", len(data), maxProofBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var p Proof
	if err := dec.Decode(&p); err != nil {
		return Proof{}, fmt.Errorf("ledger proof: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Proof{}, errors.New("ledger proof: something follows it")
	}
	return p, p.check()
}

func (p Proof) check() error {
	switch {
	case p.Format != ProofFormat:
		return fmt.Errorf("ledger proof: format %.40q: this program knows %s", p.Format, ProofFormat)
	case p.Index < 0:
		return fmt.Errorf("ledger proof: index %d", p.Index)
	case len(p.Hashes) > maxProofHashes:
		return fmt.Errorf("ledger proof: %d hashes", len(p.Hashes))
	case len(p.Leaf) > maxLeafBytes || len(p.Checkpoint) > maxCheckpointBytes:
		return errors.New("ledger proof: leaf or checkpoint too large")
	}
	return nil
}

// VerifyProof checks a proof with nothing but the ledger's verifier key and returns what is proven:
// the event, and the tree it stands in.
func VerifyProof(p Proof, verifier string) (Event, Checkpoint, error) {
	if err := p.check(); err != nil {
		return Event{}, Checkpoint{}, err
	}
	c, err := OpenCheckpoint([]byte(p.Checkpoint), verifier)
	if err != nil {
		return Event{}, Checkpoint{}, fmt.Errorf("ledger proof: %w", err)
	}
	if p.Index >= c.Size {
		return Event{}, Checkpoint{}, fmt.Errorf("ledger proof: entry %d in a tree of %d", p.Index, c.Size)
	}
	if err := tlog.CheckRecord(tlog.RecordProof(p.Hashes), c.Size, c.Root, p.Index, tlog.RecordHash([]byte(p.Leaf))); err != nil {
		return Event{}, Checkpoint{}, errors.New("ledger proof: the entry is not in the signed tree")
	}
	e, err := decodeLeaf([]byte(p.Leaf), p.Index)
	return e, c, err
}

// Inclusion proves an event against the newest tree head. An unknown event is fault.NotFound, one that
// is not sequenced yet fault.Unavailable.
func (l *Ledger) Inclusion(ctx context.Context, eventID string) (Proof, error) {
	e, err := eventAt(ctx, l.cfg.DB, eventID)
	if errors.Is(err, fault.NotFound) {
		return Proof{}, fault.New(fault.NotFound, "there is no event %s", eventID)
	}
	if err != nil {
		return Proof{}, err
	}
	h, err := readHead(ctx, l.cfg.DB)
	if err != nil {
		return Proof{}, err
	}
	if e.Sequence < 0 || e.Sequence >= h.size {
		return Proof{}, fault.New(fault.Unavailable, "event %s is not in the signed tree yet; try again in a moment", eventID)
	}
	leaf, err := encodeLeaf(e)
	if err != nil {
		return Proof{}, err
	}
	hashes, err := tlog.ProveRecord(h.size, e.Sequence, storedHashes(ctx, l.cfg.DB))
	if err != nil {
		return Proof{}, fmt.Errorf("prove event %s: %w", eventID, err)
	}
	return Proof{Format: ProofFormat, Leaf: string(leaf), Index: e.Sequence, Hashes: hashes, Checkpoint: h.checkpoint}, nil
}

// ConsistencyProof shows that a tree is an earlier one with events added at its end.
type ConsistencyProof struct {
	From   int64       `json:"from"`
	To     int64       `json:"to"`
	Hashes []tlog.Hash `json:"hashes"` // RFC 6962 §2.1.2, in base64
}

// Consistency proves that the tree of to events grew out of the one of from events. Sizes that the
// ledger does not have are a *fault.Invalid.
func (l *Ledger) Consistency(ctx context.Context, from, to int64) (ConsistencyProof, error) {
	size, err := readSize(ctx, l.cfg.DB)
	if err != nil {
		return ConsistencyProof{}, err
	}
	if from < 1 || to < from || to > size {
		return ConsistencyProof{}, fault.Bad("query.from", "want 1 ≤ from ≤ to ≤ %d, the size of the ledger", size)
	}
	hashes, err := tlog.ProveTree(to, from, storedHashes(ctx, l.cfg.DB))
	if err != nil {
		return ConsistencyProof{}, fmt.Errorf("prove consistency %d to %d: %w", from, to, err)
	}
	return ConsistencyProof{From: from, To: to, Hashes: hashes}, nil
}

// VerifyConsistency checks a consistency proof between two checkpoints that have been opened.
func VerifyConsistency(p ConsistencyProof, older, newer Checkpoint) error {
	if p.From != older.Size || p.To != newer.Size || older.Origin != newer.Origin {
		return errors.New("consistency proof: not between these two checkpoints")
	}
	if older.Size < 1 || len(p.Hashes) > 2*maxProofHashes {
		return errors.New("consistency proof: wrong form")
	}
	if err := tlog.CheckTree(tlog.TreeProof(p.Hashes), newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return errors.New("consistency proof: the newer tree did not grow out of the older one")
	}
	return nil
}
