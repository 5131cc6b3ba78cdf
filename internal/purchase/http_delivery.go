package purchase

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"steward/internal/fault"
	"steward/internal/httpapi"
)

// How long an answer waits for long work: programs get one when it is done, people see its progress.
const (
	slow   = 10 * time.Minute
	moment = time.Second
)

type (
	discrepanciesIn struct {
		httpapi.PageIn
		Order     string `query:"order" maxLength:"63"`
		Delivery  string `query:"delivery" maxLength:"63"`
		Kind      string `query:"kind" enum:"over,wrong_model,unknown_model,ambiguous,twice,known_serial"`
		Undecided bool   `query:"undecided" doc:"Only those that wait for a decision"`
	}
	decideIn struct {
		ID   string `path:"id" maxLength:"63"`
		Body Decision
	}
	deliveryAnswer struct {
		Check *Check  `json:"check,omitempty"`
		Done  *Booked `json:"booked,omitempty"`
	}
)

func (s *Service) routeDeliveries(a *httpapi.API) {
	a.Stream(httpapi.Op{
		ID: "deliver", Method: http.MethodPost, Path: "/orders/{id}/deliveries", Tag: tag, Role: httpapi.Operator, MaxBody: MaxFileBytes + 1,
		Summary: "Check or book a delivery",
		Detail: "The body is CSV (RFC 4180, UTF-8) with a header that names serial and model, and optionally line, mac and note. " +
			"A file with a wrong cell imports nothing, and the refusal names line and column of each. mode=preview tells what booking would do; " +
			"mode=book books the rows that fit and keeps the others as discrepancies to decide. The same file is booked once. " +
			"A file that was accepted is booked to its end, whatever happens to caller and server; the answer waits for it unless the header Prefer says respond-async.",
		Accept: "text/csv", Produce: "application/json",
		Query: map[string]string{"mode": "preview (default) or book", "note": "The supplier's delivery note, kept with the delivery"},
	}, s.serveDelivery)
	httpapi.Register(a, httpapi.Op{ID: "list-deliveries", Method: http.MethodGet, Path: "/orders/{id}/deliveries", Tag: tag, Role: httpapi.Viewer, Summary: "List the deliveries of an order"},
		func(ctx context.Context, who httpapi.Principal, in *IDIn) (*listOut[Delivery], error) {
			list, err := s.Deliveries(ctx, who, in.ID)
			return &listOut[Delivery]{httpapi.List[Delivery]{Items: list}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "list-discrepancies", Method: http.MethodGet, Path: "/discrepancies", Tag: tag, Role: httpapi.Viewer, Summary: "List delivered units that did not fit their order"},
		func(ctx context.Context, who httpapi.Principal, in *discrepanciesIn) (*listOut[Discrepancy], error) {
			list, next, err := s.Discrepancies(ctx, who, DiscrepancyFilter{
				Order: in.Order, Delivery: in.Delivery, Kind: Kind(in.Kind), Undecided: in.Undecided, Limit: in.Limit, Cursor: in.Cursor,
			})
			return &listOut[Discrepancy]{httpapi.List[Discrepancy]{Items: list, Next: next}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "decide-discrepancies", Method: http.MethodPost, Path: "/deliveries/{id}/decisions", Tag: tag, Role: httpapi.Operator, Timeout: slow,
		Summary: "Accept, return or reject units that did not fit", Detail: "All named rows are decided, or none. A decision is final."},
		func(ctx context.Context, who httpapi.Principal, in *decideIn) (*listOut[Discrepancy], error) {
			list, err := s.Decide(ctx, who, in.ID, in.Body)
			return &listOut[Discrepancy]{httpapi.List[Discrepancy]{Items: list}}, err
		})
}

func (s *Service) serveDelivery(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	mode := r.URL.Query().Get("mode")
	if mode != "" && mode != "preview" && mode != "book" {
		return fault.Bad("query.mode", "%q: want preview or book", mode)
	}
	id := r.PathValue("id")
	if _, err := s.Order(r.Context(), who, id); err != nil {
		return err // before the file is read
	}
	f, err := ReadFile(r.Body)
	if err != nil {
		return err
	}
	var answer deliveryAnswer
	status := http.StatusOK
	if mode == "book" {
		wish := deliveryWish{r.URL.Query().Get("note"), f, AsyncIn{Prefer: r.Header.Get("Prefer")}.patience()}
		b, err := s.book(r.Context(), who, id, wish)
		if err != nil {
			return err
		}
		answer.Done = &b
		if !b.Repeated {
			status = http.StatusCreated
		}
	} else {
		c, err := s.CheckDelivery(r.Context(), who, id, f)
		if err != nil {
			return err
		}
		answer.Check = &c
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(answer)
}
