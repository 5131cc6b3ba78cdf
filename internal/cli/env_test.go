package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestFlagsComeFromTheEnvironmentUnlessTheyAreGiven(t *testing.T) {
	var link, console string
	var names []string
	var proxy bool
	cmd := &cobra.Command{Use: "server"}
	cmd.Flags().StringVar(&link, "link-url", "", "")
	cmd.Flags().StringVar(&console, "console", "default", "")
	cmd.Flags().StringSliceVar(&names, "link-name", nil, "")
	cmd.Flags().BoolVar(&proxy, "behind-proxy", false, "")
	if err := cmd.ParseFlags([]string{"--link-url", "given"}); err != nil {
		t.Fatal(err)
	}
	unknown, err := fromEnvironment(cmd, []string{
		"STEWARD_LINK_URL=other", "STEWARD_CONSOLE=", "STEWARD_LINK_NAME=a,b", "STEWARD_BEHIND_PROXY=true", "STEWARD_LNIK=typo", "STEWARD_TOKEN=x", "HOME=/root",
	})
	if err != nil || link != "given" || console != "default" || fmt.Sprint(names) != "[a b]" || !proxy || fmt.Sprint(unknown) != "[STEWARD_LNIK]" {
		t.Errorf("link-url %q, console %q, names %v, proxy %t, unknown %v, %v", link, console, names, proxy, unknown, err)
	}
	_, err = fromEnvironment(cmd, []string{"STEWARD_BEHIND_PROXY=perhaps"})
	if exitCode(err) != exitOK { // it was set above, so it counts as given
		t.Errorf("a given flag is overridden: %v", err)
	}
	fresh := &cobra.Command{Use: "server"}
	fresh.Flags().Bool("behind-proxy", false, "")
	if _, err := fromEnvironment(fresh, []string{"STEWARD_BEHIND_PROXY=perhaps"}); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "STEWARD_BEHIND_PROXY") {
		t.Errorf("a wrong value: %v", err)
	}
}

// manager is the end of the service manager.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func hear(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 200)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestServiceManagerHearsSignsOfLifeUntilTheEnd(t *testing.T) {
	conn := manager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	s := newSupervisor()
	if os.Getenv("NOTIFY_SOCKET") != "" || os.Getenv("WATCHDOG_USEC") != "" {
		t.Error("children would speak for us")
	}
	if err := s.tell("READY=1"); err != nil || hear(t, conn) != "READY=1" {
		t.Errorf("ready: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.watch(ctx, slog.New(slog.DiscardHandler), func(context.Context) error { return nil })
	}()
	for range 3 {
		if got := hear(t, conn); got != "WATCHDOG=1" {
			t.Errorf("a sign of life: %q", got)
		}
	}
	cancel()
	for hear(t, conn) != "STOPPING=1" {
	}
	<-ended
}

func TestServerThatIsNotWellGivesNoSignOfLife(t *testing.T) {
	conn := manager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	s := newSupervisor()
	asked := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.watch(ctx, slog.New(slog.DiscardHandler), func(context.Context) error { asked <- struct{}{}; return errors.New("unwell") })
	}()
	for range 3 {
		<-asked
	}
	cancel()
	if got := hear(t, conn); got != "STOPPING=1" {
		t.Errorf("it said %q", got)
	}
	<-ended
}

func TestWithoutAServiceManagerNothingIsSaid(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	s := newSupervisor()
	if err := s.tell("READY=1"); err != nil || s.beat != 0 {
		t.Errorf("%v, beat %s", err, s.beat)
	}
}

func TestManualPageHasEveryCommand(t *testing.T) {
	var out strings.Builder
	root := newRoot("1.2.3")
	if err := writeMan(&out, root); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"steward server \\-\\-data DIR", "steward backup verify FILE", "\\-\\-link\\-url", "steward get RESOURCE"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing", want)
		}
	}
	for line := range strings.SplitSeq(out.String(), "\n") {
		if strings.HasPrefix(line, "'") || (strings.HasPrefix(line, ".") && !strings.ContainsAny(line[1:2], "TSPBbI")) {
			t.Errorf("this line is a request by accident: %q", line)
		}
	}
}
