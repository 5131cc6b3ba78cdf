package twin

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

type deviceIn struct {
	ID string `path:"id" maxLength:"20" doc:"Device ID, dev-…"`
}

type sectionIn struct {
	ID      string `path:"id" maxLength:"20" doc:"Device ID, dev-…"`
	Section string `path:"section" maxLength:"32" doc:"Name of the section, e.g. inventory"`
}

type documentOut struct {
	LastModified string `header:"Last-Modified"`
	Body         json.RawMessage
}

// Routes adds the operations of desired and reported state; Config.Devices is needed for them.
func (s *Service) Routes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{
		ID: "get-twin", Method: http.MethodGet, Path: "/devices/{id}/twin", Tag: "devices", Role: httpapi.Viewer,
		Summary: "Desired and reported state of a device",
		Detail:  "Sections by the hash of their documents, with the epoch of the desired state and the one that the device has accepted.",
	}, func(ctx context.Context, who httpapi.Principal, in *deviceIn) (*struct{ Body State }, error) {
		d, err := s.inScope(ctx, who.Scope, in.ID)
		if err != nil {
			return nil, err
		}
		st, err := s.State(ctx, d.Num)
		return &struct{ Body State }{st}, err
	})
	for _, direction := range []struct {
		id, path, summary string
		read              readDocument
	}{
		{"get-reported-section", "/devices/{id}/reported/{section}", "The document that a device has last reported in a section", s.Reported},
		{"get-desired-section", "/devices/{id}/desired/{section}", "The document that a device should have in a section", s.Desired},
	} {
		httpapi.Register(a, httpapi.Op{
			ID: direction.id, Method: http.MethodGet, Path: direction.path, Summary: direction.summary, Tag: "devices", Role: httpapi.Viewer,
		}, func(ctx context.Context, who httpapi.Principal, in *sectionIn) (*documentOut, error) {
			d, err := s.inScope(ctx, who.Scope, in.ID)
			if err != nil {
				return nil, err
			}
			body, at, err := direction.read(ctx, s.db, d.Num, wire.Section(in.Section))
			if err != nil {
				return nil, err
			}
			return &documentOut{LastModified: at.UTC().Format(http.TimeFormat), Body: body}, nil
		})
	}
}

// readDocument is Reported or Desired.
type readDocument func(ctx context.Context, q sqldb.Reader, num int64, section wire.Section) (body []byte, since time.Time, err error)

// inScope returns a device that the scope allows to see; every other one is fault.NotFound.
func (s *Service) inScope(ctx context.Context, scope device.Scope, id string) (device.Device, error) {
	d, err := s.cfg.Devices.ByID(ctx, s.db, scope.Tenant, device.ID(id))
	if err == nil && !scope.Allows(d) {
		err = fault.New(fault.NotFound, "no device %s", id)
	}
	return d, err
}
