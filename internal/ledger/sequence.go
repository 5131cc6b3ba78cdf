package ledger

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// sequenceBatch bounds how many events one transaction places, so that other writers of SQLite are not
// kept waiting.
const sequenceBatch = 512

// ErrForeignHead says that the newest tree head was signed with another key than this program's.
var ErrForeignHead = errors.New("the ledger's tree head is signed with another key")

// Sequence gives committed events that have no place yet the next leaf indexes, at most a batch of
// them, and signs the new tree head, all in one transaction. It returns how many it placed: 0 when
// nothing waits or another node is at it. Run calls it; tests may, to have events readable at once.
func (l *Ledger) Sequence(ctx context.Context) (placed int, err error) {
	waiting, err := anyPending(ctx, l.cfg.DB)
	if err != nil || !waiting {
		return 0, err
	}
	var size int64
	err = l.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		placed, size = 0, 0 // this function may run again
		// The head's row lock orders the nodes; a snapshot would only hide what was just committed.
		if err := tx.ReadCommitted(ctx); err != nil {
			return err
		}
		h, busy, err := lockHead(ctx, tx)
		if err != nil || busy {
			return err
		}
		if placed, err = l.sequenceIn(ctx, tx, &h); err != nil {
			return err
		}
		size = h.size
		return nil
	})
	if err != nil {
		return 0, err
	}
	if placed > 0 {
		l.growth.set(size)
		l.publish(SubjectGrown)
	}
	return placed, nil
}

func anyPending(ctx context.Context, q sqldb.Reader) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, "SELECT COUNT(*) FROM (SELECT 1 FROM ledger_event WHERE sequence IS NULL LIMIT 1) AS p").Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for pending ledger events: %w", err)
	}
	return n > 0, nil
}

// sequenceIn places events after the locked head and replaces it.
func (l *Ledger) sequenceIn(ctx context.Context, tx *sqldb.Tx, h *head) (int, error) {
	events, err := readPending(ctx, tx, sequenceBatch)
	if err != nil || len(events) == 0 {
		return 0, err
	}
	edge, err := l.edgeOf(ctx, tx, *h)
	if err != nil {
		return 0, err
	}
	first, firstHash := h.size, tlog.StoredHashCount(h.size)
	for _, p := range events {
		leaf, err := encodeLeaf(p.event)
		if err != nil {
			return 0, err
		}
		if err := edge.append(h.size, leaf); err != nil {
			return 0, err
		}
		h.size++
	}
	if err := placeEvents(ctx, tx, events, first); err != nil {
		return 0, err
	}
	if err := insertHashes(ctx, tx, firstHash, edge.added); err != nil {
		return 0, err
	}
	root, err := tlog.TreeHash(h.size, edge)
	if err != nil {
		return 0, fmt.Errorf("hash the ledger's tree: %w", err)
	}
	if h.checkpoint, err = l.sign(h.size, root); err != nil {
		return 0, err
	}
	return len(events), writeHead(ctx, tx, *h, sqldb.Micros(l.cfg.Now()))
}

// edgeOf reads the right edge of the tree and refuses to build on one that its signed head does not
// cover: what was tampered with must not get a new signature.
func (l *Ledger) edgeOf(ctx context.Context, tx *sqldb.Tx, h head) (*edge, error) {
	e := &edge{nodes: map[int64]tlog.Hash{}, first: tlog.StoredHashCount(h.size), under: storedHashes(ctx, tx)}
	root, err := tlog.TreeHash(h.size, e)
	if err != nil {
		return nil, fmt.Errorf("read the ledger's tree: %w", err)
	}
	if h.size == 0 && h.checkpoint == "" {
		return e, nil
	}
	c, err := OpenCheckpoint([]byte(h.checkpoint), l.cfg.Key.Verifier())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeignHead, err)
	}
	if c.Size != h.size || c.Root != root {
		return nil, &TamperError{Findings: []string{"the stored tree hashes don't match the signed tree head"}}
	}
	return e, nil
}

// edge is a tlog.HashReader over the stored hashes and those about to be stored. All that a new leaf
// needs are the roots of the perfect subtrees left of it, which TreeHash reads once at the start.
type edge struct {
	under tlog.HashReader
	nodes map[int64]tlog.Hash // read from under
	first int64               // stored hash index of added[0]
	added []tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (e *edge) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var missing []int64
	for _, idx := range indexes {
		if _, known := e.nodes[idx]; idx < e.first && !known {
			missing = append(missing, idx)
		}
	}
	read, err := e.under.ReadHashes(missing)
	if err != nil {
		return nil, err
	}
	for i, idx := range missing {
		e.nodes[idx] = read[i]
	}
	out := make([]tlog.Hash, len(indexes))
	for i, idx := range indexes {
		if idx < e.first {
			out[i] = e.nodes[idx]
		} else {
			out[i] = e.added[idx-e.first]
		}
	}
	return out, nil
}

func (e *edge) append(index int64, leaf []byte) error {
	hashes, err := tlog.StoredHashes(index, leaf, e)
	if err != nil {
		return fmt.Errorf("hash ledger entry %d: %w", index, err)
	}
	e.added = append(e.added, hashes...)
	return nil
}

// sign makes the checkpoint for a tree.
func (l *Ledger) sign(size int64, root tlog.Hash) (string, error) {
	c := Checkpoint{Origin: l.cfg.Origin, Size: size, Root: root}
	signed, err := note.Sign(&note.Note{Text: c.text()}, l.cfg.Key)
	if err != nil {
		return "", fmt.Errorf("sign the ledger's tree head: %w", err)
	}
	return string(signed), nil
}

// adopt signs the head with this program's key when that key hasn't signed it. Unless the ledger is
// empty, the key was then lost or replaced, or somebody wrote to the database, and the ledger says so itself.
// A shared ledger is refused instead: another node signs it, and both would sign it anew for ever.
func (l *Ledger) adopt(ctx context.Context) error {
	return l.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if err := tx.ReadCommitted(ctx); err != nil {
			return err
		}
		h, busy, err := lockHead(ctx, tx)
		if err != nil || busy {
			return err
		}
		if h.checkpoint != "" || h.size > 0 {
			err := l.signed(h)
			if err == nil || l.cfg.Shared {
				return err
			}
			l.cfg.Log.WarnContext(ctx, "the ledger was not signed with this key and goes on with it",
				"verifier", l.cfg.Key.Verifier(), "size", h.size)
			err = l.Append(ctx, tx, Event{
				Tenant: device.DefaultTenant, Kind: "ledger.rekeyed", Actor: device.System("ledger"),
				Reason: "the tree head was not signed with this key",
				Data:   Facts(map[string]any{"verifier": l.cfg.Key.Verifier(), "size": h.size, "old_checkpoint": h.checkpoint}),
			})
			if err != nil {
				return err
			}
		}
		root, err := tlog.TreeHash(h.size, storedHashes(ctx, tx))
		if err != nil {
			return fmt.Errorf("read the ledger's tree: %w", err)
		}
		if h.checkpoint, err = l.sign(h.size, root); err != nil {
			return err
		}
		return writeHead(ctx, tx, h, sqldb.Micros(l.cfg.Now()))
	})
}
