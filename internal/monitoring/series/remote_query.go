package series

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql/parser"

	"steward/internal/fault"
)

// Reading uses the HTTP API of Prometheus (https://prometheus.io/docs/prometheus/latest/querying/api/). The
// store evaluates, so the scope is written into the expression: each selector in it gets the scope's matchers,
// and nothing else of PromQL reads series.

// narrow returns the expression with the scope's matchers in every selector.
func (r *Remote) narrow(scope Scope, expr string) (string, error) {
	tree, err := r.parser.ParseExpr(expr)
	if err != nil {
		return "", fault.Bad("query.query", "%s", err)
	}
	matchers := scope.matchers()
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if v, ok := node.(*parser.VectorSelector); ok {
			v.LabelMatchers = append(v.LabelMatchers[:len(v.LabelMatchers):len(v.LabelMatchers)], matchers...)
		}
		return nil
	})
	return tree.String(), nil
}

// Instant evaluates expr at one time, as Store does it.
func (r *Remote) Instant(ctx context.Context, scope Scope, expr string, at time.Time) ([]Line, error) {
	return r.query(ctx, scope, expr, "api/v1/query", url.Values{"time": {promTime(at)}})
}

// Range evaluates expr at every step of the range, as Store does it.
func (r *Remote) Range(ctx context.Context, scope Scope, expr string, over Range) ([]Line, error) {
	if err := over.check(); err != nil {
		return nil, err
	}
	form := url.Values{"start": {promTime(over.From)}, "end": {promTime(over.To)}, "step": {promSeconds(over.Step)}}
	return r.query(ctx, scope, expr, "api/v1/query_range", form)
}

func promTime(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

func promSeconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) }

func (r *Remote) query(ctx context.Context, scope Scope, expr, path string, form url.Values) ([]Line, error) {
	if err := scope.check(expr); err != nil || scope.Only && len(scope.Devices) == 0 {
		return nil, err
	}
	narrowed, err := r.narrow(scope, expr)
	if err != nil {
		return nil, err
	}
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	form.Set("query", narrowed)
	form.Set("timeout", promSeconds(maxQueryTime))
	var data queryData
	if _, err := r.post(ctx, path, form, &data); err != nil {
		return nil, err
	}
	return data.lines()
}

// post sends a form and reads the answer's data. Without a status there was no answer.
func (r *Remote) post(ctx context.Context, path string, form url.Values, data any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxQueryTime+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.api.JoinPath(path).String(), strings.NewReader(form.Encode()))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.decorate(req, r.user)
	res, err := r.client.Do(req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return 0, err
		}
		r.cfg.Log.WarnContext(ctx, "the metrics store did not answer", "error", err)
		return 0, unavailable(downMin)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return res.StatusCode, fmt.Errorf("read the metrics store's answer: %w", err)
	case len(body) > maxAnswerBytes:
		return res.StatusCode, fault.New(fault.Unprocessable, "the answer has more than %d MiB: narrow the query or take a longer step", maxAnswerBytes>>20)
	case res.StatusCode/100 != 2:
		return res.StatusCode, r.judge(ctx, res.StatusCode, body)
	case data == nil:
		return res.StatusCode, nil
	}
	answer := struct {
		Data any `json:"data"`
	}{data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return res.StatusCode, fmt.Errorf("read the metrics store's answer: %w", err)
	}
	return res.StatusCode, nil
}

// judge says what the caller can do about a refusal by the store.
func (r *Remote) judge(ctx context.Context, status int, body []byte) error {
	var answer struct {
		Type  string `json:"errorType"`
		Error string `json:"error"`
	}
	_ = json.Unmarshal(body, &answer) // a proxy's page has none of it
	switch {
	case answer.Type == "timeout" || answer.Type == "canceled":
		return fault.New(fault.Unavailable, "the query took longer than %s: narrow it or take a longer step", maxQueryTime)
	case answer.Type == "bad_data" || answer.Type == "execution":
		return fault.Bad("query.query", "%.500s", answer.Error)
	}
	r.cfg.Log.WarnContext(ctx, "the metrics store refused a query", "status", status, "error", answer.Error)
	return fault.New(fault.Unavailable, "the metrics store answers with status %d: %.200s", status, answer.Error)
}

// queryData is the answer's data; Result's form depends on its type.
type queryData struct {
	Type   string          `json:"resultType"`
	Result json.RawMessage `json:"result"`
}

// remoteLine is one series of an answer.
type remoteLine struct {
	Metric map[string]string `json:"metric"`
	Value  remotePoint       `json:"value"`
	Values []remotePoint     `json:"values"`
}

// remotePoint is a pair of Unix seconds and a number as text.
type remotePoint Point

// UnmarshalJSON reads [1700000000.123, "0.5"]; NaN and infinities are numbers here.
func (p *remotePoint) UnmarshalJSON(text []byte) error {
	var seconds float64
	var value string
	if err := json.Unmarshal(text, &[]any{&seconds, &value}); err != nil {
		return err
	}
	v, err := strconv.ParseFloat(value, 64)
	p.At, p.Value = time.UnixMilli(int64(seconds*1000+0.5)).UTC(), v
	return err
}

func (d queryData) lines() ([]Line, error) {
	switch d.Type {
	case "scalar":
		var p remotePoint
		err := json.Unmarshal(d.Result, &p)
		return []Line{{Points: []Point{Point(p)}}}, err
	case "vector", "matrix":
	default:
		return nil, fault.Bad("query.query", "the expression gives a %s; want numbers", d.Type)
	}
	var series []remoteLine
	if err := json.Unmarshal(d.Result, &series); err != nil {
		return nil, fmt.Errorf("read the metrics store's answer: %w", err)
	}
	out := make([]Line, 0, len(series))
	for _, s := range series {
		l := Line{Labels: s.Metric}
		if d.Type == "vector" {
			l.Points = []Point{Point(s.Value)}
		}
		for _, p := range s.Values {
			l.Points = append(l.Points, Point(p))
		}
		if len(l.Points) > 0 { // not a series of histograms alone
			out = append(out, l)
		}
	}
	return out, nil
}
