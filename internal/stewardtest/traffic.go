package stewardtest

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// Traffic is what people and programs write while something else happens: a label of one device, again and
// again, and orders.
type Traffic struct {
	h      *House
	device string

	label  atomic.Int64 // the highest value of the label "n" that was acknowledged
	mu     sync.Mutex
	orders []string // acknowledged
	stop   chan struct{}
	once   sync.Once
	ended  sync.WaitGroup
}

// Traffic begins; End it.
func (h *House) Traffic(device string) *Traffic {
	tr := &Traffic{h: h, device: device, stop: make(chan struct{})}
	api := *h.API // its client stays the same over restarts of the server
	tr.ended.Go(func() {
		for n := int64(1); !tr.stopped(); n++ {
			if _, err := api.Try(http.MethodPatch, "/devices/"+device, Object{"labels": Object{"n": fmt.Sprint(n)}}); err == nil {
				tr.label.Store(n)
			}
		}
	})
	tr.ended.Go(func() {
		for n := 1; !tr.stopped(); n++ {
			out, err := api.Try(http.MethodPost, "/orders", Object{
				"number": fmt.Sprintf("LOAD-%d", n), "supplier": "acme", "currency": "EUR", "lines": []Object{{"model": "gateway", "quantity": 1, "unit_price": 1}},
			})
			if err == nil {
				tr.mu.Lock()
				tr.orders = append(tr.orders, text(out, "id"))
				tr.mu.Unlock()
			}
		}
	})
	h.t.Cleanup(tr.End)
	return tr
}

func (tr *Traffic) stopped() bool {
	select {
	case <-tr.stop:
		return true
	default:
		return false
	}
}

// End stops the writers and waits for them.
func (tr *Traffic) End() {
	tr.once.Do(func() { close(tr.stop) })
	tr.ended.Wait()
}

// Some waits until the label was written n times more.
func (tr *Traffic) Some(n int64) {
	tr.h.t.Helper()
	from := tr.label.Load()
	tr.h.Until("there is traffic", func() bool { return tr.label.Load() >= from+n })
}

// Acknowledged is what a server has answered for.
type Acknowledged struct {
	Head []byte // the ledger's signed head

	tr     *Traffic
	label  int64
	orders []string
}

// Acknowledged is what the server has answered for so far.
func (tr *Traffic) Acknowledged() Acknowledged {
	tr.h.t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return Acknowledged{tr: tr, label: tr.label.Load(), orders: slices.Clone(tr.orders), Head: tr.h.Checkpoint()}
}

// Check proves that the server has all of it.
func (a Acknowledged) Check() {
	h := a.tr.h
	h.t.Helper()
	labels, _ := h.Get("/devices/" + a.tr.device)["labels"].(map[string]any)
	var n int64
	if _, err := fmt.Sscan(fmt.Sprint(labels["n"]), &n); err != nil || n < a.label {
		h.t.Errorf("the label is %v, and %d was acknowledged", labels["n"], a.label)
	}
	there := map[string]bool{}
	for _, o := range h.List("/orders") {
		there[text(o, "id")] = true
	}
	for _, id := range a.orders {
		if !there[id] {
			h.t.Errorf("the acknowledged order %s is lost", id)
		}
	}
	h.VerifyLedger(a.Head)
}
