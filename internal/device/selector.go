package device

import (
	"fmt"
	"slices"
	"strings"
)

// Selector picks devices by their labels, in the syntax of Kubernetes' label selectors
// (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/):
//
//	site=berlin, tier!=lab, ring in (canary, early), arch notin (mips), gpu, !legacy
//
// Requirements are joined by "and". The zero Selector matches every device.
type Selector struct{ requirements []requirement }

type operator int

const (
	exists operator = iota
	absent
	in    // also "="
	notIn // also "!=": a device without the key matches, as in Kubernetes
)

type requirement struct {
	key    string
	op     operator
	values []string // sorted
}

// Bounds of one selector: of its text, as written and in its canonical form, and of its requirements,
// each of which is one more condition in SQL.
const (
	MaxSelectorBytes = 2048
	MaxRequirements  = 32
)

// ParseSelector reads a selector; the empty string gives the one that matches everything.
func ParseSelector(s string) (Selector, error) {
	if len(s) > MaxSelectorBytes {
		return Selector{}, fmt.Errorf("selector of %d bytes: at most %d", len(s), MaxSelectorBytes)
	}
	p := selectorParser{rest: strings.TrimSpace(s)}
	var sel Selector
	for p.rest != "" {
		r, err := p.requirement()
		if err != nil {
			return Selector{}, fmt.Errorf("selector %q: %w", s, err)
		}
		sel.requirements = append(sel.requirements, r)
		if len(sel.requirements) > MaxRequirements {
			return Selector{}, fmt.Errorf("selector with more than %d requirements", MaxRequirements)
		}
		if p.rest == "" {
			break
		}
		if !p.take(",") {
			return Selector{}, fmt.Errorf("selector %q: want a comma before %q", s, p.rest)
		}
		if p.rest == "" {
			return Selector{}, fmt.Errorf("selector %q: nothing after the last comma", s)
		}
	}
	if n := len(sel.String()); n > MaxSelectorBytes {
		return Selector{}, fmt.Errorf("selector of %d bytes in its canonical form: at most %d", n, MaxSelectorBytes)
	}
	return sel, nil
}

// MustSelector is ParseSelector for texts written in code; it panics on a wrong one.
func MustSelector(s string) Selector {
	sel, err := ParseSelector(s)
	if err != nil {
		panic(err)
	}
	return sel
}

type selectorParser struct{ rest string }

func (p *selectorParser) space() { p.rest = strings.TrimLeft(p.rest, " \t\n\r") }

func (p *selectorParser) take(token string) bool {
	if !strings.HasPrefix(p.rest, token) {
		return false
	}
	p.rest = p.rest[len(token):]
	p.space()
	return true
}

// word takes the longest run without a separator.
func (p *selectorParser) word() string {
	end := strings.IndexAny(p.rest, " \t\n\r,()=!")
	if end < 0 {
		end = len(p.rest)
	}
	w := p.rest[:end]
	p.rest = p.rest[end:]
	p.space()
	return w
}

func (p *selectorParser) requirement() (requirement, error) {
	negated := p.take("!")
	key := p.word()
	if err := checkLabelKey(key); err != nil {
		return requirement{}, err
	}
	switch {
	case negated:
		return requirement{key: key, op: absent}, nil
	case p.take("!="):
		return p.single(key, notIn)
	case p.take("=="), p.take("="):
		return p.single(key, in)
	case p.rest == "" || strings.HasPrefix(p.rest, ","):
		return requirement{key: key, op: exists}, nil
	}
	switch op := p.word(); op {
	case "in":
		return p.list(key, in)
	case "notin":
		return p.list(key, notIn)
	default:
		return requirement{}, fmt.Errorf("after %q want =, !=, in or notin, not %q", key, op)
	}
}

func (p *selectorParser) single(key string, op operator) (requirement, error) {
	v := p.word()
	return requirement{key: key, op: op, values: []string{v}}, checkLabelValue(key, v)
}

func (p *selectorParser) list(key string, op operator) (requirement, error) {
	if !p.take("(") {
		return requirement{}, fmt.Errorf("want ( after %s in", key)
	}
	var values []string
	for {
		v := p.word()
		if err := checkLabelValue(key, v); err != nil {
			return requirement{}, err
		}
		values = append(values, v)
		if p.take(",") {
			continue
		}
		if p.take(")") {
			slices.Sort(values)
			return requirement{key: key, op: op, values: slices.Compact(values)}, nil
		}
		return requirement{}, fmt.Errorf("want , or ) in the values of %s", key)
	}
}

// Empty tells whether the selector matches every device.
func (s Selector) Empty() bool { return len(s.requirements) == 0 }

// And joins two selectors; a device must match both.
func (s Selector) And(other Selector) Selector {
	return Selector{requirements: slices.Concat(s.requirements, other.requirements)}
}

