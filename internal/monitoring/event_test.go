package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/wire"
)

func (h *house) event(d device.Device, e wire.DeviceEvent) {
	h.Helper()
	if err := h.room.Event(h.Context(), d, e); err != nil {
		h.Fatal(err)
	}
}

func (h *house) events(scope device.Scope, f EventFilter) (names []string) {
	h.Helper()
	f.Limit = max(f.Limit, 3)
	for {
		list, next, err := h.room.Events(h.Context(), scope, f)
		if err != nil {
			h.Fatal(err)
		}
		for _, e := range list {
			names = append(names, e.Name)
		}
		if f.Cursor = next; next == "" {
			return names
		}
	}
}

var whole = device.Scope{Tenant: "default"}

func TestDeviceEventsAreListedNewestFirst(t *testing.T) {
	each(t, func(h *house) {
		berlin, paris := h.device(map[string]string{"site": "berlin"}), h.device(map[string]string{"site": "paris"})
		for i, severity := range []string{"", "warning", "error", "info", "error"} {
			h.event(berlin, wire.DeviceEvent{Name: fmt.Sprintf("b%d", i), Severity: severity, Text: "t", Data: json.RawMessage(` {"n": 1} `)})
			h.clock.pass(time.Second)
			h.event(paris, wire.DeviceEvent{Name: fmt.Sprintf("p%d", i), Severity: severity})
			h.clock.pass(time.Second)
		}
		narrow, other := whole, device.Scope{Tenant: "other"}
		narrow.Selector = device.MustSelector("site=paris")
		for _, c := range []struct {
			scope device.Scope
			f     EventFilter
			want  string
		}{
			{whole, EventFilter{}, "p4 b4 p3 b3 p2 b2 p1 b1 p0 b0"},
			{whole, EventFilter{Least: Warning}, "p4 b4 p2 b2 p1 b1"},
			{whole, EventFilter{Least: Error}, "p4 b4 p2 b2"},
			{whole, EventFilter{Device: string(berlin.ID)}, "b4 b3 b2 b1 b0"},
			{whole, EventFilter{Device: string(berlin.ID), Least: Error}, "b4 b2"},
			{whole, EventFilter{Name: "p3"}, "p3"},
			{whole, EventFilter{From: morning.Add(4 * time.Second), To: morning.Add(7 * time.Second)}, "b3 p2 b2"},
			{narrow, EventFilter{}, "p4 p3 p2 p1 p0"},
			{other, EventFilter{}, ""},
		} {
			if got := strings.Join(h.events(c.scope, c.f), " "); got != c.want {
				t.Errorf("%v %+v: %s, want %s", c.scope, c.f, got, c.want)
			}
		}
		if _, _, err := h.room.Events(t.Context(), narrow, EventFilter{Device: string(berlin.ID)}); !errors.Is(err, fault.NotFound) {
			t.Errorf("a device of another scope: %v", err)
		}
		list, _, err := h.room.Events(t.Context(), whole, EventFilter{Device: string(berlin.ID), Limit: 1})
		if err != nil || string(list[0].Data) != `{"n":1}` || list[0].Severity != Error || list[0].Number != 5 {
			t.Errorf("%+v, %v", list, err)
		}
		if n, err := h.room.TroubledDevices(t.Context(), whole, morning); err != nil || n != 2 {
			t.Errorf("%d devices with errors, %v", n, err)
		}
		if n, err := h.room.TroubledDevices(t.Context(), narrow, morning); err != nil || n != 1 {
			t.Errorf("%d devices with errors in the scope, %v", n, err)
		}
		if n, err := h.room.TroubledDevices(t.Context(), whole, h.clock.now()); err != nil || n != 0 {
			t.Errorf("%d devices with errors since now, %v", n, err)
		}
		if got := h.state(berlin); got != Online {
			t.Errorf("who tells is %s", got)
		}
	})
}

func TestEventSentAgainIsStoredOnce(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		timed, untimed := wire.DeviceEvent{Name: "door.opened", Time: morning}, wire.DeviceEvent{Name: "beep"}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := h.room.Event(t.Context(), d, timed); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		h.event(d, untimed)
		h.event(d, untimed)
		timed.Text = "another"
		h.event(d, timed)
		if got := h.events(whole, EventFilter{Device: string(d.ID)}); !slices.Equal(got, []string{"door.opened", "beep", "beep", "door.opened"}) {
			t.Errorf("%q", got)
		}
	})
}

