package move

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf8"
)

// kind is what a column of the target holds.
type kind int

const (
	integer kind = iota // smallint, integer, bigint
	text
	bytea
	float
)

// kinds by PostgreSQL's names of types (information_schema.columns.data_type).
var kinds = map[string]kind{"smallint": integer, "integer": integer, "bigint": integer, "text": text, "bytea": bytea, "double precision": float}

// convert makes of what SQLite has stored, which may be anything anywhere, what the target's column takes.
func convert(v any, k kind) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case int64:
		switch k {
		case integer:
			return v, nil
		case float:
			return float64(v), nil
		}
	case float64:
		if k == float {
			return v, nil
		}
	case string:
		return convertText(v, k)
	case []byte:
		if k == bytea {
			return v, nil
		}
		if k == text {
			return convertText(string(v), k)
		}
	}
	return nil, fmt.Errorf("it holds %T, which does not fit the target's column", v)
}

func convertText(v string, k kind) (any, error) {
	switch {
	case k == bytea:
		return []byte(v), nil
	case k != text:
		return nil, fmt.Errorf("it holds the text %.40q and should hold a number", v)
	case strings.ContainsRune(v, 0):
		return nil, fmt.Errorf("its text has a NUL character, which PostgreSQL doesn't store")
	case !utf8.ValidString(v):
		return nil, fmt.Errorf("its text is no UTF-8, which PostgreSQL doesn't store")
	}
	return v, nil
}

// convertRow converts in place.
func (t *table) convertRow(row []any) error {
	for i, v := range row {
		converted, err := convert(v, t.kinds[i])
		if err != nil {
			return fmt.Errorf("table %s, row %s, column %s: %w", t.name, t.describe(row), t.columns[i], err)
		}
		row[i] = converted
	}
	return nil
}

// describe names a row by its key.
func (t *table) describe(row []any) string {
	var parts []string
	for i, c := range t.columns {
		for _, k := range t.key {
			if k == c {
				parts = append(parts, fmt.Sprintf("%s=%.60v", c, row[i]))
			}
		}
	}
	return strings.Join(parts, ",")
}

// digest is the number of a table's rows and the sum of their hashes: equal for equal rows in any order.
type digest struct {
	rows   int64
	hi, lo uint64
}

// add counts a row of converted values.
func (d *digest) add(row []any) error {
	h := sha256.New()
	var head [9]byte
	for _, v := range row {
		var body []byte
		switch v := v.(type) {
		case nil:
			head[0] = 0
		case int64:
			head[0], body = 1, binary.BigEndian.AppendUint64(nil, uint64(v))
		case string:
			head[0], body = 2, []byte(v)
		case []byte:
			head[0], body = 3, v
		case float64:
			head[0], body = 4, fmt.Appendf(nil, "%x", v)
		default:
			return fmt.Errorf("a value of type %T", v)
		}
		binary.BigEndian.PutUint64(head[1:], uint64(len(body)))
		h.Write(head[:])
		h.Write(body)
	}
	sum := h.Sum(nil)
	var carry uint64
	d.lo, carry = bits.Add64(d.lo, binary.BigEndian.Uint64(sum[8:]), 0)
	d.hi, _ = bits.Add64(d.hi, binary.BigEndian.Uint64(sum), carry)
	d.rows++
	return nil
}

// widen makes of what pgx reads the types that digest knows.
func widen(row []any) []any {
	for i, v := range row {
		switch v := v.(type) {
		case int16:
			row[i] = int64(v)
		case int32:
			row[i] = int64(v)
		}
	}
	return row
}
