package remote

import (
	"strconv"
	"strings"
	"sync"
)

// Subjects on the bus. "given" carries the sender and device numbers, "finished" the sender and command
// IDs, each list separated by commas; all of it only wakes.
const (
	subjectGiven    = "remote.given"
	subjectFinished = "remote.finished"
)

// perMessage bounds the numbers or IDs in one message.
const perMessage = 500

// watchers are told of devices that have been given a command.
type watchers struct {
	mu   sync.RWMutex
	next int
	of   map[int]func(num int64)
}

// Watch has fn called on this node after a command was given to a device, or cancelled, on any node. fn is
// quick and doesn't block. A call may be lost with a message of the bus; Waiting is the truth.
func (s *Service) Watch(fn func(num int64)) (cancel func()) {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[int]func(int64){}
	}
	id := w.next
	w.next++
	w.of[id] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.of, id)
	}
}

func (w *watchers) tell(num int64) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, fn := range w.of {
		fn(num)
	}
}

// tellGiven wakes the links of this node at once and those of others by the bus.
func (s *Service) tellGiven(nums []int64) {
	texts := make([]string, len(nums))
	for i, num := range nums {
		s.watch.tell(num)
		texts[i] = strconv.FormatInt(num, 10)
	}
	s.publish(subjectGiven, texts)
}

// tellFinished wakes who waits for these commands' results.
func (s *Service) tellFinished(ids []string) {
	for _, id := range ids {
		s.results.wake(id)
	}
	s.publish(subjectFinished, ids)
}

// publish may fail: links and waiters look again by themselves.
func (s *Service) publish(subject string, items []string) {
	for s.cfg.Bus != nil && len(items) > 0 {
		n := min(perMessage, len(items))
		if err := s.cfg.Bus.Publish(subject, []byte(s.origin+" "+strings.Join(items[:n], ","))); err != nil {
			s.cfg.Log.Warn("wake-up was not sent", "subject", subject, "error", err)
		}
		items = items[n:]
	}
}

// heard takes a message of another node; its own it has acted on already.
func (s *Service) heard(subject string, data []byte) {
	from, list, _ := strings.Cut(string(data), " ")
	if from == s.origin {
		return
	}
	for item := range strings.SplitSeq(list, ",") {
		if subject == subjectFinished {
			s.results.wake(item)
		} else if num, err := strconv.ParseInt(item, 10, 64); err == nil {
			s.watch.tell(num)
		}
	}
}

// waiters holds, by command, the channels of those who wait for its result. Each has room for one token.
type waiters struct {
	mu sync.Mutex
	n  int
	of map[string]map[chan struct{}]struct{}
}

// maxWaiters bounds who waits on one node; more get the answer as it is now.
const maxWaiters = 2000

func (w *waiters) add(id string) (woken <-chan struct{}, done func(), ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n >= maxWaiters {
		return nil, nil, false
	}
	ch := make(chan struct{}, 1)
	if w.of == nil {
		w.of = map[string]map[chan struct{}]struct{}{}
	}
	if w.of[id] == nil {
		w.of[id] = map[chan struct{}]struct{}{}
	}
	w.of[id][ch] = struct{}{}
	w.n++
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.n--
		if delete(w.of[id], ch); len(w.of[id]) == 0 {
			delete(w.of, id)
		}
	}, true
}

func (w *waiters) wake(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.of[id] {
		select {
		case ch <- struct{}{}:
		default: // it has a token already
		}
	}
}

// stopping ends those who wait when the server does.
type stopping struct {
	once sync.Once
	done chan struct{}
}

func (s *stopping) stop() { s.once.Do(func() { close(s.done) }) }