func TestNewestEventsOfADeviceAreKept(t *testing.T) {
	each(t, func(h *house) {
		d, other := h.device(nil), h.device(nil)
		h.event(other, wire.DeviceEvent{Name: "other"})
		for i := range MaxEvents + 20 {
			h.clock.pass(5 * time.Second) // slow enough for the limit
			h.event(d, wire.DeviceEvent{Name: fmt.Sprintf("e%d", i)})
		}
		got := h.events(whole, EventFilter{Device: string(d.ID), Limit: 1000})
		if len(got) != MaxEvents || got[0] != fmt.Sprintf("e%d", MaxEvents+19) || got[MaxEvents-1] != "e20" {
			t.Errorf("%d events, from %s to %s", len(got), got[0], got[len(got)-1])
		}
		if got := h.events(whole, EventFilter{Device: string(other.ID)}); len(got) != 1 {
			t.Errorf("another device's: %q", got)
		}
		h.clock.pass(KeepEvents - time.Minute)
		h.event(other, wire.DeviceEvent{Name: "fresh"})
		if err := h.room.forgetEvents(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := h.events(whole, EventFilter{Limit: 1000}); len(got) > 14 || got[0] != "fresh" {
			t.Errorf("after a month %d are left", len(got))
		}
	})
}

func TestDeviceThatTalksTooMuchIsToldWhenToGoOn(t *testing.T) {
	each(t, func(h *house) {
		loud, quiet := h.device(nil), h.device(nil)
		var err error
		told := 0
		for ; err == nil; told++ {
			err = h.room.Event(t.Context(), loud, wire.DeviceEvent{Name: "again"})
		}
		var later *httpapi.Later
		if told != eventBurst+1 || !errors.Is(err, fault.TooMany) || !errors.As(err, &later) || later.After <= 0 {
			t.Fatalf("event %d: %v", told, err)
		}
		h.event(quiet, wire.DeviceEvent{Name: "once"})
		h.clock.pass(later.After)
		h.event(loud, wire.DeviceEvent{Name: "again"})
	})
}

func TestWrongEventsAreRefusedByField(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		for field, e := range map[string]wire.DeviceEvent{
			"name":     {Name: "no blanks"},
			"severity": {Name: "e", Severity: "fatal"},
			"text":     {Name: "e", Text: strings.Repeat("x", maxEventText+1)},
			"data":     {Name: "e", Data: json.RawMessage(`"` + strings.Repeat("x", maxEventData) + `"`)},
		} {
			err := h.room.Event(t.Context(), d, e)
			var bad *fault.Invalid
			if !errors.As(err, &bad) || len(bad.Fields) != 1 || bad.Fields[0].Location != field {
				t.Errorf("%s: %v", field, err)
			}
		}
		if err := h.room.Event(t.Context(), d, wire.DeviceEvent{Name: "e", Data: json.RawMessage(`{"a"`)}); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("no JSON: %v", err)
		}
		h.event(d, wire.DeviceEvent{Name: "odd", Text: "a\x00b\xff", Data: json.RawMessage("\"\xfe\""), Time: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)})
		list, _, err := h.room.Events(t.Context(), whole, EventFilter{Limit: 10})
		if err != nil || len(list) != 1 || !list[0].DeviceTime.IsZero() || !strings.HasPrefix(list[0].Text, "a") {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

func TestForgottenDeviceLeavesNoEventAndNoConnection(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		h.event(d, wire.DeviceEvent{Name: "e"})
		h.room.Connected(d, "mqtt/5", "192.0.2.1:5000")
		if err := h.room.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.room.Forget(t.Context(), d.Num); err != nil {
			t.Fatal(err)
		}
		h.room.Disconnected(d, "revoked")
		if err := h.room.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		links, err := h.room.LinksOf(t.Context(), d.Num)
		if got := h.events(whole, EventFilter{}); len(got) != 0 || err != nil || len(links.Connections) != 0 || links.Ended != nil {
			t.Errorf("events %q, links %+v, %v", got, links, err)
		}
	})
}

func TestTelemetryIsChartedUnderItsOwnName(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		if err := h.room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: map[string]float64{"tank.level": 0.5, "pump-rpm": 1200}}); err != nil {
			t.Fatal(err)
		}
		h.clock.pass(time.Minute)
		if err := h.room.Telemetry(t.Context(), d, wire.Telemetry{TimeUnixMillis: h.clock.now().UnixMilli(), Metrics: map[string]float64{"tank.level": 0.6}}); err != nil {
			t.Fatal(err)
		}
		current, err := h.room.CurrentValues(t.Context(), d)
		if err != nil || len(current) != 2 || current[0].Name != "pump_rpm" || current[1].Name != "tank_level" || current[1].Value != 0.6 {
			t.Errorf("%+v, %v", current, err)
		}
		for what, m := range map[string]map[string]float64{
			"nothing": nil, "a bad name": {"a b": 1}, "a label": {`a{b="c"}`: 1}, "twice": {"a.b": 1, "a_b": 2}, "a long name": {strings.Repeat("a", 129): 1}, "a digit first": {"1a": 1},
		} {
			if err := h.room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: m}); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("%s: %v", what, err)
			}
		}
		many := map[string]float64{}
		for i := range 201 {
			many[fmt.Sprintf("m%d", i)] = 1
		}
		if err := h.room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: many}); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("too many: %v", err)
		}
		delete(many, "m0")
		if err := h.room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: many}); !errors.Is(err, fault.Unprocessable) { // with the two before
			t.Errorf("more series than kept: %v", err)
		}
		ahead := wire.Telemetry{TimeUnixMillis: h.clock.now().Add(time.Hour).UnixMilli(), Metrics: map[string]float64{"tank.level": 1}}
		if err := h.room.Telemetry(t.Context(), d, ahead); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("from the future: %v", err)
		}
	})
}
