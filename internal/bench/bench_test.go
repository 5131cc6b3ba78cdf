package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"steward/internal/sqldb/sqldbtest"
)

// TestMain lets the test binary be the server's process, as steward-bench is.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == serveCommand:
		os.Exit(Serve("test", os.Args[2:], os.Stdout, os.Stderr))
	case len(os.Args) > 1 && os.Args[1] == workerCommand:
		os.Exit(Work(os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(sqldbtest.Main(m))
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	var hundred []time.Duration
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i)*time.Millisecond)
	}
	for _, c := range []struct {
		values []time.Duration
		p      float64
		want   float64
	}{
		{nil, 99, 0}, {hundred[:1], 50, 100}, {hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
		{[]time.Duration{3e6, 1e6, 2e6}, 50, 2}, {[]time.Duration{3e6, 1e6, 2e6}, 99, 3},
	} {
		if got := percentile(append([]time.Duration(nil), c.values...), c.p); got != c.want {
			t.Errorf("percentile %v of %d values = %v, want %v", c.p, len(c.values), got, c.want)
		}
	}
}

func TestRoundsGiveTheirMedianAndAllFailures(t *testing.T) {
	got := medianOf([]Result{
		{Failed: 1, P50: 10, P99: 90, CPUPerRequest: 3, PerSecond: 5}, {Failed: 2, P50: 30, P99: 20, CPUPerRequest: 1, PerSecond: 7}, {P50: 20, P99: 30, CPUPerRequest: 2, PerSecond: 6},
	})
	if got.Failed != 3 || got.P50 != 20 || got.P99 != 30 || got.CPUPerRequest != 2 || got.PerSecond != 6 {
		t.Errorf("got %+v", got)
	}
	if even := median([]float64{4, 1, 3, 2}); even != 2.5 {
		t.Errorf("median of four = %v", even)
	}
}

func TestNumbersKeepFourDigits(t *testing.T) {
	for in, want := range map[float64]float64{0: 0, 1234567: 1235000, 12.34567: 12.35, 0.000123456: 0.0001235, 1000: 1000} {
		if got := rounded(in); got != want {
			t.Errorf("rounded(%v) = %v, want %v", in, got, want)
		}
	}
}

func TestJSONAlwaysHasTheFieldsThatScriptsRead(t *testing.T) {
	var out bytes.Buffer
	if err := writeJSON(&out, []Result{{Scenario: "idle"}, {Scenario: "reads/stock", P99: 1.23456}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("want an object per line, got %s", out.String())
	}
	for _, line := range lines {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"scenario", "devices", "failed", "seconds", "per_second", "server_kib_per_device", "server_cpu_ms_per_device", "p50_ms", "p99_ms"} {
			if _, has := object[key]; !has {
				t.Errorf("%s misses %s", line, key)
			}
		}
		if _, has := object["server_kib"]; has {
			t.Errorf("%s shows what was not measured", line)
		}
	}
}

func TestTableLeavesEmptyColumnsOut(t *testing.T) {
	var out bytes.Buffer
	if err := writeTable(&out, []Result{{Scenario: "a", Devices: 5, P50: 1.25}, {Scenario: "b", KiBPerDevice: 40}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"devices", "failed", "p50 ms", "KiB/device"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no column %s in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "p99") {
		t.Errorf("an empty column is shown:\n%s", out.String())
	}
}

func TestClosedLoopDoesEachOnceAndCountsFailures(t *testing.T) {
	seen := make(chan int, 100)
	m := loop{workers: 7, count: 100}.run(t.Context(), func(_ context.Context, i int) error {
		seen <- i
		if i%10 == 0 {
			return errors.New("no")
		}
		return nil
	})
	close(seen)
	once := map[int]bool{}
	for i := range seen {
		once[i] = true
	}
	if len(once) != 100 || m.failed != 10 || len(m.latencies) != 90 || m.first == nil {
		t.Errorf("did %d, failed %d, measured %d, first error %v", len(once), m.failed, len(m.latencies), m.first)
	}
}

func TestOwnProcessTimeAndMemoryAreRead(t *testing.T) {
	self := process(os.Getpid())
	before, err := self.cpu()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		after, err := self.cpu()
		if err != nil {
			t.Fatal(err)
		}
		if after > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the processor time of a busy process does not grow")
		}
	}
	family, err := self.familyCPU()
	if err != nil || family < before {
		t.Errorf("family %v, own %v, %v", family, before, err)
	}
	m, err := self.memory()
	if err != nil || m.Resident < 1000 || m.Peak < m.Resident || m.Anonymous > m.Resident {
		t.Errorf("memory %+v, %v", m, err)
	}
	if _, err := process(1 << 30).memory(); err == nil {
		t.Error("a process that doesn't exist has memory")
	}
}

