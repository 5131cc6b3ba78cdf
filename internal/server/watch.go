package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"steward/internal/device"
	"steward/internal/link"
	"steward/internal/monitoring"
)

// presenceIn finds the few devices that are late or offline by monitoring's index, which holds only
// these; written as a number, since SQLite takes a partial index only for what it reads in the query.
func presenceIn(tenant device.TenantID, state string) (string, []any) {
	st, err := monitoring.ParseState(state)
	if err != nil || st != monitoring.Late && st != monitoring.Offline {
		return "", nil
	}
	return fmt.Sprintf("SELECT num FROM monitoring_seen WHERE tenant = ? AND state = %d AND state > 1", int(st)), []any{string(tenant)}
}

// ready are the checks of /readyz. A bus that is away is not among them: devices and pages then poll, and
// a node that refused to serve for it would make an outage of a delay. /metrics tells.
func (r *rooms) ready() map[string]func(context.Context) error {
	stall := &stall{size: r.ledger.Size, pending: r.ledger.Pending, now: time.Now}
	return map[string]func(context.Context) error{"database": r.db.Ping, "ledger": stall.check}
}

// stallTime is how long events may wait while none gets its place in the ledger's tree.
const stallTime = time.Minute

// stall finds out that no node sequences the ledger any more: events wait, and the tree doesn't grow.
type stall struct {
	size, pending func(context.Context) (int64, error)
	now           func() time.Time

	mu    sync.Mutex
	at    int64     // the tree's size
	since time.Time // when it was seen first while events waited; zero when none did
}

func (s *stall) check(ctx context.Context) error {
	size, err := s.size(ctx)
	if err != nil {
		return err
	}
	pending, err := s.pending(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case pending == 0:
		s.since = time.Time{}
	case s.since.IsZero() || s.at != size:
		s.at, s.since = size, s.now()
	}
	if pending > 0 && s.now().Sub(s.since) > stallTime {
		return fmt.Errorf("%d events wait for their place in the ledger since %s", pending, s.since.UTC().Format(time.RFC3339))
	}
	return nil
}

// gauges are what /metrics tells beside the counts of requests.
type gauges struct {
	rooms       *rooms
	connections func() link.Counts // of devices
}

var (
	descWrites  = prometheus.NewDesc("steward_db_writes_total", "Changes of the database.", nil, nil)
	descCommits = prometheus.NewDesc("steward_db_commits_total", "Transactions; on SQLite several changes share one.", nil, nil)
	descRetries = prometheus.NewDesc("steward_db_retries_total", "Changes that PostgreSQL asked to repeat.", nil, nil)
	descPending = prometheus.NewDesc("steward_ledger_pending_events", "Events that wait for their place in the ledger's tree.", nil, nil)
	descBehind  = prometheus.NewDesc("steward_ledger_consumer_behind_events", "Events that a reaction has still to see.", []string{"consumer"}, nil)
	descConns   = prometheus.NewDesc("steward_link_connections", "Open connections of devices.", []string{"protocol"}, nil)
	descShaking = prometheus.NewDesc("steward_link_handshakes", "Connections within their TLS handshake.", nil, nil)
	descBus     = prometheus.NewDesc("steward_bus_connected", "1 while the bus is connected; without it, nodes poll.", nil, nil)
	descStored  = prometheus.NewDesc("steward_metrics_store_samples_total", "Samples of devices that the store of metrics outside has taken or refuses for good.", []string{"result"}, nil)
	descFailed  = prometheus.NewDesc("steward_metrics_store_failures_total", "Requests that the store of metrics outside has not answered well.", nil, nil)
	descOnWay   = prometheus.NewDesc("steward_metrics_store_waiting_samples", "Samples on their way to the store of metrics outside.", nil, nil)
	descPeers   = prometheus.NewDesc("steward_bus_peers", "Other nodes that the bus inside is connected to.", nil, nil)
)

// scrapeTimeout bounds the queries of one scrape.
const scrapeTimeout = 2 * time.Second

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descWrites, descCommits, descRetries, descPending, descBehind, descConns, descShaking, descBus, descPeers, descStored, descFailed, descOnWay} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What can't be read is left out and told in the log: the other
// metrics are wanted most when the database is away.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	one := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	r := g.rooms
	stats := r.db.Stats()
	one(descWrites, prometheus.CounterValue, float64(stats.Writes))
	one(descCommits, prometheus.CounterValue, float64(stats.Commits))
	one(descRetries, prometheus.CounterValue, float64(stats.Retries))
	links := g.connections()
	one(descConns, prometheus.GaugeValue, float64(links.HTTPS), "https")
	one(descConns, prometheus.GaugeValue, float64(links.MQTT), "mqtt")
	one(descShaking, prometheus.GaugeValue, float64(links.Handshakes))
	connected := 0.0
	if r.bus.Connected() {
		connected = 1
	}
	one(descBus, prometheus.GaugeValue, connected)
	one(descPeers, prometheus.GaugeValue, float64(r.bus.Peers()))
	if s, outside := r.monitoring.OutsideStats(); outside {
		one(descStored, prometheus.CounterValue, float64(s.Stored), "stored")
		one(descStored, prometheus.CounterValue, float64(s.Refused), "refused")
		one(descFailed, prometheus.CounterValue, float64(s.Failures))
		one(descOnWay, prometheus.GaugeValue, float64(s.Waiting))
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	pending, err := r.ledger.Pending(ctx)
	if err != nil {
		r.cfg.Log.Warn("metrics of the ledger", "err", err)
		return
	}
	one(descPending, prometheus.GaugeValue, float64(pending))
	consumers, err := r.ledger.Consumers(ctx)
	if err != nil {
		r.cfg.Log.Warn("metrics of the ledger", "err", err)
		return
	}
	for _, c := range consumers {
		one(descBehind, prometheus.GaugeValue, float64(c.Behind), c.Name)
	}
}

// newRegistry counts the process, and what gauges tells.
func newRegistry(g gauges) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), g)
	return reg
}
