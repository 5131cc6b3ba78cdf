package monitoring

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/ui"
	"steward/internal/wire"
)

func TestMain(m *testing.M) {
	code := sqldbtest.Main(m)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var (
	morning = time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)
	tables  = []sqldb.Migration{ledger.Migration(), registry.Migration(), twin.Migration(), Migration()}
	ada     = httpapi.Principal{Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "ada"}, Role: httpapi.Admin, Scope: device.Scope{Tenant: "default"}}
)

// clock is moved by the tests alone.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// house is the room with a real registry, ledger and twin.
type house struct {
	*testing.T
	db     *sqldb.DB
	ledger *ledger.Ledger
	reg    *registry.Service
	twin   *twin.Service
	room   *Service
	clock  *clock
	nr     int
}

func newHouse(t *testing.T, db *sqldb.DB) *house {
	h := &house{T: t, db: db, ledger: ledgertest.New(t, db), clock: &clock{t: morning}}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h.twin = twin.New(twin.Config{DB: db, Key: key, Now: h.clock.now})
	// The room and the registry know each other; as in package server, the later one is reached by a closure.
	h.reg = registry.New(registry.Config{DB: db, Ledger: h.ledger, Now: h.clock.now, Moved: []registry.Moved{
		func(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
			return h.room.Moved(ctx, tx, d, from)
		}}})
	h.room = h.open(t.TempDir())
	t.Cleanup(func() {
		if err := h.room.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *house) open(dir string) *Service {
	h.Helper()
	return h.openAs(dir, "node-1", func(id string) bool { return strings.HasPrefix(id, "node-") })
}

// openAs opens the room as the named node.
func (h *house) openAs(dir, node string, alive func(id string) bool) *Service {
	h.Helper()
	room, err := Open(Config{DB: h.db, Ledger: h.ledger, Devices: h.reg, Twin: h.twin, Dir: dir, Now: h.clock.now,
		Log: quietLog(), Node: func() string { return node }, NodeAlive: alive})
	if err != nil {
		h.Fatal(err)
	}
	return room
}

func quietLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

func each(t *testing.T, test func(h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(newHouse(t, db)) })
}

// device makes one that is active.
func (h *house) device(labels map[string]string) device.Device {
	h.Helper()
	h.nr++
	var d device.Device
	h.write(func(tx *sqldb.Tx) (err error) {
		d, err = h.reg.Create(h.Context(), tx, ada.Actor, device.New{Tenant: "default", Serial: fmt.Sprintf("SN-%d", h.nr), Stage: device.Staged, Reason: "test", Labels: labels})
		for _, to := range []device.Stage{device.Enrolled, device.Active} {
			if err == nil {
				d, err = h.reg.Move(h.Context(), tx, ada.Actor, device.Move{Num: d.Num, To: to, Reason: "test"})
			}
		}
		return err
	})
	return d
}

func (h *house) write(fn func(tx *sqldb.Tx) error) {
	h.Helper()
	if err := h.db.Write(h.Context(), fn); err != nil {
		h.Fatal(err)
	}
}

func (h *house) sweep() {
	h.Helper()
	if err := h.room.Sweep(h.Context()); err != nil {
		h.Fatal(err)
	}
}

// live lets time pass as a running server sees it: a sweep every 20 seconds, with a contact of the
// devices every 60.
func (h *house) live(d time.Duration, devices ...device.Device) {
	h.Helper()
	for passed := time.Duration(0); passed < d; passed += 20 * time.Second {
		if passed%time.Minute == 0 {
			for _, dev := range devices {
				h.room.Seen(dev, wire.Report{})
			}
		}
		h.sweep()
		h.clock.pass(20 * time.Second)
	}
	h.sweep()
}

func (h *house) state(d device.Device) State {
	h.Helper()
	known, err := h.room.Of(h.Context(), []int64{d.Num})
	if err != nil {
		h.Fatal(err)
	}
	return known[d.Num].State
}

// expect checks what each way of asking says about presence.
func (h *house) expect(want map[State]int64) {
	h.Helper()
	kept, err := h.room.Counts(h.Context(), device.Scope{Tenant: "default"})
	if err != nil {
		h.Fatal(err)
	}
	counted, err := h.room.countsOf(h.Context(), device.Scope{Tenant: "default"})
	if err != nil {
		h.Fatal(err)
	}
	for _, s := range []State{Online, Late, Offline} {
		cond, args := h.room.Where("d.num", s.String())
		q := sqldb.NewQuery("SELECT COUNT(*) FROM registry_device d WHERE").Add(cond, args...)
		var filtered int64
		if err := h.db.QueryRowContext(h.Context(), q.SQL(), q.Args()...).Scan(&filtered); err != nil {
			h.Fatal(err)
		}
		if kept[s] != want[s] || counted[s] != want[s] || filtered != want[s] {
			h.Errorf("%s: kept %d, counted %d, filtered %d, want %d", s, kept[s], counted[s], filtered, want[s])
		}
	}
}

func (h *house) kinds(d device.Device) []string {
	h.Helper()
	return slices.DeleteFunc(ledgertest.Kinds(h, h.ledger, d.ID), func(k string) bool { return !strings.HasPrefix(k, "monitoring.") })
}

func TestSilentDeviceGoesLateThenOfflineAndComesBack(t *testing.T) {
	each(t, func(h *house) {
		quiet, busy, fresh := h.device(nil), h.device(nil), h.device(nil)
		h.live(time.Minute, quiet, busy)
		if got := h.state(quiet); got != Online {
			t.Fatalf("after its contact: %s", got)
		}
		h.expect(map[State]int64{Online: 2})
		h.live(2*time.Minute, busy)
		if got := h.state(quiet); got != Late {
			t.Errorf("after 3 minutes of silence: %s", got)
		}
		h.expect(map[State]int64{Online: 1, Late: 1})
		h.live(3*time.Minute, busy)
		if got := h.state(quiet); got != Offline {
			t.Errorf("after 6 minutes of silence: %s", got)
		}
		h.expect(map[State]int64{Online: 1, Offline: 1})
		h.live(10*time.Minute, busy)
		if got := h.kinds(quiet); !slices.Equal(got, []string{"monitoring.offline"}) {
			t.Errorf("events %v", got)
		}
		h.live(time.Minute, busy, quiet)
		h.expect(map[State]int64{Online: 2})
		if got := h.kinds(quiet); !slices.Equal(got, []string{"monitoring.offline", "monitoring.online"}) {
			t.Errorf("events %v", got)
		}
		if got := h.kinds(busy); len(got) != 0 {
			t.Errorf("events of a device that was never silent: %v", got)
		}
		if got := h.state(fresh); got != Never {
			t.Errorf("never in contact: %s", got)
		}
	})
}

func TestServersOwnAbsenceIsNoSilenceOfTheFleet(t *testing.T) {
	each(t, func(h *house) {
		up, down := h.device(nil), h.device(nil)
		h.live(time.Minute, up, down)
		h.live(6*time.Minute, up)
		h.expect(map[State]int64{Online: 1, Offline: 1})
		h.clock.pass(3 * time.Hour) // nobody sweeps
		h.sweep()
		h.expect(map[State]int64{Online: 1, Offline: 1}) // what was known stays
		h.live(4 * time.Minute)
		h.expect(map[State]int64{Late: 1, Offline: 1})
		h.live(2 * time.Minute) // silent for more than five intervals since the server is back
		h.expect(map[State]int64{Offline: 2})
		if got := h.kinds(up); !slices.Equal(got, []string{"monitoring.offline"}) {
			t.Errorf("events %v", got)
		}
	})
}

func TestFirstReportCountsInItsTransactionAndLaterOnesAfterIt(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		fresh := d
		fresh.Stage = device.Enrolled
		h.write(func(tx *sqldb.Tx) error {
			return h.room.Contact(h.Context(), tx, fresh, wire.Report{Time: h.clock.now()})
		})
		h.expect(map[State]int64{Online: 1})
		err := h.db.Write(h.Context(), func(tx *sqldb.Tx) error {
			h.clock.pass(time.Minute)
			return errors.Join(h.room.Contact(h.Context(), tx, d, wire.Report{}), errors.New("the report fails"))
		})
		if err == nil {
			t.Fatal("the transaction held")
		}
		if got := h.lastContact(d); !got.Equal(morning) {
			t.Errorf("last contact %v; want that of the report that was committed", got)
		}
		before := h.db.Stats().Writes
		h.write(func(tx *sqldb.Tx) error { return h.room.Contact(h.Context(), tx, d, wire.Report{}) })
		if got := h.lastContact(d); !got.Equal(morning.Add(time.Minute)) { // known at once on this node
			t.Errorf("last contact %v", got)
		}
		if err := h.room.flush(h.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.db.Stats().Writes - before; n != 2 {
			t.Errorf("%d transactions, want the report's and the batch", n)
		}
		h.expect(map[State]int64{Online: 1})
	})
}

