package twin

import (
	"fmt"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/wire"
)

// world is one device on one node: what its database says, and what the node remembers of it. The
// interleavings of everything that can happen to the device are run on it, each step as small as what
// other goroutines can see of it.
type world struct {
	seen     *seen
	now      time.Time
	value    int   // what the database says that the device has reported
	epoch    int64 // what the database says is desired
	sequence int64
	untold   int // commits that raised the epoch and whose wake-up has not come yet
	trace    []string
}

var testDevice = device.Device{Num: 5, Stage: device.Active}

func reportOf(value int, sequence int64) wire.Report {
	return wire.Report{Boot: "b", Instance: "i", Sequence: sequence, Full: true,
		Sections: map[wire.Section]wire.Hash{"a": wire.HashOf(fmt.Append(nil, value))}}
}

func pictureOf(value int, epoch, sequence int64) *picture {
	return &picture{
		session: session{boot: "b", instance: "i", sequence: sequence}, epoch: epoch,
		reported: reportOf(value, 0).Sections,
	}
}

// step is one thing that a process does; a process is a row of them.
type step func(w *world)

// taking is a report that changes something, or with the same value one that doesn't but is written.
func taking(value int, sequence int64) []step {
	var f flight
	var left *seenDevice
	return []step{
		func(w *world) { f = w.seen.begin(testDevice.Num, w.now) },
		func(w *world) { // the commit; what is left is what the transaction has read and written
			w.value, w.sequence = value, max(w.sequence, sequence)
			left = w.seen.left(testDevice, reportOf(value, sequence), pictureOf(value, w.epoch, sequence), f.at)
		},
		func(w *world) { w.seen.end(f, left) },
	}
}

// looking is a report that is compared with committed state only.
func looking(sequence int64) []step {
	var f flight
	var left *seenDevice
	return []step{
		func(w *world) { f = w.seen.begin(testDevice.Num, w.now) },
		func(w *world) {
			left = w.seen.left(testDevice, reportOf(w.value, sequence), pictureOf(w.value, w.epoch, 0), f.at)
		},
		func(w *world) { w.seen.end(f, left) },
	}
}

// uploading changes what the device has reported and leaves nothing to be remembered.
func uploading(value int) []step {
	var f flight
	return []step{
		func(w *world) { f = w.seen.begin(testDevice.Num, w.now) },
		func(w *world) { w.value = value },
		func(w *world) { w.seen.end(f, nil) },
	}
}

// raising is a change of the desired state, of the device alone or of the whole fleet.
func raising(num int64) []step {
	return []step{
		func(w *world) { w.epoch++; w.untold++ },
		func(w *world) { w.seen.forget(num); w.untold-- },
	}
}

// check fails when the node would answer for something that the database doesn't say.
func (w *world) check(t *testing.T) bool {
	k := w.seen.shard(testDevice.Num).of[testDevice.Num]
	if k == nil || !k.known || k.all != w.seen.all.Load() {
		return true
	}
	if !w.seen.sameSections(k, reportOf(w.value, 0)) {
		t.Errorf("%v: another value is remembered than %d", w.trace, w.value)
		return false
	}
	if k.epoch < w.epoch-int64(w.untold) || k.epoch > w.epoch {
		t.Errorf("%v: the epoch %d is remembered, and it is %d", w.trace, k.epoch, w.epoch)
		return false
	}
	return true
}

func TestNothingIsRememberedThatTheDatabaseDoesNotSay(t *testing.T) {
	for name, processes := range map[string]func() [][]step{
		"two changes, a look":         func() [][]step { return [][]step{taking(1, 1), taking(2, 2), looking(3)} },
		"a change, two looks":         func() [][]step { return [][]step{taking(1, 1), looking(2), looking(3)} },
		"an upload, a change, a look": func() [][]step { return [][]step{uploading(1), taking(2, 1), looking(2)} },
		"a change, a look, an epoch":  func() [][]step { return [][]step{taking(1, 1), looking(2), raising(testDevice.Num)} },
		"two looks, a fleet's epoch":  func() [][]step { return [][]step{looking(1), looking(2), raising(allDevices)} },
		"two epochs, a change":        func() [][]step { return [][]step{raising(allDevices), raising(testDevice.Num), taking(1, 1)} },
	} {
		runs, remembered := 0, 0
		interleave(processes(), nil, func(order []int) bool {
			w := &world{seen: newSeen(), now: time.Unix(1000, 0)}
			left := processes()
			for _, p := range order {
				left[p][0](w)
				left[p] = left[p][1:]
				w.trace = append(w.trace, fmt.Sprint(p))
				if !w.check(t) {
					return false
				}
			}
			runs++
			if k := w.seen.shard(testDevice.Num).of[testDevice.Num]; k != nil {
				if k.all == w.seen.all.Load() {
					remembered++
				}
				if k.flights != 0 {
					t.Errorf("%v: a flight has not ended", order)
					return false
				}
			}
			return true
		})
		if remembered == 0 || remembered == runs {
			t.Errorf("%s: remembered after %d of %d orders: the orders don't tell anything", name, remembered, runs)
		}
	}
}

