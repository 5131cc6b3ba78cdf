package twin

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
	"steward/internal/wire"
)

//go:embed page/*.html
var pageFiles embed.FS

// pages draws what a device says about itself.
type pages struct {
	s     *Service
	pages *ui.Pages
}

// Pages adds the pages of documents and packages to the console and returns the parts of a device's
// page: state, inventory, packages and services. Config.Devices is needed for them.
func (s *Service) Pages(c *ui.Console) []ui.Panel {
	p := &pages{s: s, pages: c.Parse(pageFiles)}
	c.Handle("GET /devices/{id}/packages", httpapi.Viewer, p.showPackages)
	c.Handle("GET /devices/{id}/documents/{direction}/{section}", httpapi.Viewer, p.showDocument)
	return []ui.Panel{
		{ID: "state", Title: "State", Order: 500, Render: p.statePanel},
		{ID: "inventory", Title: "Inventory", Order: 400, Render: p.inventoryPanel},
		{ID: "packages", Title: "Packages", Order: 410, Render: p.packagesPanel},
		{ID: "services", Title: "Services", Order: 420, Render: p.servicesPanel},
	}
}

// stateView is the panel that puts desired beside reported.
type stateView struct {
	State
	Device   device.Device
	Sections []sectionRow
	Agent    *wire.AgentReported
	Waiting  bool // the device has not accepted the last epoch yet
	Silent   bool // the device has never reported
}

type sectionRow struct {
	Name              wire.Section
	Desired, Reported *Side
	Equal             bool
}

func (p *pages) statePanel(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	st, err := p.s.State(ctx, d.Num)
	if err != nil {
		return "", err
	}
	v := stateView{State: st, Device: d, Waiting: st.Accepted < st.Epoch, Silent: st.Reported.IsZero() && len(st.Known) == 0}
	if v.Silent && st.Epoch == 0 {
		return "", nil // nothing was ever asked of it, and it has never said anything
	}
	names := map[wire.Section]bool{}
	for s := range st.Desired {
		names[s] = true
	}
	for s := range st.Known {
		names[s] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		row := sectionRow{Name: name}
		if side, ok := st.Desired[name]; ok {
			row.Desired = &side
		}
		if side, ok := st.Known[name]; ok {
			row.Reported = &side
		}
		row.Equal = row.Desired != nil && row.Reported != nil && row.Desired.Hash == row.Reported.Hash
		v.Sections = append(v.Sections, row)
	}
	var agent wire.AgentReported
	if _, ok, err := p.document(ctx, d, wire.SectionAgent, &agent); err != nil {
		return "", err
	} else if ok {
		v.Agent = &agent
	}
	return p.pages.Fragment("state.html", v)
}

// document reads a reported section into v. One that was not reported, or that has the wrong form, is
// not ok: devices are not trusted to keep to the contract.
func (p *pages) document(ctx context.Context, d device.Device, section wire.Section, v any) (at time.Time, ok bool, err error) {
	body, at, err := p.s.Reported(ctx, p.s.db, d.Num, section)
	if errors.Is(err, fault.NotFound) {
		return at, false, nil
	}
	if err != nil {
		return at, false, err
	}
	return at, json.Unmarshal(body, v) == nil, nil
}

func (p *pages) inventoryPanel(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	var v struct {
		wire.Inventory
		At time.Time
	}
	at, ok, err := p.document(ctx, d, wire.SectionInventory, &v.Inventory)
	if err != nil || !ok {
		return "", err
	}
	v.At = at
	return p.pages.Fragment("inventory.html", v)
}

func (p *pages) servicesPanel(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	var doc wire.Services
	at, ok, err := p.document(ctx, d, wire.SectionServices, &doc)
	if err != nil || !ok {
		return "", err
	}
	slices.SortStableFunc(doc.Services, func(a, b wire.Service) int {
		return cmp.Or(cmp.Compare(stateOrder(a.State), stateOrder(b.State)), strings.Compare(a.Name, b.Name))
	})
	v := struct {
		Manager  string
		Services []wire.Service
		At       time.Time
		Counts   map[string]int
	}{doc.Manager, doc.Services, at, map[string]int{}}
	for _, one := range doc.Services {
		v.Counts[one.State]++
	}
	return p.pages.Fragment("services.html", v)
}

