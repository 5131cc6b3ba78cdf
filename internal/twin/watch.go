package twin

import (
	"strconv"
	"sync"
)

// watchers are told of devices whose epoch may have grown. Unlike a waiter, a watcher is not a goroutine
// per device: the link has one for all connections that it holds.
type watchers struct {
	mu   sync.Mutex
	last int
	of   map[int]func(num int64)
}

// allDevices stands for any number of devices in a wake-up.
const allDevices = 0

// Watch has fn called after each commit, on any node, that may have raised a device's epoch: with the
// device's number, or with 0 when it may have raised those of any number of devices. fn must be quick and
// must not block; it may be called by several goroutines at a time, and a call that is under way may end
// after cancel. A message from another node can be lost, so watchers look again by themselves (Epochs)
// from time to time.
func (s *Service) Watch(fn func(num int64)) (cancel func()) {
	w := &s.watchers
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[int]func(int64){}
	}
	w.last++
	key := w.last
	w.of[key] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.of, key)
	}
}

func (w *watchers) tell(num int64) {
	w.mu.Lock()
	fns := make([]func(int64), 0, len(w.of))
	for _, fn := range w.of {
		fns = append(fns, fn)
	}
	w.mu.Unlock()
	for _, fn := range fns {
		fn(num)
	}
}

// wake tells who waits on this node at once and those on other nodes by the bus; num may be allDevices.
func (s *Service) wake(num int64) {
	s.wakeHere(num)
	if num == allDevices {
		s.publish(subjectAll)
		return
	}
	s.publish(subjectPrefix + strconv.FormatInt(num, 10))
}

func (s *Service) wakeHere(num int64) {
	s.seen.forget(num) // first: who is woken may make the device report
	s.waiters.wake(num)
	s.watchers.tell(num)
}

// publish may fail: those who wait look again by themselves.
func (s *Service) publish(subject string) {
	if s.cfg.Bus == nil {
		return
	}
	if err := s.cfg.Bus.Publish(subject, []byte(s.node)); err != nil {
		s.log.Warn("wake-up was not sent", "subject", subject, "error", err)
	}
}

// heard takes a wake-up from the bus, which also brings this node's own ones back.
func (s *Service) heard(subject string, node []byte) {
	if string(node) == s.node {
		return
	}
	if subject == subjectAll {
		s.wakeHere(allDevices)
		return
	}
	if num, err := strconv.ParseInt(subject[len(subjectPrefix):], 10, 64); err == nil {
		s.wakeHere(num)
	}
}
