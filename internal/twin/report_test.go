package twin_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger/ledgertest"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

const (
	inventory = `{"hostname":"a"}`
	packages  = `{"packages":[]}`
)

func TestUnknownDocumentIsAskedForOncePerFleet(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		one, two := &agent{boot: "b1", instance: "i1"}, &agent{boot: "b2", instance: "i2"}
		docs := map[wire.Section]string{"inventory": inventory, "packages": packages}
		if a := h.report(unit(1), one.next(true, docs)); len(a.Missing) != 2 {
			t.Fatalf("missing %v", a.Missing)
		}
		if h.reported(1, "inventory") != "" {
			t.Error("a section counts before its body is known")
		}
		h.upload(unit(1), inventory)
		if a := h.report(unit(1), one.next(true, docs)); len(a.Missing) != 1 || a.Missing[0] != wire.HashOf([]byte(packages)) {
			t.Fatalf("missing after one upload: %v", a.Missing)
		}
		h.upload(unit(1), packages)
		h.upload(unit(1), packages) // the answer was lost
		if a := h.report(unit(1), one.next(true, docs)); len(a.Missing) != 0 {
			t.Errorf("missing after both uploads: %v", a.Missing)
		}
		if a := h.report(unit(2), two.next(true, docs)); len(a.Missing) != 0 {
			t.Errorf("asked the second device for %v", a.Missing)
		}
		if h.reported(2, "packages") != packages {
			t.Error("the second device's section does not count")
		}
	})
}

func TestSectionCountsWhenAnotherDeviceHasUploadedItsBody(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		one, two := &agent{boot: "b1", instance: "i1"}, &agent{boot: "b2", instance: "i2"}
		docs := map[wire.Section]string{"inventory": inventory}
		h.report(unit(1), one.next(true, docs))
		h.report(unit(2), two.next(true, docs))
		h.upload(unit(2), inventory)
		if a := h.report(unit(1), one.next(false, docs)); len(a.Missing) != 0 || h.reported(1, "inventory") != inventory {
			t.Errorf("missing %v, reported %q", a.Missing, h.reported(1, "inventory"))
		}
	})
}

func TestUploadsThatNobodyAskedForOrThatAreWrongAreRefused(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		h.report(unit(1), (&agent{boot: "b", instance: "i"}).next(true, map[wire.Section]string{"inventory": inventory, "x": "no json"}))
		hash := wire.HashOf([]byte(inventory))
		big := strings.Repeat(" ", wire.MaxDocumentBytes) + "1"
		for _, tt := range []struct {
			name string
			num  int64
			hash wire.Hash
			body string
			want error
		}{
			{"other device", 2, hash, inventory, fault.Conflict},
			{"not asked for", 1, wire.HashOf([]byte("{}")), "{}", fault.Conflict},
			{"other bytes", 1, hash, "{}", fault.Unprocessable},
			{"no JSON", 1, wire.HashOf([]byte("no json")), "no json", fault.Unprocessable},
			{"too large", 1, wire.HashOf([]byte(big)), big, fault.TooLarge},
		} {
			if err := h.s.Upload(t.Context(), unit(tt.num), tt.hash, []byte(tt.body)); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		if h.reported(1, "inventory") != "" {
			t.Error("a refused upload was stored")
		}
		h.upload(unit(1), inventory)
	})
}

func TestFullReportForgetsWhatItDoesNotName(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		a := &agent{boot: "b", instance: "i"}
		h.report(unit(1), a.next(true, map[wire.Section]string{"inventory": inventory, "packages": packages, "services": "{}"}))
		h.upload(unit(1), inventory)
		h.upload(unit(1), packages)
		h.report(unit(1), a.next(false, map[wire.Section]string{"inventory": inventory}))
		if h.reported(1, "packages") != packages {
			t.Error("a partial report forgot a section")
		}
		h.report(unit(1), a.next(true, map[wire.Section]string{"packages": packages}))
		if h.reported(1, "inventory") != "" || h.reported(1, "packages") != packages {
			t.Error("the full report did not replace the sections")
		}
		wantFault(t, h.s.Upload(t.Context(), unit(1), wire.HashOf([]byte("{}")), []byte("{}")), fault.Conflict)
	})
}

