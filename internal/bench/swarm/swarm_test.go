package swarm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be a worker process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := Work(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestMergedTalliesCountAndRankAsOne(t *testing.T) {
	began := time.UnixMicro(1_000_000)
	var a, b, whole Tally
	for i := 1; i <= 60; i++ {
		a.Done(began, began.Add(time.Duration(i)*time.Millisecond), nil)
	}
	for i := 61; i <= 100; i++ {
		b.Done(began.Add(time.Second), began.Add(time.Second+time.Duration(i)*time.Millisecond), nil)
	}
	b.Done(began, began.Add(2*time.Second), errors.New("no"))
	b.Missed(2, "late")
	a.Fact("resumed", 3)
	b.Fact("resumed", 4)
	whole.Merge(&a)
	whole.Merge(&b)
	whole.Merge(nil)
	if whole.Count != 103 || whole.Failed != 3 || whole.First != "no" || whole.Facts["resumed"] != 7 {
		t.Errorf("merged %d, failed %d, first %q, facts %v", whole.Count, whole.Failed, whole.First, whole.Facts)
	}
	if p50, p99 := whole.Percentile(50), whole.Percentile(99); p50 != 50*time.Millisecond || p99 != 99*time.Millisecond {
		t.Errorf("p50 %s, p99 %s", p50, p99)
	}
	if whole.Elapsed() != 2*time.Second || whole.PerSecond() != 50 {
		t.Errorf("took %s, %v per second", whole.Elapsed(), whole.PerSecond())
	}
	var none Tally
	if none.Percentile(99) != 0 || none.PerSecond() != 0 {
		t.Error("nothing has a percentile or a rate")
	}
}

func TestEachDeviceHasALoopbackAddressOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for i := range 100_000 {
		ip := address(i)
		if !ip.IsLoopback() || ip.String() == "127.0.0.1" || seen[ip.String()] {
			t.Fatalf("device %d has %s", i, ip)
		}
		seen[ip.String()] = true
	}
}

func TestProcessesFollowTheLimitOfOpenFiles(t *testing.T) {
	per, err := PerProcess()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ devices, wanted, want int }{{0, 0, 1}, {1, 0, 1}, {per, 0, 1}, {per + 1, 0, 2}, {10, 3, 3}} {
		if got, err := Processes(c.devices, c.wanted); got != c.want || err != nil {
			t.Errorf("%d devices, %d wanted: %d, %v; want %d", c.devices, c.wanted, got, err, c.want)
		}
	}
	if _, err := Processes(2*per+1, 2); err == nil || !strings.Contains(err.Error(), "3 are needed") {
		t.Errorf("too few processes: %v", err)
	}
}

func TestAllProcessesReportTheSameDocuments(t *testing.T) {
	a, b := makeDocuments(), makeDocuments()
	for section, hash := range a.all {
		if b.all[section] != hash || len(b.body[hash]) == 0 {
			t.Errorf("section %s: %s and %s", section, hash, b.all[section])
		}
	}
	known := map[string]bool{}
	for _, hash := range a.all {
		known[string(hash)] = true
	}
	for i, set := range a.sets {
		for section, hash := range set {
			if !known[string(hash)] {
				t.Errorf("set %d: the server does not know the document of %s", i, section)
			}
		}
	}
}

func TestWorkerRefusesWhatIsNoOrder(t *testing.T) {
	for in, want := range map[string]string{
		`{"do":"dance"}` + "\n": `unknown order \"dance\"`, `{"do":"enroll"}` + "\n": "unknown order", `{"do":"leave"}` + "\n": "{}",
	} {
		var out bytes.Buffer
		if err := Work(t.Context(), strings.NewReader(in), &out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s, %v; want %s", in, out.String(), err, want)
		}
	}
	if err := Work(t.Context(), strings.NewReader("no order\n"), &bytes.Buffer{}); err == nil {
		t.Error("a line that is no JSON was obeyed")
	}
}

func testCrew(t *testing.T, processes int) *Crew {
	c, err := Start([]string{os.Args[0], "worker"}, processes, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTicketsAreSharedOutOverTheProcesses(t *testing.T) {
	c := testCrew(t, 3)
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	// No ticket has a token: each process refuses its share, and says so.
	_, err := c.Enroll(t.Context(), time.Minute, Enroll{Link: "https://127.0.0.1:1", Tickets: make([]Ticket, 7), AtOnce: 3})
	if err == nil || strings.Count(err.Error(), "not an enrollment token") != 3 {
		t.Errorf("got %v", err)
	}
	if err := c.Mark(t.Context()); err != nil {
		t.Errorf("after a refused order: %v", err)
	}
	if tally, err := c.Served(t.Context(), time.Minute, ""); err != nil || tally.Count != 0 {
		t.Errorf("no devices: %+v, %v", tally, err)
	}
}

func TestKilledWorkerIsToldNotWaitedFor(t *testing.T) {
	c := testCrew(t, 2)
	if err := c.workers[1].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Mark(t.Context()); err == nil {
		t.Error("an order to a dead process was obeyed")
	}
	if err := c.Close(); err == nil {
		t.Error("the death of a process is not told")
	}
}

func TestBoardCountsWhatNeverComesAsFailed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	b := newBoard()
	began := time.Now()
	for range 4 {
		b.begin()
	}
	b.end(began, nil)
	b.end(began, errors.New("no"))
	b.forget()
	if got := b.finish(ctx); got.Count != 3 || got.Failed != 2 || got.First != "no" {
		t.Errorf("got %+v", got)
	}
	whole := newBoard()
	whole.begin()
	whole.end(began, nil)
	if got := whole.finish(t.Context()); got.Count != 1 || got.Failed != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestOrdersSurviveTheirTrip(t *testing.T) {
	in := order{Do: doReports, Within: time.Minute, Reports: &Reports{For: time.Second, InFlight: 3, Changed: true}}
	line, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out order
	if err := json.Unmarshal(line, &out); err != nil || out.Do != in.Do || out.Within != in.Within || *out.Reports != *in.Reports {
		t.Errorf("%s: %+v, %v", line, out, err)
	}
}
