package sqldb

import "context"

type traceKey struct{}

// Trace returns a context under which fn is told each statement before it runs, with its arguments;
// for tests and benchmarks that count the work of a request. fn may be called by several goroutines.
func Trace(ctx context.Context, fn func(query string, args []any)) context.Context {
	return context.WithValue(ctx, traceKey{}, fn)
}

func traced(ctx context.Context, query string, args []any) {
	if fn, ok := ctx.Value(traceKey{}).(func(string, []any)); ok {
		fn(query, args)
	}
}
