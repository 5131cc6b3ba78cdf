package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"steward/internal/fault"
)

// Healthz answers 200 as long as the process serves at all; for restarts by a supervisor.
func (a *API) Healthz() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", noStore)
		_, _ = io.WriteString(w, "ok\n") // the caller may be gone
	})
}

// checkTimeout bounds each check of readiness.
const checkTimeout = 2 * time.Second

type readiness struct {
	Ready  bool            `json:"ready"`
	Checks map[string]bool `json:"checks"`
}

// Readyz runs the checks of the configuration, all at once, and answers 200 when all hold, else 503.
// It is public: it names what fails and leaves why to the log.
func (a *API) Readyz() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		res := a.ready(r.Context())
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", noStore)
		if !res.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(res) // the caller may be gone
	})
}

func (a *API) ready(ctx context.Context) readiness {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	res := readiness{Ready: true, Checks: map[string]bool{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	for name, check := range a.cfg.Ready {
		all.Go(func() {
			err := check(ctx)
			if err != nil {
				a.cfg.Log.WarnContext(ctx, "not ready", slog.String("check", name), keyError, err)
			}
			mu.Lock()
			defer mu.Unlock()
			res.Checks[name] = err == nil
			res.Ready = res.Ready && err == nil
		})
	}
	all.Wait()
	return res
}

// Metrics serves the counters in Prometheus' format to viewers, and, when so configured, to callers of
// this machine.
func (a *API) Metrics() http.Handler {
	page := promhttp.HandlerFor(a.meter.registry, promhttp.HandlerOpts{Registry: a.meter.registry})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", noStore)
		if a.cfg.OpenMetricsToLoopback && direct(r) {
			page.ServeHTTP(w, r)
			return
		}
		who, err := a.cfg.Auth.Authenticate(r)
		if err == nil && who.Role < Viewer {
			err = fault.New(fault.Forbidden, "this needs the role %s", Viewer)
		}
		if err != nil {
			a.refuseError(w, r, err)
			return
		}
		page.ServeHTTP(w, r)
	})
}