func (h *house) lastContact(d device.Device) time.Time {
	h.Helper()
	known, err := h.room.Of(h.Context(), []int64{d.Num})
	if err != nil {
		h.Fatal(err)
	}
	return known[d.Num].LastContact
}

func TestContactsWaitInMemoryAndAreWrittenAtTheEnd(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		h.room.Seen(d, wire.Report{})
		if got := h.state(d); got != Online { // known on this node before it is written
			t.Errorf("before the flush: %s", got)
		}
		h.expect(map[State]int64{})
		ctx, stop := context.WithCancel(h.Context())
		done := make(chan error, 1)
		go func() { done <- h.room.Run(ctx) }()
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := h.room.flush(h.Context()); err != nil { // as Close does
			t.Fatal(err)
		}
		h.expect(map[State]int64{Online: 1})
	})
}

func TestTwoNodesSweepWithoutTellingTwice(t *testing.T) {
	each(t, func(h *house) {
		var fleet []device.Device
		for range 40 {
			fleet = append(fleet, h.device(nil))
		}
		h.live(time.Minute, fleet...)
		second := h.openAs(t.TempDir(), "node-2", func(id string) bool { return strings.HasPrefix(id, "node-") })
		defer second.Close()
		h.live(4*time.Minute + 20*time.Second)
		h.clock.pass(40 * time.Second)
		var both sync.WaitGroup
		for _, room := range []*Service{h.room, second, h.room, second} {
			both.Go(func() {
				if err := room.Sweep(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		h.expect(map[State]int64{Offline: 40})
		for _, d := range fleet {
			if got := h.kinds(d); !slices.Equal(got, []string{"monitoring.offline"}) {
				t.Fatalf("events of %s: %v", d.ID, got)
			}
		}
	})
}

func TestFailedFlushLosesNoContact(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		h.room.Seen(d, wire.Report{Time: morning.Add(time.Hour)})
		ctx, cancel := context.WithCancel(h.Context())
		cancel()
		if err := h.room.flush(ctx); err == nil {
			t.Fatal("flush with a dead context held")
		}
		h.room.Seen(d, wire.Report{Time: morning.Add(time.Hour)})
		h.sweep()
		h.expect(map[State]int64{Online: 1})
		troubles, err := h.room.Troubles(h.Context(), d.Num)
		if err != nil || len(troubles) != 1 || troubles[0].Count != 2 {
			t.Errorf("troubles %+v, %v; want the clock twice", troubles, err)
		}
	})
}

func TestPolicyReachesDevicesAndTheirDeadlines(t *testing.T) {
	each(t, func(h *house) {
		old := h.device(nil)
		h.live(time.Minute, old)
		p, err := h.room.SetPolicy(t.Context(), ada, Policy{ReportSeconds: 600, MetricsSeconds: 300}, "")
		if err != nil || p.Revision != 1 {
			t.Fatal(p, err)
		}
		if _, err := h.room.SetPolicy(t.Context(), ada, Policy{ReportSeconds: 60, MetricsSeconds: 60}, httpapi.ETag(0)); !errors.Is(err, fault.Precondition) {
			t.Errorf("with an old ETag: %v", err)
		}
		if _, err := h.room.SetPolicy(t.Context(), ada, Policy{ReportSeconds: 1, MetricsSeconds: 1e6}, ""); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("out of bounds: %v", err)
		}
		later := h.device(nil)
		for _, d := range []device.Device{old, later} {
			if got := h.desired(d); got != `{"metrics_seconds":300,"report_seconds":600}` {
				t.Errorf("desired of %s: %s", d.Serial, got)
			}
			if got := h.room.Interval(t.Context(), d); got != 10*time.Minute {
				t.Errorf("interval %s", got)
			}
		}
		h.live(20 * time.Minute)
		if got := h.state(old); got != Online {
			t.Errorf("after two of the longer intervals: %s", got)
		}
		if n := len(ledgertest.Events(t, h.ledger, ledger.Filter{Tenant: "default", Kinds: []string{"monitoring.policy_changed"}})); n != 1 {
			t.Errorf("%d events of the policy", n)
		}
	})
}

// desired returns the section of the envelope that the device would be sent.
func (h *house) desired(d device.Device) string {
	h.Helper()
	sealed, _, err := h.twin.Envelope(h.Context(), d)
	if err != nil {
		h.Fatal(err)
	}
	var envelope wire.Envelope
	var desired wire.Desired
	if err := errors.Join(wire.Decode(sealed, &envelope), wire.Decode(envelope.Payload, &desired)); err != nil {
		h.Fatal(err)
	}
	body, err := h.twin.Document(h.Context(), d, desired.Sections[wire.SectionMonitoring])
	if err != nil {
		h.Fatal(err)
	}
	return string(body)
}

func TestDisposedDeviceLeavesNoTrace(t *testing.T) {
	each(t, func(h *house) {
		d, other := h.device(nil), h.device(nil)
		for _, dev := range []device.Device{d, other} {
			h.ingest(dev, gauge("system.cpu.utilization", "1", h.point(0.5)))
		}
		h.room.Seen(d, wire.Report{Time: morning.Add(time.Hour)})
		h.sweep()
		h.expect(map[State]int64{Online: 2})
		h.write(func(tx *sqldb.Tx) (err error) {
			for _, to := range []device.Stage{device.Retired, device.Disposed} {
				if d, err = h.reg.Move(t.Context(), tx, ada.Actor, device.Move{Num: d.Num, To: to, Reason: "end of life"}); err != nil {
					return err
				}
			}
			return nil
		})
		if err := h.room.forgetSeries(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.expect(map[State]int64{Online: 1})
		for dev, want := range map[device.ID]int{d.ID: 0, other.ID: 1} {
			current, err := h.room.CurrentValues(t.Context(), device.Device{ID: dev, Tenant: "default"})
			if err != nil || len(current) != want {
				t.Errorf("%d values of %s, %v, want %d", len(current), dev, err, want)
			}
		}
		if troubles, err := h.room.Troubles(t.Context(), d.Num); err != nil || len(troubles) != 0 {
			t.Errorf("troubles %v, %v", troubles, err)
		}
	})
}

func (h *house) point(v float64, pairs ...string) *metrics.NumberDataPoint {
	p := &metrics.NumberDataPoint{TimeUnixNano: uint64(h.clock.now().UnixNano()), Value: &metrics.NumberDataPoint_AsDouble{AsDouble: v}}
	for i := 0; i < len(pairs); i += 2 {
		p.Attributes = append(p.Attributes, &common.KeyValue{Key: pairs[i], Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: pairs[i+1]}}})
	}
	return p
}

