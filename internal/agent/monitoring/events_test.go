package monitoring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"steward/internal/agent/agenttest"
	"steward/internal/agent/host/sim"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// eventRoom is a room over a journal in dir, on a machine whose disk the test can fill.
func eventRoom(t *testing.T, dir string, s *sender, crash func(string) error) (*Room, *sim.Device) {
	t.Helper()
	j, err := journal.Open(journal.Config{Dir: dir, Crash: crash})
	if err != nil {
		t.Fatal(err)
	}
	device := sim.NewFleet(sim.Config{Seed: 3}).Device(1)
	return New(Config{
		Host: device, Sender: s, Journal: j, Device: "dev-x", Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	}), device
}

func TestEventsWaitOverARestartAndAreSentInOrder(t *testing.T) {
	s, dir := &sender{fail: errors.New("offline")}, t.TempDir()
	r, _ := eventRoom(t, dir, s, nil)
	for i := range 3 {
		r.Event(wire.DeviceEvent{Name: fmt.Sprint("e", i), Time: time.Now()}, "")
		r.sendEvents(t.Context())
	}
	s.fail = nil
	r, _ = eventRoom(t, dir, s, nil)
	r.sendEvents(t.Context())
	r.sendEvents(t.Context())
	if len(s.events) != 3 || s.events[0].Name != "e0" || s.events[2].Name != "e2" {
		t.Errorf("%+v", s.events)
	}
	if r, _ = eventRoom(t, dir, s, nil); len(r.events.Waiting) != 0 {
		t.Errorf("%+v wait after the acknowledgement", r.events.Waiting)
	}
}

func TestEventQueueIsBoundedAndSaysWhatItLost(t *testing.T) {
	s := &sender{fail: errors.New("offline")}
	r, _ := eventRoom(t, t.TempDir(), s, nil)
	for i := range maxEvents + 10 {
		r.Event(wire.DeviceEvent{Name: fmt.Sprint("e", i), Text: strings.Repeat("ä", maxText)}, fmt.Sprint("once", i))
	}
	if n := len(r.events.Waiting); n != maxEvents {
		t.Fatalf("%d wait", n)
	}
	s.fail = nil
	r.sendEvents(t.Context())
	if len(s.events) != maxEvents || s.events[0].Name != "e10" || len(s.events[0].Text) > maxText || r.events.Lost != 0 {
		t.Errorf("%d events, first %s with %d bytes, %d lost", len(s.events), s.events[0].Name, len(s.events[0].Text), r.events.Lost)
	}
}

func TestEventIsToldOnceOverRestarts(t *testing.T) {
	s, dir := &sender{}, t.TempDir()
	for range 3 {
		r, _ := eventRoom(t, dir, s, nil)
		r.Event(wire.DeviceEvent{Name: "update.rolled_back"}, "update/app/1/a/1")
		r.Event(wire.DeviceEvent{Name: "update.rolled_back"}, "update/app/1/a/1")
		r.sendEvents(t.Context())
	}
	if len(s.events) != 1 {
		t.Errorf("%d events", len(s.events))
	}
}

func TestEventThatTheServerRefusesIsDropped(t *testing.T) {
	s := &sender{fail: &link.Problem{Problem: wire.Problem{Status: 422}}}
	r, _ := eventRoom(t, t.TempDir(), s, nil)
	r.Event(wire.DeviceEvent{Name: "bad"}, "")
	r.sendEvents(t.Context())
	if len(r.events.Waiting) != 0 {
		t.Error("kept")
	}
	s.fail = &link.Problem{Problem: wire.Problem{Status: 503}}
	r.Event(wire.DeviceEvent{Name: "good"}, "")
	r.sendEvents(t.Context())
	if len(r.events.Waiting) != 1 {
		t.Error("a refusal that passes dropped it")
	}
}

// A full disk is when this event is made, so it must not need the disk.
func TestNearlyFullDiskIsToldOnceUntilThereIsSpace(t *testing.T) {
	s := &sender{}
	full := false
	r, device := eventRoom(t, t.TempDir(), s, func(string) error {
		if full {
			return errors.New("no space left on device")
		}
		return nil
	})
	measure := func() {
		r.measure(t.Context())
		r.sendEvents(t.Context())
	}
	measure()
	full = true
	device.SetDiskFull(true)
	measure()
	measure()
	if len(s.events) != 1 || s.events[0].Name != eventDisk || !strings.Contains(string(s.events[0].Data), `"mountpoint":"/"`) {
		t.Fatalf("%+v", s.events)
	}
	full = false
	device.SetDiskFull(false)
	measure()
	device.SetDiskFull(true)
	measure()
	if len(s.events) != 2 {
		t.Errorf("%d events after it was full again", len(s.events))
	}
}

func TestEventIsSentAtOnce(t *testing.T) {
	s := &sender{}
	r, _ := eventRoom(t, t.TempDir(), s, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.Event(wire.DeviceEvent{Name: "now"}, "")
	agenttest.Eventually(t, "sent", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.events) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