// interleave calls run with every order of the processes' steps until it returns false.
func interleave(processes [][]step, order []int, run func(order []int) bool) bool {
	done := true
	for p, steps := range processes {
		if len(steps) == 0 {
			continue
		}
		done = false
		processes[p] = steps[1:]
		if !interleave(processes, append(order[:len(order):len(order)], p), run) {
			return false
		}
		processes[p] = steps
	}
	return !done || run(order)
}

func TestOnlyTheNextReportOfTheSameSpeakerIsAnsweredFromMemory(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, tt := range map[string]struct {
		spoil func(d *device.Device, r *wire.Report)
		after time.Duration
		want  memory
	}{
		"next":                   {nil, time.Second, sameSeen},
		"heartbeat":              {func(_ *device.Device, r *wire.Report) { r.Full, r.Sections = false, nil }, 0, sameSeen},
		"just before its time":   {nil, seenFor - 1, sameSeen},
		"too late":               {nil, seenFor, notSeen},
		"before it was read":     {nil, -time.Second, notSeen},
		"gap":                    {func(_ *device.Device, r *wire.Report) { r.Sequence++ }, 0, notSeen},
		"repetition":             {func(_ *device.Device, r *wire.Report) { r.Sequence-- }, 0, notSeen},
		"other boot":             {func(_ *device.Device, r *wire.Report) { r.Boot = "b2" }, 0, notSeen},
		"other instance":         {func(_ *device.Device, r *wire.Report) { r.Instance = "i2" }, 0, notSeen},
		"boot and instance swap": {func(_ *device.Device, r *wire.Report) { r.Boot, r.Instance = "i", "b" }, 0, notSeen},
		"quarantined":            {func(d *device.Device, _ *wire.Report) { d.Stage = device.Quarantined }, 0, notSeen},
		"other device":           {func(d *device.Device, _ *wire.Report) { d.Num = 6 }, 0, notSeen},
		"other epoch":            {func(_ *device.Device, r *wire.Report) { r.Epoch = 1 }, 0, newsSeen},
		"other hash":             {func(_ *device.Device, r *wire.Report) { r.Sections["a"] = wire.HashOf([]byte("2")) }, 0, newsSeen},
		"other section":          {func(_ *device.Device, r *wire.Report) { r.Sections = map[wire.Section]wire.Hash{"b": r.Sections["a"]} }, 0, newsSeen},
		"further section":        {func(_ *device.Device, r *wire.Report) { r.Sections["b"] = r.Sections["a"] }, 0, newsSeen},
		"full without a section": {func(_ *device.Device, r *wire.Report) { r.Sections = nil }, 0, newsSeen},
	} {
		s := newSeen()
		f := s.begin(testDevice.Num, now)
		s.end(f, s.left(testDevice, reportOf(1, 7), pictureOf(1, 3, 7), f.at))
		d, r := testDevice, reportOf(1, 8)
		if tt.spoil != nil {
			tt.spoil(&d, &r)
		}
		epoch, is := s.answer(d, r, now.Add(tt.after))
		if is != tt.want || (is == sameSeen && epoch != 3) {
			t.Errorf("%s: %d with epoch %d, want %d", name, is, epoch, tt.want)
		}
	}
}

func TestMemoryOfDevicesIsBounded(t *testing.T) {
	s, now := newSeen(), time.Unix(1000, 0)
	remember := func(from, to int64) {
		for num := from; num < to; num++ {
			d := device.Device{Num: num}
			f := s.begin(num, now)
			s.end(f, s.left(d, reportOf(1, 7), pictureOf(1, 3, 7), f.at))
		}
	}
	known := func() (n int) {
		for i := range s.shards {
			n += len(s.shards[i].of)
		}
		return n
	}
	const most = seenShards * seenPerShard
	remember(0, most+1000)
	if known() != most {
		t.Errorf("%d devices are remembered, at most %d", known(), most)
	}
	now = now.Add(seenFor)
	remember(2*most, 2*most+1000)
	if n := known(); n < 1000 || n > most {
		t.Errorf("%d devices are remembered once the old ones are too old", n)
	}
	if _, is := s.answer(device.Device{Num: 2 * most}, reportOf(1, 8), now); is != sameSeen {
		t.Error("a new device is not remembered in the place of an old one")
	}
}
