package monitoring

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/wire"
)

// nodes are those that the rooms of a test believe to run.
type nodes struct {
	mu   sync.Mutex
	live []string
}

func (n *nodes) alive(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.live, id)
}

func (n *nodes) die(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live = slices.DeleteFunc(n.live, func(have string) bool { return have == id })
}

// nodes opens the room as two nodes that know each other by the same list.
func (h *house) nodes(list *nodes) (a, b *Service) {
	h.Helper()
	a, b = h.openAs(h.TempDir(), "a", list.alive), h.openAs(h.TempDir(), "b", list.alive)
	for _, room := range []*Service{a, b} {
		h.Cleanup(func() {
			if err := room.Close(); err != nil {
				h.Error(err)
			}
		})
	}
	return a, b
}

func (h *house) flushed(rooms ...*Service) {
	h.Helper()
	for _, room := range rooms {
		if err := room.flush(h.Context()); err != nil {
			h.Fatal(err)
		}
	}
}

// linked says how a node sees a device's connections: "a:mqtt/5x2", or why the last one ended.
func (h *house) linked(room *Service, d device.Device) string {
	h.Helper()
	links, err := room.LinksOf(h.Context(), d.Num)
	if err != nil {
		h.Fatal(err)
	}
	out := ""
	for _, c := range links.Connections {
		out += fmt.Sprintf("%s:%sx%d ", c.Node, c.Via, c.Count)
	}
	if links.Ended != nil {
		out += "ended: " + links.Ended.Why
	}
	return out
}

func TestConnectionsAreKnownOnEveryNode(t *testing.T) {
	each(t, func(h *house) {
		a, b := h.nodes(&nodes{live: []string{"a", "b"}})
		d := h.device(nil)
		look := func(want string, rooms ...*Service) {
			t.Helper()
			for _, room := range rooms {
				if got := h.linked(room, d); got != want {
					t.Errorf("%s sees %q, want %q", room.cfg.Node(), got, want)
				}
			}
		}
		look("", a, b)
		a.Connected(d, "mqtt/5", "192.0.2.1:5000")
		look("a:mqtt/5x1 ", a) // before it is written
		h.flushed(a)
		look("a:mqtt/5x1 ", a, b)
		a.Connected(d, "mqtt/3.1.1+ws", "192.0.2.1:5001")
		h.clock.pass(time.Second)
		b.Connected(d, "mqtt/5", "192.0.2.1:5002")
		h.flushed(a, b)
		look("a:mqtt/3.1.1+wsx2 b:mqtt/5x1 ", a, b)
		counts, err := a.ConnectedCount(t.Context(), "default")
		if err != nil || counts["a"] != 1 || counts["b"] != 1 {
			t.Errorf("%v, %v", counts, err)
		}
		a.Disconnected(d, "closed")
		a.Disconnected(d, "keep-alive timed out")
		h.flushed(a)
		look("b:mqtt/5x1 ", a, b)
		b.Disconnected(d, "taken over")
		look("ended: taken over", b)
		h.flushed(b)
		look("ended: taken over", a, b)
		if got := h.state(d); got != Online { // an end says nothing about presence
			t.Errorf("%s", got)
		}
		h.clock.pass(time.Second)
		b.Connected(d, "mqtt/5", "192.0.2.1:5003")
		b.Disconnected(d, "gone again") // within one second: written as one row
		h.flushed(b)
		look("ended: gone again", a, b)
	})
}

