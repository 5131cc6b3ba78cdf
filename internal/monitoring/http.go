package monitoring

import (
	"context"
	"net/http"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

const tag = "monitoring"

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "get-device-metrics", Method: http.MethodGet, Path: "/devices/{id}/metrics", Role: httpapi.Viewer, Tag: tag,
		Summary: "What a device measures: current values and charts"}, s.getDeviceMetrics)
	httpapi.Register(a, httpapi.Op{ID: "get-device-presence", Method: http.MethodGet, Path: "/devices/{id}/presence", Role: httpapi.Viewer, Tag: tag,
		Summary: "When a device was last in contact, and what is wrong with what it sends"}, s.getDevicePresence)
	httpapi.Register(a, httpapi.Op{ID: "count-presence", Method: http.MethodGet, Path: "/presence", Role: httpapi.Viewer, Tag: tag,
		Summary: "How many devices are online, late and offline"}, s.countPresence)
	s.groupRoutes(a)
	s.eventRoutes(a)
	httpapi.Register(a, httpapi.Op{ID: "get-monitoring-policy", Method: http.MethodGet, Path: "/monitoring/policy", Role: httpapi.Viewer, Tag: tag,
		Summary: "How often devices report and measure"}, s.getPolicy)
	httpapi.Register(a, httpapi.Op{ID: "set-monitoring-policy", Method: http.MethodPut, Path: "/monitoring/policy", Role: httpapi.Admin, Tag: tag,
		Summary: "Change how often devices report and measure", Detail: "Becomes the desired section monitoring of every device in service."}, s.putPolicy)
	const promQL = "PromQL over the tenant's metrics; nothing else is readable, whatever the expression says. Result in the form of Prometheus' HTTP API."
	httpapi.Register(a, httpapi.Op{ID: "query-metrics", Method: http.MethodGet, Path: "/metrics/query", Role: httpapi.Viewer, Tag: tag,
		Summary: "Evaluate a PromQL expression at one time", Detail: promQL}, s.query)
	httpapi.Register(a, httpapi.Op{ID: "query-metrics-range", Method: http.MethodGet, Path: "/metrics/query_range", Role: httpapi.Viewer, Tag: tag,
		Summary: "Evaluate a PromQL expression over a range of time", Detail: promQL}, s.queryRange)
}

func (s *Service) groupRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-groups", Method: http.MethodGet, Path: "/groups", Role: httpapi.Viewer, Tag: tag,
		Summary: "List groups"}, s.listGroups)
	httpapi.Register(a, httpapi.Op{ID: "create-group", Method: http.MethodPost, Path: "/groups", Role: httpapi.Operator, Tag: tag, Status: http.StatusCreated,
		Summary: "Make a group: a name for a label selector"}, s.postGroup)
	httpapi.Register(a, httpapi.Op{ID: "get-group", Method: http.MethodGet, Path: "/groups/{name}", Role: httpapi.Viewer, Tag: tag,
		Summary: "A group and how many of its devices are online"}, s.getGroup)
	httpapi.Register(a, httpapi.Op{ID: "get-group-metrics", Method: http.MethodGet, Path: "/groups/{name}/metrics", Role: httpapi.Viewer, Tag: tag,
		Summary: "What a group's devices measure: mean, 95th percentile and highest"}, s.getGroupMetrics)
	httpapi.Register(a, httpapi.Op{ID: "update-group", Method: http.MethodPut, Path: "/groups/{name}", Role: httpapi.Operator, Tag: tag,
		Summary: "Change a group's selector and note"}, s.putGroup)
	httpapi.Register(a, httpapi.Op{ID: "delete-group", Method: http.MethodDelete, Path: "/groups/{name}", Role: httpapi.Operator, Tag: tag, Status: http.StatusNoContent,
		Summary: "Delete a group; its devices stay"}, s.removeGroup)
}

