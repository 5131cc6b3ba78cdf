package sqldb

import (
	"context"
	"database/sql"
)

// Collect runs a query and returns what scan makes of each row, nil when there is none. It closes the
// rows, and its error is that of the query, of scan, or of reading on.
func Collect[T any](ctx context.Context, q Reader, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// Value scans a row of one column; for Collect.
func Value[T any](rows *sql.Rows) (v T, err error) {
	err = rows.Scan(&v)
	return v, err
}
