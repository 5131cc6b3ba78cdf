package cli

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"
)

// supervisor is systemd, when it has started this process with Type=notify; see sd_notify(3). Without one
// every method does nothing.
type supervisor struct {
	socket string
	beat   time.Duration // at most this long between two signs of life; 0: it doesn't watch
}

// newSupervisor takes the variables out of the environment, so that no child of ours speaks for us.
func newSupervisor() supervisor {
	s := supervisor{socket: os.Getenv("NOTIFY_SOCKET")}
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID")
	if err == nil && us > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.beat = time.Duration(us) * time.Microsecond / 2
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(name)
	}
	return s
}

// tell sends one message; a name that begins with @ is in the abstract namespace, as Go has it, too.
func (s supervisor) tell(state string) error {
	if s.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // sent or not
	_, err = conn.Write([]byte(state))
	return err
}

// watch gives signs of life while alive says so, until ctx ends; then it says that the server stops.
func (s supervisor) watch(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	defer s.tell("STOPPING=1") //nolint:errcheck // it sees the process end, too
	if s.socket == "" || s.beat == 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	for {
		err := s.sign(ctx, alive)
		if err != nil && ctx.Err() == nil {
			log.Warn("no sign of life was given to the service manager", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s supervisor) sign(ctx context.Context, alive func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.beat)
	defer cancel()
	if err := alive(ctx); err != nil {
		return err
	}
	return s.tell("WATCHDOG=1")
}