// Input and output of the operations.
type (
	// DeviceIn names a device; huma reads embedded inputs of exported types only.
	DeviceIn struct {
		ID string `path:"id" maxLength:"40"`
	}
	// HoursIn says how far back.
	HoursIn struct {
		Hours int `query:"hours" minimum:"1" maximum:"360" default:"24" doc:"How far back"`
	}
	deviceMetricsIn struct {
		DeviceIn
		HoursIn
	}
	// DeviceMetrics is what a device measures.
	DeviceMetrics struct {
		Node    string    `json:"node,omitempty" doc:"With several nodes and no shared store of metrics: the node that this comes from, which knows only what it has received itself"`
		Current []Current `json:"current" nullable:"false"`
		Charts  []Chart   `json:"charts" nullable:"false"`
	}
	deviceMetricsOut struct{ Body DeviceMetrics }
	// DevicePresence is a device's contact, its connections and its troubles.
	DevicePresence struct {
		Presence
		Links
		Troubles []Trouble `json:"troubles,omitempty"`
	}
	devicePresenceOut struct{ Body DevicePresence }
	// PresenceCounts are the devices that were ever in contact, by state.
	PresenceCounts struct {
		Online  int64 `json:"online"`
		Late    int64 `json:"late"`
		Offline int64 `json:"offline"`
		// Connected may lag by a minute.
		Connected int64            `json:"connected" doc:"Devices with an open connection; those that poll by HTTPS have none. Told to who sees the whole tenant"`
		Nodes     map[string]int64 `json:"nodes" nullable:"false" doc:"The same by the node that holds it"`
	}
	presenceCountsOut struct{ Body PresenceCounts }
)

// find returns a device of the reader's scope.
func (s *Service) find(ctx context.Context, who httpapi.Principal, id string) (device.Device, error) {
	return s.findIn(ctx, who.Scope, id)
}

func (s *Service) findIn(ctx context.Context, scope device.Scope, id string) (device.Device, error) {
	parsed, err := device.ParseID(id)
	if err != nil {
		return device.Device{}, fault.New(fault.NotFound, "there is no device %.60q", id)
	}
	d, err := s.cfg.Devices.ByID(ctx, s.cfg.DB, scope.Tenant, parsed)
	if err == nil && !scope.Allows(d) {
		return device.Device{}, fault.New(fault.NotFound, "there is no device %s", id)
	}
	return d, err
}

func (s *Service) getDeviceMetrics(ctx context.Context, who httpapi.Principal, in *deviceMetricsIn) (*deviceMetricsOut, error) {
	d, err := s.find(ctx, who, in.ID)
	if err != nil {
		return nil, err
	}
	current, err := s.CurrentValues(ctx, d)
	if err != nil {
		return nil, err
	}
	charts, err := s.DeviceCharts(ctx, d, in.Hours)
	return &deviceMetricsOut{DeviceMetrics{s.partial(), current, charts}}, err
}

func (s *Service) getDevicePresence(ctx context.Context, who httpapi.Principal, in *DeviceIn) (*devicePresenceOut, error) {
	d, err := s.find(ctx, who, in.ID)
	if err != nil {
		return nil, err
	}
	known, err := s.Of(ctx, []int64{d.Num})
	if err != nil {
		return nil, err
	}
	links, err := s.LinksOf(ctx, d.Num)
	if err != nil {
		return nil, err
	}
	troubles, err := s.Troubles(ctx, d.Num)
	return &devicePresenceOut{DevicePresence{known[d.Num], links, troubles}}, err
}

func (s *Service) countPresence(ctx context.Context, who httpapi.Principal, _ *struct{}) (*presenceCountsOut, error) {
	counts, err := s.Counts(ctx, who.Scope)
	if err != nil {
		return nil, err
	}
	out := PresenceCounts{Online: counts[Online], Late: counts[Late], Offline: counts[Offline]}
	out.Nodes = map[string]int64{}
	if who.Scope.Selector.Empty() {
		if out.Nodes, err = s.ConnectedCount(ctx, who.Scope.Tenant); err != nil {
			return nil, err
		}
	}
	for _, n := range out.Nodes {
		out.Connected += n
	}
	return &presenceCountsOut{out}, nil
}

type (
	// GroupIn names a group.
	GroupIn struct {
		Name string `path:"name" maxLength:"40"`
	}
	groupOut struct {
		ETag string `header:"ETag"`
		Body GroupBody
	}
	// GroupBody is a group and how it is doing.
	GroupBody struct {
		Group
		RollUp *RollUp `json:"roll_up,omitempty" readOnly:"true"`
	}
	groupsOut   struct{ Body httpapi.List[Group] }
	postGroupIn struct {
		Body struct {
			Name string `json:"name"`
			GroupChange
		}
	}
	// GroupChange is what can be changed about a group.
	GroupChange struct {
		Selector string `json:"selector" maxLength:"2048" doc:"Label selector; empty matches every device"`
		Note     string `json:"note,omitempty" maxLength:"500"`
	}
	putGroupIn struct {
		GroupIn
		IfMatch string `header:"If-Match" doc:"ETag of the group as you have read it"`
		Body    GroupChange
	}
	groupMetricsIn struct {
		GroupIn
		HoursIn
	}
	groupMetricsOut struct{ Body GroupCharts }
)

