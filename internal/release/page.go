package release

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/release/signing"
	"steward/internal/ui"
	"steward/internal/ui/chart"
	"steward/internal/wire"
)

const navPath = "/releases"

var crumbs = []ui.NavItem{{Name: "Releases", Path: navPath}}

// maxFormBytes bounds a release that comes from a browser; larger ones go by the resumable API.
const maxFormBytes = 4 << 30

// page holds what the handlers share.
type page struct {
	s     *Service
	pages *ui.Pages
}

// Pages adds the room's pages to the console.
func (s *Service) Pages(c *ui.Console) {
	p := page{s: s, pages: c.Parse(pageFiles)}
	c.Handle("GET /releases", httpapi.Viewer, p.list)
	c.Handle("GET /releases/keys", httpapi.Viewer, p.keys)
	c.Handle("POST /releases/keys/managed", httpapi.Admin, p.initManaged)
	c.Handle("GET /releases/new", httpapi.ReleaseManager, p.showNew)
	c.HandleUpload("POST /releases", httpapi.ReleaseManager, maxFormBytes, p.create)
	c.Handle("GET /releases/{name}/{version}", httpapi.Viewer, p.release)
	c.Handle("POST /releases/{name}/{version}/remove", httpapi.ReleaseManager, p.remove)
}

type listData struct {
	Repo  Repository
	Items []Release
	Next  string
}

func (p page) list(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	repo, err := p.s.Repository(r.Context(), who.Scope.Tenant)
	if err != nil {
		return err
	}
	items, next, err := p.s.List(r.Context(), Filter{Tenant: who.Scope.Tenant, Name: r.FormValue("name"), Cursor: r.FormValue("cursor")})
	if err != nil {
		return err
	}
	return p.pages.Render(w, r, who, "releases.html", ui.View{Title: "Releases", Nav: navPath, Live: "release", Data: listData{repo, items, next}})
}

type releaseData struct {
	Repo    Repository
	Release Release
	Bar     template.HTML
	Errors  ui.FormErrors
}

func (p page) release(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.showRelease(w, r, who, nil)
}

func (p page) showRelease(w http.ResponseWriter, r *http.Request, who httpapi.Principal, errs ui.FormErrors) error {
	ref := Ref{r.PathValue("name"), r.PathValue("version")}
	data := releaseData{Errors: errs}
	var err error
	if data.Release, err = p.s.Release(r.Context(), who.Scope.Tenant, ref.Name, ref.Version); err != nil {
		return err
	}
	if data.Repo, err = p.s.Repository(r.Context(), who.Scope.Tenant); err != nil {
		return err
	}
	states, err := p.s.States(r.Context(), who.Scope, ref)
	if err != nil {
		return err
	}
	if len(states) > 0 {
		data.Bar = statesBar(ref, states)
	}
	v := ui.View{Title: ref.Name + " " + ref.Version, Nav: navPath, Crumbs: crumbs, Live: "release update", Data: data}
	if len(errs) > 0 {
		v.Status = http.StatusConflict
	}
	return p.pages.Render(w, r, who, "release.html", v)
}

// barOrder is the order and colour of the states of devices, as the room update names them.
var barOrder = []struct{ state, class string }{
	{"committed", "good"}, {"healthy", "info"}, {"installed", "info"}, {"downloaded", "info"}, {"downloading", "info"},
	{"pending", "idle"}, {"rolled_back", "bad"}, {"failed", "bad"},
}

func statesBar(ref Ref, states map[string]int64) template.HTML {
	bar := chart.StackBar{Title: "Devices by how far they are with " + ref.Name + " " + ref.Version}
	for _, s := range barOrder {
		if n := states[s.state]; n > 0 {
			q := url.Values{"release": {ref.Name}, "version": {ref.Version}, "state": {s.state}}
			bar.Parts = append(bar.Parts, chart.Part{Name: strings.ReplaceAll(s.state, "_", " "), Value: n, Class: s.class, Href: "/updates/devices?" + q.Encode()})
		}
	}
	return bar.HTML()
}

func (p page) remove(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := wholeTenant(who); err != nil {
		return err
	}
	err := p.s.RemoveManaged(r.Context(), who.Actor, who.Scope.Tenant, Ref{r.PathValue("name"), r.PathValue("version")})
	if errs := ui.FormErrorsFrom(err); errs != nil {
		return p.showRelease(w, r, who, errs)
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "The release was removed.")
	http.Redirect(w, r, navPath, http.StatusSeeOther)
	return nil
}

