package monitoring

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/monitoring/series"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/ui"
	"steward/internal/wire"
)

func (h *house) forgetOn(room *Service) {
	h.Helper()
	if err := room.forgetSeries(h.Context()); err != nil {
		h.Fatal(err)
	}
}

func (h *house) valuesOn(room *Service, d device.Device) int {
	h.Helper()
	current, err := room.CurrentValues(h.Context(), d)
	if err != nil {
		h.Fatal(err)
	}
	return len(current)
}

func TestEveryNodeDeletesWhatAForgottenDeviceHasMeasuredThere(t *testing.T) {
	each(t, func(h *house) {
		dirs := []string{t.TempDir(), t.TempDir()}
		rooms := []*Service{h.open(dirs[0]), h.open(dirs[1])}
		d := h.device(nil)
		measure := func(room *Service, v float64) {
			t.Helper()
			if err := room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: map[string]float64{"x": v}}); err != nil {
				t.Fatal(err)
			}
		}
		for i, room := range rooms {
			h.forgetOn(room)
			measure(room, float64(i))
		}
		if err := rooms[0].Forget(t.Context(), d.Num); err != nil {
			t.Fatal(err)
		}
		h.forgetOn(rooms[0])
		if a, b := h.valuesOn(rooms[0], d), h.valuesOn(rooms[1], d); a != 0 || b != 1 {
			t.Fatalf("%d and %d values", a, b)
		}
		// The second is stopped before it could do so, and finds it afterwards.
		if err := rooms[1].Close(); err != nil {
			t.Fatal(err)
		}
		rooms[1] = h.open(dirs[1])
		h.forgetOn(rooms[1])
		if n := h.valuesOn(rooms[1], d); n != 0 {
			t.Errorf("after its start: %d values", n)
		}
		// A new life of the device stays, however often somebody looks.
		h.clock.pass(2 * time.Minute)
		for _, room := range rooms {
			measure(room, 7)
			h.forgetOn(room)
			h.clock.pass(2 * time.Minute)
			h.forgetOn(room)
			if err := room.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for i, dir := range dirs {
			room := h.open(dir)
			h.forgetOn(room)
			if n := h.valuesOn(room, d); n != 1 {
				t.Errorf("node %d has %d values of the new life", i, n)
			}
			if _, err := os.Stat(forgottenFile(dir)); err != nil {
				t.Error(err)
			}
			if err := room.forgetForgotten(t.Context()); err != nil {
				t.Error(err)
			}
			if err := room.Close(); err != nil {
				t.Error(err)
			}
		}
		var rows int
		count := func() int {
			t.Helper()
			if err := h.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM monitoring_forgotten").Scan(&rows); err != nil {
				t.Fatal(err)
			}
			return rows
		}
		if count() != 1 {
			t.Errorf("%d rows are kept", rows)
		}
		h.clock.pass(defaultKeep + forgottenSlack)
		if err := h.room.forgetForgotten(t.Context()); err != nil || count() != 0 {
			t.Errorf("%d rows are kept, %v", rows, err)
		}
	})
}

// outside counts what is asked of a store that answers nothing useful.
type outside struct {
	mu      sync.Mutex
	deletes []url.Values
	down    bool
}

