package ledger

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"steward/internal/fault"
	"steward/internal/sqldb"
)

// TamperError says where the ledger's rows and its signed tree disagree.
type TamperError struct {
	Findings []string // one sentence each; at most maxFindings, a last one tells when there are more
}

func (e *TamperError) Error() string {
	return "the ledger does not hold what was signed: " + strings.Join(e.Findings, "; ")
}

const maxFindings = 20

func (e *TamperError) add(format string, args ...any) {
	switch {
	case len(e.Findings) < maxFindings:
		e.Findings = append(e.Findings, fmt.Sprintf(format, args...))
	case len(e.Findings) == maxFindings:
		e.Findings = append(e.Findings, "and more")
	}
}

// Verify recomputes the whole tree from the events as readers see them and compares it with the stored
// hashes, with the signed head, and with every older checkpoint that the caller kept (in a disposal
// certificate, on paper): rows that were changed, removed, added or put in another order are a
// *TamperError that names them. It returns the checkpoint that everything was compared with. It may run
// beside writers.
func (l *Ledger) Verify(ctx context.Context, kept ...[]byte) (Checkpoint, error) {
	verifier, err := l.Verifier()
	if err != nil {
		return Checkpoint{}, err
	}
	h, err := readHead(ctx, l.cfg.DB)
	if err != nil {
		return Checkpoint{}, err
	}
	if h == (head{}) && len(kept) == 0 {
		if err := l.neverSequenced(ctx); err != nil {
			return Checkpoint{}, err
		}
	}
	v := &verification{db: l.cfg.DB, wanted: map[int64]tlog.Hash{}, problems: &TamperError{}}
	signed, err := OpenCheckpoint([]byte(h.checkpoint), verifier)
	if err != nil {
		v.problems.add("the tree head's signature is wrong (%v)", err)
	} else if signed.Size != h.size {
		v.problems.add("the tree head says %d entries and signs %d", h.size, signed.Size)
	}
	v.size = max(h.size, signed.Size)
	for _, old := range kept {
		c, err := OpenCheckpoint(old, verifier)
		if err != nil {
			return Checkpoint{}, fmt.Errorf("open a kept checkpoint: %w", err)
		}
		if c.Size > v.size {
			v.problems.add("a kept checkpoint has %d entries and the ledger only %d", c.Size, v.size)
			continue
		}
		v.wanted[c.Size] = c.Root
	}
	if err := v.run(ctx); err != nil {
		return Checkpoint{}, err
	}
	if root := v.tree.root(); signed.Size == v.tree.size && root != signed.Root {
		v.problems.add("the %d entries have the root %v and the signed one is %v", v.tree.size, root, signed.Root)
	}
	if len(v.problems.Findings) > 0 {
		return signed, v.problems
	}
	return signed, nil
}

// neverSequenced returns a refusal when the ledger has not begun: without a head and without a row that
// claims a place.
func (l *Ledger) neverSequenced(ctx context.Context) error {
	var n int64
	err := l.cfg.DB.QueryRowContext(ctx, "SELECT COUNT(*) FROM ledger_event WHERE sequence IS NOT NULL").Scan(&n)
	if err != nil {
		return fmt.Errorf("look into the ledger: %w", err)
	}
	if n > 0 {
		return nil
	}
	return fault.New(fault.Unavailable, "the ledger has no signed tree head yet: the server has never run")
}

// verification walks the events and the stored hashes side by side in the order of the tree.
type verification struct {
	db       *sqldb.DB
	size     int64
	tree     compactTree
	wanted   map[int64]tlog.Hash // roots by size, from kept checkpoints
	problems *TamperError
}

const verifyBatch = 1000

func (v *verification) run(ctx context.Context) error {
	v.compareRoot()
	for next := int64(0); next < v.size; {
		n := min(verifyBatch, v.size-next)
		events, err := readEvents(ctx, v.db, "SELECT "+eventColumns+
			" FROM ledger_event WHERE sequence >= $1 AND sequence < $2 ORDER BY sequence", next, next+n)
		if err != nil {
			return err
		}
		if err := v.batch(ctx, events, next, n); err != nil {
			return err
		}
		next += n
	}
	return v.beyond(ctx)
}

