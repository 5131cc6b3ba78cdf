package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"steward/internal/wire"
)

// Whole is Desired's epoch of a device that has no desired state yet, or wants it again. 0 is none: it is
// the epoch of a device of which nothing is desired.
const Whole int64 = -1

// Desired fetches the signed envelope. With an epoch other than Whole it returns only when the server has
// another one, after at most wait, else ErrNotModified; ErrUnasked when the server was not asked, see
// LongPace.
func (c *Client) Desired(ctx context.Context, epoch int64, wait time.Duration) (envelope []byte, err error) {
	deadline := time.Now().Add(wait)
	c.accept(epoch)
	for {
		s, moved, err := c.route(ctx)
		switch {
		case err != nil:
		case s != nil:
			envelope, err = s.desired(ctx, moved, epoch, max(0, time.Until(deadline)))
		case c.sparse() && epoch != Whole && !c.due(ctx, moved, epoch, deadline):
			err = ErrUnasked
		default:
			envelope, err = c.poll(ctx, moved, epoch, max(0, time.Until(deadline)))
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errMoved):
			continue
		case errors.Is(err, ErrNotModified), errors.Is(err, ErrUnasked):
			return nil, err
		case err != nil:
			return nil, fmt.Errorf("fetch the desired state: %w", err)
		}
		return envelope, nil
	}
}

// accept notes what the device has.
func (c *Client) accept(epoch int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != Whole {
		c.have = epoch
	}
}

func (c *Client) accepted() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.have
}

