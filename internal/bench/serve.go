package bench

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
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
	stop := obeySignals(os.Getenv(profileVariable), stderr)
	defer stop()
	return cli.Main(version, append([]string{"server"}, args...), strings.NewReader(""), stdout, stderr)
}

// obeySignals begins a profile of the processor at SIGUSR1; at SIGUSR2 it ends it and writes the heap's: in dir,
// unless that is "". At SIGHUP garbage is collected and given back to the system.
func obeySignals(dir string, stderr io.Writer) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := profiler{dir: dir, number: 1}
		for s := range signals {
			if err := p.obey(s); err != nil {
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

// profiler writes a process's profiles, numbered from 1.
type profiler struct {
	dir    string
	number int
	cpu    *os.File // nil while none is written
}

func (p *profiler) obey(s os.Signal) (err error) {
	name := func(kind string) string { return profileName(p.dir, os.Getpid(), kind, p.number) }
	switch {
	case s == syscall.SIGHUP:
		debug.FreeOSMemory()
	case p.dir == "":
	case s == syscall.SIGUSR1 && p.cpu == nil:
		if p.cpu, err = os.Create(name("cpu")); err == nil {
			err = pprof.StartCPUProfile(p.cpu)
		}
	case s == syscall.SIGUSR2 && p.cpu != nil:
		pprof.StopCPUProfile()
		err = p.cpu.Close()
		p.cpu = nil
		if err == nil {
			err = writeHeap(name("heap"))
		}
		p.number++
	}
	return err
}

// profileName is the file of a process's n-th profile.
func profileName(dir string, pid int, kind string, n int) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d-%02d.pprof", kind, pid, n))
}

func writeHeap(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // a profile that is cut short is told by the tool that reads it
	runtime.GC()    // what is live now, not at the last collection
	return pprof.WriteHeapProfile(f)
}
