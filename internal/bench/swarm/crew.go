package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// spareFiles is how many of its open files a process keeps for other things than connections.
const spareFiles = 500

// PerProcess is how many connections one process of this system may hold.
func PerProcess() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	most := min(limit.Max, 1<<20) // Go raises its own soft limit to the hard one
	if most <= spareFiles {
		return 0, fmt.Errorf("a process may open %d files: too few, raise the limit (ulimit -n)", most)
	}
	return int(most) - spareFiles, nil
}

// Processes returns how many worker processes the devices need; wanted 0 means as few as can be. It refuses
// what the limit of open files does not allow.
func Processes(devices, wanted int) (int, error) {
	per, err := PerProcess()
	if err != nil {
		return 0, err
	}
	need := max(1, (devices+per-1)/per)
	switch {
	case wanted == 0:
		return need, nil
	case wanted < need:
		return 0, fmt.Errorf("%d processes for %d devices: one may open %d connections here, so %d are needed (or raise ulimit -n)", wanted, devices, per, need)
	}
	return wanted, nil
}

// Crew is the worker processes of one bench. Its methods may not be called at the same time.
type Crew struct {
	workers []*worker
}

// worker is one process.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// Start starts so many processes; program is its path and first arguments. What they say goes to stderr.
func Start(program []string, processes int, stderr io.Writer) (_ *Crew, err error) {
	c := &Crew{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for range processes {
		w, err := startWorker(program, stderr)
		if err != nil {
			return c, fmt.Errorf("start a worker process: %w", err)
		}
		c.workers = append(c.workers, w)
	}
	return c, nil
}

func startWorker(program []string, stderr io.Writer) (*worker, error) {
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Stderr = stderr
	// Its own group, so that Ctrl-C reaches the bench alone, which then ends its workers in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	// The load shares the machine with what is measured: collecting garbage less often leaves it more of it.
	cmd.Env = append(os.Environ(), "GOGC=200")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &worker{cmd: cmd, in: in, enc: json.NewEncoder(in), dec: json.NewDecoder(out)}, nil
}

// PIDs are the numbers of the processes.
func (c *Crew) PIDs() []int {
	var out []int
	for _, w := range c.workers {
		out = append(out, w.cmd.Process.Pid)
	}
	return out
}

// endTime is how long a worker may take to end when it is no longer wanted.
const endTime = 10 * time.Second

// Close ends the processes and waits for them.
func (c *Crew) Close() (err error) {
	for _, w := range c.workers {
		_ = w.in.Close() // the worker's end of input
	}
	for _, w := range c.workers {
		late := time.AfterFunc(endTime, func() { _ = w.cmd.Process.Kill() })
		if werr := w.cmd.Wait(); werr != nil {
			err = errors.Join(err, fmt.Errorf("worker process: %w", werr))
		}
		late.Stop()
	}
	c.workers = nil
	return err
}

// grace is how much longer than its order a worker may take to answer.
const grace = 30 * time.Second

// all sends each worker its order at the same time and merges the answers. When ctx ends, the workers are killed:
// a Crew is then of no use but to Close.
func (c *Crew) all(ctx context.Context, orders []order) (map[string]*Tally, error) {
	answers := make([]answer, len(orders))
	errs := make([]error, len(orders))
	var wg sync.WaitGroup
	for i := range orders {
		wg.Go(func() { answers[i], errs[i] = c.workers[i].do(ctx, orders[i]) })
	}
	wg.Wait()
	merged := map[string]*Tally{}
	for i, a := range answers {
		if errs[i] == nil && a.Error != "" {
			errs[i] = errors.New(a.Error)
		}
		for name, t := range a.Tallies {
			if merged[name] == nil {
				merged[name] = &Tally{}
			}
			merged[name].Merge(t)
		}
	}
	return merged, errors.Join(errs...)
}

func (w *worker) do(ctx context.Context, o order) (a answer, err error) {
	if o.Within > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Within+grace)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { _ = w.cmd.Process.Kill() })
	defer stop()
	if err := w.enc.Encode(o); err != nil {
		return a, fmt.Errorf("order %q to a worker process: %w", o.Do, err)
	}
	if err := w.dec.Decode(&a); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return a, fmt.Errorf("answer of a worker process to %q: %w", o.Do, err)
	}
	return a, nil
}

