package monitoring

import (
	"context"
	"embed"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
	"steward/internal/ui/chart"
)

//go:embed page/*.html
var pageFiles embed.FS

// Pages adds the room's pages.
func (s *Service) Pages(c *ui.Console) {
	s.pages = c.Parse(pageFiles)
	c.Handle("GET /groups", httpapi.Viewer, s.groupsPage)
	c.Handle("GET /groups/new", httpapi.Operator, s.newGroupPage)
	c.Handle("POST /groups", httpapi.Operator, s.createGroupForm)
	c.Handle("GET /groups/{name}", httpapi.Viewer, s.groupPage)
	c.Handle("GET /groups/{name}/edit", httpapi.Operator, s.editGroupPage)
	c.Handle("POST /groups/{name}", httpapi.Operator, s.updateGroupForm)
	c.Handle("GET /groups/{name}/delete", httpapi.Operator, s.deleteGroupPage)
	c.Handle("POST /groups/{name}/delete", httpapi.Operator, s.deleteGroupForm)
	c.Handle("GET /monitoring/disk", httpapi.Viewer, s.diskPage)
	c.Handle("GET /monitoring/events", httpapi.Viewer, s.eventsPage)
	c.Handle("GET /monitoring/clock", httpapi.Viewer, s.clockPage)
}

const groupsNav = "/groups"

func groupCrumbs(more ...ui.NavItem) []ui.NavItem {
	return append([]ui.NavItem{{Name: "Groups", Path: groupsNav}}, more...)
}

// groupRow is one line of the list.
type groupRow struct {
	Group
	RollUp
	Bar template.HTML
}

const groupsPerPage = 30

func (s *Service) groupsPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	var after string
	if cursor := r.FormValue("cursor"); cursor != "" {
		if err := httpapi.DecodeCursor(cursor, &after); err != nil {
			return err
		}
	}
	groups, err := s.Groups(r.Context(), who.Scope.Tenant, after, groupsPerPage+1)
	if err != nil {
		return err
	}
	var data struct {
		Groups []groupRow
		Next   string
	}
	if len(groups) > groupsPerPage {
		groups = groups[:groupsPerPage]
		data.Next = httpapi.EncodeCursor(groups[len(groups)-1].Name)
	}
	for _, g := range groups {
		roll, err := s.RollUp(r.Context(), who.Scope, g.Selector)
		if err != nil {
			return err
		}
		data.Groups = append(data.Groups, groupRow{g, roll, presenceBar(g.Selector, roll)})
	}
	return s.pages.Render(w, r, who, "groups.html", ui.View{Title: "Groups", Nav: groupsNav, Live: "monitoring device", Data: data})
}

// presenceBar shows how a group divides; each part links to its devices.
func presenceBar(sel device.Selector, roll RollUp) template.HTML {
	part := func(name string, n int64, class string) chart.Part {
		q := url.Values{"presence": {name}}
		if !sel.Empty() {
			q.Set("selector", sel.String())
		}
		return chart.Part{Name: name, Value: n, Class: class, Href: "/devices?" + q.Encode()}
	}
	return chart.StackBar{Title: "Devices by presence", Parts: []chart.Part{
		part("online", roll.Online, "good"), part("late", roll.Late, "warn"), part("offline", roll.Offline, "bad"), part("never", roll.Never, "idle"),
	}}.HTML()
}

func (s *Service) groupPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	g, err := s.Group(r.Context(), who.Scope.Tenant, r.PathValue("name"))
	if err != nil {
		return err
	}
	roll, err := s.RollUp(r.Context(), who.Scope, g.Selector)
	if err != nil {
		return err
	}
	charts, err := s.GroupCharts(r.Context(), who.Scope, g.Selector, dayHours)
	if err != nil {
		return err
	}
	data := struct {
		groupRow
		Charts  []template.HTML
		Node    string
		Sampled int
		Devices string
	}{groupRow{g, roll, presenceBar(g.Selector, roll)}, drawAll("group", charts.Charts), charts.Node, charts.Sampled, "/devices?" + url.Values{"selector": {g.Selector.String()}}.Encode()}
	return s.pages.Render(w, r, who, "group.html", ui.View{Title: g.Name, Nav: groupsNav, Crumbs: groupCrumbs(), Live: "monitoring device", Data: data})
}

