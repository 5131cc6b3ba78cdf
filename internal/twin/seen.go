package twin

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"steward/internal/device"
	"steward/internal/wire"
)

// seen remembers, in at most some 200 bytes per device, what the database has said of the devices that
// report to this node, so that a report that says nothing new is answered without asking it again.
//
// What is remembered of a device was read from committed state, and is used only while nothing can have
// changed it. Whatever changes a device's reported state or its session is
//
//  1. a report or an upload to this node. While one is under way (a flight) nothing is remembered of the
//     device, and only a flight that was alone from before its first read to after its commit leaves
//     something behind.
//  2. a report to another node. An agent sends one report at a time and counts each, so the next one to
//     this node leaves a gap behind the last one here: only the report whose sequence is exactly one
//     higher, of the same boot and instance, is answered from memory. (An upload belongs to a report that
//     was answered with a missing document; a device that is asked for one is not remembered.) One that
//     the device has given up, and that the other node takes later, is noticed at most seenFor later.
//  3. a report by another boot or instance: a new start of the agent, after which this boot is silent, or
//     a clone. A clone that talks to this node makes a flight (1); one that talks to another node is
//     noticed when this node looks into the database again, at most seenFor later.
//  4. a new enrollment (ForgetInstance) or a move to another stage, of which this node hears by a wake-up
//     or from the device that the link has authenticated; a lost message costs at most seenFor.
//
// The epoch in the answer may grow on any node: a wake-up makes this one forget the device, and one that
// comes while a flight reads makes that flight leave nothing behind. A lost one costs at most seenFor, as
// for all who wait. A database that is restored under running nodes is noticed as late.
//
// An answer from memory never prolongs how long something is remembered. What it answers is as true as if
// the report had come at the moment of the last read, and the next changed or late report meets the
// database.
type seen struct {
	seed   maphash.Seed
	all    atomic.Uint64 // grows when every device has to be forgotten
	shards [seenShards]seenShard
}

// seenFor is how long what was read is used.
const seenFor = lookAgain

const (
	seenShards   = 64
	seenPerShard = 2048 // devices; further ones are not remembered
	seenSections = 12   // of a device; who reports more is not remembered
)

type seenShard struct {
	mu    sync.Mutex
	of    map[int64]*seenDevice
	swept time.Time
}

// seenDevice is what is remembered of one device, and who is about to change it. Texts are kept as keyed
// 64-bit hashes: a device can't aim at a collision, and one by chance is less likely than a wrong bit.
type seenDevice struct {
	flights int32
	turn    uint32 // grows with each flight and each wake-up
	all     uint64 // seen.all when it was read, 0 when the device was forgotten since
	known   bool

	speaker  uint64 // boot, instance, stage
	sequence int64  // of the last report that was taken or answered
	accepted int64
	epoch    int64
	at       time.Time
	sections []uint64
}

// flight is a report or an upload that goes to the database.
type flight struct {
	num   int64
	turn  uint32
	alone bool // no other one was under way when it began
	all   uint64
	at    time.Time
}

// memory is how much a report's content is worth against what is remembered.
type memory int

const (
	notSeen  memory = iota // nothing can be said
	sameSeen               // it says what is known
	newsSeen               // it differs from what was known: most likely it has to be written
)

func newSeen() *seen {
	s := &seen{seed: maphash.MakeSeed()}
	s.all.Store(1)
	return s
}

func (s *seen) shard(num int64) *seenShard { return &s.shards[uint64(num)%seenShards] }

// answer compares a report with what is remembered. For sameSeen it returns the desired state's epoch.
// That a report brings news is only a hint at the shorter way, and may be told from what is out of date.
func (s *seen) answer(d device.Device, r wire.Report, now time.Time) (epoch int64, is memory) {
	speaker := s.speaker(d, r)
	sh := s.shard(d.Num)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	k := sh.of[d.Num]
	if k == nil || !k.known || k.speaker != speaker {
		return 0, notSeen
	}
	if r.Epoch != k.accepted || !s.sameSections(k, r) {
		return 0, newsSeen
	}
	age := now.Sub(k.at)
	if k.all != s.all.Load() || r.Sequence != k.sequence+1 || age < 0 || age >= seenFor {
		return 0, notSeen
	}
	k.sequence = r.Sequence
	return k.epoch, sameSeen
}

