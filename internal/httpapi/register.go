package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"steward/internal/fault"
)

type principalKey struct{}

func register[I, O any](a *API, op Op, handler func(ctx context.Context, who Principal, in *I) (*O, error)) {
	h := huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: "/api/v1" + op.Path, Summary: op.Summary,
		Description: op.Detail, Tags: []string{op.Tag}, DefaultStatus: op.Status, MaxBodyBytes: op.MaxBody,
	}
	h.Middlewares = append(h.Middlewares, func(ctx huma.Context, next func(huma.Context)) { a.admit(ctx, op, next) })
	huma.Register(a.huma, h, func(ctx context.Context, in *I) (*O, error) {
		who, _ := ctx.Value(principalKey{}).(Principal)
		out, err := handler(ctx, who, in)
		return out, a.problem(ctx, err)
	})
}

func (a *API) stream(op Op, handler StreamHandler) {
	a.mux.HandleFunc(op.Method+" /api/v1"+op.Path, func(w http.ResponseWriter, r *http.Request) {
		who, err := a.cfg.Auth.Authenticate(r)
		if err != nil && op.Role > Nobody {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if who.Role < op.Role {
			http.Error(w, "this needs the role "+op.Role.String(), http.StatusForbidden)
			return
		}
		if err := handler(w, r, who); err != nil {
			http.Error(w, err.Error(), Status(err))
		}
	})
}

func (a *API) admit(ctx huma.Context, op Op, next func(huma.Context)) {
	r, _ := unwrap(ctx)
	who, err := a.cfg.Auth.Authenticate(r)
	if err != nil && op.Role > Nobody {
		_ = huma.WriteErr(a.huma, ctx, http.StatusUnauthorized, "sign in or send an API token")
		return
	}
	if who.Role < op.Role {
		_ = huma.WriteErr(a.huma, ctx, http.StatusForbidden, "this needs the role "+op.Role.String())
		return
	}
	next(huma.WithValue(ctx, principalKey{}, who))
}

// problem turns a room's error into the problem document to send; what has no kind is logged and hidden.
func (a *API) problem(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	status := Status(err)
	if status == http.StatusInternalServerError {
		a.cfg.Log.ErrorContext(ctx, "request failed", "error", err)
		return huma.NewError(status, "something went wrong on the server; the log has the details")
	}
	var invalid *fault.Invalid
	if errors.As(err, &invalid) {
		var details []error
		for _, f := range invalid.Fields {
			details = append(details, &huma.ErrorDetail{Message: f.Message, Location: f.Location, Value: f.Value})
		}
		return huma.NewError(status, "the input is not valid", details...)
	}
	return huma.NewError(status, err.Error())
}

// Status is the one mapping from kinds of refusal to HTTP.
func Status(err error) int {
	for _, m := range []struct {
		kind   error
		status int
	}{
		{fault.NotFound, http.StatusNotFound}, {fault.Conflict, http.StatusConflict},
		{fault.Precondition, http.StatusPreconditionFailed}, {fault.Forbidden, http.StatusForbidden},
		{fault.Unauthorized, http.StatusUnauthorized}, {fault.TooLarge, http.StatusRequestEntityTooLarge},
		{fault.TooMany, http.StatusTooManyRequests}, {fault.Unprocessable, http.StatusUnprocessableEntity},
		{fault.Unavailable, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, m.kind) {
			return m.status
		}
	}
	return http.StatusInternalServerError
}
