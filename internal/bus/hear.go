package bus

import (
	"strings"
	"sync"
)

// hearer is one subscription of this process.
type hearer struct {
	subject string
	mu      sync.Mutex // held by the one call at a time
	handle  func(subject string, data []byte)
}

func (h *hearer) hear(subject string, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handle(subject, data)
}

// Hear gives a message to the subscribers of this process alone, as if another node had sent it: for news
// that was learnt elsewhere while the bus was cut. It returns when they have handled it.
func (b *Bus) Hear(subject string, data []byte) {
	var all []*hearer
	b.hearersMu.Lock()
	for h := range b.hearers {
		if matches(h.subject, subject) {
			all = append(all, h)
		}
	}
	b.hearersMu.Unlock()
	for _, h := range all {
		h.hear(subject, data)
	}
}

// matches tells whether a subject falls under a subscription's.
func matches(pattern, subject string) bool {
	want, got := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, w := range want {
		if w == ">" {
			return len(got) > i
		}
		if i >= len(got) || w != "*" && w != got[i] {
			return false
		}
	}
	return len(want) == len(got)
}
