package twin_test

import (
	"context"
	"crypto"
	"fmt"
	"path"
	"slices"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/wire"
)

// wires is a bus between the Services of a test: it delivers at once, back to the sender too, and loses
// everything while it is cut.
type wires struct {
	mu   sync.Mutex
	subs map[int]subscription
	last int
	cut  bool
	sent int
}

type subscription struct {
	pattern string
	fn      func(subject string, data []byte)
}

func (w *wires) Publish(subject string, data []byte) error {
	w.mu.Lock()
	w.sent++
	subs := make([]subscription, 0, len(w.subs))
	for _, s := range w.subs {
		subs = append(subs, s)
	}
	cut := w.cut
	w.mu.Unlock()
	for _, s := range subs {
		if ok, _ := path.Match(s.pattern, subject); ok && !cut {
			s.fn(subject, data)
		}
	}
	return nil
}

func (w *wires) Subscribe(subject string, fn func(subject string, data []byte)) (cancel func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		w.subs = map[int]subscription{}
	}
	w.last++
	key := w.last
	w.subs[key] = subscription{subject, fn}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.subs, key)
	}, nil
}

func (w *wires) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

func (w *wires) subscribed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.subs)
}

// nodes returns running Services on one database, joined by the returned bus.
func nodes(t *testing.T, db *sqldb.DB, cfg twin.Config, n int) ([]*house, *wires) {
	t.Helper()
	bus := &wires{}
	cfg.Bus = bus
	out := make([]*house, n)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	for i := range out {
		h := newHouse(t, db, cfg)
		out[i] = h
		running.Go(func() {
			if err := h.s.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); bus.subscribed() < n; {
		if time.Now().After(deadline) {
			t.Fatal("the Services do not listen")
		}
		<-time.After(time.Millisecond)
	}
	return out, bus
}

// told collects what a watcher is told.
type told struct {
	mu   sync.Mutex
	nums []int64
}

func (x *told) tell(num int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.nums = append(x.nums, num)
}

func (x *told) take() []int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	nums := x.nums
	x.nums = nil
	return nums
}

func TestWatchersOnEveryNodeAreToldOfEachCommitOnce(t *testing.T) {
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) {
		two, _ := nodes(t, db, twin.Config{}, 2)
		var here, there told
		cancel := two[0].s.Watch(here.tell)
		defer two[1].s.Watch(there.tell)()

		two[0].set(7, "update", "a")
		for name, x := range map[string]*told{"the same node": &here, "the other node": &there} {
			if nums := x.take(); !slices.Equal(nums, []int64{7}) {
				t.Errorf("%s was told %v", name, nums)
			}
		}
		two[0].set(7, "update", "a") // no change
		two[0].write(func(tx *sqldb.Tx) error {
			_, err := two[0].s.SetDesiredWhere(t.Context(), tx, "SELECT 8 UNION SELECT 9", nil, "update", "a")
			return err
		})
		for name, x := range map[string]*told{"the same node": &here, "the other node": &there} {
			if nums := x.take(); !slices.Equal(nums, []int64{0}) {
				t.Errorf("%s was told %v of many devices", name, nums)
			}
		}
		boom := fmt.Errorf("boom")
		if err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			if err := two[0].s.SetDesired(t.Context(), tx, 7, "update", "b"); err != nil {
				return err
			}
			return boom
		}); err == nil {
			t.Fatal("the write went through")
		}
		cancel()
		two[0].set(10, "update", "b")
		if nums := here.take(); len(nums) > 0 {
			t.Errorf("told %v of what was undone or after the end of the watch", nums)
		}
		if nums := there.take(); !slices.Equal(nums, []int64{10}) {
			t.Errorf("the other node was told %v", nums)
		}
	})
}

func TestEpochsAndEnvelopesOfManyDevicesTakeAFewStatements(t *testing.T) {
	const devices = 500
	each(t, twin.Config{}, func(h *house) {
		h.write(func(tx *sqldb.Tx) error {
			_, err := h.s.SetDesiredWhere(h.Context(), tx, fleetUpTo, []any{devices}, "monitoring", "all")
			return err
		})
		h.set(3, "update", "one")
		ds := make([]device.Device, 0, devices+1)
		var nums []int64
		for num := range int64(devices + 1) { // the last has never had a desired state
			ds, nums = append(ds, unit(num+1)), append(nums, num+1)
		}
		ds[4].Stage = device.Quarantined

		ctx, statements := counted(h.Context())
		epochs, err := h.s.Epochs(ctx, nums)
		if err != nil || len(epochs) != devices || epochs[1] != 1 || epochs[3] != 2 {
			h.Errorf("%d epochs, of 3: %d (%v)", len(epochs), epochs[3], err)
		}
		sealed, err := h.s.Envelopes(ctx, ds)
		if err != nil || len(sealed) != len(ds) {
			h.Fatalf("%d envelopes: %v", len(sealed), err)
		}
		if n := statements(); n > 2 {
			h.Errorf("%d statements", n)
		}
		for i, want := range map[int]int{0: 1, 2: 2, 4: 0, devices: 0} {
			var got wire.Desired
			if err := wire.Open(sealed[i].Envelope, wire.DesiredType, []crypto.PublicKey{h.pub}, &got); err != nil {
				h.Fatal(err)
			}
			if sealed[i].Num != ds[i].Num || sealed[i].Epoch != epochs[ds[i].Num] || got.Epoch != sealed[i].Epoch ||
				got.Device != string(ds[i].ID) || len(got.Sections) != want {
				h.Errorf("device %d: %+v, sealed for %d at epoch %d", i+1, got, sealed[i].Num, sealed[i].Epoch)
			}
		}
	})
}

// fleetUpTo is a sub-SELECT of the devices from 1 to its argument.
const fleetUpTo = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?) SELECT n FROM c"

// counted returns a context whose statements are counted.
func counted(ctx context.Context) (context.Context, func() int) {
	var mu sync.Mutex
	n := 0
	return sqldb.Trace(ctx, func(string, []any) {
			mu.Lock()
			defer mu.Unlock()
			n++
		}), func() int {
			mu.Lock()
			defer mu.Unlock()
			return n
		}
}