func gauge(name, unit string, points ...*metrics.NumberDataPoint) *metrics.Metric {
	return &metrics.Metric{Name: name, Unit: unit, Data: &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: points}}}
}

func counter(name, unit string, points ...*metrics.NumberDataPoint) *metrics.Metric {
	return &metrics.Metric{Name: name, Unit: unit, Data: &metrics.Metric_Sum{Sum: &metrics.Sum{DataPoints: points, IsMonotonic: true,
		AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE}}}
}

func (h *house) tryIngest(d device.Device, ms ...*metrics.Metric) error {
	h.Helper()
	body, err := proto.Marshal(&collector.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{ScopeMetrics: []*metrics.ScopeMetrics{{Metrics: ms}}}}})
	if err != nil {
		h.Fatal(err)
	}
	return h.room.Ingest(h.Context(), d, "application/x-protobuf", strings.NewReader(string(body)))
}

func (h *house) ingest(d device.Device, ms ...*metrics.Metric) {
	h.Helper()
	if err := h.tryIngest(d, ms...); err != nil {
		h.Fatal(err)
	}
}

// day lets devices measure for 24 hours, every five minutes.
func (h *house) day(devices ...device.Device) {
	h.Helper()
	for i := range 289 {
		if i > 0 {
			h.clock.pass(5 * time.Minute)
		}
		for n, d := range devices {
			wave := float64((i*7+n*40)%100) / 100
			h.ingest(d,
				gauge("system.cpu.utilization", "1", h.point(0.1+0.5*wave)), gauge("system.memory.usage", "By", h.point(4e8+2e8*wave)), gauge("system.memory.limit", "By", h.point(1e9)),
				gauge("system.filesystem.usage", "By", h.point(9.5e9, "mountpoint", "/"), h.point(1e9, "mountpoint", "/data")),
				gauge("system.filesystem.limit", "By", h.point(1e10, "mountpoint", "/"), h.point(1e10, "mountpoint", "/data")),
				gauge("system.temperature", "Cel", h.point(40+10*wave, "sensor", "board")),
				counter("system.network.io", "By", h.point(float64(i)*300*1000, "device", "eth0", "direction", "receive"), h.point(float64(i)*300*500, "device", "eth0", "direction", "transmit")),
			)
		}
	}
	if err := h.room.flush(h.Context()); err != nil {
		h.Fatal(err)
	}
}

