package registry

import (
	"context"
	"net/http"
	"slices"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

type listIn struct {
	httpapi.PageIn
	Stage    []string `query:"stage" doc:"Only these stages, separated by commas"`
	Selector string   `query:"selector" maxLength:"2048" doc:"Label selector, e.g. site=berlin,ring in (canary,early)"`
	Model    string   `query:"model" maxLength:"64" doc:"ID of a hardware model"`
	Presence string   `query:"presence" doc:"online, late, offline or never"`
	Search   string   `query:"q" maxLength:"128" doc:"Begin of the ID, the serial number, the name or a word of the name"`
}

// filter checks what a query string says; it is the same for the API and the console.
func (dk *Desk) filter(stages []string, selector, model, presence, search string) (Filter, error) {
	f := Filter{Model: model, Presence: presence, Search: foldTerm(search)}
	var wrong fault.Invalid
	for _, name := range stages {
		if name == "" {
			continue
		}
		st, err := device.ParseStage(name)
		if err != nil {
			wrong.Add("query.stage", "%s", err)
		} else if !slices.Contains(f.Stages, st) {
			f.Stages = append(f.Stages, st)
		}
	}
	var err error
	if f.Selector, err = device.ParseSelector(selector); err != nil {
		wrong.Add("query.selector", "%s", err)
	}
	if presence != "" && (dk.cfg.Presence == nil || !slices.Contains(PresenceStates, presence)) {
		wrong.Add("query.presence", "want online, late, offline or never")
	}
	return f, wrong.OrNil()
}

type idIn struct {
	ID string `path:"id" maxLength:"20" doc:"Device ID, dev-…"`
}

type deviceOut struct {
	ETag string `header:"ETag"`
	Body Row
}

type createIn struct {
	Body struct {
		Serial string            `json:"serial" maxLength:"64" doc:"The maker's serial number"`
		Model  string            `json:"model,omitempty" maxLength:"64" doc:"ID of the hardware model"`
		Name   string            `json:"name,omitempty" maxLength:"120"`
		Labels map[string]string `json:"labels,omitempty"`
		Reason string            `json:"reason" minLength:"1" maxLength:"500" doc:"Why it exists without an order, e.g. found in the field"`
	}
}

type patchIn struct {
	ID      string `path:"id" maxLength:"20"`
	IfMatch string `header:"If-Match" doc:"ETag of the device as it was read; without it the change is made to whatever is there"`
	Body    struct {
		Name   *string            `json:"name,omitempty" maxLength:"120"`
		Labels map[string]*string `json:"labels,omitempty" doc:"Labels to set; null takes one away; labels that are not named stay"`
		Reason string             `json:"reason,omitempty" maxLength:"500"`
	}
}

type moveIn struct {
	ID      string `path:"id" maxLength:"20"`
	IfMatch string `header:"If-Match"`
	Body    struct {
		To     string `json:"to" doc:"The stage to move to"`
		Reason string `json:"reason" minLength:"1" maxLength:"500"`
	}
}

type bulkIn struct {
	Body struct {
		Bulk
		Token string `json:"token" minLength:"1" maxLength:"64" doc:"Of the preview of the same wish"`
	}
}

// Routes adds the operations of devices.
func (dk *Desk) Routes(a *httpapi.API) {
	dk.readRoutes(a)
	dk.changeRoutes(a)
	dk.bulkRoutes(a)
}

func (dk *Desk) readRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-devices", Method: http.MethodGet, Path: "/devices", Tag: "devices", Role: httpapi.Viewer,
		Summary: "List devices",
		Detail: "In the order in which they were created; with q, in the order of what was found. All filters must hold. " +
			"Where few of very many devices pass, a page may be shorter than its limit, or empty, while it has a next one.",
	}, func(ctx context.Context, who httpapi.Principal, in *listIn) (*struct{ Body httpapi.List[Row] }, error) {
		f, err := dk.filter(in.Stage, in.Selector, in.Model, in.Presence, in.Search)
		if err != nil {
			return nil, err
		}
		rows, next, err := dk.List(ctx, who.Scope, f, in.PageIn)
		return &struct{ Body httpapi.List[Row] }{httpapi.List[Row]{Items: rows, Next: next}}, err
	})
	httpapi.Register(a, httpapi.Op{ID: "get-device", Method: http.MethodGet, Path: "/devices/{id}", Tag: "devices", Role: httpapi.Viewer,
		Summary: "One device", Detail: "The ETag is for the If-Match of a later change.",
	}, func(ctx context.Context, who httpapi.Principal, in *idIn) (*deviceOut, error) {
		row, err := dk.Get(ctx, who.Scope, device.ID(in.ID))
		return &deviceOut{ETag: httpapi.ETag(row.Revision), Body: row}, err
	})
	httpapi.Register(a, httpapi.Op{ID: "get-fleet", Method: http.MethodGet, Path: "/fleet", Tag: "devices", Role: httpapi.Viewer,
		Summary: "Devices by stage and presence, in numbers",
	}, func(ctx context.Context, who httpapi.Principal, _ *struct{}) (*struct{ Body Fleet }, error) {
		f, err := dk.Fleet(ctx, who.Scope)
		return &struct{ Body Fleet }{f}, err
	})
	type keysOut struct {
		Body struct {
			Keys []string `json:"keys"`
		}
	}
	httpapi.Register(a, httpapi.Op{ID: "list-label-keys", Method: http.MethodGet, Path: "/labels", Tag: "devices", Role: httpapi.Viewer,
		Summary: "Keys of the labels in use",
	}, func(ctx context.Context, who httpapi.Principal, _ *struct{}) (*keysOut, error) {
		out := &keysOut{}
		var err error
		out.Body.Keys, err = dk.LabelKeysWithin(ctx, dk.db, who.Scope)
		return out, err
	})
	type valuesIn struct {
		httpapi.PageIn
		Key string `query:"key" required:"true" maxLength:"317" doc:"A key of a label"`
	}
	httpapi.Register(a, httpapi.Op{ID: "list-label-values", Method: http.MethodGet, Path: "/labels/values", Tag: "devices", Role: httpapi.Viewer,
		Summary: "Values of one label with how many devices have each", Detail: "Of the devices that you may see.",
	}, func(ctx context.Context, who httpapi.Principal, in *valuesIn) (*struct{ Body httpapi.List[LabelValue] }, error) {
		list, err := dk.labelValues(ctx, who.Scope, in.Key, in.PageIn)
		return &struct{ Body httpapi.List[LabelValue] }{list}, err
	})
}