func TestWrongInvocationsAreRefused(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"reads", "--devices", "-1"}, "--devices"}, {[]string{"enroll", "--devices", "0"}, "makes no sense"}, {[]string{"idle", "--span", "0s"}, "--span"},
		{[]string{"reads", "--clients", "0"}, "--clients"}, {[]string{"change", "now"}, "unknown argument"}, {[]string{"idle", "--wrong"}, "unknown flag"},
		{[]string{"idle", "--processes", "-2"}, "--processes"}, {[]string{"idle", "--processes", "1", "--devices", "1000000"}, "ulimit"}, {[]string{"idle", "--nodes", "3"}, "--nodes"},
		{[]string{"reports", "--in-flight", "40"}, "--in-flight"}, {[]string{"idle", "--server", "http://127.0.0.1:1"}, "--bootstrap"},
		{[]string{"idle", "--bootstrap", "/nowhere/bootstrap.json"}, "--bootstrap"},
	} {
		var out, diag bytes.Buffer
		if code := Main("test", c.args, &out, &diag); code != 2 || !strings.Contains(diag.String(), c.want) {
			t.Errorf("%v: exit code %d, %s", c.args, code, diag.String())
		}
	}
}

// testBench is small enough for every day.
func testBench(t *testing.T) *bench {
	return &bench{devices: 50, clients: 2, requests: 4, rounds: 1, span: 100 * time.Millisecond, nodes: 1, inFlight: 1, dir: t.TempDir(), progress: t.Output()}
}

func runScenario(t *testing.T, b *bench, name string) map[string]Result {
	t.Helper()
	for _, s := range scenarios() {
		if s.name != name {
			continue
		}
		rows, err := b.run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]Result{}
		for _, r := range rows {
			if r.Failed > 0 {
				t.Errorf("%s: %d failed", r.Scenario, r.Failed)
			}
			found[r.Scenario] = r
		}
		return found
	}
	t.Fatalf("no scenario %s", name)
	return nil
}

func TestReadsOfASmallFleet(t *testing.T) {
	rows := runScenario(t, testBench(t), "reads")
	for _, want := range []string{"reads/register", "reads/devices, first page", "reads/one device", "reads/ledger, newest page", "reads/page: device"} {
		if r, has := rows[want]; !has || r.Devices != 50 || r.PerSecond <= 0 {
			t.Errorf("%s: %+v", want, r)
		}
	}
	if rows["reads/register"].ServerKiB < 10_000 {
		t.Errorf("the server's memory is not measured: %+v", rows["reads/register"])
	}
}

// smallFleet is a bench with devices in two processes.
func smallFleet(t *testing.T) *bench {
	b := testBench(t)
	b.devices, b.processes, b.span = 20, 2, 2*time.Second
	b.clients, b.rounds = 2, 2
	return b
}

func TestDevicesEnrollConnectAndReport(t *testing.T) {
	rows := runScenario(t, smallFleet(t), "enroll")
	for _, want := range []string{"enroll", "enroll/first connection", "enroll/first report"} {
		if r := rows[want]; r.Devices != 20 || r.P99 < r.P50 || r.P50 <= 0 || r.CPUPerDevice <= 0 || r.Processes != 2 {
			t.Errorf("%s: %+v", want, r)
		}
	}
}

