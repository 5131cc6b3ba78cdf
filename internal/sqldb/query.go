package sqldb

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Builder puts a query together from parts with "?" placeholders, which become $1, $2 … in order.
type Builder struct {
	text strings.Builder
	args []any
}

// NewQuery starts a query.
func NewQuery(text string, args ...any) *Builder { return new(Builder).Add(text, args...) }

// Add appends a blank and the text; it panics when the number of "?" and of args differ, which is a
// mistake in the code. Texts with a literal "?" are not supported.
func (b *Builder) Add(text string, args ...any) *Builder {
	if b.text.Len() > 0 {
		b.text.WriteByte(' ')
	}
	if n := strings.Count(text, "?"); n != len(args) {
		panic(fmt.Sprintf("sqldb: %d placeholders and %d arguments in %q", n, len(args), text))
	}
	for {
		before, rest, found := strings.Cut(text, "?")
		b.text.WriteString(before)
		if !found {
			break
		}
		b.args = append(b.args, args[0])
		args = args[1:]
		b.text.WriteByte('$')
		b.text.WriteString(strconv.Itoa(len(b.args)))
		text = rest
	}
	return b
}

// SQL returns the text.
func (b *Builder) SQL() string { return b.text.String() }

// Args returns the arguments in the order of their placeholders.
func (b *Builder) Args() []any { return b.args }

// Micros is how a time is stored: microseconds since 1970 in UTC; the zero time is 0.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// FromMicros is the reverse of Micros.
func FromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// ScanMicros reads a stored time into t.
func ScanMicros(t *time.Time) *MicrosScanner { return &MicrosScanner{t} }

// MicrosScanner implements sql.Scanner for ScanMicros.
type MicrosScanner struct{ to *time.Time }

// Scan accepts an integer or NULL.
func (s *MicrosScanner) Scan(src any) error {
	switch v := src.(type) {
	case int64:
		*s.to = FromMicros(v)
	case nil:
		*s.to = time.Time{}
	default:
		return fmt.Errorf("scan time from %T", src)
	}
	return nil
}

// manyPlaceholders is from where on positional is worth its work.
const manyPlaceholders = 16

// positional returns the query with "?" in the place of $1, $2 … for SQLite, which takes $n for names
// and searches through all of them for each: inserting 1,000 rows in one statement takes twelve times
// as long with names. A query with few placeholders, or that uses one twice or out of order, is
// returned as it is.
func positional(query string) string {
	if strings.Count(query, "$") < manyPlaceholders {
		return query
	}
	out := make([]byte, 0, len(query))
	next, quoted := 1, false
	for i := 0; i < len(query); i++ {
		c := query[i]
		if c == '\'' {
			quoted = !quoted
		}
		if c != '$' || quoted {
			out = append(out, c)
			continue
		}
		end := i + 1
		for end < len(query) && '0' <= query[end] && query[end] <= '9' {
			end++
		}
		if query[i+1:end] != strconv.Itoa(next) {
			return query
		}
		out = append(out, '?')
		next++
		i = end - 1
	}
	return string(out)
}
