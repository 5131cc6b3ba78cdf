package registry

import (
	"context"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ui"
	"steward/internal/ui/chart"
)

// count is one number that links to the devices behind it.
type count struct {
	Name  string
	Count int64
	Href  string
	Class string // good, info, warn, bad or idle
}

type homeView struct {
	Fleet    Fleet
	Way      []count // the stages of a device's life in their order
	Bar      template.HTML
	Presence []count // empty when nothing is in service
	Service  template.HTML
	Notices  []ui.Notice
	Recent   []happening
	Failed   bool // a room could not say what needs somebody
}

// happening is one or several events that say the same of several devices.
type happening struct {
	ledger.Event // the newest
	Sentence     string
	Who          string // empty when it is the device itself
	Device       string // its name, or "6 devices"
	Href         string
	Times        int
}

func (p *pages) home(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	fleet, err := p.Fleet(r.Context(), who.Scope)
	if err != nil {
		return err
	}
	v := homeView{Fleet: fleet, Way: wayOf(fleet.Stages), Presence: presenceOf(fleet.Presence)}
	v.Bar, v.Service = barOf("Devices by stage", v.Way), barOf("Devices in service by presence", v.Presence)
	v.Notices, v.Failed = p.notices(r.Context(), who.Scope)
	if v.Recent, err = p.recent(r.Context(), who.Scope); err != nil {
		return err
	}
	return p.files.Render(w, r, who, "home.html", ui.View{Title: "Fleet", Nav: "/", Data: v,
		Live: "device purchase provisioning release update monitoring disposal"})
}

// stageClasses colour the stages as their badges do.
var stageClasses = map[device.Stage]string{
	device.Ordered: "idle", device.Received: "s5", device.Staged: "s4", device.Enrolled: "info", device.Active: "good",
	device.Quarantined: "bad", device.InTransfer: "warn", device.Retired: "s2", device.Disposed: "idle",
}

// wayOf lists the stages from the order to the disposal. The side stages show when a device is in them.
func wayOf(stages map[device.Stage]int64) []count {
	var way []count
	for _, s := range device.Stages {
		if n := stages[s]; n > 0 || s != device.Quarantined && s != device.InTransfer {
			way = append(way, count{strings.ReplaceAll(string(s), "_", " "), n, "/devices?stage=" + string(s), stageClasses[s]})
		}
	}
	return way
}

var presenceClasses = map[string]string{"online": "good", "late": "warn", "offline": "bad", Never: "idle"}

// presenceOf tells how the devices in service divide.
func presenceOf(counts map[string]int64) []count {
	var out []count
	var total int64
	for _, state := range PresenceStates {
		out = append(out, count{state, counts[state], "/devices?presence=" + url.QueryEscape(state), presenceClasses[state]})
		total += counts[state]
	}
	if total == 0 {
		return nil
	}
	return out
}

// barOf draws numbers that stand above it.
func barOf(title string, counts []count) template.HTML {
	bar := chart.StackBar{Title: title, Bare: true}
	for _, c := range counts {
		bar.Parts = append(bar.Parts, chart.Part{Name: c.Name, Value: c.Count, Class: c.Class, Href: c.Href})
	}
	return bar.HTML()
}

// notices asks all rooms what needs somebody, the worst first. A room that fails must not take the first
// page away from people, who may be looking for the cause of just that.
func (p *pages) notices(ctx context.Context, scope device.Scope) (out []ui.Notice, failed bool) {
	for _, ask := range p.cfg.Notices {
		some, err := ask(ctx, scope)
		if err != nil {
			p.log.ErrorContext(ctx, "notices of a room failed", "error", err)
			failed = true
			continue
		}
		out = append(out, some...)
	}
	slices.SortStableFunc(out, func(a, b ui.Notice) int { return int(b.Level) - int(a.Level) })
	return out, failed
}

const (
	recentEvents = 120 // read for the home page
	recentLines  = 12  // shown there
	// groupSpan is how far apart events may lie that are told as one.
	groupSpan = time.Hour
)

// recent tells what happened last; what happened to many devices is told once.
func (p *pages) recent(ctx context.Context, scope device.Scope) ([]happening, error) {
	if p.cfg.Recent == nil {
		return nil, nil
	}
	events, _, err := p.cfg.Recent.Events(ctx, p.cfg.Recent.Within(scope, ledger.Filter{Newest: true, Limit: recentEvents}))
	if err != nil {
		return nil, err
	}
	type matter struct {
		device  device.ID
		subject string
	}
	var out []happening
	told := map[matter]string{}             // the kind that was told of it
	devices := map[int]map[device.ID]bool{} // by line
	for _, e := range events {
		// Of an update, an order or a certificate of one device only the newest step is told.
		m := matter{e.Device, e.Subject}
		if kind, has := told[m]; has && e.Device != "" && e.Subject != "" && kind != e.Kind {
			continue
		}
		told[m] = e.Kind
		sentence := p.sentence(e)
		i := slices.IndexFunc(out, func(h happening) bool {
			alike := h.Kind == e.Kind && h.Sentence == sentence && h.At.Sub(e.At) < groupSpan
			return alike && (e.Device != "" && h.Event.Device != "" || e.Device == h.Event.Device && e.Actor.ID == h.Actor.ID)
		})
		if i < 0 {
			if len(out) == recentLines {
				continue // an older one may still belong to a line
			}
			i = len(out)
			out = append(out, happening{Event: e, Sentence: sentence, Who: byWhom(e), Href: "/ledger/" + e.ID})
			devices[i] = map[device.ID]bool{}
		}
		out[i].Times++
		devices[i][e.Device] = true
	}
	for i := range out {
		if err := p.name(ctx, scope, &out[i], len(devices[i])); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// name says which devices it is about.
func (p *pages) name(ctx context.Context, scope device.Scope, h *happening, devices int) error {
	if h.Event.Device == "" {
		return nil
	}
	if devices > 1 {
		h.Device, h.Href = ui.Plural(int64(devices), "device", "devices"), "/ledger?kind="+url.QueryEscape(h.Kind)
		return nil
	}
	d, err := p.ByID(ctx, p.db, scope.Tenant, h.Event.Device)
	h.Device = d.DisplayName()
	return err
}

func (p *pages) sentence(e ledger.Event) string {
	if p.cfg.Sentence != nil {
		if s := p.cfg.Sentence(e); s != "" {
			return s
		}
	}
	return strings.NewReplacer(".", ": ", "_", " ").Replace(e.Kind)
}

// byWhom names who did it, unless a device tells of itself.
func byWhom(e ledger.Event) string {
	if e.Actor.Kind == device.ActorDevice && e.Actor.ID == string(e.Device) {
		return ""
	}
	return e.ActorName()
}
