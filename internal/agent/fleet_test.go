package agent_test

import (
	"context"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/agenttest"
	"steward/internal/agent/host/sim"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Many agents share a process without sharing anything else, and end without leaving goroutines.
func TestManyAgentsInOneProcess(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, mode := range []link.Mode{link.ModeAuto, link.ModeHTTPS} {
		t.Run(string(mode), func(t *testing.T) { runFleet(t, 25, mode) })
	}
	agenttest.Eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// runFleet gives each agent a server's token; the fake server has one device, so all of them are
// copies with a key of their own.
func runFleet(t testing.TB, n int, mode link.Mode) (bytesPerAgent uint64) {
	s := agenttest.Start(t)
	s.Do(func() { s.ManyKeys = true })
	s.SetDesired(wire.SectionMonitoring, wire.MonitoringDesired{ReportSeconds: 60, MetricsSeconds: 60})
	fleet := sim.NewFleet(sim.Config{Seed: 1})
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	start := memory.HeapInuse + memory.StackInuse
	for i := range n {
		device := fleet.Device(i)
		a, err := agent.New(agent.Config{
			StateDir: filepath.Join(dir, device.Identity(ctx).Serial), Server: s.URL, Token: s.Token, Serial: agenttest.Serial, Host: device, Dial: device.Dial, Link: mode,
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	agenttest.Eventually(t, "all report", func() bool { return instances(s.Reports()) == n })
	agenttest.Eventually(t, "all are connected", func() bool {
		return mode == link.ModeHTTPS && s.Calls("GET "+wire.PathDesired) >= 2*n || s.Streams() == n
	})
	runtime.GC()
	runtime.ReadMemStats(&memory)
	bytesPerAgent = (memory.HeapInuse + memory.StackInuse - start) / uint64(n)
	cancel()
	wg.Wait()
	return bytesPerAgent
}

func instances(reports []wire.Report) int {
	seen := map[string]bool{}
	for _, r := range reports {
		seen[r.Instance] = true
	}
	return len(seen)
}

// BenchmarkAgentsInOneProcess tells the memory of one simulated agent, its connection's both ends
// included.
func BenchmarkAgentsInOneProcess(b *testing.B) {
	for _, mode := range []link.Mode{link.ModeAuto, link.ModeHTTPS} {
		b.Run(string(mode), func(b *testing.B) {
			started := time.Now()
			var each uint64
			for b.Loop() {
				each = runFleet(b, 100, mode)
			}
			b.ReportMetric(float64(each)/1024, "KiB/agent")
			b.ReportMetric(float64(time.Since(started).Milliseconds())/float64(b.N*100), "ms/agent")
		})
	}
}