// batch checks the n entries from first on. A missing one is replaced by its stored hash, so that one
// gap does not make every later entry look wrong.
func (v *verification) batch(ctx context.Context, events []Event, first, n int64) error {
	stored, err := v.hashes(ctx, tlog.StoredHashCount(first), tlog.StoredHashCount(first+n))
	if err != nil {
		return err
	}
	for index := first; index < first+n; index++ {
		at := tlog.StoredHashIndex(0, index)
		var hash tlog.Hash
		if len(events) > 0 && events[0].Sequence == index {
			if hash, err = leafHash(events[0]); err != nil {
				v.problems.add("entry %d (%s) can't be read: %v", index, events[0].ID, err)
			} else if stored[at] != hash {
				v.problems.add("entry %d (%s) is not what was hashed", index, events[0].ID)
			}
			events = events[1:]
		} else {
			v.problems.add("entry %d is missing", index)
			hash = stored[at]
		}
		for level, node := range v.tree.append(hash) {
			at := tlog.StoredHashIndex(level, index>>level)
			if level > 0 && stored[at] != node && len(v.problems.Findings) == 0 {
				v.problems.add("the stored tree hash %d is wrong", at)
			}
		}
		v.compareRoot()
	}
	return nil
}

func leafHash(e Event) (tlog.Hash, error) {
	leaf, err := encodeLeaf(e)
	if err != nil {
		return tlog.Hash{}, err
	}
	return tlog.RecordHash(leaf), nil
}

func (v *verification) compareRoot() {
	if want, ok := v.wanted[v.tree.size]; ok && v.tree.root() != want {
		v.problems.add("the first %d entries are not those that a kept checkpoint signed", v.tree.size)
	}
}

// hashes reads the stored hashes of a range; those of a wrong length or absent are left out, and then
// differ from what is computed.
func (v *verification) hashes(ctx context.Context, from, to int64) (map[int64]tlog.Hash, error) {
	rows, err := v.db.QueryContext(ctx, "SELECT idx, hash FROM ledger_hash WHERE idx >= $1 AND idx < $2", from, to)
	if err != nil {
		return nil, fmt.Errorf("read ledger hashes: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := make(map[int64]tlog.Hash, to-from)
	for rows.Next() {
		var idx int64
		var hash []byte
		if err := rows.Scan(&idx, &hash); err != nil {
			return nil, fmt.Errorf("read ledger hashes: %w", err)
		}
		if len(hash) == tlog.HashSize {
			out[idx] = tlog.Hash(hash)
		}
	}
	return out, rows.Err()
}

// beyond looks for rows past the end of the tree. The head is read in the same statement, since the
// sequencer may have gone on meanwhile.
func (v *verification) beyond(ctx context.Context) error {
	var events, hashes int64
	err := v.db.QueryRowContext(ctx, `SELECT
		(SELECT COUNT(*) FROM ledger_event WHERE sequence >= h.size OR sequence < 0),
		(SELECT COUNT(*) FROM ledger_hash WHERE idx < 0)
		FROM ledger_head h WHERE h.one = 1`).Scan(&events, &hashes)
	if err != nil {
		return fmt.Errorf("look past the ledger's end: %w", err)
	}
	if events > 0 {
		v.problems.add("%d rows claim a place outside of the signed tree", events)
	}
	if hashes > 0 {
		v.problems.add("%d tree hashes have no place in the tree", hashes)
	}
	return nil
}

// compactTree is the roots of the perfect subtrees of a growing tree, the largest first: enough to
// compute its root without anything stored.
type compactTree struct {
	size  int64
	roots []tlog.Hash
}

// append adds a leaf hash and returns the nodes that it completes by level, the leaf itself first.
func (t *compactTree) append(leaf tlog.Hash) []tlog.Hash {
	nodes := []tlog.Hash{leaf}
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.roots) - 1
		leaf = tlog.NodeHash(t.roots[last], leaf)
		t.roots = t.roots[:last]
		nodes = append(nodes, leaf)
	}
	t.roots = append(t.roots, leaf)
	t.size++
	return nodes
}

func (t *compactTree) root() tlog.Hash {
	if len(t.roots) == 0 {
		empty, _ := tlog.TreeHash(0, nil) // of size 0 it reads nothing
		return empty
	}
	root := t.roots[len(t.roots)-1]
	for i := len(t.roots) - 2; i >= 0; i-- {
		root = tlog.NodeHash(t.roots[i], root)
	}
	return root
}