func (g GroupChange) group(name string) (Group, error) {
	sel, err := device.ParseSelector(g.Selector)
	if err != nil {
		return Group{}, fault.Bad("body.selector", "%s", err)
	}
	return Group{Name: name, Selector: sel, Note: g.Note}, nil
}

func (s *Service) listGroups(ctx context.Context, who httpapi.Principal, in *httpapi.PageIn) (*groupsOut, error) {
	var after string
	if in.Cursor != "" {
		if err := httpapi.DecodeCursor(in.Cursor, &after); err != nil {
			return nil, err
		}
	}
	groups, err := s.Groups(ctx, who.Scope.Tenant, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &groupsOut{}
	if len(groups) > in.Limit {
		groups = groups[:in.Limit]
		out.Body.Next = httpapi.EncodeCursor(groups[len(groups)-1].Name)
	}
	out.Body.Items = groups
	return out, nil
}

func (s *Service) answer(ctx context.Context, who httpapi.Principal, g Group) (*groupOut, error) {
	r, err := s.RollUp(ctx, who.Scope, g.Selector)
	return &groupOut{ETag: httpapi.ETag(g.Revision), Body: GroupBody{g, &r}}, err
}

func (s *Service) getGroup(ctx context.Context, who httpapi.Principal, in *GroupIn) (*groupOut, error) {
	g, err := s.Group(ctx, who.Scope.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, who, g)
}

func (s *Service) postGroup(ctx context.Context, who httpapi.Principal, in *postGroupIn) (*groupOut, error) {
	g, err := in.Body.group(in.Body.Name)
	if err != nil {
		return nil, err
	}
	if g, err = s.CreateGroup(ctx, who, g); err != nil {
		return nil, err
	}
	return s.answer(ctx, who, g)
}

func (s *Service) putGroup(ctx context.Context, who httpapi.Principal, in *putGroupIn) (*groupOut, error) {
	g, err := in.Body.group(in.Name)
	if err != nil {
		return nil, err
	}
	if g, err = s.UpdateGroup(ctx, who, g, in.IfMatch); err != nil {
		return nil, err
	}
	return s.answer(ctx, who, g)
}

func (s *Service) removeGroup(ctx context.Context, who httpapi.Principal, in *GroupIn) (*struct{}, error) {
	return nil, s.DeleteGroup(ctx, who, in.Name)
}

func (s *Service) getGroupMetrics(ctx context.Context, who httpapi.Principal, in *groupMetricsIn) (*groupMetricsOut, error) {
	g, err := s.Group(ctx, who.Scope.Tenant, in.Name)
	if err != nil {
		return nil, err
	}
	charts, err := s.GroupCharts(ctx, who.Scope, g.Selector, in.Hours)
	return &groupMetricsOut{charts}, err
}

type (
	policyOut struct {
		ETag string `header:"ETag"`
		Body Policy
	}
	putPolicyIn struct {
		IfMatch string `header:"If-Match" doc:"ETag of the policy as you have read it"`
		Body    struct {
			ReportSeconds  int `json:"report_seconds" minimum:"10" maximum:"86400"`
			MetricsSeconds int `json:"metrics_seconds" minimum:"10" maximum:"86400"`
		}
	}
)

func (s *Service) getPolicy(ctx context.Context, who httpapi.Principal, _ *struct{}) (*policyOut, error) {
	p, err := readPolicy(ctx, s.cfg.DB, who.Scope.Tenant)
	return &policyOut{httpapi.ETag(p.Revision), p}, err
}

func (s *Service) putPolicy(ctx context.Context, who httpapi.Principal, in *putPolicyIn) (*policyOut, error) {
	p, err := s.SetPolicy(ctx, who, Policy{ReportSeconds: in.Body.ReportSeconds, MetricsSeconds: in.Body.MetricsSeconds}, in.IfMatch)
	return &policyOut{httpapi.ETag(p.Revision), p}, err
}
