package purchase

import (
	"context"
	"net/http"

	"steward/internal/httpapi"
)

const tag = "purchase"

type (
	// IDIn names a thing by its path; exported since inputs embed it.
	IDIn struct {
		ID string `path:"id" maxLength:"63"`
	}
	// MatchIn is IDIn with a condition.
	MatchIn struct {
		ID      string `path:"id" maxLength:"63"`
		IfMatch string `header:"If-Match" maxLength:"200" doc:"ETag of what you have read"`
	}
	listOut[T any] struct{ Body httpapi.List[T] }
	none           struct{}
)

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	s.routeCatalogue(a)
	s.routeOrders(a)
	s.routeDeliveries(a)
}

type (
	supplierIn struct {
		MatchIn
		Body SupplierSpec
	}
	supplierOut struct {
		ETag string `header:"ETag"`
		Body Supplier
	}
	modelIn struct {
		MatchIn
		Body ModelSpec
	}
	modelOut struct {
		ETag string `header:"ETag"`
		Body Model
	}
)

func (s *Service) routeCatalogue(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-suppliers", Method: http.MethodGet, Path: "/suppliers", Tag: tag, Role: httpapi.Viewer, Summary: "List suppliers"},
		func(ctx context.Context, who httpapi.Principal, _ *none) (*listOut[Supplier], error) {
			list, err := s.Suppliers(ctx, who)
			return &listOut[Supplier]{httpapi.List[Supplier]{Items: list}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "get-supplier", Method: http.MethodGet, Path: "/suppliers/{id}", Tag: tag, Role: httpapi.Viewer, Summary: "Show a supplier"},
		func(ctx context.Context, who httpapi.Principal, in *IDIn) (*supplierOut, error) {
			v, err := s.Supplier(ctx, who, in.ID)
			return &supplierOut{httpapi.ETag(v.Revision), v}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "put-supplier", Method: http.MethodPut, Path: "/suppliers/{id}", Tag: tag, Role: httpapi.Operator, Summary: "Create or change a supplier"},
		func(ctx context.Context, who httpapi.Principal, in *supplierIn) (*supplierOut, error) {
			v, err := s.SaveSupplier(ctx, who, in.ID, in.Body, in.IfMatch)
			return &supplierOut{httpapi.ETag(v.Revision), v}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "delete-supplier", Method: http.MethodDelete, Path: "/suppliers/{id}", Tag: tag, Role: httpapi.Operator, Summary: "Delete a supplier without orders", Status: http.StatusNoContent},
		func(ctx context.Context, who httpapi.Principal, in *IDIn) (*none, error) {
			return &none{}, s.DeleteSupplier(ctx, who, in.ID)
		})
	httpapi.Register(a, httpapi.Op{ID: "list-models", Method: http.MethodGet, Path: "/models", Tag: tag, Role: httpapi.Viewer, Summary: "List hardware models"},
		func(ctx context.Context, who httpapi.Principal, _ *none) (*listOut[Model], error) {
			list, err := s.Models(ctx, who)
			return &listOut[Model]{httpapi.List[Model]{Items: list}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "get-model", Method: http.MethodGet, Path: "/models/{id}", Tag: tag, Role: httpapi.Viewer, Summary: "Show a hardware model"},
		func(ctx context.Context, who httpapi.Principal, in *IDIn) (*modelOut, error) {
			v, err := s.Model(ctx, who, in.ID)
			return &modelOut{httpapi.ETag(v.Revision), v}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "put-model", Method: http.MethodPut, Path: "/models/{id}", Tag: tag, Role: httpapi.Operator, Summary: "Create or change a hardware model"},
		func(ctx context.Context, who httpapi.Principal, in *modelIn) (*modelOut, error) {
			v, err := s.SaveModel(ctx, who, in.ID, in.Body, in.IfMatch)
			return &modelOut{httpapi.ETag(v.Revision), v}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "delete-model", Method: http.MethodDelete, Path: "/models/{id}", Tag: tag, Role: httpapi.Operator, Summary: "Delete a hardware model that no order names", Status: http.StatusNoContent},
		func(ctx context.Context, who httpapi.Principal, in *IDIn) (*none, error) {
			return &none{}, s.DeleteModel(ctx, who, in.ID)
		})
}
