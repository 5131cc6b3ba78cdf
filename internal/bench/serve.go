package bench

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"

	"steward/internal/cli"
)

// serveCommand makes this program a server: the code of `steward server`, so that what is measured is
// that, with profiles on signals.
const serveCommand = "serve"

// profileVariable names the directory for profiles in the server's environment; empty: none.
const profileVariable = "STEWARD_BENCH_PROFILE"

// Serve runs a server with the arguments of `steward server`.
func Serve(version string, args []string, stdout, stderr io.Writer) int {
	if dir := os.Getenv(profileVariable); dir != "" {
		stop := profileOnSignals(dir, stderr)
		defer stop()
	}
	return cli.Main(version, append([]string{"server"}, args...), strings.NewReader(""), stdout, stderr)
}

// profileOnSignals begins a profile of the processor at SIGUSR1; at SIGUSR2 it ends it and writes the heap's.
func profileOnSignals(dir string, stderr io.Writer) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var cpu *os.File
		n := 1
		for s := range signals {
			var err error
			switch {
			case s == syscall.SIGUSR1 && cpu == nil:
				if cpu, err = os.Create(profileName(dir, "cpu", n)); err == nil {
					err = pprof.StartCPUProfile(cpu)
				}
			case s == syscall.SIGUSR2 && cpu != nil:
				pprof.StopCPUProfile()
				err = cpu.Close()
				cpu = nil
				if err == nil {
					err = writeHeap(profileName(dir, "heap", n))
				}
				n++
			}
			if err != nil {
				fmt.Fprintln(stderr, "profile:", err)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// profileName is the file of the n-th profile.
func profileName(dir, kind string, n int) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%02d.pprof", kind, n))
}

func writeHeap(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // a profile that is cut short is told by the tool that reads it
	return pprof.WriteHeapProfile(f)
}
