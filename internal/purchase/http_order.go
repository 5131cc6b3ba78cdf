package purchase

import (
	"context"
	"net/http"
	"strings"
	"time"

	"steward/internal/httpapi"
)

type (
	ordersIn struct {
		httpapi.PageIn
		State     string `query:"state" enum:"draft,placing,placed,partly_received,received,closed,cancelled"`
		Supplier  string `query:"supplier" maxLength:"63"`
		Number    string `query:"number" maxLength:"64"`
		Overdue   bool   `query:"overdue" doc:"Only those with open units after the agreed day"`
		Undecided bool   `query:"undecided" doc:"Only those with discrepancies that wait for a decision"`
	}
	orderIn struct {
		Body OrderSpec
	}
	orderChangeIn struct {
		MatchIn
		Body OrderSpec
	}
	orderOut struct {
		ETag string `header:"ETag"`
		Body Order
	}
	placeIn struct {
		MatchIn
		AsyncIn
	}
	previewCancelIn struct {
		IDIn
		Line int `query:"line" minimum:"0" maximum:"200" doc:"A single line; 0 means the whole order"`
	}
	previewCancelOut struct{ Body CancelPreview }
	cancelIn         struct {
		MatchIn
		AsyncIn
		Body struct {
			Line   int    `json:"line,omitempty" minimum:"0" maximum:"200" doc:"A single line; 0 means the whole order"`
			Reason string `json:"reason" minLength:"1" maxLength:"200"`
		}
	}
	stockOut struct {
		Body struct {
			Items  []StockRow `json:"items" nullable:"false"`
			Ending []StockRow `json:"ending" nullable:"false" doc:"Devices in stock or in service whose warranty ends within 60 days"`
		}
	}
)

// AsyncIn lets a program choose not to wait for long work.
type AsyncIn struct {
	Prefer string `header:"Prefer" maxLength:"200" doc:"respond-async (RFC 7240): answer within a second; work on thousands of units then goes on, and the order has its progress until it is done"`
}

// patience is how long the answer waits.
func (in AsyncIn) patience() time.Duration {
	for preference := range strings.SplitSeq(in.Prefer, ",") {
		if strings.EqualFold(strings.TrimSpace(preference), "respond-async") {
			return moment
		}
	}
	return slow
}

func orderAnswer(o Order, err error) (*orderOut, error) {
	return &orderOut{ETag: httpapi.ETag(o.Revision), Body: o}, err
}

func (s *Service) routeOrders(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-orders", Method: http.MethodGet, Path: "/orders", Tag: tag, Role: httpapi.Viewer, Summary: "List purchase orders, newest first"},
		func(ctx context.Context, who httpapi.Principal, in *ordersIn) (*listOut[Order], error) {
			list, next, err := s.Orders(ctx, who, OrderFilter{
				State: State(in.State), Supplier: in.Supplier, Number: in.Number, Overdue: in.Overdue, Undecided: in.Undecided,
				Limit: in.Limit, Cursor: in.Cursor,
			})
			return &listOut[Order]{httpapi.List[Order]{Items: list, Next: next}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "create-order", Method: http.MethodPost, Path: "/orders", Tag: tag, Role: httpapi.Operator, Status: http.StatusCreated,
		Summary: "Write a draft of an order", Detail: "A draft creates no devices; place-order does."},
		func(ctx context.Context, who httpapi.Principal, in *orderIn) (*orderOut, error) {
			return orderAnswer(s.CreateOrder(ctx, who, in.Body))
		})
	httpapi.Register(a, httpapi.Op{ID: "get-order", Method: http.MethodGet, Path: "/orders/{id}", Tag: tag, Role: httpapi.Viewer, Summary: "Show an order with its lines"},
		func(ctx context.Context, who httpapi.Principal, in *IDIn) (*orderOut, error) {
			return orderAnswer(s.Order(ctx, who, in.ID))
		})
	httpapi.Register(a, httpapi.Op{ID: "put-order", Method: http.MethodPut, Path: "/orders/{id}", Tag: tag, Role: httpapi.Operator, Summary: "Change a draft"},
		func(ctx context.Context, who httpapi.Principal, in *orderChangeIn) (*orderOut, error) {
			return orderAnswer(s.ChangeOrder(ctx, who, in.ID, in.Body, in.IfMatch))
		})
	s.routeWork(a)
}

// routeWork adds what changes orders that are placed.
func (s *Service) routeWork(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "place-order", Method: http.MethodPost, Path: "/orders/{id}/place", Tag: tag, Role: httpapi.Operator, Timeout: slow,
		Summary: "Place an order", Detail: "Creates each unit as a device in stage ordered. The order is placing until all of them are there, which is sure to come: " +
			"it goes on when the caller leaves or the server starts again. The answer waits for it unless it is asked not to."},
		func(ctx context.Context, who httpapi.Principal, in *placeIn) (*orderOut, error) {
			if in.patience() == moment {
				return orderAnswer(s.BeginPlace(ctx, who, in.ID, in.IfMatch))
			}
			return orderAnswer(s.Place(ctx, who, in.ID, in.IfMatch))
		})
	httpapi.Register(a, httpapi.Op{ID: "preview-cancel-order", Method: http.MethodGet, Path: "/orders/{id}/cancel", Tag: tag, Role: httpapi.Operator, Summary: "Show what cancelling would do"},
		func(ctx context.Context, who httpapi.Principal, in *previewCancelIn) (*previewCancelOut, error) {
			p, err := s.PreviewCancel(ctx, who, in.ID, in.Line)
			return &previewCancelOut{p}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "cancel-order", Method: http.MethodPost, Path: "/orders/{id}/cancel", Tag: tag, Role: httpapi.Operator, Timeout: slow,
		Summary: "Cancel what is open of an order or of one line", Detail: "The open units' devices go from ordered to retired; what was delivered stays."},
		func(ctx context.Context, who httpapi.Principal, in *cancelIn) (*orderOut, error) {
			o, err := s.beginCancel(ctx, who, in.ID, cancelWish{in.Body.Line, in.Body.Reason, in.IfMatch})
			if err != nil {
				return nil, err
			}
			return orderAnswer(s.finish(ctx, o, in.patience()))
		})
	httpapi.Register(a, httpapi.Op{ID: "close-order", Method: http.MethodPost, Path: "/orders/{id}/close", Tag: tag, Role: httpapi.Operator, Summary: "Close a received order"},
		func(ctx context.Context, who httpapi.Principal, in *MatchIn) (*orderOut, error) {
			return orderAnswer(s.Close(ctx, who, in.ID, in.IfMatch))
		})
	httpapi.Register(a, httpapi.Op{ID: "get-stock", Method: http.MethodGet, Path: "/stock", Tag: tag, Role: httpapi.Viewer, Summary: "Count received devices by model and order"},
		func(ctx context.Context, who httpapi.Principal, _ *none) (*stockOut, error) {
			var out stockOut
			var err error
			if out.Body.Items, err = s.Stock(ctx, who); err != nil {
				return nil, err
			}
			out.Body.Ending, err = s.EndingWarranties(ctx, who)
			return &out, err
		})
}
