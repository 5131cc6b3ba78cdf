package link

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// Waits of a stream.
const (
	// problemWait is how long after a refusing acknowledgement its explanation may come.
	problemWait = 2 * time.Second
	// fullWait is the pause when the server wants no more messages for now.
	fullWait = 20 * time.Millisecond
	// pushWait is how long the envelope that follows a subscription is waited for before it is asked for.
	pushWait = 5 * time.Second
	// drainWait is how long a connection that was replaced may finish what is under way.
	drainWait = 5 * time.Second
)

// errMoved says that messages travel another way now: what was waited for is waited for there.
var errMoved = errors.New("messages travel another way now")

// stream is one MQTT connection with its subscription. It is safe for use by several goroutines.
type stream struct {
	client     *mqtt.Client
	conn       *listened
	via        string
	slot       int // of the two client IDs
	generation int // of identity and trust
	began      time.Time
	window     int64 // seconds, wire.UserPropertyReconnect; 0 when the server did not say
	patience   time.Duration

	stop     func(error)                // Client.stop for this generation
	commands func([]wire.RemoteCommand) // Config.Commands; may be nil

	mu        sync.Mutex
	waiting   map[string]chan reply // by correlation
	envelope  []byte                // the newest that has come; nil once it was handed out
	epoch     int64                 // of the newest that has come
	pushing   bool                  // the subscription's envelope has not come yet
	announced int64                 // the highest epoch that an answer has named
	news      chan struct{}         // closed when one of the above changes
}

// reply is what came back for a message.
type reply struct {
	body    []byte
	problem *Problem
}

// begin speaks MQTT over the connection and subscribes.
func (c *Client) begin(ctx context.Context, conn *listened, via string, slot, generation int) (*stream, error) {
	s := &stream{
		conn: conn, via: via, slot: slot, patience: c.cfg.Patience, generation: generation, commands: c.cfg.Commands,
		stop:    func(err error) { c.stop(err, generation) },
		began:   time.Now(),
		waiting: map[string]chan reply{}, epoch: Whole, pushing: true, announced: Whole, news: make(chan struct{}),
	}
	keepAlive := c.cfg.KeepAlive
	if keepAlive == 0 {
		keepAlive = defaultKeepAlive
	}
	var properties []mqtt.UserProperty
	if have := c.accepted(); have >= 0 {
		// The envelope that the device has is not sent again.
		s.epoch, s.pushing = have, false
		properties = []mqtt.UserProperty{{Key: wire.UserPropertyEpoch, Val: strconv.FormatInt(have, 10)}}
	}
	client, err := mqtt.Connect(ctx, conn, mqtt.Options{
		ClientID: clientIDs[slot], KeepAlive: keepAlive, MaxPacketBytes: wire.MaxMQTTBytes, ReceiveMaximum: wire.MQTTReceiveMaximum,
		UserProperties: properties, OnMessage: s.message,
	})
	if err != nil {
		return nil, err
	}
	s.client = client
	s.window = windowOf(client.Connack().UserProperties)
	if err := client.Subscribe(ctx, 1, wire.Topic(wire.Me, wire.TopicDown, "#")); err != nil {
		_ = client.Close()
		return nil, err
	}
	return s, nil
}

// defaultKeepAlive finds a half-open connection, and keeps entries of address translation alive.
const defaultKeepAlive = 5 * time.Minute

// clientIDs are those of a device's agent: the second one is for a connection that is to take the place of
// another without a gap. A connection after a loss has the ID of the lost one, which it ends. The last one is
// for trying.
var clientIDs = [...]string{"steward-agent", "steward-agent-next", trySlot: "steward-agent-try"}

// trySlot is the place of Try's client ID.
const trySlot = 2

// message is called from the goroutine that reads; it never waits.
func (s *stream) message(m *mqtt.Message) {
	_, direction, name, _, ok := wire.ParseTopic(m.Topic)
	if !ok || direction != wire.TopicDown {
		return
	}
	switch name {
	case wire.TopicDesired:
		s.pushed(m.Payload)
		s.answer(m.Correlation, reply{body: m.Payload})
	case wire.TopicReport, wire.TopicDocument:
		s.answer(m.Correlation, reply{body: m.Payload})
	case wire.TopicCommand:
		var command wire.RemoteCommand
		if s.commands != nil && wire.Decode(m.Payload, &command) == nil { // what is no command can't be answered
			s.commands([]wire.RemoteCommand{command})
		}
	case wire.TopicProblem:
		s.refused(m)
	}
}

