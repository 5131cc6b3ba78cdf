package series

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// keeper is what both stores do.
type keeper interface {
	Write(ctx context.Context, tenant, device string, samples []Sample) (Refused, error)
	Instant(ctx context.Context, scope Scope, expr string, at time.Time) ([]Line, error)
	Range(ctx context.Context, scope Scope, expr string, r Range) ([]Line, error)
	Forget(ctx context.Context, until time.Time, devices ...string) error
	Close() error
}

// both runs a test on the embedded store and on a real Prometheus; now is what the store's clock shows.
func both(t *testing.T, test func(t *testing.T, s keeper, now time.Time)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t, fresh(t), noon) })
	t.Run("prometheus", func(t *testing.T) {
		now := time.Now().Truncate(time.Second)
		test(t, remote(t, startPrometheus(t), now), now)
	})
}

func remote(t testing.TB, url string, now time.Time) *Remote {
	t.Helper()
	r, err := NewRemote(RemoteConfig{URL: url, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// prometheusConfig takes samples that come late, as those of devices that were offline do.
const prometheusConfig = "storage:\n  tsdb:\n    out_of_order_time_window: 7d\n"

// startPrometheus runs Debian's Prometheus until the test ends and returns its address. Where there is none
// the test is skipped, and fails when CI=true.
func startPrometheus(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no prometheus: install the package prometheus")
		}
		t.Skip("no prometheus: install the package prometheus")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(prometheusConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--web.enable-remote-write-receiver", "--web.enable-admin-api")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	waitReady(t, "http://"+address, log.Name())
	return "http://" + address
}

func waitReady(t testing.TB, address, log string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	look, end := time.NewTicker(20*time.Millisecond), time.NewTimer(30*time.Second)
	defer look.Stop()
	defer end.Stop()
	for {
		res, err := client.Get(address + "/-/ready")
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-look.C:
		case <-end.C:
			text, _ := os.ReadFile(log)
			t.Fatal(fmt.Errorf("prometheus is not ready: %w\n%s", err, text))
		}
	}
}
