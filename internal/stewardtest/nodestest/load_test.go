package nodestest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// load writes to all nodes at a time, by API and as devices, and keeps what was acknowledged. Each writer
// has a node of its own and goes to the next one when that refuses or is gone, as a balancer would send it.
type load struct {
	t     *testing.T
	nodes []*House
	stop  chan struct{}
	wg    sync.WaitGroup

	acked, failed atomic.Int64

	mu        sync.Mutex
	suppliers []string       // acknowledged
	reports   map[string]int // by device: the last acknowledged number
	sent      map[string]int // by device: the last number that was sent
}

const writersPerNode = 2

// startLoad begins to write; devices are stopped ones, whose identity the load uses.
func startLoad(t *testing.T, round string, nodes []*House, devices []*Device) *load {
	l := &load{t: t, nodes: nodes, stop: make(chan struct{}), reports: map[string]int{}, sent: map[string]int{}}
	for i := range nodes {
		for w := range writersPerNode {
			l.wg.Go(func() { l.people(i, fmt.Sprintf("%s-%d-%d", round, i, w)) })
		}
	}
	for i, d := range devices {
		l.wg.Go(func() { l.device(i%len(nodes), d) })
	}
	return l
}

func (l *load) ended() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// again waits a little before the next try, on the next node.
func (l *load) again(node *int) {
	l.failed.Add(1)
	*node = (*node + 1) % len(l.nodes)
	pause := time.NewTimer(50 * time.Millisecond)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-l.stop:
	}
}

func (l *load) people(node int, name string) {
	for n := 0; !l.ended(); n++ {
		id := fmt.Sprintf("s-%s-%d", name, n)
		if _, err := l.nodes[node].Try(http.MethodPut, "/suppliers/"+id, Object{"name": id}); err != nil {
			l.again(&node)
			continue
		}
		l.acked.Add(1)
		l.mu.Lock()
		l.suppliers = append(l.suppliers, id)
		l.mu.Unlock()
	}
}

// device reports a document that counts up, and uploads it when it is asked for.
func (l *load) device(node int, d *Device) {
	doors := make([]*Door, len(l.nodes))
	for i, h := range l.nodes {
		doors[i] = h.Door(d.Identity())
	}
	boot := fmt.Sprintf("%032x", time.Now().UnixNano())
	for n := 1; !l.ended(); n++ {
		body := fmt.Appendf(nil, `{"manager":"n%d","services":[]}`, n)
		report, err := json.Marshal(wire.Report{
			Protocol: wire.Protocol, Boot: boot, Instance: strings.Repeat("d", 32), Sequence: int64(n), Time: time.Now(),
			Sections: map[wire.Section]wire.Hash{wire.SectionServices: wire.HashOf(body)},
		})
		if err != nil {
			l.t.Error(err)
			return
		}
		l.mu.Lock()
		l.sent[d.ID] = n
		l.mu.Unlock()
		out, err := doors[node].Ask(http.MethodPost, wire.PathReport, report)
		if err != nil || out.Status != http.StatusOK {
			l.again(&node)
			continue
		}
		if strings.Contains(string(out.Body), string(wire.HashOf(body))) {
			out, err = doors[node].Ask(http.MethodPut, wire.PathDocuments+string(wire.HashOf(body)), body)
			if err != nil || out.Status != http.StatusNoContent {
				l.again(&node)
				continue
			}
		}
		l.acked.Add(1)
		l.mu.Lock()
		l.reports[d.ID] = n
		l.mu.Unlock()
	}
}

// More waits until the load has got so many more answers.
func (l *load) More(n int64) {
	l.t.Helper()
	from := l.acked.Load()
	Until(l.t, fmt.Sprintf("the load has %d more answers", n), func() bool { return l.acked.Load() >= from+n })
}

// Stop ends the load and waits for it.
func (l *load) Stop() {
	close(l.stop)
	l.wg.Wait()
}

// Check looks through a node for all that was acknowledged: rows, and events in the ledger.
func (l *load) Check(h *House) {
	l.t.Helper()
	h.Settle()
	there, told := map[string]bool{}, map[string]bool{}
	for _, s := range h.Get("/suppliers")["items"].([]any) { //nolint:forcetypeassert // a list
		id, _ := s.(map[string]any)["id"].(string)
		there[id] = true
	}
	for _, e := range h.List("/events?kind=purchase") {
		subject, _ := e["subject"].(string)
		told[subject] = true
	}
	for _, id := range l.suppliers {
		if !there[id] || !told[id] {
			l.t.Errorf("acknowledged and lost: supplier %s (there %t, in the ledger %t)", id, there[id], told[id])
		}
	}
	for id, acked := range l.reports {
		var got int
		if _, err := fmt.Sscanf(fmt.Sprint(h.Reported(id, wire.SectionServices)["manager"]), "n%d", &got); err != nil || got < acked || got > l.sent[id] {
			l.t.Errorf("device %s: report %d was acknowledged, %d sent, and the server has %d (%v)", id, acked, l.sent[id], got, err)
		}
	}
	if len(l.suppliers) == 0 || len(l.reports) == 0 {
		l.t.Errorf("a load without answers: %d writes, %d devices", len(l.suppliers), len(l.reports))
	}
	l.t.Logf("%d acknowledged, %d refused or cut off", l.acked.Load(), l.failed.Load())
}
