package monitoring

import (
	"context"
	"html/template"
	"net/http"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

// This file shows what devices say has happened on them, to programs and to people.

type (
	eventsIn struct {
		httpapi.PageIn
		Device   string `query:"device" maxLength:"40"`
		Name     string `query:"name" maxLength:"64"`
		Severity string `query:"severity" enum:"info,warning,error" doc:"This and worse ones"`
		Since    string `query:"since" maxLength:"40" doc:"RFC 3339 or Unix seconds"`
		Until    string `query:"until" maxLength:"40" doc:"RFC 3339 or Unix seconds"`
	}
	eventsOut struct {
		Body httpapi.List[DeviceEvent]
	}
)

func (s *Service) eventRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-device-events", Method: http.MethodGet, Path: "/device-events", Role: httpapi.Viewer, Tag: tag,
		Summary: "What devices say has happened on them, newest first",
		Detail:  "The newest 1,000 of a device are kept, for 30 days. What Steward has done to a device stands in the ledger instead."}, s.listEvents)
}

func (s *Service) listEvents(ctx context.Context, who httpapi.Principal, in *eventsIn) (*eventsOut, error) {
	f, err := eventFilter(in.Device, in.Name, in.Severity)
	if err != nil {
		return nil, err
	}
	f.Limit, f.Cursor = in.Limit, in.Cursor
	if in.Since != "" {
		if f.From, err = parseTime("query.since", in.Since); err != nil {
			return nil, err
		}
	}
	if in.Until != "" {
		if f.To, err = parseTime("query.until", in.Until); err != nil {
			return nil, err
		}
	}
	items, next, err := s.Events(ctx, who.Scope, f)
	return &eventsOut{httpapi.List[DeviceEvent]{Items: items, Next: next}}, err
}

func eventFilter(device, name, severity string) (f EventFilter, err error) {
	f = EventFilter{Device: strings.TrimSpace(device), Name: strings.TrimSpace(name)}
	if severity != "" {
		f.Least, err = parseSeverity("query.severity", severity)
	}
	return f, err
}

type eventsData struct {
	Items      []DeviceEvent
	Next       string
	Severities []ui.Option
}

// severities that the page offers; the worse ones are always among the milder.
var severities = []ui.Option{{Value: "", Name: "all"}, {Value: "warning", Name: "warnings and errors"}, {Value: "error", Name: "errors"}}

func (s *Service) eventsPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	q := r.URL.Query()
	f, err := eventFilter(q.Get("device"), q.Get("name"), q.Get("severity"))
	if err != nil {
		return err
	}
	f.Limit, f.Cursor = 50, q.Get("cursor")
	items, next, err := s.Events(r.Context(), who.Scope, f)
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, who, "events.html", ui.View{
		Title: "Events of devices", Nav: "/devices", Crumbs: []ui.NavItem{{Name: "Devices", Path: "/devices"}}, Live: "monitoring",
		Data: eventsData{items, next, severities},
	})
}

// panelEvents is how many events a device's page shows.
const panelEvents = 10

// EventsPanel is the part of a device's page with what has happened on it lately.
func (s *Service) EventsPanel() ui.Panel {
	return ui.Panel{ID: "events", Title: "Events", Order: 150, Render: s.renderEvents}
}

func (s *Service) renderEvents(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	if s.pages == nil {
		return "", fault.New(fault.Unavailable, "the room's pages are not joined")
	}
	scope := device.Scope{Tenant: d.Tenant} // the reader's is already checked against the device
	items, next, err := s.Events(ctx, scope, EventFilter{Device: string(d.ID), Limit: panelEvents})
	if err != nil || len(items) == 0 {
		return "", err
	}
	return s.pages.Fragment("panel_events.html", struct {
		Device device.Device
		Items  []DeviceEvent
		More   bool
	}{d, items, next != ""})
}
