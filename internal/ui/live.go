package ui

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

// Events is what live pages listen to: the ledger, of which the topics are the first parts of the
// events' kinds.
type Events interface {
	// Wait blocks until there are more than after events and returns how many there are.
	Wait(ctx context.Context, after int64) (head int64, err error)
	// TopicsSince lists the topics of the tenant's events with after <= sequence < to, each once.
	TopicsSince(ctx context.Context, tenant device.TenantID, after, to int64) ([]string, error)
}

const (
	livePattern       = "GET /live"
	liveHeartbeat     = 20 * time.Second // below the idle time-outs of usual proxies
	liveSpacing       = 500 * time.Millisecond
	liveWriteTimeout  = 10 * time.Second
	liveMaxPerReader  = 24 // streams of one account; tabs in the background hold none
	liveMaxTopics     = 16
	liveMaxTopicBytes = 200
)

// liveStreams counts the open streams and ends them at shutdown.
type liveStreams struct {
	mu     sync.Mutex
	open   map[string]int // by account
	cancel map[*liveStream]context.CancelFunc
	closed bool
}

func newLiveStreams() *liveStreams {
	return &liveStreams{open: map[string]int{}, cancel: map[*liveStream]context.CancelFunc{}}
}

func (l *liveStreams) enter(s *liveStream, cancel context.CancelFunc) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fault.New(fault.Unavailable, "the server is stopping")
	}
	if l.open[s.account] >= liveMaxPerReader {
		return fault.New(fault.TooMany, "%d live pages are open already", liveMaxPerReader)
	}
	l.open[s.account]++
	l.cancel[s] = cancel
	return nil
}

func (l *liveStreams) leave(s *liveStream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.cancel, s)
	if l.open[s.account]--; l.open[s.account] <= 0 {
		delete(l.open, s.account)
	}
}

func (l *liveStreams) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, cancel := range l.cancel {
		cancel()
	}
}

// Run ends the live streams when ctx does, so that the HTTP server's shutdown need not wait for them.
func (c *Console) Run(ctx context.Context) error {
	<-ctx.Done()
	c.live.close()
	return nil
}

// serveLive is the event stream of GET /live?topics=a+b: an event "change" with the topics that
// changed, at most two a second. It begins at ?after, the ledger's length when the page was made; each
// event's id is the length that it reaches to, so that a browser that comes back (Last-Event-ID) hears
// of what happened meanwhile.
func (c *Console) serveLive(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if c.cfg.Events == nil {
		return fault.New(fault.NotFound, "this console has no live events")
	}
	topics := strings.Fields(r.URL.Query().Get("topics"))
	if len(topics) == 0 || len(topics) > liveMaxTopics || len(r.URL.Query().Get("topics")) > liveMaxTopicBytes {
		return fault.Bad("topics", "want 1 to %d topics", liveMaxTopics)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	s := &liveStream{
		c: c, w: w, rc: http.NewResponseController(w), r: r,
		tenant: who.Scope.Tenant, account: string(who.Scope.Tenant) + "/" + who.Actor.ID, topics: topics,
	}
	if err := c.live.enter(s, cancel); err != nil {
		return err
	}
	defer c.live.leave(s)
	return s.run(ctx)
}

type liveStream struct {
	c       *Console
	w       http.ResponseWriter
	rc      *http.ResponseController
	r       *http.Request
	tenant  device.TenantID
	account string
	topics  []string
	after   int64
	checked time.Time // when the session was last seen to hold
}

// run returns nil in every case once the stream has begun: the answer's head is out, so there is no
// error page to show any more.
func (s *liveStream) run(ctx context.Context) error {
	_ = s.rc.SetReadDeadline(time.Time{})
	head, err := s.c.cfg.Events.Wait(ctx, -1)
	if err != nil {
		return fmt.Errorf("begin live events: %w", err)
	}
	s.after = head
	for _, from := range []string{s.r.Header.Get("Last-Event-ID"), s.r.URL.Query().Get("after")} {
		if last, err := strconv.ParseInt(from, 10, 64); err == nil && last >= 0 {
			s.after = min(last, head)
			break
		}
	}
	s.checked = time.Now()
	h := s.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	if s.send(fmt.Sprintf("retry: 3000\nid: %d\nevent: ready\ndata: \n\n", s.after)) != nil {
		return nil
	}
	for {
		if err := s.step(ctx); err != nil {
			return nil
		}
	}
}

// step waits for one change or one heartbeat and sends it.
func (s *liveStream) step(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, liveHeartbeat)
	defer cancel()
	head, err := s.c.cfg.Events.Wait(wait, s.after)
	idle := err != nil && wait.Err() != nil && ctx.Err() == nil
	if err != nil && !idle {
		return err
	}
	// The session may have ended since, also while there was always something to tell; then the browser's
	// next try is refused.
	if idle || time.Since(s.checked) >= liveHeartbeat {
		if _, err := s.c.cfg.Auth.Authenticate(s.r); err != nil {
			return err
		}
		s.checked = time.Now()
	}
	if idle {
		return s.send(": still here\n\n")
	}
	changed, err := s.c.cfg.Events.TopicsSince(ctx, s.tenant, s.after, head)
	if err != nil {
		return err
	}
	s.after = head
	changed = slices.DeleteFunc(changed, func(t string) bool { return !slices.Contains(s.topics, t) })
	if len(changed) == 0 {
		return nil
	}
	if err := s.send(fmt.Sprintf("id: %d\nevent: change\ndata: %s\n\n", head, strings.Join(changed, " "))); err != nil {
		return err
	}
	return s.pause(ctx)
}

// pause keeps the rate: what happens meanwhile goes into one event.
func (s *liveStream) pause(ctx context.Context) error {
	t := time.NewTimer(liveSpacing)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *liveStream) send(text string) error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(liveWriteTimeout))
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.rc.Flush()
}