func TestADayOfMetricsBecomesCharts(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	a, b := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "paris"})
	if _, err := h.room.SetPolicy(t.Context(), ada, Policy{ReportSeconds: 300, MetricsSeconds: 300}, ""); err != nil {
		t.Fatal(err)
	}
	h.day(a, b)
	charts, err := h.room.DeviceCharts(t.Context(), a, 24)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"cpu": 1, "memory": 1, "disk": 2, "temperature": 1, "network": 2}
	for _, c := range charts {
		if len(c.Series) != want[c.Name] {
			t.Errorf("chart %s has %d lines, want %d", c.Name, len(c.Series), want[c.Name])
		}
		delete(want, c.Name)
		for _, l := range c.Series {
			if len(l.Points) < 285 {
				t.Errorf("%s, %s: %d points in 24 hours", c.Name, l.Name, len(l.Points))
			}
		}
		if c.Name == "network" {
			if got := c.Series[0].Points[200][1]; got < 950 || got > 1050 || c.Series[0].Name != "receive" {
				t.Errorf("%s %f bytes/s, want about 1000", c.Series[0].Name, got)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("missing charts: %v", want)
	}
	for selector, devices := range map[string]float64{"": 2, "site=berlin": 1, "site=rome": 0} {
		group, err := h.room.GroupCharts(t.Context(), ada.Scope, device.MustSelector(selector), 24)
		if err != nil {
			t.Fatal(err)
		}
		if devices == 0 {
			if len(group.Charts) != 0 {
				t.Errorf("charts of no device: %v", group.Charts)
			}
			continue
		}
		cpu := group.Charts[0]
		if cpu.Name != "cpu" || len(cpu.Series) != 3 || len(cpu.Series[0].Points) < 140 {
			t.Fatalf("group %q: %+v", selector, cpu)
		}
		last := func(i int) float64 { return cpu.Series[i].Points[100][1] }
		if !(last(0) <= last(1) && last(1) <= last(2)) || devices == 1 && last(0) != last(2) {
			t.Errorf("group %q: mean %f, p95 %f, highest %f", selector, last(0), last(1), last(2))
		}
	}
	current, err := h.room.CurrentValues(t.Context(), a)
	if err != nil || len(current) != 10 {
		t.Errorf("%d current values, %v: %v", len(current), err, current)
	}
}

func TestBadMetricsAreRefusedAndCounted(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		ahead := h.point(1)
		ahead.TimeUnixNano = uint64(h.clock.now().Add(3 * time.Hour).UnixNano())
		err := h.tryIngest(d, gauge("system.uptime", "s", h.point(1)), gauge("system.power", "W", ahead))
		if !errors.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), "its clock is 3 hours ahead") || !strings.Contains(err.Error(), "1 of 2 samples") {
			t.Errorf("sample of the future: %v", err)
		}
		var many []*metrics.Metric
		for i := range 250 {
			many = append(many, gauge(fmt.Sprintf("m%d", i), "1", h.point(1)))
		}
		if err := h.tryIngest(d, many...); !errors.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), "a device may have 200") {
			t.Errorf("too many series: %v", err)
		}
		if err := h.room.Ingest(t.Context(), d, "application/json", strings.NewReader("{")); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("broken JSON: %v", err)
		}
		if err := h.room.Ingest(t.Context(), d, "application/json", strings.NewReader(strings.Repeat(" ", wire.MaxMetricsBytes+1))); !errors.Is(err, fault.TooLarge) {
			t.Errorf("too large: %v", err)
		}
		h.sweep()
		troubles, err := h.room.Troubles(t.Context(), d.Num)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int64{}
		for _, tr := range troubles {
			got[tr.Kind] = tr.Count
		}
		if want := map[string]int64{TroubleClock: 1, TroubleSeries: 51, TroubleMetrics: 2}; !maps.Equal(got, want) {
			t.Errorf("troubles %v, want %v", got, want)
		}
		wrong, err := h.room.InTrouble(t.Context(), ada.Scope, TroubleClock)
		if err != nil || len(wrong) != 1 || wrong[0].Device.ID != d.ID {
			t.Errorf("wrong clocks: %v, %v", wrong, err)
		}
		h.clock.pass(2 * time.Hour)
		if wrong, err := h.room.InTrouble(t.Context(), ada.Scope, TroubleClock); err != nil || len(wrong) != 0 {
			t.Errorf("two hours later: %v, %v", wrong, err)
		}
	})
}