// refused takes an explanation. One that belongs to no message may still say that the device is to stop.
func (s *stream) refused(m *mqtt.Message) {
	var p wire.MessageProblem
	if json.Unmarshal(m.Payload, &p) != nil {
		return
	}
	problem := problemFrom(p.Problem)
	s.stop(problem)
	s.answer(m.Correlation, reply{problem: problem})
	if _, _, name, _, _ := wire.ParseTopic(p.Topic); name == wire.TopicDesired {
		s.change(func() { s.pushing = false })
	}
}

func (s *stream) answer(correlation []byte, r reply) {
	s.mu.Lock()
	waiting := s.waiting[string(correlation)]
	s.mu.Unlock()
	if waiting == nil {
		return
	}
	select {
	case waiting <- r:
	default: // the first one counts
	}
}

// change lets f change what is known of the desired state and wakes who waits for that.
func (s *stream) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.news)
	s.news = make(chan struct{})
}

// pushed takes an envelope. Its epoch is only used to tell whether it is another one; whether it counts is
// judged by who opens it.
func (s *stream) pushed(envelope []byte) {
	epoch := epochIn(envelope)
	s.change(func() { s.envelope, s.epoch, s.pushing = envelope, epoch, false })
}

// announce notes the epoch of an answer to a report: an envelope that was lost on its way is asked for.
func (s *stream) announce(epoch int64) {
	s.mu.Lock()
	higher := epoch > s.announced
	s.mu.Unlock()
	if higher {
		s.change(func() { s.announced = max(s.announced, epoch) })
	}
}

// epochIn reads the epoch without verifying anything; an envelope that can't be read has one that no
// device has accepted.
func epochIn(envelope []byte) int64 {
	var outer struct {
		Payload []byte `json:"payload"`
	}
	var inner struct {
		Epoch *int64 `json:"epoch"`
	}
	if json.Unmarshal(envelope, &outer) != nil || json.Unmarshal(outer.Payload, &inner) != nil || inner.Epoch == nil {
		return -2
	}
	return *inner.Epoch
}

// ask publishes to the topic below up and waits: with answered for the answer, else for the
// acknowledgement, which the server sends after its commit. Refusals are *Problem. When the connection ends
// first the message may or may not have been taken.
func (s *stream) ask(ctx context.Context, name string, payload []byte, answered bool) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.patience, errNoAnswer)
	defer cancel()
	var id [12]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	correlation := hex.EncodeToString(id[:])
	replies := make(chan reply, 1)
	s.mu.Lock()
	s.waiting[correlation] = replies
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, correlation)
		s.mu.Unlock()
	}()
	began := time.Now()
	acked, err := s.publish(ctx, mqtt.Message{Topic: wire.Topic(wire.Me, wire.TopicUp, name), Payload: payload, QoS: 1, Correlation: []byte(correlation)})
	if err != nil {
		return nil, err
	}
	for {
		select {
		case r := <-replies:
			if r.problem != nil {
				return nil, r.problem
			}
			return r.body, nil
		case err := <-acked:
			acked = nil
			var refusal *mqtt.ReasonError
			switch {
			case errors.As(err, &refusal):
				return nil, s.explained(ctx, replies, refusal)
			case err != nil:
				return nil, s.ended()
			case !answered:
				return nil, nil
			}
		case <-s.client.Done():
			return nil, s.ended()
		case <-ctx.Done():
			return nil, s.unanswered(context.Cause(ctx), began)
		}
	}
}

var errNoAnswer = errors.New("no answer in time")

