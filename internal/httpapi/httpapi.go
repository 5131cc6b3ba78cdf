// Package httpapi is the door for programs: REST described by OpenAPI 3.1, refusals as problem
// documents (RFC 9457), cursor pages, ETags and idempotency keys. Rooms register typed operations;
// who asks, what they may do, bounds and errors are settled here once.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Config of an API.
type Config struct {
	Version string        // of the program, shown in the OpenAPI document
	Auth    Authenticator // required
	Log     *slog.Logger  // required
}

// API collects the operations of all rooms below /api/v1.
type API struct {
	cfg  Config
	mux  *http.ServeMux
	huma huma.API
}

// New returns an API without operations.
func New(cfg Config) *API {
	mux := http.NewServeMux()
	hc := huma.DefaultConfig("Steward", cfg.Version)
	hc.OpenAPIPath = "/api/openapi"
	hc.DocsPath = ""
	return &API{cfg: cfg, mux: mux, huma: humago.New(mux, hc)}
}

// ServeHTTP serves /api/.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Op describes one operation.
type Op struct {
	ID      string // lower-case-with-dashes, e.g. "list-devices"; unique
	Method  string
	Path    string // below /api/v1, e.g. "/devices/{id}"
	Summary string
	Detail  string
	Tag     string // the room
	Role    Role   // the least role that may call it; Nobody makes it public
	Status  int    // of success; 0 means 200
	MaxBody int64  // bytes; 0 means 1 MiB

	// Of stream operations only, for their description:
	Accept  string            // media type of the request's body, e.g. "text/csv"; empty when it has none
	Produce string            // media type of the answer; empty when it has none
	Query   map[string]string // query parameters and what they mean; others are refused
}

// Register adds an operation. The handler gets who asks, already checked against op.Role, and a
// validated input; its errors are answered as problem documents by their kind (package fault).
// Input and output structs follow huma's tags: path, query, header, Body.
func Register[I, O any](a *API, op Op, handler func(ctx context.Context, who Principal, in *I) (*O, error)) {
	register(a, op, handler)
}

// PageIn is embedded by inputs of list operations.
type PageIn struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"50" doc:"How many items at most"`
	Cursor string `query:"cursor" maxLength:"512" doc:"The next of the page before"`
}

// List is the body of a list operation. Next is empty on the last page.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"Cursor of the next page"`
}
