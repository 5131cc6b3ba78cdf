package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strconv"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// A list walks an index and leaves out what does not pass the rest of the filter. Where few devices
// pass, it would walk through a million of them for one page. So it looks at the index in spans of a
// known number of rows, and when it has looked at as many as the page may cost it ends there: the page
// is shorter than asked for, perhaps empty, and its cursor goes on behind the last row looked at.

// span is the part of a list's order that one query looks at: behind after, up to upTo where that is
// not nil.
type span struct {
	after position
	upTo  *position
}

// How many rows of its index one page of a list looks at.
const (
	firstSpan   = 1000
	pageRows    = 5_000   // for programs: some 10 ms
	consoleRows = 250_000 // for people, who would rather wait than see an empty page: some 300 ms
	allRows     = math.MaxInt
)

// findings is one page of a search.
type findings struct {
	devices []foundDevice
	stopped *position // where the search ended early; nil when the page is full or all was looked at
}

// find returns at most limit devices behind the position, looking at about so many rows of the index.
func (dk *Desk) find(ctx context.Context, scope device.Scope, f Filter, after position, limit, rows int) (out findings, err error) {
	p, err := dk.choose(ctx, dk.db, scope, f)
	if err != nil || p.entry == byNothing {
		return out, err
	}
	part := span{after: after}
	if !p.picky(scope, f) {
		out.devices, err = dk.findIn(ctx, p, scope, f, part, limit)
		return out, err
	}
	for size := firstSpan; ; size *= 4 {
		size = min(size, rows)
		if part.upTo, err = spanEnd(ctx, dk.db, p, scope, f, part.after, size); err != nil {
			return findings{}, err
		}
		some, err := dk.findIn(ctx, p, scope, f, part, limit-len(out.devices))
		if err != nil {
			return findings{}, err
		}
		out.devices = append(out.devices, some...)
		rows -= size
		switch {
		case len(out.devices) == limit || part.upTo == nil:
			return out, nil
		case rows <= 0:
			out.stopped = part.upTo
			return out, nil
		}
		part.after = *part.upTo
	}
}

func (dk *Desk) findIn(ctx context.Context, p plan, scope device.Scope, f Filter, part span, limit int) ([]foundDevice, error) {
	q := dk.listQuery(p, scope, f, part).Add("ORDER BY " + p.order(f) + limited(limit))
	found, err := sqldb.Collect(ctx, dk.db, func(rows *sql.Rows) (one foundDevice, err error) {
		if f.Search == "" {
			one.Device, err = scanDevice(rows)
			return one, err
		}
		var term []byte
		one.Device, err = scanDevice(rows, &term)
		one.term = string(term)
		return one, err
	}, q.SQL(), q.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return found, nil
}

// limited is a LIMIT as a number and not as an argument: for those PostgreSQL plans, after some runs, as if a
// tenth of all rows were wanted, and sorts them.
func limited(n int) string { return " LIMIT " + strconv.Itoa(n) }

// picky tells whether the plan walks many devices of which few may pass.
func (p plan) picky(scope device.Scope, f Filter) bool {
	if p.entry == byID || p.entry != byTerm && p.devices <= smallSet {
		return false
	}
	labels := !p.rest(scope.Selector.And(f.Selector)).Empty()
	return labels || f.Presence != "" ||
		len(f.Stages) > 0 && p.entry != byStage || f.Model != "" && p.entry != byModel || f.Search != "" && p.entry != byTerm
}

// spanEnd returns where a span of size rows ends, nil when there are fewer. It reads that many entries
// of one index and nothing else.
func spanEnd(ctx context.Context, q sqldb.Reader, p plan, scope device.Scope, f Filter, after position, size int) (*position, error) {
	b, byNum := sqldb.NewQuery("SELECT d.num, '' FROM registry_device d WHERE d.tenant = ?", scope.Tenant), "d.num"
	switch p.entry {
	case byStage:
		stages, args := stageNames(f.Stages)
		b.Add("AND d.stage IN ("+stages+")", args...)
	case byModel:
		b.Add("AND d.model = ?", f.Model)
	case byLabel:
		cond, args := anchorCondition(scope.Tenant, p.anchor)
		b, byNum = sqldb.NewQuery("SELECT a.num, '' FROM registry_label a WHERE "+cond, args...), "a.num"
	case byTerm:
		low, high := termRange(f.Search)
		b = sqldb.NewQuery("SELECT t.num, t.term FROM registry_term t WHERE t.tenant = ? AND t.term < ?", scope.Tenant, high)
		if after.Num == 0 {
			b.Add("AND t.term >= ?", low)
		} else {
			b.Add("AND t.term >= ? AND (t.term, t.num) > (?, ?)", []byte(after.Term), []byte(after.Term), after.Num)
		}
		byNum = ""
	}
	if byNum == "" {
		b.Add("ORDER BY t.term, t.num")
	} else {
		b.Add("AND "+byNum+" > ? ORDER BY "+byNum, after.Num)
	}
	b.Add("LIMIT 1 OFFSET " + strconv.Itoa(size-1))
	var end position
	var term []byte
	err := q.QueryRowContext(ctx, b.SQL(), b.Args()...).Scan(&end.Num, &term)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("measure a part of the list: %w", err)
	}
	end.Term = string(term)
	return &end, nil
}

// Part returns the numbers of devices of the scope that match, in their order, and where to go on: 0
// when all were looked at. It looks at a bounded number of devices, so it may find fewer than were asked
// for, or none, with more behind them. One step of long work over a fleet takes one of it.
func (s *Service) Part(ctx context.Context, q sqldb.Reader, scope device.Scope, part device.Part) (nums []int64, next int64, err error) {
	f := Filter{Selector: part.Selector, Stages: part.Stages}
	p, err := s.choose(ctx, q, scope, f)
	if err != nil || p.entry == byNothing {
		return nil, 0, err
	}
	after := position{Num: part.After}
	end, err := spanEnd(ctx, q, p, scope, f, after, max(4*part.Limit, firstSpan))
	if err != nil {
		return nil, 0, err
	}
	b, num := sqldb.NewQuery("SELECT d.num FROM registry_device d WHERE"), "d.num"
	if p.entry == byLabel {
		cond, args := anchorCondition(scope.Tenant, p.anchor)
		b, num = sqldb.NewQuery("SELECT a.num FROM registry_label a CROSS JOIN registry_device d WHERE "+cond, args...).Add("AND d.num = a.num AND"), "a.num"
	}
	b.Add(num+" > ? AND d.tenant = ?", part.After, scope.Tenant)
	if end != nil {
		b.Add("AND "+num+" <= ?", end.Num)
		next = end.Num
	}
	addFilter(b, p, f)
	cond, args := p.rest(scope.Selector.And(part.Selector)).WhereEach("registry_label", num)
	b.Add("AND "+cond, args...).Add("ORDER BY " + num + limited(part.Limit))
	if nums, err = sqldb.Collect(ctx, q, sqldb.Value[int64], b.SQL(), b.Args()...); err != nil {
		return nil, 0, fmt.Errorf("look for the next devices: %w", err)
	}
	if len(nums) == part.Limit {
		next = nums[len(nums)-1] // there may be more within the span
	}
	return nums, next, nil
}