func drawAll(prefix string, charts []Chart) []template.HTML {
	out := make([]template.HTML, len(charts))
	for i, c := range charts {
		out[i] = c.draw(prefix)
	}
	return out
}

// groupForm is what the form of a group holds.
type groupForm struct {
	Name, Selector, Note string
	Errors               ui.FormErrors
	New                  bool
	Match                int64 // devices that the selector matches; -1 when it was not asked
}

func readGroupForm(r *http.Request) groupForm {
	return groupForm{
		Name: strings.TrimSpace(r.PostFormValue("name")), Selector: strings.TrimSpace(r.PostFormValue("selector")),
		Note: strings.TrimSpace(strings.ReplaceAll(r.PostFormValue("note"), "\r\n", "\n")), Match: -1,
	}
}

func (s *Service) showGroupForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal, f groupForm) error {
	view := ui.View{Title: "New group", Nav: groupsNav, Crumbs: groupCrumbs(), Data: f}
	if !f.New {
		view.Title, view.Crumbs = "Change "+f.Name, groupCrumbs(ui.NavItem{Name: f.Name, Path: "/groups/" + f.Name})
	}
	if len(f.Errors) > 0 {
		view.Status = http.StatusUnprocessableEntity
	}
	return s.pages.Render(w, r, who, "group_form.html", view)
}

func (s *Service) newGroupPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return s.showGroupForm(w, r, who, groupForm{New: true, Match: -1, Selector: r.FormValue("selector")})
}

func (s *Service) editGroupPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	g, err := s.Group(r.Context(), who.Scope.Tenant, r.PathValue("name"))
	if err != nil {
		return err
	}
	roll, err := s.RollUp(r.Context(), who.Scope, g.Selector)
	if err != nil {
		return err
	}
	return s.showGroupForm(w, r, who, groupForm{Name: g.Name, Selector: g.Selector.String(), Note: g.Note, Match: roll.Devices})
}

func (s *Service) createGroupForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := readGroupForm(r)
	f.New = true
	g, err := GroupChange{f.Selector, f.Note}.group(f.Name)
	if err == nil {
		g, err = s.CreateGroup(r.Context(), who, g)
	}
	if f.Errors = ui.FormErrorsFrom(err); f.Errors != nil {
		return s.showGroupForm(w, r, who, f)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "Group "+g.Name+" is made.")
	http.Redirect(w, r, "/groups/"+g.Name, http.StatusSeeOther)
	return nil
}

func (s *Service) updateGroupForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := readGroupForm(r)
	f.Name = r.PathValue("name")
	g, err := GroupChange{f.Selector, f.Note}.group(f.Name)
	if err == nil {
		g, err = s.UpdateGroup(r.Context(), who, g, "")
	}
	if f.Errors = ui.FormErrorsFrom(err); f.Errors != nil {
		return s.showGroupForm(w, r, who, f)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "Group "+g.Name+" is changed.")
	http.Redirect(w, r, "/groups/"+g.Name, http.StatusSeeOther)
	return nil
}

func (s *Service) deleteGroupPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	g, err := s.Group(r.Context(), who.Scope.Tenant, r.PathValue("name"))
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, who, "group_delete.html", ui.View{
		Title: "Delete " + g.Name, Nav: groupsNav, Crumbs: groupCrumbs(ui.NavItem{Name: g.Name, Path: "/groups/" + g.Name}), Data: g,
	})
}

