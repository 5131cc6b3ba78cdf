package twin_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

// asked tells how many statements a report took.
func (h *house) asked(d device.Device, r wire.Report) (int, wire.ReportAnswer) {
	h.Helper()
	ctx, statements := counted(h.Context())
	a, err := h.s.Report(ctx, d, r)
	if err != nil {
		h.Fatal(err)
	}
	return statements(), a
}

// settled has a device report one known document, so that the Service remembers it.
func (h *house) settled(a *agent, num int64, docs map[wire.Section]string) {
	h.Helper()
	h.report(unit(num), a.next(true, docs))
	for _, body := range docs {
		h.upload(unit(num), body)
	}
	h.report(unit(num), a.next(true, docs))
}

func TestUnchangedReportsAskTheDatabaseOnceInAWhile(t *testing.T) {
	each(t, twin.Config{}, func(h *house) {
		a := &agent{boot: "b", instance: "i"}
		docs := map[wire.Section]string{"inventory": inventory, "packages": packages}
		h.settled(a, 1, docs)
		for name, r := range map[string]func() wire.Report{
			"full":      func() wire.Report { return a.next(true, docs) },
			"heartbeat": func() wire.Report { return a.next(false, nil) },
			"partial":   func() wire.Report { return a.next(false, map[wire.Section]string{"packages": packages}) },
		} {
			if n, got := h.asked(unit(1), r()); n != 0 || len(got.Missing) != 0 || got.IntervalSeconds != 60 || got.Time.IsZero() {
				h.Errorf("%s: %d statements, answer %+v", name, n, got)
			}
		}
		h.pass(29 * time.Second)
		if n, _ := h.asked(unit(1), a.next(false, nil)); n != 0 {
			h.Errorf("%d statements after 29 seconds", n)
		}
		h.pass(2 * time.Second) // answers from memory don't prolong it
		if n, _ := h.asked(unit(1), a.next(false, nil)); n == 0 {
			h.Error("the database was not asked after half a minute")
		}
		if n, _ := h.asked(unit(1), a.next(false, nil)); n != 0 {
			h.Errorf("%d statements after it was asked", n)
		}
		h.report(unit(1), a.next(false, map[wire.Section]string{"services": "{}"}))
		if n, got := h.asked(unit(1), a.next(false, nil)); n == 0 || len(got.Missing) != 0 {
			h.Errorf("%d statements while a document is asked for, answer %+v", n, got)
		}
		if got := h.report(unit(1), a.next(false, map[wire.Section]string{"services": "{}"})); len(got.Missing) != 1 {
			h.Errorf("the document is not asked for again: %+v", got)
		}
	})
}

func TestReportThatSaysWhatThisNodeRemembersIsTakenWhenAnotherNodeHasChangedIt(t *testing.T) {
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		two, bus := nodes(t, db, twin.Config{}, 2)
		bus.set(true)
		a := &agent{boot: "b", instance: "i"}
		old, other := map[wire.Section]string{"inventory": inventory}, map[wire.Section]string{"inventory": packages}
		two[0].settled(a, 1, other)
		two[0].settled(a, 1, old)
		two[1].report(unit(1), a.next(true, other))
		if got := two[0].reported(1, "inventory"); got != packages {
			t.Fatalf("the other node's report was not taken: %s", got)
		}
		two[0].report(unit(1), a.next(true, old))
		if got := two[0].reported(1, "inventory"); got != inventory {
			t.Errorf("reported %s", got)
		}
	})
}