func TestReplayedReportIsAnsweredAndChangesNothing(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		a := &agent{boot: "b", instance: "i"}
		old := a.next(true, map[wire.Section]string{"inventory": inventory})
		h.report(unit(1), old)
		h.upload(unit(1), inventory)
		h.report(unit(1), a.next(true, map[wire.Section]string{"packages": packages}))
		h.upload(unit(1), packages)
		if got := h.report(unit(1), old); len(got.Missing) != 0 || got.Time.IsZero() {
			t.Errorf("answer %+v", got)
		}
		if h.reported(1, "inventory") != "" || h.reported(1, "packages") != packages {
			t.Error("the replay was taken")
		}
	})
}

func TestRepeatedReportAfterALostAnswerGetsTheSameAnswer(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		r := (&agent{boot: "b", instance: "i"}).next(true, map[wire.Section]string{"inventory": inventory})
		first, again := h.report(unit(1), r), h.report(unit(1), r)
		if fmt.Sprint(first) != fmt.Sprint(again) || len(again.Missing) != 1 {
			t.Errorf("first %+v, again %+v", first, again)
		}
	})
}

func TestWrongReportsAreRefusedFieldByField(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...), twin.Config{})
	good := (&agent{boot: "b", instance: "i"}).next(true, map[wire.Section]string{"inventory": inventory})
	many := map[wire.Section]wire.Hash{}
	for i := range twin.MaxSections + 1 {
		many[wire.Section(fmt.Sprintf("s%d", i))] = wire.HashOf(nil)
	}
	for field, spoil := range map[string]func(r *wire.Report){
		"protocol":           func(r *wire.Report) { r.Protocol = 0 },
		"protocol ":          func(r *wire.Report) { r.Protocol = wire.Protocol + 1 },
		"boot":               func(r *wire.Report) { r.Boot = "" },
		"instance":           func(r *wire.Report) { r.Instance = strings.Repeat("i", 65) },
		"sequence":           func(r *wire.Report) { r.Sequence = -1 },
		"epoch":              func(r *wire.Report) { r.Epoch = -1 },
		"sections":           func(r *wire.Report) { r.Sections = many },
		"sections ":          func(r *wire.Report) { r.Sections["Bad Name"] = wire.HashOf(nil) },
		"sections.inventory": func(r *wire.Report) { r.Sections["inventory"] = "abc" },
	} {
		r := good
		r.Sections = maps.Clone(good.Sections)
		spoil(&r)
		_, err := h.s.Report(t.Context(), unit(1), r)
		var wrong *fault.Invalid
		if !errors.As(err, &wrong) || wrong.Fields[0].Location != strings.TrimSpace(field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestSectionsOfPartialReportsTogetherAreBounded(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		a := &agent{boot: "b", instance: "i"}
		var err error
		for i := range twin.MaxSections + 1 {
			_, err = h.s.Report(t.Context(), unit(1), a.next(false, map[wire.Section]string{wire.Section(fmt.Sprintf("s%d", i)): "1"}))
			if i < twin.MaxSections && err != nil {
				t.Fatalf("section %d: %v", i, err)
			}
		}
		wantFault(t, err, fault.Unprocessable, "at most 32")
	})
}