// valuePosition is where a page of label values ends.
type valuePosition struct {
	Value *string `json:"v"`
}

func (dk *Desk) labelValues(ctx context.Context, scope device.Scope, key string, page httpapi.PageIn) (httpapi.List[LabelValue], error) {
	var after valuePosition
	var list httpapi.List[LabelValue]
	if err := httpapi.DecodeCursor(page.Cursor, &after); err != nil {
		return list, err
	}
	var err error
	if list.Items, err = dk.LabelValuesWithin(ctx, dk.db, scope, LabelPage{key, after.Value, page.Limit + 1}); err != nil {
		return list, err
	}
	if len(list.Items) > page.Limit {
		list.Items = list.Items[:page.Limit]
		list.Next = httpapi.EncodeCursor(valuePosition{&list.Items[page.Limit-1].Value})
	}
	return list, nil
}

func (dk *Desk) changeRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "create-device", Method: http.MethodPost, Path: "/devices", Tag: "devices", Role: httpapi.Operator,
		Status: http.StatusCreated, Summary: "Register a device that came without an order",
		Detail: "It begins as received. Devices that are bought come into being with their order.",
	}, func(ctx context.Context, who httpapi.Principal, in *createIn) (*deviceOut, error) {
		b := in.Body
		return dk.answer(ctx, who, func(tx *sqldb.Tx) (device.Device, error) {
			return dk.Register(ctx, tx, who, device.New{Serial: b.Serial, Model: b.Model, Name: b.Name, Labels: b.Labels, Reason: b.Reason})
		})
	})
	httpapi.Register(a, httpapi.Op{ID: "patch-device", Method: http.MethodPatch, Path: "/devices/{id}", Tag: "devices", Role: httpapi.Operator,
		Summary: "Change a device's name and labels",
	}, func(ctx context.Context, who httpapi.Principal, in *patchIn) (*deviceOut, error) {
		c := Change{Name: in.Body.Name, Reason: in.Body.Reason, Set: map[string]string{}}
		for k, v := range in.Body.Labels {
			if v == nil {
				c.Remove = append(c.Remove, k)
			} else {
				c.Set[k] = *v
			}
		}
		return dk.answer(ctx, who, func(tx *sqldb.Tx) (device.Device, error) {
			return dk.Edit(ctx, tx, who, device.ID(in.ID), c, in.IfMatch)
		})
	})
	httpapi.Register(a, httpapi.Op{ID: "move-device", Method: http.MethodPost, Path: "/devices/{id}/move", Tag: "devices", Role: httpapi.Operator,
		Summary: "Move a device to another stage",
		Detail:  "409 when the lifecycle does not allow it or something is missing; the answer lists everything that is.",
	}, func(ctx context.Context, who httpapi.Principal, in *moveIn) (*deviceOut, error) {
		to, err := device.ParseStage(in.Body.To)
		if err != nil {
			return nil, fault.Bad("body.to", "%s", err)
		}
		return dk.answer(ctx, who, func(tx *sqldb.Tx) (device.Device, error) {
			return dk.MoveOne(ctx, tx, who, device.ID(in.ID), device.Move{To: to, Reason: in.Body.Reason}, in.IfMatch)
		})
	})
}

