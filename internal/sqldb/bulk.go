package sqldb

import (
	"context"
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Among returns a condition with one "?" that the column is one of the numbers, and its argument. The
// text is the same for any count of numbers, so that its compiled form is used again.
func (d Dialect) Among(column string, nums []int64) (condition string, arg any) {
	if d == Postgres {
		if nums == nil {
			nums = []int64{} // nil would be NULL, of which nothing is a part
		}
		return column + " = ANY(CAST(? AS BIGINT[]))", nums
	}
	list := make([]byte, 0, 2+8*len(nums))
	list = append(list, '[')
	for i, n := range nums {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, n, 10)
	}
	return column + " IN (SELECT value FROM json_each(?))", string(append(list, ']'))
}

// AmongTexts is Among for texts.
func (d Dialect) AmongTexts(column string, texts []string) (condition string, arg any) {
	if texts == nil {
		texts = []string{}
	}
	if d == Postgres {
		return column + " = ANY(CAST(? AS TEXT[]))", texts
	}
	list, err := json.Marshal(texts)
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return column + " IN (SELECT value FROM json_each(?))", string(list)
}

// Column is one column of the table of values of ExecRows: a []int64 or a []string.
type Column struct {
	Name   string
	Values any
}

// maxRows bounds the rows of one statement on SQLite, where each value is a placeholder of its own.
const maxRows = 256

// ExecRows runs a statement that reads rows from a table of values named v, which has the given columns of
// one length, and returns how many rows it has changed:
//
//	tx.ExecRows(ctx, "INSERT INTO item (id, name) SELECT id, name FROM v WHERE true ON CONFLICT …", id, name)
//
// On PostgreSQL that is one statement with an array per column; on SQLite it is a statement for each power of
// two that adds up to the rows, so that few texts have to be compiled. The statement must therefore not care
// which rows it sees together. Without rows nothing is run.
func (tx *Tx) ExecRows(ctx context.Context, query string, columns ...Column) (int64, error) {
	rows := columns[0].len()
	for _, c := range columns {
		if c.len() != rows {
			panic(fmt.Sprintf("sqldb: column %s has %d values and %s %d", columns[0].Name, rows, c.Name, c.len()))
		}
	}
	if rows == 0 {
		return 0, nil
	}
	if tx.dialect == Postgres {
		args := make([]any, len(columns))
		for i, c := range columns {
			args[i] = c.Values
		}
		return tx.Exec(ctx, arraysOf(columns)+query, args...)
	}
	var changed int64
	for from := 0; from < rows; {
		n := min(1<<(bits.Len(uint(rows-from))-1), maxRows)
		args := make([]any, 0, n*len(columns))
		for row := from; row < from+n; row++ {
			for _, c := range columns {
				args = append(args, c.value(row))
			}
		}
		done, err := tx.Exec(ctx, valuesOf(columns, n)+query, args...)
		if err != nil {
			return changed, err
		}
		changed += done
		from += n
	}
	return changed, nil
}

func (c Column) len() int {
	switch v := c.Values.(type) {
	case []int64:
		return len(v)
	case []string:
		return len(v)
	}
	panic(fmt.Sprintf("sqldb: column %s is a %T: want []int64 or []string", c.Name, c.Values))
}

func (c Column) value(row int) any {
	if v, ok := c.Values.([]int64); ok {
		return v[row]
	}
	return c.Values.([]string)[row]
}

// named opens the statement with the table v and its columns.
func named(columns []Column) *strings.Builder {
	var b strings.Builder
	b.WriteString("WITH v (")
	for i, c := range columns {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c.Name)
	}
	b.WriteString(") AS (")
	return &b
}

func arraysOf(columns []Column) string {
	b := named(columns)
	b.WriteString("SELECT * FROM unnest(")
	for i, c := range columns {
		kind := "BIGINT"
		if _, isText := c.Values.([]string); isText {
			kind = "TEXT"
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(b, "CAST($%d AS %s[])", i+1, kind)
	}
	b.WriteString(")) ")
	return b.String()
}

func valuesOf(columns []Column, rows int) string {
	b := named(columns)
	row := "(?" + strings.Repeat(", ?", len(columns)-1) + ")"
	b.WriteString("VALUES " + row)
	b.WriteString(strings.Repeat(", "+row, rows-1))
	b.WriteString(") ")
	return b.String()
}
