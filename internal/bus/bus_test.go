package bus_test

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"steward/internal/bus"
)

func start(t *testing.T, cfg bus.Config) *bus.Bus {
	t.Helper()
	b, err := bus.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// receive returns the next message or fails.
func receive(t *testing.T, messages <-chan string) string {
	t.Helper()
	select {
	case m := <-messages:
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("no message")
		return ""
	}
}

func subscribe(t *testing.T, b *bus.Bus, subject string) (messages <-chan string, cancel func()) {
	t.Helper()
	c := make(chan string, 1000)
	cancel, err := b.Subscribe(subject, func(subject string, data []byte) { c <- subject + " " + string(data) })
	if err != nil {
		t.Fatal(err)
	}
	return c, cancel
}

func publish(t *testing.T, b *bus.Bus, subject, data string) {
	t.Helper()
	if err := b.Publish(subject, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func TestMessageReachesAllWhoseSubjectMatches(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := start(t, bus.Config{})
	defer b.Close()
	exact, _ := subscribe(t, b, "ledger.appended")
	wild, _ := subscribe(t, b, "ledger.*")
	other, _ := subscribe(t, b, "twin.>")
	publish(t, b, "ledger.appended", "1")
	publish(t, b, "twin.desired.dev-1", "2")
	for _, c := range []<-chan string{exact, wild} {
		if m := receive(t, c); m != "ledger.appended 1" {
			t.Errorf("got %q", m)
		}
	}
	if m := receive(t, other); m != "twin.desired.dev-1 2" {
		t.Errorf("got %q", m)
	}
}

func TestCancelledSubscriptionGetsNothingMore(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := start(t, bus.Config{})
	defer b.Close()
	gone, cancel := subscribe(t, b, "a")
	cancel()
	cancel() // twice does no harm
	stays, _ := subscribe(t, b, "a")
	publish(t, b, "a", "1")
	receive(t, stays)
	select {
	case m := <-gone:
		t.Errorf("got %q", m)
	default:
	}
}

func TestHeardMessageReachesSubscribersOfThisProcessOnly(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := outside(t, -1)
	defer s.Shutdown()
	a, b := start(t, bus.Config{URL: s.ClientURL()}), start(t, bus.Config{URL: s.ClientURL()})
	defer b.Close()
	defer a.Close()
	far, _ := subscribe(t, b, ">")
	near := map[string]<-chan string{}
	for _, pattern := range []string{"a.b.c", "a.*.c", "a.>", ">", "a.*", "a.b", "a.b.c.d", "*.*.*", "x.>", "a.b.c.>"} {
		near[pattern], _ = subscribe(t, a, pattern)
	}
	a.Hear("a.b.c", []byte("1"))
	for pattern, c := range near {
		want := map[string]int{"a.b.c": 1, "a.*.c": 1, "a.>": 1, ">": 1, "*.*.*": 1}[pattern]
		if len(c) != want {
			t.Errorf("%s got %d messages, want %d", pattern, len(c), want)
		}
	}
	publish(t, a, "last", "")
	if m := receive(t, far); m != "last " {
		t.Errorf("another process got %q", m)
	}
}

func TestSlowSubscriberHoldsNobodyUp(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := start(t, bus.Config{})
	defer b.Close()
	gate := make(chan struct{})
	defer close(gate)
	if _, err := b.Subscribe("a", func(string, []byte) { <-gate }); err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	if _, err := b.Subscribe("a", func(string, []byte) { got.Add(1) }); err != nil {
		t.Fatal(err)
	}
	const messages = 100_000 // more than a subscriber may lag behind
	last, _ := subscribe(t, b, "last")
	for i := range messages {
		publish(t, b, "a", fmt.Sprint(i))
	}
	publish(t, b, "last", "")
	receive(t, last)
	deadline := time.After(20 * time.Second)
	for got.Load() == 0 {
		select {
		case <-deadline:
			t.Fatal("the quick subscriber got nothing")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestCloseDeliversWhatWasSentAndLeavesNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := start(t, bus.Config{})
	var got atomic.Int64
	if _, err := b.Subscribe("a", func(string, []byte) { got.Add(1) }); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		publish(t, b, "a", "")
	}
	b.Close()
	if got.Load() != 500 {
		t.Errorf("%d of 500 delivered", got.Load())
	}
	if err := b.Publish("a", nil); err == nil {
		t.Error("published after Close")
	}
	if _, err := b.Subscribe("a", func(string, []byte) {}); err == nil {
		t.Error("subscribed after Close")
	}
}

func TestWrongSubjectIsRefused(t *testing.T) {
	b := start(t, bus.Config{})
	defer b.Close()
	for _, subject := range []string{"", "a b"} {
		if err := b.Publish(subject, nil); err == nil {
			t.Errorf("published to %q", subject)
		}
		if _, err := b.Subscribe(subject, func(string, []byte) {}); err == nil {
			t.Errorf("subscribed to %q", subject)
		}
	}
}

// outside starts a NATS server as an operator has one.
func outside(t *testing.T, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	return s
}

func TestNodesMeetOnAnOutsideServer(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := outside(t, -1)
	defer func() { s.Shutdown(); s.WaitForShutdown() }()
	one, two := start(t, bus.Config{URL: s.ClientURL(), Name: "one"}), start(t, bus.Config{URL: s.ClientURL(), Name: "two"})
	defer one.Close()
	defer two.Close()
	messages, _ := subscribe(t, two, "a")
	publish(t, one, "a", "hello")
	if m := receive(t, messages); m != "a hello" {
		t.Errorf("got %q", m)
	}
}

func TestNodeStartsWithoutTheOutsideServerAndComesBackByItself(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b := start(t, bus.Config{URL: fmt.Sprintf("nats://127.0.0.1:%d", port)})
	defer b.Close()
	if b.Connected() {
		t.Fatal("connected to nothing")
	}
	messages, _ := subscribe(t, b, "a")
	for range 2 { // it appears, goes, and appears again
		s := outside(t, port)
		deadline := time.After(20 * time.Second)
		for !b.Connected() {
			select {
			case <-deadline:
				t.Fatal("not connected again")
			case <-time.After(10 * time.Millisecond):
			}
		}
		publish(t, b, "a", "back")
		receive(t, messages)
		s.Shutdown()
		s.WaitForShutdown()
		for b.Connected() {
			select {
			case <-deadline:
				t.Fatal("still connected")
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}
