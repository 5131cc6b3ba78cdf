package series

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/encoding/protowire"
)

// Writing follows Prometheus' remote write 1.0 (https://prometheus.io/docs/specs/prw/remote_write_spec/):
// a WriteRequest in protobuf, compressed by snappy. Callers that come while a request is on its way share the
// next one; whoever finds the way free sends for all that wait. So there is no queue that a death of the process
// would take, and no goroutine but the callers'.

// shard is one way to the store.
type shard struct {
	turn  chan struct{} // holds one element while somebody sends
	mu    sync.Mutex
	queue []*delivery
}

// delivery is what one caller wants stored.
type delivery struct {
	series  []remoteSeries
	samples int
	done    chan struct{} // closed when the two below are set
	refused int
	err     error
}

// remoteSeries is one series with its samples, oldest first.
type remoteSeries struct {
	labels  labels.Labels
	samples []remoteSample
}

type remoteSample struct {
	millis int64
	value  float64
}

// Write stores a device's samples and returns once the store has them. Those that can't be stored are
// counted. It returns fault.Unavailable, with the time after which to come back, when the store is away or
// too much is on its way already; sending the same again is fine.
func (r *Remote) Write(ctx context.Context, tenant, device string, samples []Sample) (Refused, error) {
	var refused Refused
	d := &delivery{done: make(chan struct{})}
	r.gather(d, &refused, owner{tenant, device}, samples)
	if d.samples == 0 {
		return refused, nil
	}
	if left := r.down.left(r.cfg.Now()); left > 0 {
		return refused, unavailable(left)
	}
	if r.waiting.Add(int64(d.samples)) > maxWaiting {
		r.waiting.Add(-int64(d.samples))
		return refused, unavailable(downMin)
	}
	defer r.waiting.Add(-int64(d.samples))
	h := fnv.New32a()
	_, _ = io.WriteString(h, device) // never fails
	s := &r.shards[h.Sum32()%writeShards]
	s.put(d)
	if err := r.deliver(ctx, s, d); err != nil {
		return refused, err
	}
	refused.Old += d.refused
	return refused, d.err
}

// owner is whose samples they are.
type owner struct{ tenant, device string }

// gather sorts samples into series and leaves out what can't be stored.
func (r *Remote) gather(d *delivery, refused *Refused, of owner, samples []Sample) {
	now := r.cfg.Now()
	at := map[uint64]int{} // index in d.series
	for _, sample := range samples {
		when, ok := refused.judge(sample, now)
		if !ok {
			continue
		}
		full := identify(sample.Labels, of.tenant, of.device)
		hash := full.Hash()
		if !r.budget.allows(of.device, hash, now) {
			refused.Series++
			continue
		}
		i, has := at[hash]
		if !has {
			i = len(d.series)
			at[hash] = i
			d.series = append(d.series, remoteSeries{labels: full})
		}
		d.series[i].samples = append(d.series[i].samples, remoteSample{when.UnixMilli(), sample.Value})
		d.samples++
	}
	for i := range d.series {
		// The store wants a series' samples in their order, and each time once.
		s := &d.series[i]
		slices.SortStableFunc(s.samples, func(a, b remoteSample) int { return int(min(max(a.millis-b.millis, -1), 1)) })
		before := len(s.samples)
		s.samples = slices.CompactFunc(s.samples, func(a, b remoteSample) bool { return a.millis == b.millis })
		refused.Conflict += before - len(s.samples)
		d.samples -= before - len(s.samples)
	}
}

func (s *shard) put(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, d)
}

// take takes what fits into one request, at least one delivery.
func (s *shard) take() (batch []*delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for len(s.queue) > 0 && (n == 0 || n+s.queue[0].samples <= maxBatchSamples) {
		n += s.queue[0].samples
		batch, s.queue = append(batch, s.queue[0]), s.queue[1:]
	}
	return batch
}

// drop takes back a delivery that nobody has begun to send.
func (s *shard) drop(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = slices.DeleteFunc(s.queue, func(other *delivery) bool { return other == d })
}

// deliver waits until d is sent, and sends for all whenever nobody else does.
func (r *Remote) deliver(ctx context.Context, s *shard, d *delivery) error {
	for {
		select {
		case <-d.done:
			return nil
		case <-ctx.Done():
			s.drop(d)
			return ctx.Err()
		case s.turn <- struct{}{}:
		}
		select {
		case <-d.done: // by the one before
		default:
			r.send(ctx, s.take())
		}
		<-s.turn
	}
}

// send sends a batch and tells each caller. The request outlives the caller who sends it, since it is not
// theirs alone.
func (r *Remote) send(ctx context.Context, batch []*delivery) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	all := make([]remoteSeries, 0, len(batch))
	for _, d := range batch {
		all = append(all, d.series...)
	}
	err := r.push(ctx, all)
	if errors.Is(err, errRefused) {
		budget := maxParts
		for _, d := range batch { // one bad sample spoils the whole request: find whose it is
			d.refused, d.err = r.part(ctx, d.series, &budget)
		}
	}
	for _, d := range batch {
		if err != nil && !errors.Is(err, errRefused) {
			d.err = err
		}
		if d.err == nil {
			r.count(d.samples-d.refused, d.refused, 0)
		}
		close(d.done)
	}
}

