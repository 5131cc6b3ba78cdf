// Package series keeps the devices' metrics: an embedded Prometheus TSDB, the reader of OTLP metrics
// and PromQL over one tenant's part of it.
//
// Every series carries the labels "tenant" and "device", set here from who sent it and never from what
// was sent. Every read goes through a Scope, which adds its matchers below the query engine, so that no
// expression reaches another tenant's samples.
//
// A sample that was acknowledged survives the death of the process; a power cut may take the last
// seconds, as the write-ahead log is not synced with each request. Metrics are the one thing in Steward
// for which that is enough.
package series

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"
)

// Bounds of what one device may store and send.
const (
	MaxSeries      = 200                // per device among those of the last hours
	MaxSamples     = 20_000             // per request
	MaxAhead       = 10 * time.Minute   // how far in the future a sample may lie
	MaxAge         = 7 * 24 * time.Hour // how old a sample may be
	defaultKeep    = 15 * 24 * time.Hour
	LabelTenant    = "tenant"
	LabelDevice    = "device"
	maxQueryTime   = 15 * time.Second
	maxQueryPoints = 5_000_000 // samples in memory, 16 bytes each
	maxQueries     = 4         // at a time; more wait
)

// Config of a Store.
type Config struct {
	Dir  string           // made when absent
	Keep time.Duration    // how long samples are kept; 0 means 15 days
	Log  *slog.Logger     // required
	Now  func() time.Time // nil means time.Now
}

// Store is an open time-series database; safe for concurrent use.
type Store struct {
	db     *tsdb.DB
	engine *promql.Engine
	parser parser.Parser
	now    func() time.Time
	turns  chan struct{} // one element per running query
}

// Open opens or makes the database in cfg.Dir and replays its log. Close it.
func Open(cfg Config) (*Store, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the metrics' directory: %w", err)
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	opts := tsdb.DefaultOptions()
	opts.RetentionDuration = cfg.Keep.Milliseconds()
	// Blocks of up to a tenth of what is kept, as in Prometheus.
	opts.MaxBlockDuration = max(cfg.Keep/10, 2*time.Hour).Milliseconds()
	opts.OutOfOrderTimeWindow = MaxAge.Milliseconds() // devices that were offline send what they kept
	opts.WALCompression = compression.Snappy
	// What an idle server keeps in memory: smaller stripes and buffers than for a fleet-wide Prometheus.
	opts.StripeSize = 1 << 10
	opts.WALSegmentSize = 16 << 20
	opts.HeadChunksWriteBufferSize = 64 << 10
	db, err := tsdb.Open(cfg.Dir, quiet(cfg.Log), nil, opts, nil)
	if err != nil {
		return nil, fmt.Errorf("open the metrics: %w", err)
	}
	p := parser.NewParser(parser.Options{})
	engine := promql.NewEngine(promql.EngineOpts{
		Logger: quiet(cfg.Log), MaxSamples: maxQueryPoints, Timeout: maxQueryTime, LookbackDelta: 5 * time.Minute,
		EnableAtModifier: true, EnableNegativeOffset: true, Parser: p,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})
	return &Store{
		db: db, engine: engine, parser: p, now: cfg.Now,
		turns: make(chan struct{}, maxQueries),
	}, nil
}

// quiet keeps the database's own progress reports out of the log.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(atLeastWarn{log.Handler()}) }

type atLeastWarn struct{ slog.Handler }

func (h atLeastWarn) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

// Handle leaves out what is no finding here: late samples, of devices that were offline, make blocks of the
// same time, which the next compaction merges.
func (h atLeastWarn) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "Overlapping blocks") {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h atLeastWarn) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeastWarn{h.Handler.WithAttrs(attrs)}
}

func (h atLeastWarn) WithGroup(name string) slog.Handler {
	return atLeastWarn{h.Handler.WithGroup(name)}
}

// Close waits for running work and closes the files.
func (s *Store) Close() error {
	return errors.Join(s.engine.Close(), s.db.Close())
}

// Series counts the series that were written to in the last hours.
func (s *Store) Series() int64 { return int64(s.db.Head().NumSeries()) }

// Sample is one value of one series of a device, not yet checked against the clock.
type Sample struct {
	Labels labels.Labels // with the name, without tenant and device
	At     time.Time     // zero means now
	Value  float64
}

// Refused counts the samples that were not stored, and why.
type Refused struct {
	Ahead     int           // too far in the future
	MostAhead time.Duration // how far at most
	Old       int           // older than MaxAge, or than what the database still takes
	Series    int           // of a new series beyond MaxSeries
	Conflict  int           // another value is already stored at the same time
}