func (o *outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.down:
		w.WriteHeader(http.StatusServiceUnavailable)
	case strings.HasSuffix(r.URL.Path, "/delete_series"):
		if err := r.ParseForm(); err == nil {
			o.deletes = append(o.deletes, r.Form)
		}
		w.WriteHeader(http.StatusNoContent)
	case strings.HasSuffix(r.URL.Path, "/write"):
		w.WriteHeader(http.StatusNoContent)
	default:
		_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"vector","result":[]}}`))
	}
}

func (h *house) openOutside(o *outside) *Service {
	h.Helper()
	srv := httptest.NewServer(o)
	h.Cleanup(srv.Close)
	room, err := Open(Config{DB: h.db, Ledger: h.ledger, Devices: h.reg, Twin: h.twin, Dir: h.TempDir(), Now: h.clock.now, Log: slog.New(slog.DiscardHandler),
		Outside: &series.RemoteConfig{URL: srv.URL}, Partial: func() string { return "node-1" }})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if err := room.Close(); err != nil {
			h.Error(err)
		}
	})
	return room
}

func TestOutsideStoreIsAskedToForgetTwice(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	o := &outside{}
	room := h.openOutside(o)
	d := h.device(nil)
	h.forgetOn(room)
	if err := room.Forget(t.Context(), d.Num); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		h.forgetOn(room)
	}
	if len(o.deletes) != 1 || o.deletes[0].Get("match[]") != `{device="`+string(d.ID)+`"}` {
		t.Fatalf("%v", o.deletes)
	}
	h.clock.pass(askAgain)
	h.forgetOn(room)
	h.forgetOn(room)
	if len(o.deletes) != 2 || o.deletes[1].Get("end") != o.deletes[0].Get("end") {
		t.Errorf("%v", o.deletes)
	}
}

func TestStoreThatIsAwayIsToldAndTakesNothingElseAlong(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	o := &outside{down: true}
	room := h.openOutside(o)
	d := h.device(nil)
	err := room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: map[string]float64{"x": 1}})
	var refused *fault.Error
	if !errors.As(err, &refused) || !errors.Is(err, fault.Unavailable) || refused.RetryAfter <= 0 {
		t.Errorf("telemetry: %v", err)
	}
	h.event(d, wire.DeviceEvent{Name: "burning", Severity: "error"})
	notices, err := room.Notices(t.Context(), whole)
	if err != nil || len(notices) != 2 {
		t.Fatalf("%+v, %v", notices, err)
	}
	for i, want := range []ui.Level{ui.Warn, ui.Warn} {
		if notices[i].Level != want {
			t.Errorf("%+v", notices[i])
		}
	}
	if stats, ok := room.OutsideStats(); !ok || stats.Failures == 0 {
		t.Errorf("%+v, %v", stats, ok)
	}
	if got := room.partial(); got != "" {
		t.Errorf("one store for all is called that of %s", got)
	}
}

func TestChartsOfOneOfSeveralNodesSayWhoseTheyAre(t *testing.T) {
	h := newHouse(t, sqldbtest.SQLite(t, tables...))
	d := h.device(nil)
	h.room.cfg.Partial = func() string { return "berlin-1" }
	base := h.serve()
	if err := h.room.Telemetry(t.Context(), d, wire.Telemetry{Metrics: map[string]float64{"x": 1}}); err != nil {
		t.Fatal(err)
	}
	if status, answer, _ := call(t, "GET", base+"/api/v1/devices/"+string(d.ID)+"/metrics", ""); status != 200 || answer["node"] != "berlin-1" {
		t.Errorf("%d %v", status, answer)
	}
	res, err := http.Get(base + "/panel/" + string(d.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var page strings.Builder
	if _, err := io.Copy(&page, res.Body); err != nil || !strings.Contains(page.String(), "berlin-1") {
		t.Errorf("the page doesn't say so: %v", err)
	}
}

func TestForgettingSurvivesTheMigrationOfTheDatabase(t *testing.T) {
	each(t, func(h *house) {
		for _, s := range []string{"DROP TABLE monitoring_forgotten", "CREATE TABLE monitoring_forget (device TEXT NOT NULL PRIMARY KEY)", "INSERT INTO monitoring_forget (device) VALUES ('dev-old')",
			"INSERT INTO monitoring_watch (id, since, alive) VALUES (1, 5, 77)"} {
			h.write(func(tx *sqldb.Tx) error { _, err := tx.Exec(t.Context(), s); return err })
		}
		text, err := migrations.ReadFile("migrations/00003_forgotten.sql")
		if err != nil {
			t.Fatal(err)
		}
		for s := range strings.SplitSeq(string(text), ";") {
			if strings.TrimSpace(s) != "" {
				h.write(func(tx *sqldb.Tx) error { _, err := tx.Exec(t.Context(), s); return err })
			}
		}
		rows, err := readForgotten(t.Context(), h.db, forgotten{})
		if err != nil || len(rows) != 1 || rows[0] != (forgotten{77, "dev-old"}) {
			t.Errorf("%+v, %v", rows, err)
		}
	})
}