// roleRow is one role on the keys page.
type roleRow struct {
	RoleStatus
	Name, Text, Level, Word string
}

type keysData struct {
	Repo        Repository
	Roles       []roleRow
	ManagedText string
	Errors      ui.FormErrors
}

func (p page) keys(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.showKeys(w, r, who, nil)
}

func (p page) showKeys(w http.ResponseWriter, r *http.Request, who httpapi.Principal, errs ui.FormErrors) error {
	repo, err := p.s.Repository(r.Context(), who.Scope.Tenant)
	if err != nil {
		return err
	}
	now := p.s.now()
	data := keysData{Repo: repo, ManagedText: ManagedWarning, Errors: errs, Roles: []roleRow{
		roleOf("root", "names the keys of all roles; devices walk its versions from the one they pinned", repo.Root, now, offlineNotice),
		roleOf("targets", "lists every manifest and archive with length and hash", repo.Targets, now, offlineNotice),
		roleOf("snapshot", "names the version of targets, so that old and new can't be mixed", repo.Snapshot, now, timestampNotice),
		roleOf("timestamp", "lives a day, so that a device notices being held back", repo.Timestamp, now, timestampNotice),
	}}
	return p.pages.Render(w, r, who, "keys.html", ui.View{Title: "Release keys", Nav: navPath, Crumbs: crumbs, Live: "release", Data: data})
}

func roleOf(name, text string, s RoleStatus, now time.Time, soon time.Duration) roleRow {
	row := roleRow{RoleStatus: s, Name: name, Text: text, Level: "good", Word: "valid"}
	switch {
	case s.Expires.Before(now):
		row.Level, row.Word = "bad", "expired"
	case s.Expires.Before(now.Add(soon)):
		row.Level, row.Word = "warn", "expires soon"
	}
	return row
}

func (p page) initManaged(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := wholeTenant(who); err != nil {
		return err
	}
	_, err := p.s.InitManaged(r.Context(), who.Actor, who.Scope.Tenant)
	if errs := ui.FormErrorsFrom(err); errs != nil {
		return p.showKeys(w, r, who, errs)
	}
	if err != nil {
		return err
	}
	http.Redirect(w, r, "/releases/keys", http.StatusSeeOther)
	return nil
}

type releaseForm struct {
	Name, Version, Notes, Component, Architectures string
	Pre, Post, Health, HealthSeconds               string
}

type newData struct {
	Repo   Repository
	Form   releaseForm
	Errors ui.FormErrors
}

func (p page) showNew(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.showForm(w, r, who, newData{Form: releaseForm{HealthSeconds: "60"}})
}

func (p page) showForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data newData) error {
	repo, err := p.s.Repository(r.Context(), who.Scope.Tenant)
	if err != nil {
		return err
	}
	data.Repo = repo
	v := ui.View{Title: "New release", Nav: navPath, Crumbs: crumbs, Data: data}
	if len(data.Errors) > 0 {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.pages.Render(w, r, who, "new.html", v)
}

func (p page) create(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := wholeTenant(who); err != nil {
		return err
	}
	form, artifact, err := p.readForm(r, who)
	if err == nil {
		var m wire.ReleaseManifest
		if m, err = form.manifest(); err == nil {
			_, err = p.s.PushManaged(r.Context(), who.Actor, who.Scope.Tenant, m, []signing.Artifact{signing.Artifact(artifact)})
		}
	}
	if errs := ui.FormErrorsFrom(err); errs != nil {
		return p.showForm(w, r, who, newData{Form: form, Errors: errs})
	}
	if err != nil {
		return err
	}
	ui.Flash(w, r, "The release was signed and published.")
	http.Redirect(w, r, "/releases/"+url.PathEscape(form.Name)+"/"+url.PathEscape(form.Version), http.StatusSeeOther)
	return nil
}

// readForm streams the archive into the store; the form has it behind the other fields.
func (p page) readForm(r *http.Request, who httpapi.Principal) (form releaseForm, artifact Artifact, err error) {
	parts, err := r.MultipartReader()
	if err != nil {
		return form, artifact, fault.Bad("artifact", "choose an archive to upload")
	}
	fields := map[string]*string{
		"name": &form.Name, "version": &form.Version, "notes": &form.Notes, "component": &form.Component, "architectures": &form.Architectures,
		"pre": &form.Pre, "post": &form.Post, "health": &form.Health, "health_seconds": &form.HealthSeconds,
	}
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return form, artifact, fmt.Errorf("read the form: %w", err)
		}
		if err := p.readPart(r.Context(), who, part, fields[part.FormName()], &artifact); err != nil {
			return form, artifact, err
		}
	}
	if artifact.SizeBytes == 0 {
		return form, artifact, fault.Bad("artifact", "choose an archive to upload")
	}
	return form, artifact, nil
}