// poll asks by HTTPS; it is cut off when messages begin to travel another way.
func (c *Client) poll(ctx context.Context, moved <-chan struct{}, epoch int64, wait time.Duration) ([]byte, error) {
	if c.sparse() {
		wait = 0
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	c.cutPoll = cancel
	gone := c.moved != moved
	c.mu.Unlock()
	if gone {
		return nil, errMoved
	}
	got, err := c.desired(ctx, epoch, wait)
	if err != nil && errors.Is(context.Cause(ctx), errMoved) {
		return nil, errMoved
	}
	return got, err
}

// desired is one exchange by HTTPS.
func (c *Client) desired(ctx context.Context, epoch int64, wait time.Duration) ([]byte, error) {
	wait = min(wait, wire.MaxWaitSeconds*time.Second)
	r := request{method: http.MethodGet, path: wire.PathDesired, limit: wire.MaxEnvelopeBytes, wait: wait}
	if epoch >= 0 {
		r.header = map[string]string{"If-None-Match": `"` + strconv.FormatInt(epoch, 10) + `"`}
		if wait >= time.Second {
			r.query = url.Values{"wait": {strconv.Itoa(int(wait / time.Second))}}
		}
	}
	got, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.asked, c.reported = time.Now(), false
	c.mu.Unlock()
	if got.header.Get(wire.CommandsHeader) != "" {
		c.fetchCommands(ctx)
	}
	switch {
	case got.status != http.StatusNotModified:
		return got.body, nil
	case epoch >= 0:
		return nil, ErrNotModified
	}
	return nil, errors.New("the server withholds it: it was asked for the whole, not whether it has changed")
}

// due waits for the time to ask at a long pace: after each report, and when nothing was reported for
// longer than that. It returns false at the deadline.
func (c *Client) due(ctx context.Context, moved <-chan struct{}, epoch int64, deadline time.Time) bool {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for {
		c.mu.Lock()
		now := c.reported || c.told > epoch || time.Since(c.asked) > c.pace+c.pace/2
		news := c.news
		c.mu.Unlock()
		if now {
			return true
		}
		select {
		case <-news:
		case <-moved:
			return true
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// noteReport is called after each report that was taken by HTTPS.
func (c *Client) noteReport(epoch int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reported, c.told = true, epoch
	close(c.news)
	c.news = make(chan struct{})
}

// fetchCommands hands over what the server has for this device. What fails is signalled again by the next
// answer.
func (c *Client) fetchCommands(ctx context.Context) {
	if c.cfg.Commands == nil {
		return
	}
	got, err := c.do(ctx, request{method: http.MethodGet, path: wire.PathCommands, limit: maxCommandsBytes})
	var list wire.RemoteCommands
	if err == nil {
		err = wire.Decode(got.body, &list)
	}
	if err != nil {
		c.cfg.Log.Debug("commands not fetched", "error", err)
		return
	}
	c.cfg.Commands(list.Commands)
}

// maxCommandsBytes bounds the answer that lists commands.
const maxCommandsBytes = 4 << 20

// message publishes by MQTT when that is the way and the body fits, else it does the request by HTTPS.
func (c *Client) message(ctx context.Context, topic string, answered bool, r request) ([]byte, error) {
	s, _, err := c.route(ctx)
	if err != nil {
		return nil, err
	}
	if s == nil || !s.fits(len(r.body)) {
		got, err := c.do(ctx, r)
		return got.body, err
	}
	body, err := s.ask(ctx, topic, r.body, answered)
	if err == nil {
		c.seen(time.Time{})
	}
	return body, err
}

// Document fetches a desired section's body and verifies its hash.
func (c *Client) Document(ctx context.Context, hash wire.Hash) ([]byte, error) {
	r := request{method: http.MethodGet, path: wire.PathDocuments + string(hash), limit: wire.MaxDocumentBytes}
	body, err := c.message(ctx, wire.TopicFetch+"/"+string(hash), true, r)
	if StatusOf(err) == http.StatusRequestEntityTooLarge { // for a packet of MQTT
		var got answer
		got, err = c.do(ctx, r)
		body = got.body
	}
	if err != nil {
		return nil, fmt.Errorf("fetch document %.12s: %w", hash, err)
	}
	if wire.HashOf(body) != hash {
		return nil, fmt.Errorf("document %.12s: the server sent other bytes", hash)
	}
	return body, nil
}

// PutDocument uploads a reported section's body.
func (c *Client) PutDocument(ctx context.Context, hash wire.Hash, body []byte) error {
	if len(body) > wire.MaxDocumentBytes {
		return fmt.Errorf("upload document %.12s: %d bytes, at most %d", hash, len(body), wire.MaxDocumentBytes)
	}
	_, err := c.message(ctx, wire.TopicDocument+"/"+string(hash), false, jsonRequest(http.MethodPut, wire.PathDocuments+string(hash), body))
	if err != nil {
		return fmt.Errorf("upload document %.12s: %w", hash, err)
	}
	return nil
}

// jsonRequest has an answer without content.
func jsonRequest(method, path string, body []byte) request {
	return request{method: method, path: path, body: body, contentType: "application/json", limit: maxProblemBytes}
}

// Report sends what the device is. The answer comes after the server's commit.
func (c *Client) Report(ctx context.Context, report wire.Report) (wire.ReportAnswer, error) {
	var answer wire.ReportAnswer
	body, err := json.Marshal(report)
	if err != nil {
		return answer, err
	}
	if len(body) > wire.MaxReportBytes {
		return answer, fmt.Errorf("report of %d bytes: at most %d", len(body), wire.MaxReportBytes)
	}
	r := jsonRequest(http.MethodPost, wire.PathReport, body)
	r.limit = wire.MaxReportBytes
	got, err := c.message(ctx, wire.TopicReport, true, r)
	if err != nil {
		return answer, fmt.Errorf("report: %w", err)
	}
	if err := wire.Decode(got, &answer); err != nil {
		return answer, fmt.Errorf("answer to the report: %w", err)
	}
	c.seen(answer.Time)
	c.noteReport(answer.Epoch)
	if s := c.current().stream; s != nil {
		s.announce(answer.Epoch)
	}
	return answer, nil
}

// PostMetrics sends an OTLP/JSON ExportMetricsServiceRequest.
func (c *Client) PostMetrics(ctx context.Context, body []byte) error {
	if _, err := c.message(ctx, wire.TopicMetrics, false, jsonRequest(http.MethodPost, wire.PathMetrics, body)); err != nil {
		return fmt.Errorf("send metrics: %w", err)
	}
	return nil
}

// PostEvent sends something that has happened on the device.
func (c *Client) PostEvent(ctx context.Context, e wire.DeviceEvent) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := c.message(ctx, wire.TopicEvent, false, jsonRequest(http.MethodPost, wire.PathEvents, body)); err != nil {
		return fmt.Errorf("send event %s: %w", e.Name, err)
	}
	return nil
}

// PostResult sends what became of a command; nil means that the server has stored it. The ID has no slash.
func (c *Client) PostResult(ctx context.Context, id string, result wire.RemoteResult) error {
	body, err := json.Marshal(result)
	if err != nil {
		return err
	}
	if _, err := c.message(ctx, wire.TopicResult+"/"+id, false, jsonRequest(http.MethodPost, wire.PathCommands+"/"+id, body)); err != nil {
		return fmt.Errorf("send the result of command %s: %w", id, err)
	}
	return nil
}

// PostDisposal sends the signed statement of sanitization.
func (c *Client) PostDisposal(ctx context.Context, envelope []byte) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathDisposal, body: envelope, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("send the sanitization statement: %w", err)
	}
	return nil
}

// Metadata fetches a file of the tenant's TUF repository, "timestamp.json" or "3.root.json". The bytes
// are verified by TUF, not here. NotFound tells that there is none of that name.
func (c *Client) Metadata(ctx context.Context, name string) ([]byte, error) {
	got, err := c.do(ctx, request{method: http.MethodGet, path: wire.PathTUF + name, limit: MaxMetadataBytes})
	if err != nil {
		return nil, fmt.Errorf("fetch TUF metadata %s: %w", name, err)
	}
	return got.body, nil
}
