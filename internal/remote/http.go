package remote

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"steward/internal/httpapi"
)

const tag = "remote"

// Input and output of the operations.
type (
	// CommandIn is a command as somebody wishes it.
	CommandIn struct {
		Name            string          `json:"name" minLength:"1" maxLength:"64" example:"ping" doc:"ping, report, diagnose, or what the device's maker has defined"`
		Params          json.RawMessage `json:"params,omitempty" doc:"A JSON value of at most 64 KiB"`
		DeadlineSeconds int             `json:"deadline_seconds,omitempty" minimum:"10" maximum:"604800" default:"3600" doc:"After it the device does nothing any more"`
	}
	// DeviceIn names a device; huma reads embedded inputs of exported types only.
	DeviceIn struct {
		ID string `path:"id" maxLength:"40"`
	}
	giveIn struct {
		DeviceIn
		Body CommandIn
	}
	commandOut struct{ Body Command }
	ofDeviceIn struct {
		DeviceIn
		httpapi.PageIn
	}
	listIn struct {
		httpapi.PageIn
		Device string `query:"device" maxLength:"40"`
		State  string `query:"state" maxLength:"20" doc:"waiting, delivered, done, failed, refused, expired or cancelled"`
		Name   string `query:"name" maxLength:"64"`
		Batch  string `query:"batch" maxLength:"40"`
	}
	listOut struct{ Body httpapi.List[Command] }
	getIn   struct {
		ID   string `path:"id" maxLength:"40"`
		Wait int    `query:"wait" minimum:"0" maximum:"60" default:"0" doc:"Seconds to wait for the result; the answer comes as soon as there is one"`
	}
	idIn struct {
		ID string `path:"id" maxLength:"40"`
	}
	// SelectionIn is a command for a selection of devices.
	SelectionIn struct {
		CommandIn
		Selector string `json:"selector,omitempty" maxLength:"2048" doc:"Label selector; empty without a group means every device that you may see"`
		Group    string `json:"group,omitempty" maxLength:"40" doc:"Name of a group, in the place of a selector"`
	}
	previewIn  struct{ Body SelectionIn }
	previewOut struct{ Body Preview }
	giveManyIn struct {
		Body struct {
			SelectionIn
			Confirm int64 `json:"confirm" minimum:"1" doc:"The preview's number of devices"`
		}
	}
	batchOut     struct{ Body Batch }
	cancelledOut struct {
		Body struct {
			Cancelled int64 `json:"cancelled" doc:"How many commands were still open"`
		}
	}
)

func (in CommandIn) wish() Wish {
	return Wish{Name: in.Name, Params: in.Params, Deadline: time.Duration(in.DeadlineSeconds) * time.Second}
}

func (in SelectionIn) selection() Selection { return Selection{in.Selector, in.Group} }

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "give-command", Method: http.MethodPost, Path: "/devices/{id}/commands", Tag: tag, Role: httpapi.Operator, Status: http.StatusCreated,
		Summary: "Give a device a command, to be done once before its deadline",
		Detail:  "The device gets it at its next contact, at once when it is connected. It has exactly one result: read it with get-command, which can wait for it."},
		func(ctx context.Context, who httpapi.Principal, in *giveIn) (*commandOut, error) {
			c, err := s.Give(ctx, who, in.ID, in.Body.wish())
			return &commandOut{c}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "list-device-commands", Method: http.MethodGet, Path: "/devices/{id}/commands", Tag: tag, Role: httpapi.Viewer,
		Summary: "List a device's commands, newest first"},
		func(ctx context.Context, who httpapi.Principal, in *ofDeviceIn) (*listOut, error) {
			return s.list(ctx, who, Filter{Device: in.ID, Limit: in.Limit, Cursor: in.Cursor})
		})
	httpapi.Register(a, httpapi.Op{ID: "list-commands", Method: http.MethodGet, Path: "/commands", Tag: tag, Role: httpapi.Viewer,
		Summary: "List commands, newest first", Detail: "Parameters and outputs are left out; get-command has them. Finished commands are kept for 30 days, at most 200 of a device."},
		func(ctx context.Context, who httpapi.Principal, in *listIn) (*listOut, error) {
			return s.list(ctx, who, Filter{Device: in.Device, Batch: in.Batch, State: in.State, Name: in.Name, Limit: in.Limit, Cursor: in.Cursor})
		})
	httpapi.Register(a, httpapi.Op{ID: "get-command", Method: http.MethodGet, Path: "/commands/{id}", Tag: tag, Role: httpapi.Viewer, Timeout: MaxWait + 15*time.Second,
		Summary: "Show a command and its result", Detail: "With wait it answers as soon as the command is over, on whatever node the device is, or after that time with what is known then."},
		func(ctx context.Context, who httpapi.Principal, in *getIn) (*commandOut, error) {
			c, err := s.Wait(ctx, who, in.ID, time.Duration(in.Wait)*time.Second)
			return &commandOut{c}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "cancel-command", Method: http.MethodPost, Path: "/commands/{id}/cancel", Tag: tag, Role: httpapi.Operator,
		Summary: "Cancel an open command", Detail: "A device that has it already may do it all the same; what it answers then is kept."},
		func(ctx context.Context, who httpapi.Principal, in *idIn) (*commandOut, error) {
			c, err := s.Cancel(ctx, who, in.ID)
			return &commandOut{c}, err
		})
	s.batchRoutes(a)
}

func (s *Service) list(ctx context.Context, who httpapi.Principal, f Filter) (*listOut, error) {
	items, next, err := s.List(ctx, who, f)
	return &listOut{httpapi.List[Command]{Items: items, Next: next}}, err
}

func (s *Service) batchRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "preview-commands", Method: http.MethodPost, Path: "/commands/preview", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show which devices of a selection a command would hit"},
		func(ctx context.Context, who httpapi.Principal, in *previewIn) (*previewOut, error) {
			p, err := s.PreviewGive(ctx, who, in.Body.selection(), in.Body.wish())
			return &previewOut{p}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "give-commands", Method: http.MethodPost, Path: "/commands", Tag: tag, Role: httpapi.Operator, Status: http.StatusCreated,
		Summary: "Give a command to a selection of at most 2,000 devices, all or none", Detail: "Preview it first: confirm is the preview's number of devices."},
		func(ctx context.Context, who httpapi.Principal, in *giveManyIn) (*batchOut, error) {
			b, err := s.GiveMany(ctx, who, in.Body.selection(), in.Body.wish(), in.Body.Confirm)
			return &batchOut{b}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "get-command-batch", Method: http.MethodGet, Path: "/command-batches/{id}", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show how far the devices of a selection are with their command"},
		func(ctx context.Context, who httpapi.Principal, in *idIn) (*batchOut, error) {
			b, err := s.Batch(ctx, who, in.ID)
			return &batchOut{b}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "cancel-command-batch", Method: http.MethodPost, Path: "/command-batches/{id}/cancel", Tag: tag, Role: httpapi.Operator,
		Summary: "Cancel the open commands of a batch"},
		func(ctx context.Context, who httpapi.Principal, in *idIn) (*cancelledOut, error) {
			out := &cancelledOut{}
			n, err := s.CancelBatch(ctx, who, in.ID)
			out.Body.Cancelled = n
			return out, err
		})
}
