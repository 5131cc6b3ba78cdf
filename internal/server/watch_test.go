package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
)

func TestPresenceIsFoundByItsIndex(t *testing.T) {
	s := opened(t)
	for _, state := range []string{"late", "offline"} {
		query, args := presenceIn(device.DefaultTenant, state)
		rows, err := s.rooms.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(step, "monitoring_seen_state (tenant=? AND state=?)") {
				t.Errorf("%s: %s", state, step)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, state := range []string{"online", "never", "x"} { // most devices, or none that has a row
		if query, _ := presenceIn(device.DefaultTenant, state); query != "" {
			t.Errorf("%s: %s", state, query)
		}
	}
}

func TestMetricsTellOfDatabaseLedgerLinkAndBus(t *testing.T) {
	s := opened(t)
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1/metrics", nil)
	r.RemoteAddr = "127.0.0.1:4711"
	rec := httptest.NewRecorder()
	s.handler.ServeHTTP(rec, r)
	for _, want := range []string{
		"steward_db_writes_total ", "steward_db_commits_total ", "steward_ledger_pending_events ", `steward_link_connections{protocol="mqtt"} 0`, "steward_link_handshakes 0",
		"steward_bus_connected 1", "go_goroutines ", "steward_build_info",
	} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("%d: no %s", rec.Code, want)
		}
	}
	rec = httptest.NewRecorder()
	s.handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), `"ledger":true`) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func opened(t *testing.T) *Server {
	t.Helper()
	dir := t.TempDir() + "/data"
	s, err := Open(t.Context(), Config{DataDir: dir, ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestALedgerThatStandsStillIsNotReady(t *testing.T) {
	var size, pending int64
	now := time.Unix(1_700_000_000, 0)
	s := &stall{
		size:    func(context.Context) (int64, error) { return size, nil },
		pending: func(context.Context) (int64, error) { return pending, nil },
		now:     func() time.Time { return now },
	}
	for _, step := range []struct {
		name          string
		size, pending int64
		after         time.Duration
		ready         bool
	}{
		{"idle", 5, 0, 0, true},
		{"idle for long", 5, 0, time.Hour, true},
		{"the first waits", 5, 1, time.Hour, true},
		{"for a while", 5, 3, 30 * time.Second, true},
		{"for too long", 5, 9, 31 * time.Second, false},
		{"busy but moving", 8, 900, time.Second, true},
		{"busy but moving, later", 9, 900, time.Hour, true},
		{"stuck", 9, 901, 61 * time.Second, false},
		{"done", 910, 0, time.Second, true},
	} {
		size, pending, now = step.size, step.pending, now.Add(step.after)
		if err := s.check(t.Context()); (err == nil) != step.ready {
			t.Errorf("%s: %v", step.name, err)
		}
	}
}
