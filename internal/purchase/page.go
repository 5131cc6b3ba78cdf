package purchase

import (
	"context"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"strconv"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

//go:embed all:page
var pageFiles embed.FS

// pages are the room's part of the console.
type pages struct {
	s *Service
	*ui.Pages
}

// Pages adds the room's pages. It is called before Panel's Render is.
func (s *Service) Pages(c *ui.Console) {
	p := pages{s, c.Parse(pageFiles)}
	s.panel = p.Pages
	c.Handle("GET /orders", httpapi.Viewer, p.orders)
	c.Handle("GET /orders/new", httpapi.Operator, p.newOrder)
	c.Handle("POST /orders", httpapi.Operator, p.createOrder)
	c.Handle("GET /orders/{id}", httpapi.Viewer, p.order)
	c.Handle("GET /orders/{id}/edit", httpapi.Operator, p.editOrder)
	c.Handle("POST /orders/{id}/edit", httpapi.Operator, p.changeOrder)
	c.Handle("POST /orders/{id}/place", httpapi.Operator, p.place)
	c.Handle("POST /orders/{id}/close", httpapi.Operator, p.close)
	c.Handle("GET /orders/{id}/cancel", httpapi.Operator, p.askCancel)
	c.Handle("POST /orders/{id}/cancel", httpapi.Operator, p.cancel)
	// A file arrives as a part of a form, or again in base64 from the preview.
	c.HandleUpload("POST /orders/{id}/deliveries", httpapi.Operator, 2*MaxFileBytes, p.deliver)
	c.Handle("POST /deliveries/{id}/decisions", httpapi.Operator, p.decide)
	c.Handle("GET /models", httpapi.Viewer, p.models)
	c.Handle("GET /models/new", httpapi.Operator, p.editModel)
	c.Handle("GET /models/{id}", httpapi.Operator, p.editModel)
	c.Handle("POST /models", httpapi.Operator, p.saveModel)
	c.Handle("POST /models/{id}/delete", httpapi.Operator, p.deleteModel)
	c.Handle("GET /suppliers", httpapi.Viewer, p.suppliers)
	c.Handle("GET /suppliers/new", httpapi.Operator, p.editSupplier)
	c.Handle("GET /suppliers/{id}", httpapi.Operator, p.editSupplier)
	c.Handle("POST /suppliers", httpapi.Operator, p.saveSupplier)
	c.Handle("POST /suppliers/{id}/delete", httpapi.Operator, p.deleteSupplier)
	c.Handle("GET /stock", httpapi.Viewer, p.stock)
}

var ordersCrumb = []ui.NavItem{{Name: "Orders", Path: "/orders"}}

func orderCrumbs(o Order) []ui.NavItem {
	return append(ordersCrumb[:1:1], ui.NavItem{Name: o.Number, Path: "/orders/" + o.ID})
}

// done goes on to a page with a message after a form.
func done(w http.ResponseWriter, r *http.Request, path, message string) error {
	ui.Flash(w, r, message)
	http.Redirect(w, r, path, http.StatusSeeOther)
	return nil
}

// refused goes back to a page and says there why nothing was done; other errors are returned.
func refused(w http.ResponseWriter, r *http.Request, path string, err error) error {
	fe := ui.FormErrorsFrom(err)
	if fe == nil {
		return err
	}
	var texts []string
	for _, text := range fe {
		texts = append(texts, text)
	}
	return done(w, r, path, "Nothing was done: "+strings.Join(texts, "; "))
}

// formErrors is ui.FormErrorsFrom for forms in which people choose the ID, which the API has in its path.
func formErrors(err error) ui.FormErrors {
	fe := ui.FormErrorsFrom(err)
	if text, ok := fe["path.id"]; ok {
		delete(fe, "path.id")
		fe["id"] = text
	}
	return fe
}

// nameList maps IDs to what people call things.
type nameList map[string]string

// Of returns the name, or the ID of what was deleted.
func (l nameList) Of(id string) string {
	if name := l[id]; name != "" {
		return name
	}
	return id
}

func (p pages) supplierNames(ctx context.Context, who httpapi.Principal) (nameList, []ui.Option, error) {
	list, err := p.s.Suppliers(ctx, who)
	names, options := nameList{}, []ui.Option{{Name: "Choose a supplier"}}
	for _, v := range list {
		names[v.ID] = v.Name
		options = append(options, ui.Option{Value: v.ID, Name: v.Name})
	}
	return names, options, err
}

func (p pages) modelNames(ctx context.Context, who httpapi.Principal) (nameList, []ui.Option, error) {
	list, err := p.s.Models(ctx, who)
	names, options := nameList{}, []ui.Option{{Name: "–"}}
	for _, v := range list {
		names[v.ID] = v.Maker + " " + v.Name
		options = append(options, ui.Option{Value: v.ID, Name: v.Maker + " " + v.Name + " (" + v.ID + ")"})
	}
	return names, options, err
}

// ModelNames returns what people call hardware models, for other rooms' lists.
func (s *Service) ModelNames(ctx context.Context, tenant device.TenantID, _ []string) (map[string]string, error) {
	list, err := readModels(ctx, s.cfg.DB, tenant)
	names := make(map[string]string, len(list))
	for _, m := range list {
		names[m.ID] = m.Maker + " " + m.Name
	}
	return names, err
}

// number reads a number of a form; what is none becomes -1, which the checks refuse.
func number(s string) int64 {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// panelData is the dot of panel.html.
type panelData struct {
	Origin *Provenance
	Model  *Model
	Price  string // empty for who doesn't see the tenant's orders
	Past   bool   // support has ended
	Today  Date
}

// Panel shows on a device's page how it was bought.
func (s *Service) Panel() ui.Panel {
	return ui.Panel{ID: "purchase", Title: "Purchase and model", Order: 600, Aside: true, Render: func(ctx context.Context, who httpapi.Principal, d device.Device) (template.HTML, error) {
		if s.panel == nil {
			return "", errors.New("purchase: Pages must be called before a panel is shown")
		}
		data := panelData{Today: DateOf(s.cfg.Now())}
		origin, ok, err := s.Provenance(ctx, s.cfg.DB, d.Num)
		if err != nil {
			return "", err
		}
		if ok {
			data.Origin = &origin
			if who.Scope.Selector.Empty() {
				data.Price = FormatMoney(origin.UnitPrice, origin.Currency)
			}
		}
		model, err := readModel(ctx, s.cfg.DB, d.Tenant, d.Model)
		switch {
		case err == nil:
			data.Model = &model
			data.Past = model.SupportEnd != "" && model.SupportEnd < data.Today
		case !errors.Is(err, fault.NotFound):
			return "", err
		}
		return s.panel.Fragment("panel.html", data)
	}}
}