func TestReactionRunsOncePerChangeInTheReportsTransaction(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	cfg := twin.Config{Reactions: map[wire.Section]twin.Reaction{
		"inventory": func(_ context.Context, _ *sqldb.Tx, d device.Device, body []byte) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprintf("%d %s", d.Num, body))
			return nil
		}}}
	each(t, cfg, func(h *house) {
		seen = nil
		a, b := &agent{boot: "b", instance: "i"}, &agent{boot: "b", instance: "i"}
		docs := map[wire.Section]string{"inventory": inventory}
		h.report(unit(1), a.next(true, docs))
		h.upload(unit(1), inventory)
		h.upload(unit(1), inventory)
		h.report(unit(1), a.next(true, docs))
		h.report(unit(2), b.next(true, docs)) // body known: at once
		if got := strings.Join(seen, ", "); got != "1 "+inventory+", 2 "+inventory {
			t.Errorf("reactions: %s", got)
		}
	})
}

func TestDocumentThatARoomCantUseIsKeptWithItsProblem(t *testing.T) {
	cfg := twin.Config{Reactions: map[wire.Section]twin.Reaction{
		"inventory": func(ctx context.Context, tx *sqldb.Tx, d device.Device, _ []byte) error {
			// Written before the refusal, and wrong on PostgreSQL, where it ends the transaction up to the savepoint.
			_, _ = tx.Exec(ctx, "INSERT INTO twin_pending (num, section, hash, at) VALUES ($1, 'spoiled', '', 0)", d.Num)
			_, _ = tx.Exec(ctx, "INSERT INTO no_such_table VALUES (1)")
			return fault.Bad("hostname", "is missing")
		}}}
	each(t, cfg, func(h *house) {
		a := &agent{boot: "b", instance: "i"}
		docs := map[wire.Section]string{"inventory": inventory, "packages": packages}
		h.report(unit(1), a.next(true, docs))
		h.upload(unit(1), inventory)
		h.upload(unit(1), packages)
		st, err := h.s.State(t.Context(), 1)
		if err != nil || st.Known["inventory"].Problem != "hostname: is missing" || st.Known["packages"].Problem != "" {
			t.Fatalf("state %+v, %v", st, err)
		}
		var n int
		if err := h.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM twin_pending").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows of the refused reaction are left, %v", n, err)
		}
	})
}

func TestFailingReactionUndoesTheReportSoThatItCanBeRepeated(t *testing.T) {
	broken := errors.New("broken")
	var fail error
	cfg := twin.Config{Reactions: map[wire.Section]twin.Reaction{
		"inventory": func(context.Context, *sqldb.Tx, device.Device, []byte) error { return fail }}}
	each(t, cfg, func(h *house) {
		a := &agent{boot: "b", instance: "i"}
		docs := map[wire.Section]string{"inventory": inventory}
		h.report(unit(1), a.next(true, docs))
		fail = broken
		if err := h.s.Upload(t.Context(), unit(1), wire.HashOf([]byte(inventory)), []byte(inventory)); !errors.Is(err, broken) {
			t.Fatalf("upload: %v", err)
		}
		if got := h.report(unit(1), a.next(true, docs)); len(got.Missing) != 1 {
			t.Errorf("missing %v after the failed upload", got.Missing)
		}
		fail = nil
		h.upload(unit(1), inventory)
		if h.reported(1, "inventory") != inventory {
			t.Error("the repeated upload was not taken")
		}
	})
}

// contacts counts what Contact and ContactUnchanged are told.
type contacts struct {
	mu                 sync.Mutex
	changed, unchanged int
}

func (c *contacts) config() twin.Config {
	return twin.Config{
		Contact: func(context.Context, *sqldb.Tx, device.Device, wire.Report) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.changed++
			return nil
		},
		ContactUnchanged: func(device.Device, wire.Report) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.unchanged++
		},
	}
}

func (c *contacts) take() (changed, unchanged int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, unchanged = c.changed, c.unchanged
	c.changed, c.unchanged = 0, 0
	return changed, unchanged
}

