package update

import (
	"context"
	"net/http"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

const tag = "update"

type body[T any] struct{ Body T }

// AssignmentDetail is an assignment with its failures.
type AssignmentDetail struct {
	Assignment
	Percent  int       `json:"percent" doc:"Share of committed devices among those that are asked for it"`
	Failures []Failure `json:"failures,omitempty" doc:"Grouped by their first cause, the most frequent first"`
}

type assignIn struct {
	Body struct {
		Name     string `json:"name" maxLength:"64" doc:"Of the release"`
		Version  string `json:"version" maxLength:"64"`
		Selector string `json:"selector,omitempty" maxLength:"2048" doc:"Label selector; empty means all devices that you may see"`
		Note     string `json:"note,omitempty" maxLength:"500" doc:"Why; kept in the ledger"`
	}
}

func (in *assignIn) parse() (NewAssignment, error) {
	sel, err := device.ParseSelector(in.Body.Selector)
	if err != nil {
		return NewAssignment{}, fault.Bad("body.selector", "%v", err)
	}
	return NewAssignment{Release: in.Body.Name, Version: in.Body.Version, Selector: sel, Note: in.Body.Note}, nil
}

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{
		ID: "preview-assignment", Method: http.MethodPost, Path: "/assignments/preview", Tag: tag, Role: httpapi.Viewer,
		Summary: "What an assignment would do: devices matched, those that nothing fits and why, bytes",
	}, func(ctx context.Context, who httpapi.Principal, in *assignIn) (*body[Preview], error) {
		n, err := in.parse()
		if err != nil {
			return nil, err
		}
		p, err := s.Preview(ctx, who.Scope, n)
		return &body[Preview]{p}, err
	})
	httpapi.Register(a, httpapi.Op{
		ID: "create-assignment", Method: http.MethodPost, Path: "/assignments", Tag: tag, Role: httpapi.ReleaseManager, Status: http.StatusCreated,
		Summary: "Assign a release to the devices that a selector matches, now and later",
		Detail:  "For each device and release name the newest active assignment that matches decides.",
	}, func(ctx context.Context, who httpapi.Principal, in *assignIn) (*body[Assignment], error) {
		n, err := in.parse()
		if err != nil {
			return nil, err
		}
		made, err := s.Assign(ctx, who.Actor, who.Scope, n)
		return &body[Assignment]{made}, err
	})
	s.readRoutes(a)
	s.changeRoutes(a)
	s.deviceRoutes(a)
}

type idIn struct {
	ID string `path:"id" maxLength:"60"`
}

func (s *Service) readRoutes(a *httpapi.API) {
	type listIn struct {
		httpapi.PageIn
		Name  string `query:"name" maxLength:"64" doc:"Only assignments of this release"`
		State string `query:"state" enum:"active,superseded,cancelled"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "list-assignments", Method: http.MethodGet, Path: "/assignments", Tag: tag, Role: httpapi.Viewer, Summary: "Assignments with their progress, newest first",
	}, func(ctx context.Context, who httpapi.Principal, in *listIn) (*body[httpapi.List[Assignment]], error) {
		items, next, err := s.Assignments(ctx, who.Scope, Filter{Release: in.Name, State: AssignmentState(in.State), Limit: in.Limit, Cursor: in.Cursor})
		return &body[httpapi.List[Assignment]]{httpapi.List[Assignment]{Items: items, Next: next}}, err
	})
	httpapi.Register(a, httpapi.Op{
		ID: "get-assignment", Method: http.MethodGet, Path: "/assignments/{id}", Tag: tag, Role: httpapi.Viewer, Summary: "One assignment: devices by state, failures by cause",
	}, func(ctx context.Context, who httpapi.Principal, in *idIn) (*body[AssignmentDetail], error) {
		d, err := s.detail(ctx, who.Scope, in.ID)
		return &body[AssignmentDetail]{d}, err
	})
	type devicesIn struct {
		httpapi.PageIn
		ID    string `path:"id" maxLength:"60"`
		State string `query:"state" maxLength:"40"`
		Cause string `query:"cause" maxLength:"1024"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "list-assignment-devices", Method: http.MethodGet, Path: "/assignments/{id}/devices", Tag: tag, Role: httpapi.Viewer, Summary: "The devices behind an assignment's numbers",
	}, func(ctx context.Context, who httpapi.Principal, in *devicesIn) (*body[httpapi.List[DeviceState]], error) {
		if _, err := s.Assignment(ctx, who.Scope, in.ID); err != nil {
			return nil, err
		}
		items, next, err := s.DeviceStates(ctx, who.Scope, DeviceFilter{Assignment: in.ID, State: State(in.State), Cause: in.Cause, Limit: in.Limit, Cursor: in.Cursor})
		return &body[httpapi.List[DeviceState]]{httpapi.List[DeviceState]{Items: items, Next: next}}, err
	})
}

