package ledger_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestEveryEntryOfEveryTreeCanBeProvenOffline(t *testing.T) {
	each(t, func(h house) {
		for size := 1; size <= 20; size++ {
			h.fill(1)
			for _, e := range h.events(ledger.Filter{}) {
				p, err := h.l.Inclusion(t.Context(), e.ID)
				if err != nil {
					t.Fatal(err)
				}
				text, err := json.Marshal(p)
				if err != nil {
					t.Fatal(err)
				}
				if p, err = ledger.ParseProof(text); err != nil {
					t.Fatal(err)
				}
				got, c, err := ledger.VerifyProof(p, h.key.Verifier())
				if err != nil {
					t.Fatalf("entry %d of %d: %v", e.Sequence, size, err)
				}
				if c.Size != int64(size) || c.Origin != ledgertest.Origin {
					t.Errorf("checkpoint %+v", c)
				}
				if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", e); a != b {
					t.Errorf("proven %s\nread   %s", a, b)
				}
			}
		}
	})
}

func TestSpoiledProofIsRefused(t *testing.T) {
	each(t, func(h house) {
		h.fill(13)
		good, err := h.l.Inclusion(t.Context(), h.events(ledger.Filter{})[5].ID)
		if err != nil {
			t.Fatal(err)
		}
		other, err := ledger.GenerateKey(ledgertest.Origin)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ledger.VerifyProof(good, other.Verifier()); err == nil {
			t.Error("accepted under another ledger's key")
		}
		for name, spoil := range map[string]func(p *ledger.Proof){
			"leaf":            func(p *ledger.Proof) { p.Leaf = strings.Replace(p.Leaf, `"n":5`, `"n":6`, 1) },
			"index":           func(p *ledger.Proof) { p.Index++ },
			"negative index":  func(p *ledger.Proof) { p.Index = -1 },
			"index past end":  func(p *ledger.Proof) { p.Index = 13 },
			"hash":            func(p *ledger.Proof) { p.Hashes[1][0] ^= 1 },
			"hash missing":    func(p *ledger.Proof) { p.Hashes = p.Hashes[1:] },
			"hash too many":   func(p *ledger.Proof) { p.Hashes = append(p.Hashes, p.Hashes[0]) },
			"checkpoint size": func(p *ledger.Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n13\n", "\n14\n", 1) },
			"no checkpoint":   func(p *ledger.Proof) { p.Checkpoint = "" },
			"format":          func(p *ledger.Proof) { p.Format = "steward-ledger-proof/2" },
		} {
			p := good
			p.Hashes = append(p.Hashes[:0:0], p.Hashes...)
			spoil(&p)
			if _, _, err := ledger.VerifyProof(p, h.key.Verifier()); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	})
}

func TestProofOfWhatIsNotThereIsRefused(t *testing.T) {
	each(t, func(h house) {
		if _, err := h.l.Checkpoint(t.Context()); !errors.Is(err, fault.Unavailable) {
			t.Errorf("checkpoint of a ledger that never ran: %v", err)
		}
		if _, err := h.l.Verify(t.Context()); !errors.Is(err, fault.Unavailable) {
			t.Errorf("verify a ledger that never ran: %v", err)
		}
		if _, err := h.l.Inclusion(t.Context(), "evt-none"); !errors.Is(err, fault.NotFound) {
			t.Errorf("unknown event: %v", err)
		}
		e := event("test.pending", "")
		e.ID = "evt-pending"
		h.append(e)
		if _, err := h.l.Inclusion(t.Context(), e.ID); !errors.Is(err, fault.Unavailable) {
			t.Errorf("pending event: %v", err)
		}
	})
}

func TestTreesGrowConsistently(t *testing.T) {
	each(t, func(h house) {
		var checkpoints []ledger.Checkpoint
		for range 12 {
			h.fill(1)
			text, err := h.l.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c, err := ledger.OpenCheckpoint(text, h.key.Verifier())
			if err != nil {
				t.Fatal(err)
			}
			checkpoints = append(checkpoints, c)
		}
		for i, older := range checkpoints {
			for _, newer := range checkpoints[i:] {
				p, err := h.l.Consistency(t.Context(), older.Size, newer.Size)
				if err != nil {
					t.Fatal(err)
				}
				if err := ledger.VerifyConsistency(p, older, newer); err != nil {
					t.Errorf("%d to %d: %v", older.Size, newer.Size, err)
				}
				forged := older
				forged.Root[0] ^= 1
				if err := ledger.VerifyConsistency(p, forged, newer); err == nil {
					t.Errorf("%d to %d: another history accepted", older.Size, newer.Size)
				}
			}
		}
		for _, c := range [][2]int64{{0, 3}, {3, 2}, {1, 13}, {-1, 1}} {
			if _, err := h.l.Consistency(t.Context(), c[0], c[1]); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("%v: %v", c, err)
			}
		}
	})
}

// tamper changes the tables as somebody with the database's password would.
func (h house) tamper(statement string, args ...any) {
	h.Helper()
	err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error { _, err := tx.Exec(h.Context(), statement, args...); return err })
	if err != nil {
		h.Fatalf("%s: %v", statement, err)
	}
}