func TestNoticesNameWhatNeedsSomebodyWithinTheScope(t *testing.T) {
	each(t, func(h *house) {
		full, gone, bad := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "paris"}), h.device(map[string]string{"site": "berlin"})
		h.live(time.Minute, full, gone, bad)
		h.live(6*time.Minute, full, bad)
		h.ingest(full, gauge("system.filesystem.usage", "By", h.point(95, "mountpoint", "/")), gauge("system.filesystem.limit", "By", h.point(100, "mountpoint", "/")))
		h.room.Seen(bad, wire.Report{Time: h.clock.now().Add(-2 * time.Hour)})
		h.sweep()
		for _, c := range []struct {
			selector string
			want     []string
		}{
			{"", []string{"/devices?presence=offline", "/monitoring/disk", "/monitoring/clock"}},
			{"site=berlin", []string{"/monitoring/disk", "/monitoring/clock"}}, {"site=paris", []string{"/devices?presence=offline"}},
		} {
			notices, err := h.room.Notices(t.Context(), device.Scope{Tenant: "default", Selector: device.MustSelector(c.selector)})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, n := range notices {
				got = append(got, n.Href)
				if n.Count != 1 || !strings.HasPrefix(n.Title, "1 device ") || n.Level < ui.Warn {
					t.Errorf("notice %+v", n)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("selector %q: %v, want %v", c.selector, got, c.want)
			}
		}
	})
}