func (s *Service) detail(ctx context.Context, scope device.Scope, id string) (AssignmentDetail, error) {
	a, err := s.Assignment(ctx, scope, id)
	if err != nil {
		return AssignmentDetail{}, err
	}
	failures, err := s.Failures(ctx, scope, a)
	return AssignmentDetail{Assignment: a, Percent: a.Percent(), Failures: failures}, err
}

func (s *Service) changeRoutes(a *httpapi.API) {
	type cancelIn struct {
		ID   string `path:"id" maxLength:"60"`
		Body struct {
			Reason string `json:"reason,omitempty" maxLength:"500" doc:"Kept in the ledger"`
		}
	}
	httpapi.Register(a, httpapi.Op{
		ID: "cancel-assignment", Method: http.MethodPost, Path: "/assignments/{id}/cancel", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Take an assignment back: devices that have not committed it get what they had committed before, or nothing",
	}, func(ctx context.Context, who httpapi.Principal, in *cancelIn) (*body[Assignment], error) {
		out, err := s.Cancel(ctx, who.Actor, who.Scope, in.ID, in.Body.Reason)
		return &body[Assignment]{out}, err
	})
	type retryIn struct {
		ID   string `path:"id" maxLength:"60"`
		Body struct {
			Cause string `json:"cause,omitempty" maxLength:"1024" doc:"Only devices that failed for this cause"`
		}
	}
	type retried struct {
		Devices int64 `json:"devices" doc:"How many try again"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "retry-assignment", Method: http.MethodPost, Path: "/assignments/{id}/retry", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Ask the devices that failed or rolled back for another attempt",
	}, func(ctx context.Context, who httpapi.Principal, in *retryIn) (*body[retried], error) {
		n, err := s.Retry(ctx, who.Actor, who.Scope, in.ID, in.Body.Cause)
		return &body[retried]{retried{n}}, err
	})
}

func (s *Service) deviceRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{
		ID: "get-device-updates", Method: http.MethodGet, Path: "/devices/{id}/updates", Tag: tag, Role: httpapi.Viewer,
		Summary: "What a device runs, what it is asked for, and every state it reached",
	}, func(ctx context.Context, who httpapi.Principal, in *idIn) (*body[DeviceUpdates], error) {
		d, err := s.checkDevice(ctx, who.Scope, in.ID)
		if err != nil {
			return nil, err
		}
		u, err := s.OfDevice(ctx, d)
		return &body[DeviceUpdates]{u}, err
	})
	type listIn struct {
		httpapi.PageIn
		Release string `query:"name" maxLength:"64" doc:"Only of this release"`
		Version string `query:"version" maxLength:"64"`
		State   string `query:"state" maxLength:"40"`
		Cause   string `query:"cause" maxLength:"1024"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "list-device-updates", Method: http.MethodGet, Path: "/device-updates", Tag: tag, Role: httpapi.Viewer, Summary: "What devices are asked for now and how far they are",
	}, func(ctx context.Context, who httpapi.Principal, in *listIn) (*body[httpapi.List[DeviceState]], error) {
		items, next, err := s.DeviceStates(ctx, who.Scope, DeviceFilter{Release: in.Release, Version: in.Version, State: State(in.State), Cause: in.Cause, Limit: in.Limit, Cursor: in.Cursor})
		return &body[httpapi.List[DeviceState]]{httpapi.List[DeviceState]{Items: items, Next: next}}, err
	})
}
