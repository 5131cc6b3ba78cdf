package registry

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// Filter picks devices; what is empty picks all.
type Filter struct {
	Stages   []device.Stage  `json:"stages,omitempty"`
	Selector device.Selector `json:"selector,omitzero"`
	Model    string          `json:"model,omitempty"`    // ID of a hardware model
	Presence string          `json:"presence,omitempty"` // one of PresenceStates
	Search   string          `json:"search,omitempty"`   // begin of ID, serial number, name or a word of the name
	IDs      []device.ID     `json:"ids,omitempty"`      // exactly these; the rest of the filter still holds
}

// position is where a page ends: the number of its last device and, in a search, the term that found it.
type position struct {
	Term string `json:"t,omitempty"`
	Num  int64  `json:"n"`
}

type foundDevice struct {
	device.Device
	term string
}

// smallSet is how many devices may be looked at and sorted for one page.
const smallSet = 5000

// entry is where a query begins: the engine walks this index and looks at everything else by device.
type entry int

const (
	byTenant   entry = iota // all devices of the tenant, in the order of their numbers
	byStage                 // those in one stage, in order; or few in several stages, to be sorted
	byModel                 // those of one model, in order
	byLabel                 // those with one label, in order; or few with one of several values, to be sorted
	byTerm                  // those that the search finds, in the order of the terms
	byPresence              // few in one state of presence, to be sorted
	byID                    // a few named devices
	byNothing               // kept counts say that no device passes
)

// plan is how a page is found.
type plan struct {
	entry   entry
	anchor  device.Anchor // with byLabel
	instead device.Anchor // the exclusion that the anchor stands for, if any
	devices int64         // how many the entry has, about
}

// choose picks the entry with the fewest devices, from kept counts: SQLite has no statistics about
// which label or stage is rare, and the difference is a page in a millisecond or in seconds.
func (s *Service) choose(ctx context.Context, q sqldb.Reader, scope device.Scope, f Filter) (plan, error) {
	if len(f.IDs) > 0 {
		return plan{entry: byID}, nil
	}
	stages, err := s.Counts(ctx, q, device.Scope{Tenant: scope.Tenant})
	if err != nil {
		return plan{}, err
	}
	best := plan{entry: byTenant}
	for _, n := range stages {
		best.devices += n
	}
	// In a search everything but the terms has to be sorted, so it must be few.
	search := f.Search != ""
	offer := func(p plan, sorted bool) {
		if p.devices < best.devices && (sorted && !search || p.devices <= smallSet) {
			best = p
		}
	}
	if f.Model != "" {
		n, err := modelCount(ctx, q, scope.Tenant, f.Model)
		if err != nil {
			return plan{}, err
		}
		offer(plan{entry: byModel, devices: n}, true)
	}
	if len(f.Stages) > 0 {
		var n int64
		for _, st := range f.Stages {
			n += stages[st]
		}
		offer(plan{entry: byStage, devices: n}, len(f.Stages) == 1)
	}
	plans, err := labelPlans(ctx, q, scope.Tenant, scope.Selector.And(f.Selector))
	if err != nil {
		return plan{}, err
	}
	for _, p := range plans {
		if p.entry == byNothing {
			return p, nil
		}
		offer(p, len(p.anchor.Values) == 1)
	}
	if search && best.devices > smallSet {
		best = plan{entry: byTerm}
	}
	return best, nil
}

// labelPlans are the ways to begin with a label of the selector; byNothing among them says that no device
// passes.
func labelPlans(ctx context.Context, q sqldb.Reader, tenant device.TenantID, sel device.Selector) ([]plan, error) {
	var plans []plan
	for _, a := range sel.Anchors() {
		n, err := labelCount(ctx, q, tenant, a)
		if err != nil {
			return nil, err
		}
		plans = append(plans, plan{entry: byLabel, anchor: a, devices: n.devices})
	}
	for _, x := range sel.Exclusions() {
		p, found, err := complement(ctx, q, tenant, x)
		if err != nil {
			return nil, err
		}
		if found || p.entry == byNothing {
			plans = append(plans, p)
		}
	}
	return plans, nil
}

// choose begins with presence where that is rarer than all that the registry itself knows.
func (dk *Desk) choose(ctx context.Context, q sqldb.Reader, scope device.Scope, f Filter) (plan, error) {
	best, err := dk.Service.choose(ctx, q, scope, f)
	if err != nil || best.entry == byID || best.entry == byNothing || !dk.indexed(scope.Tenant, f.Presence) {
		return best, err
	}
	counts, err := dk.presenceOf(ctx, device.Scope{Tenant: scope.Tenant})
	if err != nil {
		return plan{}, err
	}
	if n := counts[f.Presence]; n <= smallSet && (best.entry == byTerm || n < best.devices) {
		best = plan{entry: byPresence, devices: n}
	}
	return best, nil
}