// Any tells whether a sample was refused.
func (r Refused) Any() bool { return r.Count() > 0 }

// Count is how many were refused.
func (r Refused) Count() int { return r.Ahead + r.Old + r.Series + r.Conflict }

// judge returns a sample's time, or counts why it can't be stored.
func (r *Refused) judge(sample Sample, now time.Time) (at time.Time, ok bool) {
	if at = sample.At; at.IsZero() {
		at = now
	}
	if ahead := at.Sub(now); ahead > MaxAhead {
		r.Ahead++
		r.MostAhead = max(r.MostAhead, ahead)
		return at, false
	}
	if now.Sub(at) > MaxAge {
		r.Old++
		return at, false
	}
	return at, true
}

// Write stores a device's samples. Those that can't be stored are counted, the others are stored.
// Writing the same samples twice is the same as once.
func (s *Store) Write(ctx context.Context, tenant, device string, samples []Sample) (Refused, error) {
	var refused Refused
	now := s.now()
	app := s.db.Appender(ctx)
	b := budget{s: s, device: device, left: -1}
	for _, sample := range samples {
		at, ok := refused.judge(sample, now)
		if !ok {
			continue
		}
		full := identify(sample.Labels, tenant, device)
		allowed, err := b.allows(ctx, app, full)
		if err != nil {
			return refused, errors.Join(err, app.Rollback())
		}
		if !allowed {
			refused.Series++
			continue
		}
		_, err = app.Append(0, full, at.UnixMilli(), sample.Value)
		switch {
		case err == nil:
		case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
			refused.Conflict++
		case errors.Is(err, storage.ErrOutOfOrderSample), errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds):
			refused.Old++
		default:
			return refused, errors.Join(fmt.Errorf("store a sample: %w", err), app.Rollback())
		}
	}
	if err := app.Commit(); err != nil {
		return refused, fmt.Errorf("store samples: %w", err)
	}
	return refused, nil
}

// identify sets whose series it is, whatever the sender claimed.
func identify(l labels.Labels, tenant, device string) labels.Labels {
	b := labels.NewBuilder(l)
	b.Set(LabelTenant, tenant)
	b.Set(LabelDevice, device)
	return b.Labels()
}

// budget counts a device's series, and only when a new one comes.
type budget struct {
	s      *Store
	device string
	left   int // -1 until counted
}

func (b *budget) allows(ctx context.Context, app storage.Appender, l labels.Labels) (bool, error) {
	if refs, ok := app.(storage.GetRef); ok {
		if ref, _ := refs.GetRef(l, l.Hash()); ref != 0 {
			return true, nil
		}
	}
	if b.left < 0 {
		index, err := b.s.db.Head().Index()
		if err != nil {
			return false, fmt.Errorf("count series: %w", err)
		}
		defer index.Close()
		p, err := index.Postings(ctx, LabelDevice, b.device)
		if err != nil {
			return false, fmt.Errorf("count series: %w", err)
		}
		for b.left = MaxSeries; p.Next() && b.left > 0; {
			b.left--
		}
	}
	if b.left == 0 {
		return false, nil
	}
	b.left--
	return true, nil
}

// Forget deletes the samples of the devices up to that time, for good. What they measure later, for another
// owner, stays.
func (s *Store) Forget(ctx context.Context, until time.Time, devices ...string) error {
	if len(devices) == 0 {
		return nil
	}
	// Late samples wait in a part of the head that deletion doesn't reach; this moves them to blocks.
	if err := s.db.CompactOOOHead(ctx); err != nil {
		return fmt.Errorf("forget metrics: %w", err)
	}
	for chunk := range slices.Chunk(devices, 500) {
		if err := s.db.Delete(ctx, math.MinInt64, until.UnixMilli(), deviceMatcher(chunk)); err != nil {
			return fmt.Errorf("forget metrics: %w", err)
		}
	}
	return nil
}

// deviceMatcher matches the devices exactly; the engine turns such an expression into a set.
func deviceMatcher(devices []string) *labels.Matcher {
	if len(devices) == 1 {
		return labels.MustNewMatcher(labels.MatchEqual, LabelDevice, devices[0])
	}
	quoted := make([]string, len(devices))
	for i, d := range devices {
		quoted[i] = regexp.QuoteMeta(d)
	}
	return labels.MustNewMatcher(labels.MatchRegexp, LabelDevice, strings.Join(quoted, "|"))
}