// answer runs a change and returns the device as it is afterwards.
func (dk *Desk) answer(ctx context.Context, who httpapi.Principal, change func(tx *sqldb.Tx) (device.Device, error)) (*deviceOut, error) {
	var d device.Device
	err := dk.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		d, err = change(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	rows := []Row{{Device: d}}
	err = dk.fill(ctx, who.Scope.Tenant, rows)
	return &deviceOut{ETag: httpapi.ETag(d.Revision), Body: rows[0]}, err
}

func (dk *Desk) bulkRoutes(a *httpapi.API) {
	type previewIn struct{ Body Bulk }
	httpapi.Register(a, httpapi.Op{ID: "preview-bulk-change", Method: http.MethodPost, Path: "/devices/bulk/preview", Tag: "devices", Role: httpapi.Operator,
		Summary: "What a change of many devices would do", Detail: "Nothing is changed. The token confirms exactly what is shown.",
	}, func(ctx context.Context, who httpapi.Principal, in *previewIn) (*struct{ Body Preview }, error) {
		p, err := dk.Preview(ctx, who, in.Body)
		return &struct{ Body Preview }{p}, err
	})
	httpapi.Register(a, httpapi.Op{ID: "apply-bulk-change", Method: http.MethodPost, Path: "/devices/bulk", Tag: "devices", Role: httpapi.Operator,
		Summary: "Change many devices as a preview has shown",
		Detail: "409 when the devices have changed since the preview; then nothing is done. Devices that refuse are listed with their reasons. " +
			"Of more than 1000 devices, up to 100,000, the answer names a run that goes on by itself.",
	}, func(ctx context.Context, who httpapi.Principal, in *bulkIn) (*struct{ Body BulkResult }, error) {
		res, err := dk.Apply(ctx, who, in.Body.Bulk, in.Body.Token)
		return &struct{ Body BulkResult }{res}, err
	})
	type runIn struct {
		ID string `path:"id" maxLength:"40" doc:"Of the bulk change, blk-…"`
	}
	httpapi.Register(a, httpapi.Op{ID: "get-bulk-change", Method: http.MethodGet, Path: "/bulk-changes/{id}", Tag: "devices", Role: httpapi.Viewer,
		Summary: "How far a change of many devices is",
	}, func(ctx context.Context, who httpapi.Principal, in *runIn) (*struct{ Body BulkRun }, error) {
		run, err := dk.BulkRunOf(ctx, who.Scope, in.ID)
		return &struct{ Body BulkRun }{run}, err
	})
}