// indexed tells whether an index finds the devices that are in the state.
func (dk *Desk) indexed(tenant device.TenantID, state string) bool {
	if state == "" || dk.cfg.PresenceIn == nil {
		return false
	}
	query, _ := dk.cfg.PresenceIn(tenant, state)
	return query != ""
}

// complement turns an exclusion into the values that it leaves, when all devices have the key: then
// "site!=berlin" is the same as "site in (all other sites)". found is false when it is not so, or when
// there are many of them. Kept counts that are equal say that nothing is left at all.
func complement(ctx context.Context, q sqldb.Reader, tenant device.TenantID, x device.Anchor) (p plan, found bool, err error) {
	excluded, err := labelCount(ctx, q, tenant, x)
	if err != nil || !excluded.exact {
		return p, false, err
	}
	if excluded.devices == excluded.all {
		return plan{entry: byNothing}, false, nil
	}
	if len(x.Values) == 0 {
		return p, false, nil
	}
	// One statement, so that no device comes in between that has another value or none.
	cond, args := anchorCondition(tenant, device.Anchor{Key: x.Key})
	b := sqldb.NewQuery("SELECT a.value, SUM(a.devices), (SELECT COALESCE(SUM(devices), 0) FROM registry_count WHERE tenant = ?)", tenant).
		Add("FROM registry_label_stage a WHERE "+cond+" GROUP BY a.value ORDER BY a.value LIMIT ?", append(args, maxComplement+len(x.Values)+1)...)
	var with, all int64
	values, err := sqldb.Collect(ctx, q, func(rows *sql.Rows) (v LabelValue, err error) {
		err = rows.Scan(&v.Value, &v.Devices, &all)
		with += v.Devices
		return v, err
	}, b.SQL(), b.Args()...)
	if err != nil {
		return p, false, fmt.Errorf("list values of label %s: %w", x.Key, err)
	}
	p = plan{entry: byLabel, anchor: device.Anchor{Key: x.Key}, instead: x}
	for _, v := range values {
		if !slices.Contains(x.Values, v.Value) && v.Devices > 0 {
			p.anchor.Values = append(p.anchor.Values, v.Value)
			p.devices += v.Devices
		}
	}
	if n := len(p.anchor.Values); with != all || n == 0 || n > maxComplement {
		return plan{}, false, nil
	}
	return p, true, nil
}

// maxComplement bounds the values that an exclusion is turned into.
const maxComplement = 100

// rest is what of the selector is still to be asked for each device of the entry.
func (p plan) rest(sel device.Selector) device.Selector {
	switch {
	case p.entry != byLabel:
		return sel
	case p.instead.Key != "":
		return sel.Without(p.instead, true)
	}
	return sel.Without(p.anchor, false)
}

// num is the column with the number that an entry knows before it has read the device.
func (p plan) num() string {
	if p.entry == byLabel {
		return "a.num"
	}
	return "d.num"
}

// order is by number, or by term in a search, named so that the engine sees that it walks in this order.
func (p plan) order(f Filter) string {
	if f.Search != "" {
		return "t.term, t.num"
	}
	return p.num()
}

// labelsWhere is the condition on registry_label a for a part of a list that begins with labels.
func labelsWhere(tenant device.TenantID, p plan, f Filter, part span) (string, []any) {
	cond, args := anchorCondition(tenant, p.anchor)
	if f.Search != "" {
		return cond, args // in the order of terms, so by number it has no parts
	}
	cond, args = cond+" AND a.num > ?", append(args, part.after.Num)
	if part.upTo != nil {
		cond, args = cond+" AND a.num <= ?", append(args, part.upTo.Num)
	}
	return cond, args
}