func TestEpochThatAnotherNodeRaisesIsInTheNextAnswerAndWithoutItsMessageSoonAfter(t *testing.T) {
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		two, bus := nodes(t, db, twin.Config{}, 2)
		a := &agent{boot: "b", instance: "i"}
		two[0].settled(a, 1, map[wire.Section]string{"inventory": inventory})
		two[1].set(1, "update", "one")
		if n, got := two[0].asked(unit(1), a.next(false, nil)); got.Epoch != 1 || n == 0 {
			t.Errorf("epoch %d with %d statements", got.Epoch, n)
		}
		two[1].write(func(tx *sqldb.Tx) error {
			_, err := two[1].s.SetDesiredWhere(t.Context(), tx, "SELECT 1", nil, "update", "two")
			return err
		})
		if _, got := two[0].asked(unit(1), a.next(false, nil)); got.Epoch != 2 {
			t.Errorf("epoch %d after a change of the fleet", got.Epoch)
		}
		bus.set(true)
		two[1].set(1, "update", "three")
		two[0].pass(30 * time.Second)
		if _, got := two[0].asked(unit(1), a.next(false, nil)); got.Epoch != 3 {
			t.Errorf("epoch %d half a minute after a lost message", got.Epoch)
		}
	})
}

func TestDeviceThatEnrolledAnewOrMovedMeetsTheDatabase(t *testing.T) {
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		two, _ := nodes(t, db, twin.Config{}, 2)
		for node, h := range two {
			num := int64(node + 1)
			a := &agent{boot: "b", instance: "i"}
			h.settled(a, num, map[wire.Section]string{"inventory": inventory})
			if n, _ := h.asked(unit(num), a.next(false, nil)); n != 0 {
				t.Errorf("node %d: %d statements before", node, n)
			}
			two[0].write(func(tx *sqldb.Tx) error { return two[0].s.ForgetInstance(t.Context(), tx, num) })
			if n, _ := h.asked(unit(num), a.next(false, nil)); n == 0 {
				t.Errorf("node %d: answered for an instance that is forgotten", node)
			}
			quarantined := unit(num)
			quarantined.Stage = device.Quarantined
			if n, _ := h.asked(quarantined, a.next(false, nil)); n == 0 {
				t.Errorf("node %d: answered for a device in another stage", node)
			}
		}
	})
}

func TestCloneThatTalksToAnotherNodeIsToldWithinAMinute(t *testing.T) {
	var mu sync.Mutex
	told := 0
	cfg := twin.Config{Clone: func(context.Context, *sqldb.Tx, device.Device, string, string) error {
		mu.Lock()
		defer mu.Unlock()
		told++
		return nil
	}}
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		mu.Lock()
		told = 0
		mu.Unlock()
		two, bus := nodes(t, db, cfg, 2)
		bus.set(true)
		one, other := &agent{boot: "b1", instance: "i"}, &agent{boot: "b2", instance: "i"} // the same state directory
		docs := map[wire.Section]string{"inventory": inventory}
		two[0].settled(one, 1, docs)
		for range 4 { // both report every twenty seconds
			two[0].report(unit(1), one.next(false, nil))
			two[1].report(unit(1), other.next(false, nil))
			two[0].pass(20 * time.Second)
			two[1].pass(20 * time.Second)
		}
		mu.Lock()
		defer mu.Unlock()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	})
}

// TestWhatDevicesReportIsWhatTheDatabaseSaysHoweverTheyMove has devices change, restart and move between
// two nodes that lose messages, while the desired state changes under them. After each answer the database
// must say what the device has said.
func TestWhatDevicesReportIsWhatTheDatabaseSaysHoweverTheyMove(t *testing.T) {
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		two, bus := nodes(t, db, twin.Config{}, 2)
		bus.set(true)
		var devices, changes sync.WaitGroup
		stop := make(chan struct{})
		changes.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				h := two[i%2]
				if err := db.Write(t.Context(), func(tx *sqldb.Tx) error { return h.s.SetDesired(t.Context(), tx, int64(i%8+1), "update", i) }); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for num := int64(1); num <= 8; num++ {
			devices.Go(func() {
				if err := wander(t.Context(), two, num); err != nil {
					t.Errorf("device %d: %v", num, err)
				}
			})
		}
		devices.Wait()
		close(stop)
		changes.Wait()
	})
}