func TestConnectionsOfADeadNodeEndAndTheirDevicesAreExcused(t *testing.T) {
	each(t, func(h *house) {
		list := &nodes{live: []string{"a", "b"}}
		a, b := h.nodes(list)
		lost, polling := h.device(nil), h.device(nil)
		b.Connected(lost, "mqtt/5", "192.0.2.1:5000")
		b.Seen(polling, wire.Report{})
		h.flushed(b)
		step := func(d time.Duration) {
			t.Helper()
			for end := h.clock.now().Add(d); h.clock.now().Before(end); h.clock.pass(5 * time.Second) {
				if err := a.endDead(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := a.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		step(100 * time.Second)
		list.die("b")
		if got := h.linked(a, lost); got != "ended: "+whyNodeGone {
			t.Errorf("at once: %q", got)
		}
		step(120 * time.Second) // 220 s since the contacts, 105 s since b was found dead
		if lostIs, pollingIs := h.state(lost), h.state(polling); lostIs != Online || pollingIs != Late {
			t.Errorf("its device is %s, another %s", lostIs, pollingIs)
		}
		if got := h.linked(a, lost); got != "ended: "+whyNodeGone {
			t.Errorf("later: %q", got)
		}
		step(230 * time.Second) // more than five intervals since b was found dead
		if got := h.state(lost); got != Offline {
			t.Errorf("silent ever since: %s", got)
		}
		var open int
		if err := h.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM monitoring_link WHERE n > 0").Scan(&open); err != nil || open != 0 {
			t.Errorf("%d rows are open, %v", open, err)
		}
	})
}

func TestNodeThatWasTakenForDeadWritesItsConnectionsAgain(t *testing.T) {
	each(t, func(h *house) {
		list := &nodes{live: []string{"a"}} // b is there, and a doesn't know it
		a, b := h.nodes(list)
		d := h.device(nil)
		b.Connected(d, "mqtt/5", "192.0.2.1:5000")
		h.flushed(b)
		for range 5 {
			if err := a.endDead(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.clock.pass(5 * time.Second)
		}
		if got := h.linked(b, d); got != "ended: "+whyNodeGone {
			t.Fatalf("%q", got)
		}
		if err := b.checkOwn(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.flushed(b)
		list.live = append(list.live, "b")
		if got := h.linked(a, d); got != "b:mqtt/5x1 " {
			t.Errorf("%q", got)
		}
	})
}

func TestShortRestartOfTheOnlyNodeMakesNobodyLate(t *testing.T) {
	each(t, func(h *house) {
		devices := []device.Device{h.device(nil), h.device(nil)}
		first := h.openAs(t.TempDir(), "start-1", nil)
		for _, d := range devices {
			first.Seen(d, wire.Report{})
		}
		sweep := func(room *Service) {
			t.Helper()
			if err := room.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		sweep(first)
		for range 28 { // 140 s of silence: nearly late
			h.clock.pass(5 * time.Second)
			sweep(first)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		h.clock.pass(20 * time.Second)
		second := h.openAs(t.TempDir(), "start-2", nil)
		defer second.Close()
		sweep(second)
		for range 29 { // 165 s since the contact and 145 since the start
			h.clock.pass(5 * time.Second)
			sweep(second)
		}
		h.expect(map[State]int64{Online: 2})
		for range 10 {
			h.clock.pass(5 * time.Second)
			sweep(second)
		}
		h.expect(map[State]int64{Late: 2})
	})
}

// seenFleet makes n devices that were in contact at the same time.
func (h *house) seenFleet(n int) {
	h.Helper()
	batch := map[int64]contact{}
	for i := range n {
		batch[int64(i+1)] = contact{"default", device.ID(fmt.Sprintf("dev-%016d", i)), h.clock.now()}
	}
	h.write(func(tx *sqldb.Tx) error { return h.room.writeContacts(h.Context(), tx, batch) })
}

func TestFleetThatFallsSilentIsJudgedInBoundedSteps(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	const step = sweepBatches * rowsPerStatement
	h.seenFleet(step + 700)
	for range 4 { // somebody watches all the time
		h.sweep()
		h.clock.pass(40 * time.Second)
	}
	for _, late := range []int64{step, step + 700} {
		before := h.db.Stats().Writes
		h.sweep()
		if n := h.db.Stats().Writes - before; n > sweepBatches+2 {
			t.Errorf("one sweep took %d transactions", n)
		}
		if counts, err := h.room.Counts(t.Context(), whole); err != nil || counts[Late] != late {
			t.Errorf("%v, %v; want %d late", counts, err, late)
		}
	}
}

func TestLargeGroupsAreCountedFromTheFewThatAreSilent(t *testing.T) {
	each(t, func(h *house) {
		fillFleet(t, h.db, 6000, morning)
		for range 3 { // in service and never seen, one of them outside of the group
			h.nr++
			h.write(func(tx *sqldb.Tx) error {
				labels := map[string]string{"most": ""}
				if h.nr == 3 {
					labels = nil
				}
				d, err := h.reg.Create(t.Context(), tx, ada.Actor, device.New{Tenant: "default", Serial: fmt.Sprintf("N-%d", h.nr), Stage: device.Staged, Reason: "test", Labels: labels})
				if err == nil {
					_, err = h.reg.Move(t.Context(), tx, ada.Actor, device.Move{Num: d.Num, To: device.Enrolled, Reason: "test"})
				}
				return err
			})
		}
		for selector, want := range map[string]RollUp{
			"":                  {Devices: 6003, Online: 5988, Late: 6, Offline: 6, Never: 3},
			"most":              {Devices: 6000, Online: 5986, Late: 6, Offline: 6, Never: 2},
			"!nowhere":          {Devices: 6003, Online: 5988, Late: 6, Offline: 6, Never: 3},
			"site!=site-5,most": {Devices: 5940, Online: 5932, Late: 0, Offline: 6, Never: 2},
			"site=site-5":       {Devices: 60, Online: 54, Late: 6},
		} {
			got, err := h.room.RollUp(t.Context(), whole, device.MustSelector(selector))
			if err != nil || got != want {
				t.Errorf("%q: %+v, %v; want %+v", selector, got, err, want)
			}
			counted, err := h.room.countsOf(t.Context(), device.Scope{Tenant: "default", Selector: device.MustSelector(selector)})
			if err != nil || counted[Online] != want.Online || counted[Never] != want.Never {
				t.Errorf("%q, one by one: %v, %v", selector, counted, err)
			}
		}
	})
}

func TestSampleOfALargeGroupComesFromAllOverTheFleet(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	fillFleet(t, h.db, sampleFrom+10_000, morning)
	ids, cut, err := h.room.sampleOf(t.Context(), whole, device.MustSelector("most"), maxGroupDevices)
	if err != nil || !cut || len(ids) != maxGroupDevices {
		t.Fatalf("%d devices, cut %v, %v", len(ids), cut, err)
	}
	slices.Sort(ids)
	first, last := fmt.Sprintf("dev-%d", 1000000000000000+1000), fmt.Sprintf("dev-%d", 1000000000000000+sampleFrom+9000)
	if ids[0] > first || ids[len(ids)-1] < last || len(slices.Compact(ids)) != maxGroupDevices {
		t.Errorf("from %s to %s", ids[0], ids[len(ids)-1])
	}
	if ids, cut, err := h.room.sampleOf(t.Context(), whole, device.MustSelector("site=site-7"), maxGroupDevices); err != nil || cut || len(ids) != 600 {
		t.Errorf("a small group: %d, cut %v, %v", len(ids), cut, err)
	}
}
