package remote

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
	"steward/internal/ui/chart"
)

//go:embed all:page
var pageFiles embed.FS

const navPath = "/commands"

var crumbs = []ui.NavItem{{Name: "Commands", Path: navPath}}

// page holds what the handlers share.
type page struct {
	s *Service
	*ui.Pages
}

// Pages adds the room's pages. It is called before Panel's Render is.
func (s *Service) Pages(c *ui.Console) {
	p := page{s, c.Parse(pageFiles)}
	s.pages = p.Pages
	c.Handle("GET /commands", httpapi.Viewer, p.list)
	c.Handle("GET /commands/new", httpapi.Operator, p.showSelection)
	c.Handle("POST /commands/new", httpapi.Operator, p.giveSelection)
	c.Handle("GET /commands/{id}", httpapi.Viewer, p.command)
	c.Handle("POST /commands/{id}/cancel", httpapi.Operator, p.cancel)
	c.Handle("GET /commands/batch/{id}", httpapi.Viewer, p.batch)
	c.Handle("POST /commands/batch/{id}/cancel", httpapi.Operator, p.cancelBatch)
	c.Handle("GET /devices/{id}/commands/new", httpapi.Operator, p.showOne)
	c.Handle("POST /devices/{id}/commands", httpapi.Operator, p.giveOne)
}

type listData struct {
	Items  []Command
	Next   string
	States []string
}

func (p page) list(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	q := r.URL.Query()
	f := Filter{State: q.Get("state"), Name: strings.TrimSpace(q.Get("name")), Device: strings.TrimSpace(q.Get("device")), Batch: q.Get("batch"), Limit: 50, Cursor: q.Get("cursor")}
	items, next, err := p.s.List(r.Context(), who, f)
	if err != nil {
		return err
	}
	return p.Render(w, r, who, "commands.html", ui.View{Title: "Commands", Nav: navPath, Live: "remote", Data: listData{items, next, States()}})
}

// commandData is one command with its device's name.
type commandData struct {
	Command
	DeviceName string
	Operator   bool
}

func (p page) command(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	c, err := p.s.Get(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	d, err := p.s.cfg.Devices.ByNum(r.Context(), p.s.cfg.DB, c.num)
	if err != nil {
		return err
	}
	return p.Render(w, r, who, "command.html", ui.View{
		Title: c.Name + " for " + d.DisplayName(), Nav: navPath, Crumbs: crumbs, Live: "remote", Data: commandData{c, d.DisplayName(), who.Role >= httpapi.Operator},
	})
}

func (p page) cancel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	c, err := p.s.Cancel(r.Context(), who, r.PathValue("id"))
	if errors.Is(err, fault.Conflict) {
		ui.Flash(w, r, "The command was over already.")
	} else if err != nil {
		return err
	} else {
		ui.Flash(w, r, "The command "+c.Name+" is cancelled.")
	}
	http.Redirect(w, r, navPath+"/"+r.PathValue("id"), http.StatusSeeOther)
	return nil
}

type batchData struct {
	Batch
	Bar  template.HTML
	Open int64
}