func TestUnchangedReportOpensNoTransaction(t *testing.T) {
	var c contacts
	each(t, c.config(), func(h *house) {
		c.take()
		a := &agent{boot: "b", instance: "i"}
		docs := map[wire.Section]string{"inventory": inventory}
		h.report(unit(1), a.next(true, docs))
		h.upload(unit(1), inventory)
		check := func(what string, wantChanged, wantUnchanged int) {
			t.Helper()
			if ch, un := c.take(); ch != wantChanged || un != wantUnchanged {
				t.Errorf("%s: %d changed, %d unchanged; want %d, %d", what, ch, un, wantChanged, wantUnchanged)
			}
		}
		check("first report", 1, 0)
		// The writer is held: a report that needed it would wait for ever.
		h.write(func(*sqldb.Tx) error {
			h.report(unit(1), a.next(true, docs))
			h.report(unit(1), a.next(false, nil))
			return nil
		})
		check("unchanged reports", 0, 2)
		h.report(unit(1), a.next(true, nil))
		check("full report without the section", 1, 0)
		a.epoch = 0
		h.set(1, "update", "x")
		a.epoch = 1
		h.report(unit(1), a.next(false, nil))
		check("accepted epoch, which concerns no room", 0, 1)
		if st, err := h.s.State(t.Context(), 1); err != nil || st.Accepted != 1 || !st.AcceptedAt.Equal(start) {
			t.Errorf("state %+v, %v", st, err)
		}
		h.write(func(tx *sqldb.Tx) error { return h.s.ForgetInstance(t.Context(), tx, 1) })
		h.report(unit(1), a.next(false, nil))
		check("after enrolling anew", 1, 0)
		enrolled := unit(1)
		enrolled.Stage = device.Enrolled
		a.epoch = 0
		h.report(enrolled, a.next(false, nil))
		check("change of a device that is not in service yet", 1, 0)
		h.report(unit(1), a.next(false, map[wire.Section]string{"services": "{}"}))
		check("new section", 0, 1)
	})
}

func TestFailingContactIsTheReportsError(t *testing.T) {
	broken := errors.New("broken")
	cfg := twin.Config{Contact: func(context.Context, *sqldb.Tx, device.Device, wire.Report) error { return broken }}
	h := newHouse(t, sqldbtest.SQLite(t, tables...), cfg)
	_, err := h.s.Report(t.Context(), unit(1), (&agent{boot: "b", instance: "i"}).next(true, nil))
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

// clones collects what Clone is told.
type clones struct{ told []string }

func (c *clones) config() twin.Config {
	return twin.Config{Clone: func(_ context.Context, _ *sqldb.Tx, _ device.Device, old, new string) error {
		c.told = append(c.told, old+" "+new)
		return nil
	}}
}

func TestTwoAgentsWithOneIdentityAreFlaggedAsAClone(t *testing.T) {
	for name, agents := range map[string][2]agent{
		"only the key was copied":              {{boot: "b1", instance: "i1"}, {boot: "b2", instance: "i2"}},
		"the whole state directory was copied": {{boot: "b1", instance: "i1"}, {boot: "b2", instance: "i1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var c clones
			each(t, c.config(), func(h *house) {
				c.told = nil
				one, two := agents[0], agents[1]
				h.report(unit(1), one.next(true, nil))
				h.report(unit(1), one.next(true, nil))
				h.report(unit(1), two.next(true, nil))
				for i := 0; i < 2 && len(c.told) == 0; i++ { // within two contacts of each
					h.report(unit(1), one.next(true, nil))
					h.report(unit(1), two.next(true, nil))
				}
				if len(c.told) != 1 {
					t.Fatalf("told %v", c.told)
				}
				h.report(unit(1), one.next(true, nil))
				if len(c.told) != 1 {
					t.Error("told again at once")
				}
				h.pass(2 * time.Hour)
				h.report(unit(1), one.next(true, nil))
				if len(c.told) != 2 {
					t.Error("a clone that goes on is not told again")
				}
				if st, err := h.s.State(t.Context(), 1); err != nil || st.Cloned.IsZero() {
					t.Errorf("state %+v, %v", st, err)
				}
			})
		})
	}
}

func TestOrdinaryLivesAreNoClones(t *testing.T) {
	for name, live := range map[string]func(h *house){
		"many starts": func(h *house) {
			for i := range 20 {
				a := agent{boot: fmt.Sprint("b", i), instance: "i"}
				h.report(unit(1), a.next(true, nil))
				h.report(unit(1), a.next(true, nil))
			}
		},
		"enrolled anew": func(h *house) {
			for i := range 5 {
				a := agent{boot: fmt.Sprint("b", i), instance: fmt.Sprint("i", i)}
				h.report(unit(1), a.next(true, nil))
				h.write(func(tx *sqldb.Tx) error { return h.s.ForgetInstance(h.Context(), tx, 1) })
			}
		},
		"a report overtaken by a start": func(h *house) {
			for i := range 5 {
				old, now := agent{boot: fmt.Sprint("b", i), instance: "i"}, agent{boot: fmt.Sprint("c", i), instance: "i"}
				h.report(unit(1), old.next(true, nil))
				late := old.next(true, nil)
				h.report(unit(1), now.next(true, nil))
				h.report(unit(1), late)
				h.report(unit(1), now.next(true, nil))
			}
		},
		"one change of instance": func(h *house) {
			a, b := agent{boot: "b1", instance: "i1"}, agent{boot: "b2", instance: "i2"}
			h.report(unit(1), a.next(true, nil))
			for range 5 {
				h.report(unit(1), b.next(true, nil))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c clones
			each(t, c.config(), func(h *house) {
				c.told = nil
				live(h)
				if len(c.told) != 0 {
					t.Errorf("flagged as a clone: %v", c.told)
				}
			})
		})
	}
}

func TestDeviceThatHasSeenALaterEpochThanTheDatabaseGetsAHigherOne(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		h.set(1, "update", "x")
		a := &agent{boot: "b", instance: "i", epoch: 50}
		if got := h.report(unit(1), a.next(true, nil)); got.Epoch != 51 || h.epoch(1) != 51 {
			t.Errorf("answer %d, epoch %d; want 51", got.Epoch, h.epoch(1))
		}
		a.epoch = 1 << 60 // nonsense must not use up the numbers
		if got := h.report(unit(1), a.next(true, nil)); got.Epoch != 51 {
			t.Errorf("epoch %d", got.Epoch)
		}
	})
}

