package monitoring

import (
	"context"
	"slices"
	"strconv"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/monitoring/series"
)

// Input and output of the PromQL operations.
type (
	queryIn struct {
		Query string `query:"query" required:"true" maxLength:"4096" example:"avg(system_cpu_utilization_ratio)"`
		Time  string `query:"time" maxLength:"40" doc:"RFC 3339 or Unix seconds; default now"`
	}
	queryRangeIn struct {
		Query string `query:"query" required:"true" maxLength:"4096"`
		Start string `query:"start" required:"true" maxLength:"40" doc:"RFC 3339 or Unix seconds"`
		End   string `query:"end" required:"true" maxLength:"40" doc:"RFC 3339 or Unix seconds"`
		Step  string `query:"step" required:"true" maxLength:"20" doc:"Seconds, or a duration such as 5m"`
	}
	// QueryResult has the form of Prometheus' HTTP API.
	QueryResult struct {
		Status string    `json:"status" enum:"success"`
		Data   QueryData `json:"data"`
	}
	// QueryData is the result of an expression.
	QueryData struct {
		ResultType string        `json:"resultType" enum:"vector,matrix"`
		Result     []QuerySeries `json:"result" nullable:"false"`
	}
	// QuerySeries is one series of a result: Value of a vector, Values of a matrix.
	QuerySeries struct {
		Metric map[string]string `json:"metric"`
		Value  []any             `json:"value,omitempty" doc:"Unix seconds and the value as text"`
		Values [][]any           `json:"values,omitempty" doc:"Unix seconds and the value as text, for each step"`
	}
	queryOut struct{ Body QueryResult }
)

// queryScope is the part of the metrics that the reader may query.
func (s *Service) queryScope(ctx context.Context, scope device.Scope) (series.Scope, error) {
	out := series.Scope{Tenant: string(scope.Tenant)}
	if scope.Selector.Empty() {
		return out, nil
	}
	ids, err := s.idsOf(ctx, scope, device.Selector{}, series.MaxScopeDevices+1)
	out.Only, out.Devices = true, ids
	return out, err
}

func (s *Service) query(ctx context.Context, who httpapi.Principal, in *queryIn) (*queryOut, error) {
	at := s.now()
	if in.Time != "" {
		var err error
		if at, err = parseTime("query.time", in.Time); err != nil {
			return nil, err
		}
	}
	scope, err := s.queryScope(ctx, who.Scope)
	if err != nil {
		return nil, err
	}
	lines, err := s.series.Instant(ctx, scope, in.Query, at)
	if err != nil {
		return nil, err
	}
	out := QueryData{ResultType: "vector", Result: make([]QuerySeries, len(lines))}
	for i, l := range lines {
		if len(l.Points) > 1 { // the expression gives a range
			out.ResultType = "matrix"
		}
		out.Result[i] = QuerySeries{Metric: l.Labels, Value: promPair(l.Points[0])}
	}
	if out.ResultType == "matrix" {
		for i, l := range lines {
			out.Result[i] = QuerySeries{Metric: l.Labels, Values: promPairs(l.Points)}
		}
	}
	return &queryOut{QueryResult{"success", out}}, nil
}

func (s *Service) queryRange(ctx context.Context, who httpapi.Principal, in *queryRangeIn) (*queryOut, error) {
	bad := &fault.Invalid{}
	note := func(err error) {
		var one *fault.Invalid
		if asInvalid(err, &one) {
			bad.Fields = slices.Concat(bad.Fields, one.Fields)
		}
	}
	var r series.Range
	var err error
	r.From, err = parseTime("query.start", in.Start)
	note(err)
	r.To, err = parseTime("query.end", in.End)
	note(err)
	r.Step, err = parseStep(in.Step)
	note(err)
	if err := bad.OrNil(); err != nil {
		return nil, err
	}
	scope, err := s.queryScope(ctx, who.Scope)
	if err != nil {
		return nil, err
	}
	lines, err := s.series.Range(ctx, scope, in.Query, r)
	if err != nil {
		return nil, err
	}
	out := QueryData{ResultType: "matrix", Result: make([]QuerySeries, len(lines))}
	for i, l := range lines {
		out.Result[i] = QuerySeries{Metric: l.Labels, Values: promPairs(l.Points)}
	}
	return &queryOut{QueryResult{"success", out}}, nil
}

// promPair writes the value as text, as JSON has no NaN and no infinity.
func promPair(p series.Point) []any {
	return []any{float64(p.At.UnixMilli()) / 1000, strconv.FormatFloat(p.Value, 'f', -1, 64)}
}

func promPairs(points []series.Point) [][]any {
	out := make([][]any, len(points))
	for i, p := range points {
		out[i] = promPair(p)
	}
	return out
}

// The years in which a time may lie: milliseconds of both fit into the store's arithmetic.
var minTime, maxTime = time.Unix(0, 0), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

func parseTime(where, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		seconds, numErr := strconv.ParseFloat(text, 64)
		if numErr != nil || !series.Finite(seconds) || seconds < 0 || seconds > float64(maxTime.Unix()) {
			return time.Time{}, fault.Bad(where, "want a time as of RFC 3339 or Unix seconds, not %.40q", text)
		}
		t = time.UnixMilli(int64(seconds * 1000))
	}
	if t.Before(minTime) || t.After(maxTime) {
		return time.Time{}, fault.Bad(where, "want a time between 1970 and 2200")
	}
	return t.UTC(), nil
}

func parseStep(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 && seconds < 1e8 {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fault.Bad("query.step", "want seconds or a duration such as 5m, not %.20q", text)
	}
	return d, nil
}