func (p page) batch(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	b, err := p.s.Batch(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	data := batchData{Batch: b, Open: b.States[Waiting.String()] + b.States[Delivered.String()]}
	bar := chart.StackBar{Title: "Devices by state"}
	for i, class := range []string{"idle", "idle", "good", "bad", "warn", "warn", "idle"} {
		name := State(i).String()
		if n := b.States[name]; n > 0 {
			href := navPath + "?" + url.Values{"batch": {b.ID}, "state": {name}}.Encode()
			bar.Parts = append(bar.Parts, chart.Part{Name: name, Value: n, Class: class, Href: href})
		}
	}
	data.Bar = bar.HTML()
	return p.Render(w, r, who, "batch.html", ui.View{Title: b.Name + " for a selection", Nav: navPath, Crumbs: crumbs, Live: "remote", Data: data})
}

func (p page) cancelBatch(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	n, err := p.s.CancelBatch(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	ui.Flash(w, r, ui.Plural(n, "command is", "commands are")+" cancelled.")
	http.Redirect(w, r, "/commands/batch/"+r.PathValue("id"), http.StatusSeeOther)
	return nil
}

// form is what was typed for a command.
type form struct {
	Name, Params, Deadline   string
	Selector, Group, Confirm string
	Errors                   ui.FormErrors
	Device                   *device.Device // of the form for one device
	Preview                  *Preview       // of the form for a selection, once it could be made
	Deadlines                []ui.Option
}

// deadlines that the form offers, in seconds.
var deadlines = []ui.Option{
	{Value: "60", Name: "1 minute"}, {Value: "600", Name: "10 minutes"}, {Value: "3600", Name: "1 hour"},
	{Value: "86400", Name: "1 day"}, {Value: "604800", Name: "7 days"},
}

func readForm(r *http.Request) form {
	f := form{Deadlines: deadlines}
	for name, to := range map[string]*string{
		"name": &f.Name, "params": &f.Params, "deadline": &f.Deadline, "selector": &f.Selector, "group": &f.Group, "confirm": &f.Confirm,
	} {
		*to = strings.TrimSpace(r.FormValue(name))
	}
	if f.Deadline == "" {
		f.Deadline = strconv.Itoa(int(DefaultDeadline.Seconds()))
	}
	return f
}

func (f form) wish() (Wish, error) {
	seconds, err := strconv.Atoi(f.Deadline)
	if err != nil || seconds < 1 || seconds > int(MaxDeadline.Seconds()) {
		return Wish{}, fault.Bad("body.deadline", "want a number of seconds, at most %d", int(MaxDeadline.Seconds()))
	}
	return Wish{Name: f.Name, Params: json.RawMessage(f.Params), Deadline: time.Duration(seconds) * time.Second}, nil
}

func (p page) showOne(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderOne(w, r, who, readForm(r))
}

func (p page) renderOne(w http.ResponseWriter, r *http.Request, who httpapi.Principal, f form) error {
	d, err := p.s.find(r.Context(), p.s.cfg.DB, who.Scope, r.PathValue("id"))
	if err != nil {
		return err
	}
	f.Device = &d
	v := ui.View{Title: "Command for " + d.DisplayName(), Nav: "/devices", Data: f,
		Crumbs: []ui.NavItem{{Name: "Devices", Path: "/devices"}, {Name: d.DisplayName(), Path: "/devices/" + string(d.ID)}}}
	if f.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "command_new.html", v)
}

func (p page) giveOne(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := readForm(r)
	wish, err := f.wish()
	if err == nil {
		_, err = p.s.Give(r.Context(), who, r.PathValue("id"), wish)
	}
	if f.Errors = formErrors(err); f.Errors != nil {
		return p.renderOne(w, r, who, f)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, fmt.Sprintf("The command %s is given.", wish.Name))
	http.Redirect(w, r, "/devices/"+r.PathValue("id")+"#remote", http.StatusSeeOther)
	return nil
}

// formErrors are those of ui, and too many commands, which here is a message as well.
func formErrors(err error) ui.FormErrors {
	if errors.Is(err, fault.TooMany) {
		return ui.FormErrors{"": err.Error()}
	}
	fe := ui.FormErrorsFrom(err)
	if text, has := fe["deadline_seconds"]; has {
		fe["deadline"] = text
		delete(fe, "deadline_seconds")
	}
	return fe
}

func (p page) showSelection(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderSelection(w, r, who, readForm(r))
}

func (p page) renderSelection(w http.ResponseWriter, r *http.Request, who httpapi.Principal, f form) error {
	if f.Name != "" {
		wish, err := f.wish()
		var preview Preview
		if err == nil {
			preview, err = p.s.PreviewGive(r.Context(), who, Selection{f.Selector, f.Group}, wish)
		}
		fe := formErrors(err)
		switch {
		case errors.Is(err, fault.NotFound): // the group
			f.Errors = ui.FormErrors{"group": err.Error()}
		case fe != nil:
			f.Errors = fe
		case err != nil:
			return err
		default:
			f.Preview = &preview
		}
	}
	v := ui.View{Title: "Command for a selection", Nav: navPath, Crumbs: crumbs, Data: f}
	if f.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "selection.html", v)
}

func (p page) giveSelection(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := readForm(r)
	wish, err := f.wish()
	var b Batch
	if err == nil {
		confirm, perr := strconv.ParseInt(f.Confirm, 10, 64)
		if perr != nil {
			err = fault.Bad("body.confirm", "type the number of devices to confirm")
		} else {
			b, err = p.s.GiveMany(r.Context(), who, Selection{f.Selector, f.Group}, wish, confirm)
		}
	}
	if f.Errors = formErrors(err); f.Errors != nil {
		return p.renderSelection(w, r, who, f)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "The command is given to "+ui.Plural(b.Devices, "device", "devices")+".")
	http.Redirect(w, r, "/commands/batch/"+b.ID, http.StatusSeeOther)
	return nil
}

// panelCommands is how many commands a device's page shows.
const panelCommands = 10

// panelData is the dot of panel.html.
type panelData struct {
	Device   device.Device
	Commands []Command
	More     bool
	Quick    []string // commands with a button, that the device may get now
	Operator bool
	Other    bool   // any command may be given
	Why      string // why none may be given
}

// Panel shows on a device's page what it was asked to do and what it answered.
func (s *Service) Panel() ui.Panel {
	return ui.Panel{ID: "remote", Title: "Commands", Order: 300, Render: s.renderPanel}
}

func (s *Service) renderPanel(ctx context.Context, who httpapi.Principal, d device.Device) (template.HTML, error) {
	if s.pages == nil {
		return "", errors.New("remote: Pages must be called before a panel is shown")
	}
	list, err := recent(ctx, s.cfg.DB, d.Num, panelCommands+1)
	if err != nil {
		return "", err
	}
	data := panelData{Device: d, Commands: list, Operator: who.Role >= httpapi.Operator, Why: mayGet(d.Stage, "any")}
	if len(list) == 0 && !d.Stage.InService() {
		return "", nil
	}
	if len(list) > panelCommands {
		data.Commands, data.More = list[:panelCommands], true
	}
	for _, name := range harmless {
		if mayGet(d.Stage, name) == "" {
			data.Quick = append(data.Quick, name)
		}
	}
	data.Other = data.Why == ""
	return s.pages.Fragment("panel.html", data)
}
