package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"steward/internal/bench/swarm"
)

// workerCommand makes this program a process with devices in it, which obeys the bench that started it.
const workerCommand = "worker"

// Work is that process; it ends with its input. Ctrl-C is for the bench, which then ends it.
func Work(stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(os.Interrupt)
	if err := swarm.Work(ctx, stdin, stdout); err != nil {
		fmt.Fprintln(stderr, "steward-bench worker:", err)
		return 1
	}
	return 0
}
