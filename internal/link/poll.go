package link

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/wire"
)

// polls are the long polls that also end when a command comes. One that comes while its device does not
// poll is remembered, so that the next poll ends at once.
type polls struct {
	now func() time.Time

	mu      sync.Mutex
	waiting map[int64]map[*poll]struct{}
	news    map[int64]time.Time
}

type poll struct{ end context.CancelCauseFunc }

const (
	newsMost = 10_000 // devices
	newsLife = 10 * time.Minute
)

// errCommand ends the waiting of a long poll.
var errCommand = errors.New("a command has come")

func newPolls(now func() time.Time) *polls {
	return &polls{now: now, waiting: map[int64]map[*poll]struct{}{}, news: map[int64]time.Time{}}
}

// tell ends the device's long polls.
func (p *polls) tell(num int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.news) < newsMost {
		p.news[num] = p.now()
	}
	for w := range p.waiting[num] {
		w.end(errCommand)
	}
}

// heard says that the device knows what has come until now.
func (p *polls) heard(num int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.news, num)
}

// wait returns a context that ends with a command for the device. done must be called.
func (p *polls) wait(ctx context.Context, num int64) (_ context.Context, done func()) {
	ctx, end := context.WithCancelCause(ctx)
	w := &poll{end}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, has := p.news[num]; has {
		end(errCommand)
	}
	if p.waiting[num] == nil {
		p.waiting[num] = map[*poll]struct{}{}
	}
	p.waiting[num][w] = struct{}{}
	return ctx, func() {
		end(nil)
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.waiting[num], w); len(p.waiting[num]) == 0 {
			delete(p.waiting, num)
		}
	}
}

// sweep forgets news that nobody has asked for.
func (p *polls) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for num, at := range p.news {
		if p.now().Sub(at) > newsLife {
			delete(p.news, num)
		}
	}
}

// tellCommands sets the header that says how many commands wait.
func (s *Server) tellCommands(w http.ResponseWriter, r *http.Request, d device.Device) error {
	if s.cfg.Commands == nil {
		return nil
	}
	s.polls.heard(d.Num) // before asking, so that what comes after it is not lost
	n, err := s.cfg.Commands.Pending(r.Context(), d)
	if err != nil {
		return err
	}
	if n > 0 {
		w.Header().Set(wire.CommandsHeader, strconv.Itoa(n))
	}
	return nil
}

// commands lists what waits for the device.
func (s *Server) commands(w http.ResponseWriter, r *http.Request, d device.Device) error {
	out := wire.RemoteCommands{Commands: []wire.RemoteCommand{}}
	if s.cfg.Commands != nil {
		s.polls.heard(d.Num)
		waiting, err := s.cfg.Commands.Waiting(r.Context(), d)
		if err != nil {
			return err
		}
		out.Commands = append(out.Commands, waiting...)
	}
	return sendJSON(w, out)
}

func (s *Server) result(w http.ResponseWriter, r *http.Request, d device.Device) error {
	data, err := read(w, r, maxResultBytes)
	if err != nil {
		return err
	}
	return noContent(w, s.takeResult(r.Context(), d, r.PathValue("id"), data))
}

func (s *Server) event(w http.ResponseWriter, r *http.Request, d device.Device) error {
	data, err := read(w, r, maxEventBytes)
	if err != nil {
		return err
	}
	return noContent(w, s.takeEvent(r.Context(), d, data))
}

func (s *Server) telemetry(w http.ResponseWriter, r *http.Request, d device.Device) error {
	data, err := read(w, r, wire.MaxReportBytes)
	if err != nil {
		return err
	}
	return noContent(w, s.takeTelemetry(r.Context(), d, data))
}

func noContent(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}