func TestConnectedDevicesAreMeasuredAtRestAndInAStorm(t *testing.T) {
	rows := runScenario(t, smallFleet(t), "idle")
	if r := rows["idle"]; r.Devices != 20 || r.ServerKiB < 10_000 || r.ServerAnonKiB <= 0 || r.Seconds < 2 {
		t.Errorf("idle: %+v", r)
	}
	if r, has := rows["idle/after a collection"]; !has || r.ServerKiB < 10_000 {
		t.Errorf("after a collection: %+v", r)
	}
	if r := runScenario(t, smallFleet(t), "connect")["connect"]; r.Facts["full"] != 20 || r.P50 <= 0 || r.CPUPerDevice <= 0 {
		t.Errorf("connect: %+v", r)
	}
}

func TestReportsAreAcknowledged(t *testing.T) {
	b := smallFleet(t)
	b.inFlight, b.quiet = 2, true
	rows := runScenario(t, b, "reports")
	for _, want := range []string{"reports/changed", "reports/unchanged"} {
		if r := rows[want]; r.PerSecond <= 0 || r.P99 < r.P50 || r.P50 <= 0 || r.CPUPerRequest <= 0 {
			t.Errorf("%s: %+v", want, r)
		}
	}
}

func TestAChangeReachesAllConnectedDevices(t *testing.T) {
	if r := runScenario(t, smallFleet(t), "change")["change"]; r.Devices != 20 || r.P99 < r.P50 || r.P99 <= 0 || r.PerSecond <= 0 {
		t.Errorf("change: %+v", r)
	}
}

func TestDevicesComeBackToAServerThatWasKilledAndOneThatWasStopped(t *testing.T) {
	rows := runScenario(t, smallFleet(t), "reconnect")
	for _, want := range []string{"reconnect/killed", "reconnect/stopped"} {
		if r := rows[want]; r.P50 <= 0 || r.Resumed < 0.9 {
			t.Errorf("%s: %+v", want, r)
		}
	}
}

func TestThreeNodesOnPostgreSQLAreMeasuredAsOne(t *testing.T) {
	b := smallFleet(t)
	b.nodes, b.database = 3, sqldbtest.URL(t, "postgres")
	rows := runScenario(t, b, "reconnect")
	for _, want := range []string{"reconnect/killed", "reconnect/stopped", "reconnect/one node killed"} {
		if r := rows[want]; r.P50 <= 0 || r.Devices == 0 || r.Nodes != 3 || r.Database != "postgres" {
			t.Errorf("%s: %+v", want, r)
		}
	}
	if alone := rows["reconnect/one node killed"].Devices; alone >= 20 {
		t.Errorf("all %d devices were on one node of three", alone)
	}
}

func TestADayHasMessagesCommandsReadersAndAChange(t *testing.T) {
	b := smallFleet(t)
	b.span = 5 * time.Second
	rows := runScenario(t, b, "mixed")
	for _, want := range []string{"mixed", "mixed/heartbeats", "mixed/changed reports", "mixed/telemetry", "mixed/events", "mixed/commands", "mixed/reads"} {
		if r := rows[want]; r.P99 < r.P50 || r.P50 <= 0 || r.PerSecond <= 0 {
			t.Errorf("%s: %+v", want, r)
		}
	}
	// Half of so few devices may have it within the clock's next tick.
	if r := rows["mixed/change"]; r.P99 < r.P50 || r.P99 <= 0 || r.PerSecond <= 0 {
		t.Errorf("mixed/change: %+v", r)
	}
}

func TestAServerThatIsThereAlreadyIsMeasured(t *testing.T) {
	own := testBench(t)
	program, err := serverProgram()
	if err != nil {
		t.Fatal(err)
	}
	n, err := own.startNode(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.stop(); err != nil {
			t.Error(err)
		}
	}()
	b := smallFleet(t)
	b.bootstrap = n.dir + "/bootstrap.json"
	for range 2 { // a second time on the same server
		if r := runScenario(t, b, "enroll")["enroll"]; r.CPUPerDevice <= 0 || r.ServerKiB <= 0 {
			t.Errorf("a server on this machine is not measured: %+v", r)
		}
	}
	for _, s := range scenarios() {
		if s.name == "reconnect" {
			if _, err := b.run(t.Context(), s); !errors.As(err, &usageError{}) {
				t.Errorf("a server that is not ours was to be killed: %v", err)
			}
		}
	}
}