// stateOrder puts what needs somebody first.
func stateOrder(state string) int {
	return slices.Index([]string{"failed", "running", "stopped"}, state)
}

// managerCount is how many packages one package manager has installed.
type managerCount struct {
	Manager string
	Count   int
}

func (p *pages) packagesPanel(ctx context.Context, _ httpapi.Principal, d device.Device) (template.HTML, error) {
	var doc wire.Packages
	at, ok, err := p.document(ctx, d, wire.SectionPackages, &doc)
	if err != nil || !ok {
		return "", err
	}
	counts := map[string]int{}
	for _, one := range doc.Packages {
		counts[one.Manager]++
	}
	v := struct {
		Device   device.Device
		At       time.Time
		Total    int
		Managers []managerCount
	}{Device: d, At: at, Total: len(doc.Packages)}
	for _, m := range slices.Sorted(maps.Keys(counts)) {
		v.Managers = append(v.Managers, managerCount{m, counts[m]})
	}
	return p.pages.Fragment("packages_panel.html", v)
}

// packagesPerPage is how many packages a page shows.
const packagesPerPage = 100

func (p *pages) showPackages(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	d, err := p.s.inScope(r.Context(), who.Scope, r.PathValue("id"))
	if err != nil {
		return err
	}
	var doc wire.Packages
	at, ok, err := p.document(r.Context(), d, wire.SectionPackages, &doc)
	if err != nil {
		return err
	}
	search := strings.ToLower(strings.TrimSpace(r.FormValue("q")))
	found := slices.DeleteFunc(doc.Packages, func(one wire.Package) bool {
		return !strings.Contains(strings.ToLower(one.Name), search) && !strings.Contains(strings.ToLower(one.Source), search)
	})
	from, _ := strconv.Atoi(r.FormValue("cursor")) // nonsense begins at the first page
	from = min(max(from, 0), len(found))
	to := min(from+packagesPerPage, len(found))
	next := ""
	if to < len(found) {
		next = strconv.Itoa(to)
	}
	return p.pages.Render(w, r, who, "packages.html", ui.View{
		Title: "Packages", Nav: "/devices", Crumbs: crumbs(d), Live: "twin",
		Data: struct {
			Device   device.Device
			At       time.Time
			Reported bool
			Found    int
			From     int
			Packages []wire.Package
			Next     string
		}{d, at, ok, len(found), from, found[from:to], next},
	})
}

func (p *pages) showDocument(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	d, err := p.s.inScope(r.Context(), who.Scope, r.PathValue("id"))
	if err != nil {
		return err
	}
	read := map[string]readDocument{"desired": p.s.Desired, "reported": p.s.Reported}[r.PathValue("direction")]
	if read == nil {
		return fault.New(fault.NotFound, "There is no page at %s.", r.URL.Path)
	}
	body, since, err := read(r.Context(), p.s.db, d.Num, wire.Section(r.PathValue("section")))
	if err != nil {
		return err
	}
	return p.pages.Render(w, r, who, "document.html", ui.View{
		Title: fmt.Sprintf("%s, %s", r.PathValue("section"), r.PathValue("direction")), Nav: "/devices", Crumbs: crumbs(d),
		Data: struct {
			Body      []byte
			Since     time.Time
			Hash      wire.Hash
			Direction string
			Section   string
			Device    device.Device
		}{body, since, wire.HashOf(body), r.PathValue("direction"), r.PathValue("section"), d},
	})
}

func crumbs(d device.Device) []ui.NavItem {
	return []ui.NavItem{{Name: "Devices", Path: "/devices"}, {Name: d.DisplayName(), Path: "/devices/" + string(d.ID)}}
}