const columns = "id, sequence, at, tenant, kind, device, subject, actor_kind, actor_id, actor_name, reason, data"

func TestTamperedLedgerIsDetected(t *testing.T) {
	for name, c := range map[string]struct {
		statements []string
		finding    string
	}{
		"reason changed":     {[]string{"UPDATE ledger_event SET reason = 'harmless' WHERE sequence = 7"}, "entry 7 "},
		"time changed":       {[]string{"UPDATE ledger_event SET at = at + 1 WHERE sequence = 0"}, "entry 0 "},
		"facts changed":      {[]string{`UPDATE ledger_event SET data = '{"n":99}' WHERE sequence = 19`}, "entry 19 "},
		"facts broken":       {[]string{`UPDATE ledger_event SET data = '{' WHERE sequence = 4`}, "entry 4 "},
		"row removed":        {[]string{"DELETE FROM ledger_event WHERE sequence = 3"}, "entry 3 is missing"},
		"last row removed":   {[]string{"DELETE FROM ledger_event WHERE sequence = 19"}, "entry 19 is missing"},
		"rows swapped":       {[]string{"UPDATE ledger_event SET sequence = 100 WHERE sequence = 3", "UPDATE ledger_event SET sequence = 3 WHERE sequence = 4", "UPDATE ledger_event SET sequence = 4 WHERE sequence = 100"}, "entry 3 "},
		"row added":          {[]string{"INSERT INTO ledger_event (" + columns + ") SELECT 'evt-new', 20, at, tenant, kind, device, subject, actor_kind, actor_id, actor_name, reason, data FROM ledger_event WHERE sequence = 1"}, "outside of the signed tree"},
		"row hidden":         {[]string{"UPDATE ledger_event SET sequence = NULL WHERE sequence = 6"}, "entry 6 is missing"},
		"changed with leaf":  {[]string{"UPDATE ledger_event SET reason = 'x' WHERE sequence = 8", "UPDATE ledger_hash SET hash = $1 WHERE idx = 15"}, "entry 8 "},
		"tree hash changed":  {[]string{"UPDATE ledger_hash SET hash = $1 WHERE idx = 2"}, "stored tree hash 2"},
		"tree hash removed":  {[]string{"DELETE FROM ledger_hash WHERE idx = 2"}, "stored tree hash 2"},
		"tree cut":           {[]string{"DELETE FROM ledger_event WHERE sequence >= 10", "UPDATE ledger_head SET size = 10"}, "says 10 entries and signs 20"},
		"all wiped":          {[]string{"DELETE FROM ledger_hash", "UPDATE ledger_head SET size = 0, checkpoint = ''"}, "signature is wrong"},
		"head made up":       {[]string{"UPDATE ledger_head SET checkpoint = 'steward.test/ledger'"}, "signature is wrong"},
		"signature replaced": {[]string{"UPDATE ledger_head SET checkpoint = REPLACE(checkpoint, '20', '21')"}, "signature is wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(h house) {
				h.fill(20)
				if _, err := h.l.Verify(t.Context()); err != nil {
					t.Fatalf("before: %v", err)
				}
				for _, s := range c.statements {
					if strings.Contains(s, "$1") {
						h.tamper(s, make([]byte, 32))
					} else {
						h.tamper(s)
					}
				}
				_, err := h.l.Verify(t.Context())
				var tampered *ledger.TamperError
				if !errors.As(err, &tampered) || !strings.Contains(err.Error(), c.finding) {
					t.Errorf("want %q, got %v", c.finding, err)
				}
			})
		})
	}
}