// maxParts bounds the requests that look for the bad samples of one batch; what is then not sorted out
// counts as bad.
const maxParts = 200

// part stores what the store takes of the series, in halves down to a single sample.
func (r *Remote) part(ctx context.Context, all []remoteSeries, budget *int) (refused int, err error) {
	n := samplesIn(all)
	if *budget <= 0 || n == 0 {
		return n, nil
	}
	*budget--
	err = r.push(ctx, all)
	if !errors.Is(err, errRefused) {
		return 0, err
	}
	if n == 1 {
		r.cfg.Log.DebugContext(ctx, "the metrics store refuses a sample", "series", all[0].labels.String(), "error", err)
		return 1, nil
	}
	left, right := halves(all)
	a, err := r.part(ctx, left, budget)
	if err != nil {
		return a, err
	}
	b, err := r.part(ctx, right, budget)
	return a + b, err
}

func samplesIn(all []remoteSeries) (n int) {
	for _, s := range all {
		n += len(s.samples)
	}
	return n
}

// halves divides by series, or the samples of a single one.
func halves(all []remoteSeries) (left, right []remoteSeries) {
	if len(all) > 1 {
		return all[:len(all)/2], all[len(all)/2:]
	}
	s := all[0]
	m := len(s.samples) / 2
	return []remoteSeries{{s.labels, s.samples[:m]}}, []remoteSeries{{s.labels, s.samples[m:]}}
}

// errRefused says that the store will never take the request as it is (4xx but 429).
var errRefused = errors.New("the metrics store refuses the samples")

// push sends one request, again when that may help.
func (r *Remote) push(ctx context.Context, all []remoteSeries) error {
	body := snappy.Encode(nil, encodeWrite(all))
	pause := tryPause
	for try := 1; ; try++ {
		after, err := r.pushOnce(ctx, body)
		if err == nil {
			r.down.end()
			return nil
		}
		if errors.Is(err, errRefused) {
			return err
		}
		r.count(0, 0, 1)
		if try == writeTries || after > 0 || ctx.Err() != nil {
			left := r.down.begin(r.cfg.Now(), after)
			r.cfg.Log.WarnContext(ctx, "metrics are not stored", "error", err, "again", left)
			return unavailable(left)
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		pause *= 2
	}
}

// pushOnce returns how long the store wants to be left alone, when it says so.
func (r *Remote) pushOnce(ctx context.Context, body []byte) (after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.write, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.decorate(req, r.writer)
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	res, err := r.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // for the log; the status decides
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	switch {
	case res.StatusCode/100 == 2:
		return 0, nil
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode/100 == 5,
		res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusNotFound:
		// The last three are mistakes in the settings: nobody's samples are bad because of them.
		if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
			after = time.Duration(seconds) * time.Second
		}
		return after, fmt.Errorf("status %d: %s", res.StatusCode, strings.TrimSpace(string(text)))
	}
	return 0, fmt.Errorf("%w: status %d: %s", errRefused, res.StatusCode, strings.TrimSpace(string(text)))
}

// Field numbers of remote write's messages.
const (
	fieldTimeSeries  = 1 // of WriteRequest
	fieldLabels      = 1 // of TimeSeries
	fieldSamples     = 2
	fieldLabelName   = 1 // of Label
	fieldLabelValue  = 2
	fieldSampleValue = 1 // of Sample; a double
	fieldSampleTime  = 2 // milliseconds
)

func encodeWrite(all []remoteSeries) []byte {
	var out, series, part []byte
	for _, s := range all {
		series = series[:0]
		s.labels.Range(func(l labels.Label) { // sorted by name, as the store wants them
			part = protowire.AppendTag(part[:0], fieldLabelName, protowire.BytesType)
			part = protowire.AppendString(part, l.Name)
			part = protowire.AppendTag(part, fieldLabelValue, protowire.BytesType)
			part = protowire.AppendString(part, l.Value)
			series = protowire.AppendTag(series, fieldLabels, protowire.BytesType)
			series = protowire.AppendBytes(series, part)
		})
		for _, sample := range s.samples {
			part = protowire.AppendTag(part[:0], fieldSampleValue, protowire.Fixed64Type)
			part = protowire.AppendFixed64(part, math.Float64bits(sample.value))
			part = protowire.AppendTag(part, fieldSampleTime, protowire.VarintType)
			part = protowire.AppendVarint(part, uint64(sample.millis))
			series = protowire.AppendTag(series, fieldSamples, protowire.BytesType)
			series = protowire.AppendBytes(series, part)
		}
		out = protowire.AppendTag(out, fieldTimeSeries, protowire.BytesType)
		out = protowire.AppendBytes(out, series)
	}
	return out
}