// listQuery puts the query together up to its order. Its tables stand in the order of the plan;
// CROSS JOIN keeps SQLite to it. PostgreSQL finds its own by statistics, but for labels: it takes them for
// spread over the fleet, and would walk all devices up to the first that has a label of the newest ones.
// An OFFSET has it read the labels first.
func (dk *Desk) listQuery(p plan, scope device.Scope, f Filter, part span) *sqldb.Builder {
	columns, tables, with := deviceColumns, []string{"registry_device d"}, ""
	var tableArgs []any
	if p.entry == byLabel {
		tables = []string{"registry_label a", "registry_device d"}
		if dk.db.Dialect() == sqldb.Postgres {
			cond, args := labelsWhere(scope.Tenant, p, f, part)
			tables[0], tableArgs = "(SELECT a.num FROM registry_label a WHERE "+cond+" ORDER BY a.num OFFSET 0) a", args
		}
	}
	if p.entry == byPresence {
		query, args := dk.cfg.PresenceIn(scope.Tenant, f.Presence)
		tables, tableArgs = []string{"p", "registry_device d"}, args
		with = "WITH p (num) AS (" + query + ") "
	}
	if f.Search != "" {
		columns += ", t.term"
		if p.entry == byTerm {
			tables = []string{"registry_term t", "registry_device d"}
		} else {
			tables = append(tables, "registry_term t")
		}
	}
	q := sqldb.NewQuery(with+"SELECT "+columns+" FROM "+strings.Join(tables, " CROSS JOIN ")+" WHERE", tableArgs...)
	if p.entry == byPresence {
		q.Add("d.num = p.num AND")
	}
	if p.entry == byLabel {
		if dk.db.Dialect() == sqldb.SQLite {
			cond, args := labelsWhere(scope.Tenant, p, f, part)
			q.Add(cond+" AND", args...)
		}
		q.Add("d.num = a.num AND")
	}
	dk.addConditions(q, p, scope, f, part)
	return q
}

// addConditions adds what the devices must fulfil besides being of the entry.
func (dk *Desk) addConditions(q *sqldb.Builder, p plan, scope device.Scope, f Filter, part span) {
	q.Add("d.tenant = ?", scope.Tenant)
	if f.Search != "" {
		addSearch(q, f.Search, part.after)
		if p.entry == byTerm {
			q.Add("AND t.tenant = ?", scope.Tenant)
		}
	} else {
		q.Add("AND d.num > ?", part.after.Num)
	}
	if part.upTo != nil {
		if f.Search != "" {
			q.Add("AND t.term <= ? AND (t.term, t.num) <= (?, ?)", []byte(part.upTo.Term), []byte(part.upTo.Term), part.upTo.Num)
		} else {
			q.Add("AND d.num <= ?", part.upTo.Num)
		}
	}
	addFilter(q, p, f)
	cond, args := p.rest(scope.Selector.And(f.Selector)).WhereEach("registry_label", p.num())
	q.Add("AND "+cond, args...)
	if f.Presence != "" && dk.cfg.Presence != nil {
		cond, args := dk.cfg.Presence.Where("d.num", f.Presence)
		q.Add("AND "+cond, args...)
	}
}

// addSearch adds the conditions of a search by prefix. A device that several of its terms bring up is
// shown at the first of them only. The tenant is the device's: only where the plan begins with the terms is
// it named again, since SQLite would else walk through all terms for each device.
func addSearch(q *sqldb.Builder, search string, after position) {
	low, high := termRange(search)
	from := low
	if after.Num != 0 && after.Term > string(low) {
		from = []byte(after.Term)
	}
	q.Add("AND t.num = d.num AND t.term >= ? AND t.term < ?", from, high)
	q.Add("AND NOT EXISTS (SELECT 1 FROM registry_term e WHERE e.num = t.num AND e.term >= ? AND e.term < t.term)", low)
	if after.Num != 0 {
		q.Add("AND (t.term, t.num) > (?, ?)", []byte(after.Term), after.Num)
	}
}

// termRange returns between what terms lie that begin with the search: from low on and before high.
func termRange(search string) (low, high []byte) {
	low = []byte(foldTerm(search))
	return low, append(slices.Clone(low), 0xff) // behind everything that begins so: no UTF-8 has this byte
}

// stageNames writes stages for an IN. Those that exist are written out, since PostgreSQL knows how many devices
// have which and forgets to ask when it is an argument.
func stageNames(list []device.Stage) (names string, args []any) {
	for i, st := range list {
		name := "?"
		if slices.Contains(device.Stages, st) {
			name = "'" + string(st) + "'"
		} else {
			args = append(args, string(st))
		}
		names += comma(i) + name
	}
	return names, args
}

// addFilter adds stage, model and IDs. What the plan does not begin with is written as an expression,
// so that no engine takes its index instead of the one that was chosen.
func addFilter(q *sqldb.Builder, p plan, f Filter) {
	column := func(name string, e entry) string {
		if p.entry == e {
			return "d." + name
		}
		return "(d." + name + " || '')"
	}
	if len(f.Stages) > 0 {
		stages, args := stageNames(f.Stages)
		q.Add("AND "+column("stage", byStage)+" IN ("+stages+")", args...)
	}
	if f.Model != "" {
		q.Add("AND "+column("model", byModel)+" = ?", f.Model)
	}
	if len(f.IDs) > 0 {
		args := make([]any, len(f.IDs))
		for i, id := range f.IDs {
			args[i] = id
		}
		q.Add("AND d.id IN ("+marks(len(args))+")", args...)
	}
}