func TestRewrittenHistoryIsCaughtByAKeptCheckpoint(t *testing.T) {
	each(t, func(h house) {
		h.fill(9)
		kept, err := h.l.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		h.fill(4)
		if _, err := h.l.Verify(t.Context(), kept); err != nil {
			t.Fatalf("before: %v", err)
		}
		// Who has the server has the key too, and can sign another history from the start.
		for _, s := range []string{
			"UPDATE ledger_event SET sequence = NULL", "UPDATE ledger_event SET reason = 'other' WHERE num = 2",
			"DELETE FROM ledger_hash", "UPDATE ledger_head SET size = 0, checkpoint = ''",
		} {
			h.tamper(s)
		}
		h.sequence()
		if _, err := h.l.Verify(t.Context()); err != nil {
			t.Fatalf("the new history contradicts itself: %v", err)
		}
		var tampered *ledger.TamperError
		if _, err := h.l.Verify(t.Context(), kept); !errors.As(err, &tampered) || !strings.Contains(err.Error(), "first 9 entries") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTamperedTreeGetsNoNewSignature(t *testing.T) {
	each(t, func(h house) {
		h.fill(5)
		h.tamper("UPDATE ledger_hash SET hash = $1 WHERE idx = 6", make([]byte, 32))
		h.append(event("test.next", ""))
		var tampered *ledger.TamperError
		if _, err := h.l.Sequence(t.Context()); !errors.As(err, &tampered) {
			t.Errorf("sequenced on a broken tree: %v", err)
		}
	})
}

// FuzzParseProof looks for a proof that the reader takes and the verifier then can't survive, or takes
// though nobody signed it.
func FuzzParseProof(f *testing.F) {
	key, err := ledger.GenerateKey(ledgertest.Origin)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"format":"steward-ledger-proof/1","leaf":"{}","index":0,"hashes":[],"checkpoint":"a\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— a AAAAAAAA\n"}`))
	f.Add([]byte(`{"format":"steward-ledger-proof/1","index":9223372036854775807,"hashes":["47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ledger.ParseProof(data)
		if err != nil {
			return
		}
		if _, _, err := ledger.VerifyProof(p, key.Verifier()); err == nil {
			t.Fatalf("a proof without a signature was accepted: %s", data)
		}
	})
}

func benchEach(b *testing.B, bench func(b *testing.B, db *sqldb.DB)) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		b.Run(engine, func(b *testing.B) { bench(b, sqldbtest.Open(b, engine, ledger.Migration())) })
	}
}

func BenchmarkVerify(b *testing.B) {
	benchEach(b, func(b *testing.B, db *sqldb.DB) {
		l := ledgertest.New(b, db)
		for range 50 {
			events := make([]ledger.Event, 400)
			for i := range events {
				events[i] = event("test.counted", "")
			}
			if err := db.Write(b.Context(), func(tx *sqldb.Tx) error { return l.Append(b.Context(), tx, events...) }); err != nil {
				b.Fatal(err)
			}
		}
		ledgertest.Events(b, l, ledger.Filter{})
		for b.Loop() {
			if _, err := l.Verify(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(20_000*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}