func (p page) readPart(ctx context.Context, who httpapi.Principal, part *multipart.Part, field *string, artifact *Artifact) (err error) {
	if field != nil {
		text, err := io.ReadAll(io.LimitReader(part, 64<<10))
		*field = strings.TrimSpace(string(text))
		return err
	}
	if part.FormName() == "artifact" && part.FileName() != "" {
		*artifact, err = p.s.StoreArtifact(ctx, who.Actor, who.Scope.Tenant, part)
	}
	return err
}

// manifest builds the manifest of the form's one component.
func (f releaseForm) manifest() (wire.ReleaseManifest, error) {
	if f.Component == "" {
		f.Component = f.Name
	}
	c := wire.Component{Name: f.Component, Version: f.Version, Type: wire.ComponentFiles, Architectures: strings.Fields(strings.ReplaceAll(f.Architectures, ",", " "))}
	invalid := &fault.Invalid{}
	for _, list := range []struct {
		field, text string
		to          *[]wire.Command
	}{{"pre", f.Pre, &c.Commands.Pre}, {"post", f.Post, &c.Commands.Post}, {"health", f.Health, &c.Commands.Health}} {
		for line := range strings.Lines(list.text) {
			argv, err := splitWords(line)
			if err != nil {
				invalid.Add(list.field, "%v", err)
			} else if len(argv) > 0 {
				*list.to = append(*list.to, wire.Command{Argv: argv})
			}
		}
	}
	if f.HealthSeconds != "" {
		n, err := strconv.Atoi(f.HealthSeconds)
		if err != nil {
			invalid.Add("health_seconds", "%q is no number", f.HealthSeconds)
		}
		c.Commands.HealthSeconds = n
	}
	return wire.ReleaseManifest{Name: f.Name, Version: f.Version, Notes: f.Notes, Components: []wire.Component{c}}, invalid.OrNil()
}

// splitWords splits a line at blanks; double quotes keep blanks together, a backslash keeps the next
// character.
func splitWords(line string) (words []string, err error) {
	var word strings.Builder
	started, quoted, escaped := false, false, false
	for _, r := range strings.TrimRight(line, "\r\n") {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped, started = true, true
		case r == '"':
			quoted, started = !quoted, true
		case (r == ' ' || r == '\t') && !quoted:
			if started {
				words = append(words, word.String())
				word.Reset()
				started = false
			}
		default:
			word.WriteRune(r)
			started = true
		}
	}
	if quoted || escaped {
		return nil, fmt.Errorf("%q ends inside of quotes or behind a backslash", strings.TrimSpace(line))
	}
	if started {
		words = append(words, word.String())
	}
	return words, nil
}

// Notices tells of metadata that runs out and of keys that lie on the server.
func (s *Service) Notices(ctx context.Context, scope device.Scope) ([]ui.Notice, error) {
	repo, err := repository(ctx, s.cfg.DB, scope.Tenant)
	if errors.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []ui.Notice
	if repo.Managed && !s.cfg.Demo {
		out = append(out, ui.Notice{Level: ui.Bad, Title: "The release keys lie on this server", Detail: ManagedWarning, Href: "/releases/keys"})
	}
	now := s.now()
	for _, role := range []struct {
		name, do string
		status   RoleStatus
		soon     time.Duration
	}{
		{"root", "Sign a successor: steward release rotate --keys DIR", repo.Root, offlineNotice},
		{"targets", "Publishing a release signs them anew", repo.Targets, offlineNotice},
		{"snapshot", "The server should sign it by itself: look at its log", repo.Snapshot, timestampNotice},
		{"timestamp", "The server should sign it by itself: look at its log", repo.Timestamp, timestampNotice},
	} {
		if role.status.Version == 0 || role.status.Expires.After(now.Add(role.soon)) {
			continue
		}
		n := ui.Notice{Level: ui.Warn, Title: "The release " + role.name + " expires soon", Href: "/releases/keys",
			Detail: "After " + role.status.Expires.Format(time.RFC3339) + " devices install nothing any more. " + role.do + "."}
		if role.status.Expires.Before(now) {
			n.Level, n.Title = ui.Bad, "The release "+role.name+" has expired"
		}
		out = append(out, n)
	}
	return out, nil
}
