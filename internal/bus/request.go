package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
)

// ErrNobody says that no node answers requests of that subject.
var ErrNobody = errors.New("no node answers this request")

// Refusal is an answer that says why there is none.
type Refusal string

// Error implements error.
func (r Refusal) Error() string { return string(r) }

// refusalHeader carries a Refusal.
const refusalHeader = "Steward-Refusal"

// maxRequests bounds how many requests of one Respond are worked on at a time; more wait.
const maxRequests = 64

// Request asks whoever responds to the subject, on any node, and returns the first answer: a Refusal
// where there is none, ErrNobody where nobody listens, and the context's error when none comes in time.
// Like every message, the question or the answer may be lost: ctx must have a deadline.
func (b *Bus) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, fmt.Errorf("request %s: without a deadline", subject)
	}
	m, err := b.conn.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		err = ErrNobody
	}
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", subject, err)
	}
	if why := m.Header.Get(refusalHeader); why != "" {
		return nil, fmt.Errorf("request %s: %w", subject, Refusal(why))
	}
	return m.Data, nil
}

// Respond has handle answer the requests of a subject; several at a time. An error becomes a Refusal with
// its text at whoever asked, so it must be fit for people. The context of handle ends with cancel, which
// waits for those under way.
func (b *Bus) Respond(subject string, handle func(ctx context.Context, subject string, data []byte) ([]byte, error)) (cancel func(), err error) {
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	slots := make(chan struct{}, maxRequests)
	sub, err := b.conn.Subscribe(subject, func(m *nats.Msg) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		running.Go(func() {
			defer func() { <-slots }()
			b.answer(ctx, m, handle)
		})
	})
	if err == nil {
		err = b.settle(sub)
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("respond to %s: %w", subject, err)
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			_ = sub.Unsubscribe() // fails only when the connection is closed
			stop()
			running.Wait()
		})
	}, nil
}

func (b *Bus) answer(ctx context.Context, m *nats.Msg, handle func(context.Context, string, []byte) ([]byte, error)) {
	if m.Reply == "" {
		return // published, not asked
	}
	out := nats.NewMsg(m.Reply)
	data, err := handle(ctx, m.Subject, m.Data)
	if err != nil {
		out.Header.Set(refusalHeader, err.Error())
	} else {
		out.Data = data
	}
	if err := b.conn.PublishMsg(out); err != nil {
		b.log.Warn("an answer was lost", "subject", m.Subject, "error", err)
	}
}
