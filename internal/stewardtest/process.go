package stewardtest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steward/internal/client"
	"steward/internal/server"
	"steward/internal/sqldb/sqldbtest"
)

// serverVariable makes a test binary a server; its value is a serverOrder.
const serverVariable = "STEWARD_TEST_SERVER"

// serverOrder is what of server.Config a process of its own can be given.
type serverOrder struct {
	DataDir, ConsoleAddr, LinkAddr, Database string
	CertificateLife                          time.Duration
	ManagedKeys                              bool
	// Of one of several nodes.
	NodeName, BusListen, BusAdvertise, MasterKeyFile, Artifacts, LinkURL string
	BehindProxy                                                          bool
}

// Main runs a package's tests, or the server of House when the test binary was started as that. It
// fails when goroutines are left.
//
//	func TestMain(m *testing.M) { os.Exit(stewardtest.Main(m)) }
func Main(m *testing.M) int {
	if order := os.Getenv(serverVariable); order != "" {
		if err := serve(order); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8") // whole houses wait more than they compute
	}
	code := sqldbtest.Main(m)
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			return 1
		}
	}
	return code
}

// serve is the server's process.
func serve(text string) error {
	var o serverOrder
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := server.Open(ctx, server.Config{
		DataDir: o.DataDir, ConsoleAddr: o.ConsoleAddr, LinkAddr: o.LinkAddr, Database: o.Database,
		CertificateLife: o.CertificateLife, ManagedKeys: o.ManagedKeys, Version: "test",
		NodeName: o.NodeName, BusListen: o.BusListen, BusAdvertise: o.BusAdvertise, MasterKeyFile: o.MasterKeyFile, Artifacts: o.Artifacts,
		LinkURL: o.LinkURL, BehindProxy: o.BehindProxy,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	return errors.Join(s.Run(ctx), s.Close())
}

// spawnServer runs the server as a process of its own.
func (h *House) spawnServer() error {
	c := h.cfg
	order, err := json.Marshal(serverOrder{
		DataDir: c.DataDir, ConsoleAddr: c.ConsoleAddr, LinkAddr: c.LinkAddr, Database: c.Database, CertificateLife: c.CertificateLife, ManagedKeys: c.ManagedKeys,
		NodeName: c.NodeName, BusListen: c.BusListen, BusAdvertise: c.BusAdvertise, MasterKeyFile: c.MasterKeyFile, Artifacts: c.Artifacts,
		LinkURL: c.LinkURL, BehindProxy: c.BehindProxy,
	})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := append(slices.Clone(h.within), self)
	p := &process{program: argv[0], args: argv[1:], env: []string{serverVariable + "=" + string(order)}, log: filepath.Join(filepath.Dir(h.Dir), "server.log")}
	if err := p.start(); err != nil {
		return err
	}
	h.stop, h.pid = p.end, p.cmd.Process.Pid
	err = h.await(p.alive, func(b client.Bootstrap) bool { return b.ServerPID == p.cmd.Process.Pid })
	if err != nil {
		return fmt.Errorf("%w: %s", err, p.tail())
	}
	return nil
}

// Signal sends a signal to the server's process, e.g. to pause it.
func (h *House) Signal(sig syscall.Signal) {
	h.t.Helper()
	if !h.process || h.stop == nil {
		h.t.Fatal("there is no process of the server")
	}
	if err := syscall.Kill(h.pid, sig); err != nil {
		h.t.Fatalf("signal %v: %v", sig, err)
	}
}

// process is a program that can be killed.
type process struct {
	program string
	args    []string
	env     []string
	log     string // file, appended to

	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of Wait, once ended is closed
}

func (p *process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	p.cmd = exec.Command(p.program, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.ended = make(chan struct{})
	go func() { p.err = p.cmd.Wait(); close(p.ended) }()
	return nil
}

// alive returns an error once the process has ended.
func (p *process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("the process ended: %w", errors.Join(p.err, errors.New("see its log")))
	default:
		return nil
	}
}

// end stops the process, in order or by signal 9, and waits for it.
func (p *process) end(kill bool) error {
	sig := syscall.SIGTERM
	if kill {
		sig = syscall.SIGKILL
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	patience := time.NewTimer(30 * time.Second)
	defer patience.Stop()
	select {
	case <-p.ended:
	case <-patience.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("process did not end in 30 s: %s", p.tail())
	}
	if !kill && p.err != nil {
		return fmt.Errorf("%w: %s", p.err, p.tail())
	}
	return nil
}

// tail is the end of the process' log.
func (p *process) tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close() //nolint:errcheck // read only
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-2000), io.SeekStart)
	}
	data, _ := io.ReadAll(f)
	return string(data)
}

// built is the steward-agent of this test binary.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// AgentProgram builds the real steward-agent, once per test binary.
func AgentProgram(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "steward-agent-test-"); built.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", built.dir, "steward/cmd/steward-agent").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatalf("build steward-agent: %v", built.err)
	}
	return filepath.Join(built.dir, "steward-agent")
}

// Process is the real agent as a process on this machine.
type Process struct {
	*process
	State string
	t     testing.TB
}

// Process makes a process of the real agent; it isn't started yet.
func (h *House) Process(serial, token string) *Process {
	h.t.Helper()
	return h.ProcessAt(filepath.Join(h.t.TempDir(), "state"), serial, token)
}

// ProcessAt is Process with a state directory of the caller's choice; the log lies beside it.
func (h *House) ProcessAt(state, serial, token string) *Process {
	h.t.Helper()
	p := &Process{State: state, t: h.t, process: &process{
		program: AgentProgram(h.t), args: []string{"--state", state, "--server", h.Boot.Link, "--serial", serial, "--interval", "1s"},
		env: []string{"STEWARD_TOKEN=" + token}, log: state + ".log",
	}}
	h.t.Cleanup(func() {
		if p.cmd != nil {
			_ = p.end(true)
		}
	})
	return p
}

// Start starts the agent.
func (p *Process) Start() {
	p.t.Helper()
	if err := p.start(); err != nil {
		p.t.Fatalf("start the agent: %v", err)
	}
}

// Kill kills the agent with signal 9.
func (p *Process) Kill() {
	p.t.Helper()
	if err := p.end(true); err != nil {
		p.t.Fatalf("kill the agent: %v", err)
	}
}

// Exited tells whether the agent has ended by itself, and its exit code.
func (p *Process) Exited() (code int, ended bool) {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode(), true
	default:
		return 0, false
	}
}

// hostOf is the host and port of a URL.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}
