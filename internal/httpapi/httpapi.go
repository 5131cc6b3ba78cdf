// Package httpapi is the door for programs: REST described by OpenAPI 3.1, refusals as problem
// documents (RFC 9457), cursor pages, ETags and idempotency keys. Rooms register typed operations;
// who asks, what they may do, bounds and errors are settled here once.
//
// A request passes, in this order: Observe (request ID, access log, panics), the table of paths (404,
// 405), admission (who, cross-site check, role, rate, form of the body), the idempotency key, the
// operation. Every refusal on the way is a Problem.
package httpapi

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"steward/internal/sqldb"
)

// Config of an API.
type Config struct {
	Version string        // of the program, shown as a metric
	Auth    Authenticator // required
	Log     *slog.Logger  // required

	DB      *sqldb.DB            // keeps answers of idempotency keys; nil: such requests are refused with 501
	Now     func() time.Time     // nil: time.Now
	Metrics *prometheus.Registry // where counters go; nil: an own one with Go's runtime and the process
	Proxies Proxies              // whose X-Forwarded-For is believed; empty: nobody's
	Rate    Rate                 // of each principal; zero: DefaultRate
	Timeout time.Duration        // of an operation that has no own; 0: 30 s

	// Ready lists what must work before the server takes traffic, by name: "database".
	Ready map[string]func(ctx context.Context) error
	// OpenMetricsToLoopback lets callers of the same machine read /metrics without a token. Leave it
	// false where a proxy on the same machine passes requests of others on.
	OpenMetricsToLoopback bool
}

// Proxy addresses, rates and timeouts when the configuration says nothing.
const defaultTimeout = 30 * time.Second

// API collects the operations of all rooms below /api/v1. Register everything before serving.
type API struct {
	cfg   Config
	mux   *http.ServeMux
	huma  huma.API
	names *schemaNames
	cross *http.CrossOriginProtection
	limit *Limiter
	meter *meter
	outer http.Handler
	tidy  sync.Once
}

// New returns an API without operations.
func New(cfg Config) *API {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Rate == (Rate{}) {
		cfg.Rate = DefaultRate
	}
	a := &API{
		cfg: cfg, mux: http.NewServeMux(), names: newSchemaNames(),
		cross: http.NewCrossOriginProtection(), limit: NewLimiter(cfg.Rate, cfg.Now), meter: newMeter(cfg),
	}
	a.huma = huma.NewAPI(a.humaConfig(), adapter{a})
	a.mux.HandleFunc("GET /api/openapi.json", a.serveOpenAPI("application/openapi+json", a.openAPIJSON))
	a.mux.HandleFunc("GET /api/openapi.yaml", a.serveOpenAPI("application/openapi+yaml", a.OpenAPI))
	a.outer = a.Observe(http.HandlerFunc(a.route))
	return a
}

// ServeHTTP serves /api/.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.outer.ServeHTTP(w, r) }

// Op describes one operation.
type Op struct {
	ID      string // lower-case-with-dashes, e.g. "list-devices"; unique
	Method  string
	Path    string // below /api/v1, e.g. "/devices/{id}"
	Summary string
	Detail  string
	Tag     string        // the room
	Role    Role          // the least role that may call it; Nobody makes it public
	Status  int           // of success; 0 means 200, or 204 without a body
	MaxBody int64         // bytes; 0 means 1 MiB
	Timeout time.Duration // 0 means the API's; streams have none unless they name one

	// Of stream operations only, for their description:
	Accept  string            // media type of the request's body, e.g. "text/csv"; empty when it has none
	Produce string            // media type of the answer; empty when it has none
	Query   map[string]string // query parameters and what they mean; others are refused
}

const (
	prefix         = "/api/v1"
	defaultMaxBody = 1 << 20
)

func (op Op) maxBody() int64 {
	if op.MaxBody == 0 {
		return defaultMaxBody
	}
	return op.MaxBody
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
	Items []T    `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"Cursor of the next page"`
}

// MarshalJSON writes an empty list as [], never as null.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l.Items == nil {
		l.Items = []T{}
	}
	type plain List[T]
	return json.Marshal(plain(l))
}