// publish sends, waiting while the server takes no more at a time.
func (s *stream) publish(ctx context.Context, m mqtt.Message) (<-chan error, error) {
	acked := make(chan error, 1)
	for {
		err := s.client.Send(m, func(err error) { acked <- err })
		if err != nil && s.client.Err() != nil {
			return nil, s.ended()
		}
		if !errors.Is(err, mqtt.ErrFull) {
			return acked, err
		}
		pause := time.NewTimer(fullWait)
		select {
		case <-pause.C:
		case <-s.client.Done():
			pause.Stop()
			return nil, s.ended()
		case <-ctx.Done():
			pause.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// explained waits for the problem that belongs to a refusing acknowledgement.
func (s *stream) explained(ctx context.Context, replies <-chan reply, refusal *mqtt.ReasonError) error {
	timer := time.NewTimer(problemWait)
	defer timer.Stop()
	select {
	case r := <-replies:
		if r.problem != nil {
			return r.problem
		}
	case <-timer.C:
	case <-s.client.Done():
	case <-ctx.Done():
	}
	status := http.StatusServiceUnavailable
	switch refusal.Reason {
	case mqtt.QuotaExceeded, mqtt.MessageRateTooHigh, mqtt.ReceiveMaximumExceeded:
		status = http.StatusTooManyRequests
	case mqtt.PacketTooLarge:
		status = http.StatusRequestEntityTooLarge
	case mqtt.NotAuthorized:
		status = http.StatusForbidden
	case mqtt.PayloadFormatInvalid:
		status = http.StatusUnprocessableEntity
	case mqtt.TopicNameInvalid:
		status = http.StatusNotFound
	}
	return problemFrom(wire.Problem{Status: status, Title: refusal.Reason.String(), Detail: refusal.Text})
}

// unanswered ends a connection on which nothing at all has come since the question: it is half open.
func (s *stream) unanswered(cause error, began time.Time) error {
	if errors.Is(cause, errNoAnswer) && !s.conn.heardSince(began) {
		_ = s.conn.Close() // the client's reader notices
		return &lostError{cause: fmt.Errorf("the connection is dead: %w", cause)}
	}
	return cause
}

// ended is why the connection is over.
func (s *stream) ended() error {
	err := s.client.Err()
	if err == nil {
		err = mqtt.ErrClosed // which it will be in a moment
	}
	return &lostError{cause: err}
}

// desired returns an envelope with another epoch than the device has, at the latest after wait; else
// ErrNotModified. Whole asks for one in any case.
func (s *stream) desired(ctx context.Context, moved <-chan struct{}, epoch int64, wait time.Duration) ([]byte, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	late := time.NewTimer(pushWait) // after it the subscription's envelope counts as lost
	defer late.Stop()
	for {
		s.mu.Lock()
		envelope, have, pushing, news := s.envelope, s.epoch, s.pushing, s.news
		newer := s.announced > max(epoch, have)
		s.envelope = nil
		s.mu.Unlock()
		switch {
		case envelope != nil && have != epoch:
			return envelope, nil
		case newer, !pushing && (have != epoch || epoch == Whole):
			// One was lost on its way, or was handed out and not accepted, or the whole is asked for.
			body, err := s.ask(ctx, wire.TopicDesired, nil, true)
			s.mu.Lock()
			s.envelope, s.announced = nil, s.epoch // it is handed out here, and is the server's newest
			s.mu.Unlock()
			return body, err
		}
		select {
		case <-news:
		case <-late.C:
			if epoch == Whole {
				s.change(func() { s.pushing = false })
			}
		case <-timer.C:
			if epoch != Whole {
				return nil, ErrNotModified
			}
		case <-moved:
			return nil, errMoved
		case <-s.client.Done():
			return nil, s.ended()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// finish ends the connection in good order, after what is under way has ended or drainWait has passed.
func (s *stream) finish() {
	deadline := time.Now().Add(drainWait)
	for time.Now().Before(deadline) {
		s.mu.Lock()
		n := len(s.waiting)
		s.mu.Unlock()
		if n == 0 {
			break
		}
		pause := time.NewTimer(fullWait)
		select {
		case <-pause.C:
		case <-s.client.Done():
			pause.Stop()
			return
		}
	}
	_ = s.client.Close()
}

// fits tells whether a message of n bytes can travel in one packet.
func (s *stream) fits(n int) bool {
	const around = 256 // topic, correlation and headers
	return n+around <= min(wire.MaxMQTTBytes, s.client.Connack().MaxPacketBytes)
}