func TestGroupsAreNamedSelectorsWithHistory(t *testing.T) {
	each(t, func(h *house) {
		a := h.device(map[string]string{"site": "berlin"})
		h.device(map[string]string{"site": "berlin"})
		h.device(map[string]string{"site": "paris"})
		h.live(time.Minute, a)
		g, err := h.room.CreateGroup(t.Context(), ada, Group{Name: "berlin", Selector: device.MustSelector("site=berlin")})
		if err != nil {
			t.Fatal(err)
		}
		roll, err := h.room.RollUp(t.Context(), ada.Scope, g.Selector)
		if err != nil || roll != (RollUp{Devices: 2, Online: 1, Never: 1}) {
			t.Errorf("roll-up %+v, %v", roll, err)
		}
		if _, err := h.room.CreateGroup(t.Context(), ada, g); !errors.Is(err, fault.Conflict) {
			t.Errorf("same name: %v", err)
		}
		for _, name := range []string{"", "New York", "new", "-x", strings.Repeat("x", 41)} {
			if _, err := h.room.CreateGroup(t.Context(), ada, Group{Name: name}); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("name %q: %v", name, err)
			}
		}
		other := ada
		other.Scope.Tenant = "other"
		if _, err := h.room.Group(t.Context(), "other", "berlin"); !errors.Is(err, fault.NotFound) {
			t.Errorf("another tenant's group: %v", err)
		}
		if err := h.room.DeleteGroup(t.Context(), other, "berlin"); !errors.Is(err, fault.NotFound) {
			t.Errorf("another tenant deletes: %v", err)
		}
		g.Selector = device.MustSelector("site in (berlin,paris)")
		if g, err = h.room.UpdateGroup(t.Context(), ada, g, httpapi.ETag(1)); err != nil || g.Revision != 2 {
			t.Fatal(g, err)
		}
		if _, err := h.room.UpdateGroup(t.Context(), ada, g, httpapi.ETag(1)); !errors.Is(err, fault.Precondition) {
			t.Errorf("old ETag: %v", err)
		}
		if err := h.room.DeleteGroup(t.Context(), ada, "berlin"); err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, e := range ledgertest.Events(t, h.ledger, ledger.Filter{Tenant: "default", Subject: "berlin"}) {
			kinds = append(kinds, e.Kind)
		}
		slices.Sort(kinds)
		if !slices.Equal(kinds, []string{"monitoring.group_changed", "monitoring.group_created", "monitoring.group_deleted"}) {
			t.Errorf("events %v", kinds)
		}
	})
}