func (s *seen) sameSections(k *seenDevice, r wire.Report) bool {
	if len(r.Sections) > len(k.sections) || (r.Full && len(r.Sections) < len(k.sections)) {
		return false
	}
named:
	for section, hash := range r.Sections {
		mark := s.mark(section, hash)
		for _, known := range k.sections {
			if known == mark {
				continue named
			}
		}
		return false
	}
	return true
}

func (s *seen) speaker(d device.Device, r wire.Report) uint64 {
	return maphash.Comparable(s.seed, [4]string{r.Boot, r.Instance, string(d.Stage), string(d.Tenant)})
}

func (s *seen) mark(section wire.Section, hash wire.Hash) uint64 {
	return maphash.Comparable(s.seed, [2]string{string(section), string(hash)})
}

// begin tells that a report or an upload of the device goes to the database. It must come before the
// first read, and end after the commit.
func (s *seen) begin(num int64, now time.Time) flight {
	sh := s.shard(num)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	k := sh.of[num]
	if k == nil {
		k = &seenDevice{}
		if sh.of == nil {
			sh.of = map[int64]*seenDevice{}
		}
		sh.of[num] = k
	}
	k.flights++
	k.turn++
	k.known = false
	return flight{num: num, turn: k.turn, alone: k.flights == 1, all: s.all.Load(), at: now}
}

// end closes a flight. What the report has left in the database, nil when that is not known or not to be
// remembered, is kept when nothing else has happened to the device since the flight began.
func (s *seen) end(f flight, left *seenDevice) {
	sh := s.shard(f.num)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	k := sh.of[f.num]
	k.flights--
	switch {
	case k.flights > 0:
	case left == nil || !f.alone || k.turn != f.turn || f.all != s.all.Load() || !sh.room(left.at):
		delete(sh.of, f.num)
	default:
		left.turn, left.all, left.known = k.turn, f.all, true
		sh.of[f.num] = left
	}
}

// room tells whether another device can be remembered; it is called with its own already there.
func (sh *seenShard) room(now time.Time) bool {
	if len(sh.of) <= seenPerShard {
		return true
	}
	if now.Sub(sh.swept).Abs() < time.Second {
		return false
	}
	sh.swept = now
	for num, k := range sh.of {
		if k.known && now.Sub(k.at).Abs() >= seenFor {
			delete(sh.of, num)
		}
	}
	return len(sh.of) <= seenPerShard
}

// forget says that what is remembered of a device, or of all of them, may be out of date.
func (s *seen) forget(num int64) {
	if num == allDevices {
		s.all.Add(1)
		return
	}
	sh := s.shard(num)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if k := sh.of[num]; k != nil {
		k.turn++
		k.all = 0
	}
}

// left is what a report leaves to be remembered of a device: nothing while a document is asked for, since
// its upload, from anywhere, changes what the same report means. at is when the flight began.
func (s *seen) left(d device.Device, r wire.Report, p *picture, at time.Time) *seenDevice {
	if len(p.pending) > 0 || len(p.reported) > seenSections || p.session.boot != r.Boot || p.session.instance != r.Instance ||
		r.Sequence < p.session.sequence || p.session.accepted != r.Epoch || r.Epoch > p.epoch {
		return nil
	}
	k := &seenDevice{
		speaker: s.speaker(d, r), sequence: r.Sequence, accepted: r.Epoch, epoch: p.epoch, at: at,
		sections: make([]uint64, 0, len(p.reported)),
	}
	for section, hash := range p.reported {
		k.sections = append(k.sections, s.mark(section, hash))
	}
	return k
}