// same sends all workers one order and returns the tally of it.
func (c *Crew) same(ctx context.Context, o order) (*Tally, error) {
	tallies, err := c.all(ctx, c.copies(o))
	return whole(tallies), err
}

func (c *Crew) copies(o order) []order {
	orders := make([]order, len(c.workers))
	for i := range orders {
		orders[i] = o
	}
	return orders
}

func whole(tallies map[string]*Tally) *Tally {
	if t := tallies[""]; t != nil {
		return t
	}
	return &Tally{}
}

// Enroll spreads the tickets over the processes and enrolls their devices.
func (c *Crew) Enroll(ctx context.Context, within time.Duration, e Enroll) (*Tally, error) {
	orders := make([]order, len(c.workers))
	tickets, first := e.Tickets, e.First
	for i := range orders {
		share := len(tickets) / (len(orders) - i)
		part := e
		part.Tickets, part.First, part.AtOnce = tickets[:share], first, max(1, e.AtOnce/len(orders))
		orders[i] = order{Do: doEnroll, Within: within, Enroll: &part}
		tickets, first = tickets[share:], first+share
	}
	tallies, err := c.all(ctx, orders)
	return whole(tallies), err
}

// Connect lets the devices come, and live from then on.
func (c *Crew) Connect(ctx context.Context, within time.Duration, how Connect) (*Tally, error) {
	if how.AtOnce > 0 {
		how.AtOnce = max(1, how.AtOnce/len(c.workers))
	}
	return c.same(ctx, order{Do: doConnect, Within: within, Connect: &how})
}

// Hello has each device report everything that it is, and upload the documents that the server lacks.
func (c *Crew) Hello(ctx context.Context, within time.Duration) (*Tally, error) {
	return c.same(ctx, order{Do: doHello, Within: within})
}

// Mark begins a measurement of Converged or Served.
func (c *Crew) Mark(ctx context.Context) error {
	_, err := c.same(ctx, order{Do: doMark, Within: time.Minute})
	return err
}

// Converged waits until the server has acknowledged of each device that it accepted a newer desired state than
// at the mark. Latencies count from the mark.
func (c *Crew) Converged(ctx context.Context, within time.Duration) (*Tally, error) {
	return c.same(ctx, order{Do: doConverged, Within: within})
}

// Served waits until each device has connected, subscribed and got its desired state since the mark; with a door
// each that was connected there at the mark.
func (c *Crew) Served(ctx context.Context, within time.Duration, door string) (*Tally, error) {
	return c.same(ctx, order{Do: doServed, Within: within, Door: door})
}

// Reports runs a closed loop of reports.
func (c *Crew) Reports(ctx context.Context, r Reports) (*Tally, error) {
	return c.same(ctx, order{Do: doReports, Within: r.For + lastAnswers, Reports: &r})
}

// Mixed runs a day in short; the tallies are by kind of message.
func (c *Crew) Mixed(ctx context.Context, m Mixed) (map[string]*Tally, error) {
	orders := c.copies(order{Do: doMixed, Within: m.For + lastAnswers, Mixed: &m})
	for i := range orders {
		part := m
		part.Reconnect = m.Reconnect / len(orders)
		orders[i].Mixed = &part
	}
	return c.all(ctx, orders)
}

// Leave disconnects all devices; they may Connect again.
func (c *Crew) Leave(ctx context.Context) error {
	_, err := c.same(ctx, order{Do: doLeave, Within: time.Minute})
	return err
}