// Anchor is one requirement that a matching device fulfils by having a label: the key with one of the
// values, or with any value when Values is empty.
type Anchor struct {
	Key    string
	Values []string
}

// Anchors returns the requirements that can be answered by an index over labels, so that a query can
// start from the smallest of them. The others ("!=", "notin", "!key") only rule devices out.
func (s Selector) Anchors() []Anchor {
	var out []Anchor
	for _, r := range s.requirements {
		if r.op == exists || r.op == in {
			out = append(out, Anchor{Key: r.key, Values: slices.Clone(r.values)})
		}
	}
	return out
}

// Exclusions returns the other requirements: a matching device does not have the key with one of the
// values, or not at all when Values is empty.
func (s Selector) Exclusions() []Anchor {
	var out []Anchor
	for _, r := range s.requirements {
		if r.op == absent || r.op == notIn {
			out = append(out, Anchor{Key: r.key, Values: slices.Clone(r.values)})
		}
	}
	return out
}

// Sole returns the requirement of a selector that has just one, as an anchor or, when excluded is true,
// an exclusion.
func (s Selector) Sole() (a Anchor, excluded, ok bool) {
	if len(s.requirements) != 1 {
		return Anchor{}, false, false
	}
	if anchors := s.Anchors(); len(anchors) == 1 {
		return anchors[0], false, true
	}
	return s.Exclusions()[0], true, true
}

// Without returns the selector without the requirement that an anchor, or an exclusion, stands for: for a
// query whose other conditions see to it.
func (s Selector) Without(a Anchor, excluded bool) Selector {
	out := slices.Clone(s.requirements)
	return Selector{requirements: slices.DeleteFunc(out, func(r requirement) bool {
		return r.key == a.Key && (r.op == absent || r.op == notIn) == excluded && slices.Equal(r.values, a.Values)
	})}
}

// Matches tells whether a device with these labels is picked.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s.requirements {
		value, has := labels[r.key]
		var ok bool
		switch r.op {
		case exists:
			ok = has
		case absent:
			ok = !has
		case in:
			ok = has && slices.Contains(r.values, value)
		case notIn:
			ok = !has || !slices.Contains(r.values, value)
		}
		if !ok {
			return false
		}
	}
	return true
}

// String writes the selector in its canonical form, which parses to the same selector.
func (s Selector) String() string {
	parts := make([]string, len(s.requirements))
	for i, r := range s.requirements {
		switch {
		case r.op == exists:
			parts[i] = r.key
		case r.op == absent:
			parts[i] = "!" + r.key
		case r.op == in && len(r.values) == 1:
			parts[i] = r.key + "=" + r.values[0]
		case r.op == notIn && len(r.values) == 1:
			parts[i] = r.key + "!=" + r.values[0]
		case r.op == in:
			parts[i] = r.key + " in (" + strings.Join(r.values, ",") + ")"
		default:
			parts[i] = r.key + " notin (" + strings.Join(r.values, ",") + ")"
		}
	}
	return strings.Join(parts, ",")
}

// MarshalText and UnmarshalText let a selector stand in JSON and YAML as its text.
func (s Selector) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the form that MarshalText writes.
func (s *Selector) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSelector(string(text))
	return err
}

// Where translates the selector to a condition in SQL over the label table (device number, key,
// value), for a query in which numColumn is the device's number. Placeholders are "?", in the order
// of the returned arguments. The empty selector gives "TRUE".
func (s Selector) Where(labelTable, numColumn string) (string, []any) {
	return s.where(labelTable, numColumn, "")
}

// WhereEach is Where for a query that looks at few devices: PostgreSQL asks for the labels of each, and
// makes no join over all labels of the fleet. An OFFSET keeps it from that.
func (s Selector) WhereEach(labelTable, numColumn string) (string, []any) {
	return s.where(labelTable, numColumn, " LIMIT 1 OFFSET 0")
}

func (s Selector) where(labelTable, numColumn, end string) (string, []any) {
	if s.Empty() {
		return "TRUE", nil
	}
	var conds []string
	var args []any
	for _, r := range s.requirements {
		not := ""
		if r.op == absent || r.op == notIn {
			not = "NOT "
		}
		cond := not + "EXISTS (SELECT 1 FROM " + labelTable + " l WHERE l.num = " + numColumn + " AND l.key = ?"
		args = append(args, r.key)
		if len(r.values) > 0 {
			cond += " AND l.value IN (?" + strings.Repeat(", ?", len(r.values)-1) + ")"
			for _, v := range r.values {
				args = append(args, v)
			}
		}
		conds = append(conds, cond+end+")")
	}
	return strings.Join(conds, " AND "), args
}
