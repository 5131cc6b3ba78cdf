package series

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"steward/internal/fault"
)

// Scope is what a query may read: one tenant's series and, when Only is set, just those of Devices.
type Scope struct {
	Tenant  string
	Only    bool
	Devices []string
}

// MaxScopeDevices bounds how many devices a query can be narrowed to.
const MaxScopeDevices = 2000

// Bounds of range queries.
const (
	maxSteps     = 11_000 // points per series, as in Prometheus
	minStep      = time.Second
	maxExprBytes = 4096
)

// Point of a series.
type Point struct {
	At    time.Time
	Value float64
}

// Line is one series of an answer.
type Line struct {
	Labels map[string]string
	Points []Point
}

// Range of times in steps.
type Range struct {
	From, To time.Time
	Step     time.Duration
}

// Instant evaluates expr at one time; each line of the answer has one point, or those of the range that
// the expression gives. A scalar has no labels. A sample counts as current for 5 minutes.
func (s *Store) Instant(ctx context.Context, scope Scope, expr string, at time.Time) ([]Line, error) {
	return s.run(ctx, scope, expr, func(q storage.Queryable, o promql.QueryOpts) (promql.Query, error) {
		return s.engine.NewInstantQuery(ctx, q, o, expr, at)
	})
}

// Range evaluates expr at every step of the range.
func (s *Store) Range(ctx context.Context, scope Scope, expr string, r Range) ([]Line, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return s.run(ctx, scope, expr, func(q storage.Queryable, o promql.QueryOpts) (promql.Query, error) {
		return s.engine.NewRangeQuery(ctx, q, o, expr, r.From, r.To, r.Step)
	})
}

func (r Range) check() error {
	switch {
	case r.Step < minStep:
		return fault.Bad("query.step", "the step is at least %s", minStep)
	case r.To.Before(r.From):
		return fault.Bad("query.end", "the end lies before the start")
	case r.To.Sub(r.From)/r.Step > maxSteps:
		return fault.Bad("query.step", "more than %d points per series: take a longer step or a shorter range", maxSteps)
	}
	return nil
}

// check refuses what no query may be.
func (s Scope) check(expr string) error {
	switch {
	case len(expr) > maxExprBytes:
		return fault.Bad("query.query", "the expression has %d bytes: at most %d", len(expr), maxExprBytes)
	case len(s.Devices) > MaxScopeDevices:
		return fault.New(fault.Unprocessable, "%d devices in one query: at most %d; narrow it by a group", len(s.Devices), MaxScopeDevices)
	case s.Tenant == "":
		return errors.New("metrics query without a tenant")
	}
	return nil
}

// matchers pick the series that the scope may read.
func (s Scope) matchers() []*labels.Matcher {
	matchers := []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, LabelTenant, s.Tenant)}
	if s.Only {
		matchers = append(matchers, deviceMatcher(s.Devices))
	}
	return matchers
}

type makeQuery func(storage.Queryable, promql.QueryOpts) (promql.Query, error)

func (s *Store) run(ctx context.Context, scope Scope, expr string, query makeQuery) ([]Line, error) {
	if err := scope.check(expr); err != nil || scope.Only && len(scope.Devices) == 0 {
		return nil, err
	}
	if _, err := s.parser.ParseExpr(expr); err != nil {
		return nil, fault.Bad("query.query", "%s", err)
	}
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	q, err := query(scope.over(s.db), promql.NewPrometheusQueryOpts(false, 0))
	if err != nil {
		return nil, fault.Bad("query.query", "%s", err)
	}
	defer q.Close()
	return lines(q.Exec(ctx))
}

func lines(res *promql.Result) ([]Line, error) {
	if err := res.Err; err != nil {
		return nil, refusal(err)
	}
	switch v := res.Value.(type) {
	case promql.Matrix:
		out := make([]Line, len(v))
		for i, series := range v {
			out[i] = Line{Labels: series.Metric.Map(), Points: make([]Point, len(series.Floats))}
			for j, p := range series.Floats {
				out[i].Points[j] = Point{time.UnixMilli(p.T).UTC(), p.F}
			}
		}
		return out, nil
	case promql.Vector:
		out := make([]Line, len(v))
		for i, sample := range v {
			out[i] = Line{Labels: sample.Metric.Map(), Points: []Point{{time.UnixMilli(sample.T).UTC(), sample.F}}}
		}
		return out, nil
	case promql.Scalar:
		return []Line{{Points: []Point{{time.UnixMilli(v.T).UTC(), v.V}}}}, nil
	}
	return nil, fault.Bad("query.query", "the expression gives a %s; want numbers", res.Value.Type())
}

// refusal tells the caller what he can change about a query that did not end well.
func refusal(err error) error {
	var tooMany promql.ErrTooManySamples
	var timeout promql.ErrQueryTimeout
	var canceled promql.ErrQueryCanceled
	var storageErr promql.ErrStorage
	switch {
	case errors.As(err, &tooMany):
		return fault.New(fault.Unprocessable, "the query needs more than %d samples in memory: narrow it or take a longer step", maxQueryPoints)
	case errors.As(err, &timeout):
		return fault.New(fault.Unavailable, "the query took longer than %s: narrow it or take a longer step", maxQueryTime)
	case errors.As(err, &canceled):
		return fmt.Errorf("query: %w", context.Canceled)
	case errors.As(err, &storageErr):
		return fmt.Errorf("query: %w", err)
	}
	return fault.Bad("query.query", "%s", err)
}

// over returns the database as the scope sees it. The matchers are added to each read below the engine,
// so whatever an expression says or a future function reads stays inside the scope.
func (s Scope) over(q storage.Queryable) storage.Queryable {
	return scopedQueryable{q, s.matchers()}
}

type scopedQueryable struct {
	storage.Queryable
	matchers []*labels.Matcher
}

func (q scopedQueryable) Querier(mint, maxt int64) (storage.Querier, error) {
	inner, err := q.Queryable.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return scopedQuerier{inner, q.matchers}, nil
}

type scopedQuerier struct {
	storage.Querier
	matchers []*labels.Matcher
}

func (q scopedQuerier) with(ms []*labels.Matcher) []*labels.Matcher {
	return slices.Concat(ms, q.matchers)
}

func (q scopedQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	return q.Querier.Select(ctx, sorted, hints, q.with(ms)...)
}

func (q scopedQuerier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.Querier.LabelValues(ctx, name, hints, q.with(ms)...)
}

func (q scopedQuerier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.Querier.LabelNames(ctx, hints, q.with(ms)...)
}

// Finite tells whether a value can be shown.
func Finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