func (s *Service) deleteGroupForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	name := r.PathValue("name")
	if err := s.DeleteGroup(r.Context(), who, name); err != nil {
		return err
	}
	ui.Flash(w, r, "Group "+name+" is deleted.")
	http.Redirect(w, r, groupsNav, http.StatusSeeOther)
	return nil
}

// attentionData is a list of devices with the reason.
type attentionData struct {
	List  []Attention
	Cut   bool
	Empty string
}

func (s *Service) diskPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	list, err := s.NearlyFull(r.Context(), who.Scope)
	return s.attentionPage(w, r, who, err, "Disks nearly full", attentionData{list, len(list) >= maxAttention, "No disk is nearly full."})
}

func (s *Service) clockPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	list, err := s.InTrouble(r.Context(), who.Scope, TroubleClock)
	return s.attentionPage(w, r, who, err, "Wrong clocks", attentionData{list, len(list) >= maxAttention, "No device has had a wrong clock in the last hour."})
}

func (s *Service) attentionPage(w http.ResponseWriter, r *http.Request, who httpapi.Principal, err error, title string, data attentionData) error {
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, who, "attention.html", ui.View{
		Title: title, Nav: "/devices", Crumbs: []ui.NavItem{{Name: "Devices", Path: "/devices"}}, Live: "monitoring", Data: data,
	})
}

// Panel is the room's part of the device page: presence, what is measured now, and a day of charts.
func (s *Service) Panel() ui.Panel {
	return ui.Panel{ID: "metrics", Title: "Metrics", Order: 100, Render: s.renderPanel}
}

type panelData struct {
	Presence Presence
	Links    Links
	Seen     bool
	Interval time.Duration
	Troubles []Trouble
	Charts   []template.HTML
	Node     string    // that the charts come from, when others may know more
	Span     string    // how long the charts reach back
	Other    []Current // what has no chart
	Command  string
	Expected bool // the device is in a stage in which it is in contact
}

func (s *Service) renderPanel(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	known, err := s.Of(ctx, []int64{d.Num})
	if err != nil {
		return "", err
	}
	p, seen := known[d.Num]
	if !seen && !d.Stage.InService() {
		return "", nil // nothing to say before it has ever spoken
	}
	data := panelData{Presence: p, Seen: seen, Interval: s.Interval(ctx, d), Expected: d.Stage.InService()}
	if data.Links, err = s.LinksOf(ctx, d.Num); err != nil {
		return "", err
	}
	if data.Troubles, err = s.Troubles(ctx, d.Num); err != nil {
		return "", err
	}
	charts, span, err := s.recentCharts(ctx, d)
	if err != nil {
		return "", err
	}
	data.Span = ui.FormatDuration(span)
	if span == dayHours*time.Hour {
		data.Span = "24 h"
	}
	data.Charts, data.Node = drawAll("m", charts), s.partial()
	current, err := s.CurrentValues(ctx, d)
	if err != nil {
		return "", err
	}
	data.Other = current
	if s.pages == nil {
		return "", fault.New(fault.Unavailable, "the room's pages are not joined")
	}
	return s.pages.Fragment("panel.html", data)
}

// Text writes a current value for people, by the unit in its name.
func (c Current) Text() string {
	for suffix, unit := range map[string]chart.Unit{
		"_ratio": chart.Ratio, "_bytes": chart.Bytes, "_bytes_total": chart.Bytes, "_celsius": chart.Celsius, "_watts": chart.Watts, "_seconds": chart.Seconds,
	} {
		if strings.HasSuffix(c.Name, suffix) {
			return unit.Format(c.Value)
		}
	}
	return chart.Number.Format(c.Value)
}

// Title is the name without its unit, in words.
func (c Current) Title() string {
	name := strings.TrimSuffix(c.Name, "_total")
	for _, suffix := range []string{"_ratio", "_bytes", "_celsius", "_watts", "_seconds"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.ReplaceAll(strings.TrimPrefix(name, "system_"), "_", " ")
}