func TestConcurrentReportsOfOneAndOfManyDevicesAllHold(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		docs := map[wire.Section]string{"inventory": inventory, "packages": packages}
		var wg sync.WaitGroup
		for num := int64(1); num <= 6; num++ {
			for i := range 3 {
				wg.Go(func() {
					a := &agent{boot: "b", instance: "i", sequence: int64(i)}
					answer, err := h.s.Report(context.Background(), unit(num), a.next(true, docs))
					if err != nil {
						t.Error(err)
					}
					for _, hash := range answer.Missing {
						for _, body := range docs {
							if wire.HashOf([]byte(body)) == hash {
								if err := h.s.Upload(context.Background(), unit(num), hash, []byte(body)); err != nil {
									t.Error(err)
								}
							}
						}
					}
				})
			}
		}
		wg.Wait()
		for num := int64(1); num <= 6; num++ {
			a := &agent{boot: "b", instance: "i", sequence: 10}
			h.report(unit(num), a.next(true, docs))
			if h.reported(num, "inventory") != inventory || h.reported(num, "packages") != packages {
				t.Errorf("device %d has not all of its sections", num)
			}
		}
	})
}

func TestChangedInventoryIsInTheDevicesLedger(t *testing.T) {
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		l := ledgertest.New(t, db)
		h := newHouse(t, db, twin.Config{Ledger: l})
		a := &agent{boot: "b", instance: "i"}
		h.report(unit(1), a.next(true, map[wire.Section]string{"inventory": inventory, "services": "{}"}))
		h.upload(unit(1), inventory)
		h.upload(unit(1), "{}")
		if got := strings.Join(kinds(t, l), ", "); got != "twin.reported inventory" {
			t.Errorf("ledger has %s", got)
		}
	})
}