// wander is the life of a device that reports to either node.
func wander(ctx context.Context, two []*house, num int64) error {
	rnd := rand.New(rand.NewPCG(1, uint64(num)))
	docs := map[wire.Section]string{}
	a := &agent{boot: "b0", instance: "i"}
	for i := range 60 {
		h := two[rnd.IntN(10)/7] // it stays with one for some time
		full := rnd.IntN(3) == 0
		switch rnd.IntN(6) {
		case 0:
			docs[wire.Section(fmt.Sprintf("s%d", rnd.IntN(3)))] = fmt.Sprintf(`{"v":%d}`, rnd.IntN(3))
		case 1:
			if len(docs) > 1 {
				delete(docs, "s1")
				full = true
			}
		case 2:
			*a = agent{boot: fmt.Sprintf("b%d", i), instance: "i"}
			full = true
		}
		named := docs
		if !full && rnd.IntN(2) == 0 && i%5 != 0 {
			named = nil // the change, if there was one, comes with a later report
		}
		for range 3 {
			answer, err := h.s.Report(ctx, unit(num), a.next(full, named))
			if err != nil {
				return err
			}
			a.epoch = answer.Epoch
			for _, hash := range answer.Missing {
				for _, body := range docs {
					if wire.HashOf([]byte(body)) == hash {
						if err := h.s.Upload(ctx, unit(num), hash, []byte(body)); err != nil {
							return err
						}
					}
				}
			}
			if len(answer.Missing) == 0 {
				break
			}
		}
		if named == nil {
			continue
		}
		st, err := h.s.State(ctx, num)
		if err != nil {
			return err
		}
		for section, body := range docs {
			if st.Known[section].Hash != wire.HashOf([]byte(body)) {
				return fmt.Errorf("after report %d (full %v) section %s is %s, want that of %s", i, full, section, st.Known[section].Hash, body)
			}
		}
		if full && len(st.Known) != len(docs) {
			return fmt.Errorf("after full report %d there are %d sections, want %d", i, len(st.Known), len(docs))
		}
	}
	return nil
}

func TestDocumentsOfAFleetAreStoredOnce(t *testing.T) {
	const devices = 40
	each(t, twin.Config{}, func(h *house) {
		docs := map[wire.Section]string{"inventory": inventory, "packages": packages, "services": packages} // one body in two sections
		var wg sync.WaitGroup
		for num := int64(1); num <= devices; num++ {
			wg.Go(func() {
				a := &agent{boot: fmt.Sprint("b", num), instance: "i"}
				for range 3 {
					answer, err := h.s.Report(h.Context(), unit(num), a.next(true, docs))
					if err != nil {
						h.Error(err)
						return
					}
					for _, hash := range answer.Missing {
						for _, body := range []string{inventory, packages} {
							if wire.HashOf([]byte(body)) == hash {
								if err := h.s.Upload(h.Context(), unit(num), hash, []byte(body)); err != nil {
									h.Error(err)
								}
							}
						}
					}
				}
			})
		}
		wg.Wait()
		h.write(func(tx *sqldb.Tx) error {
			_, err := h.s.SetDesiredWhere(h.Context(), tx, fleetUpTo, []any{devices}, "update", "all")
			return err
		})
		for num := int64(1); num <= devices; num++ {
			for section, body := range docs {
				if got := h.reported(num, section); got != body {
					h.Fatalf("device %d has %q in %s", num, got, section)
				}
			}
		}
		var stored, reported int
		if err := h.db.QueryRowContext(h.Context(), "SELECT (SELECT COUNT(*) FROM twin_document), (SELECT COUNT(*) FROM twin_reported)").Scan(&stored, &reported); err != nil {
			h.Fatal(err)
		}
		if stored != 3 || reported != 3*devices {
			h.Errorf("%d documents are stored for %d reported sections, want 3", stored, reported)
		}
	})
}
