package purchase

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

type modelsData struct {
	Models       []Model
	Today, Early Date // support that ends before Early is soon
}

func (p pages) models(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	list, err := p.s.Models(r.Context(), who)
	if err != nil {
		return err
	}
	now := p.s.cfg.Now()
	return p.Render(w, r, who, "models.html", ui.View{Title: "Hardware models", Nav: "/orders", Crumbs: ordersCrumb, Live: "purchase",
		Data: modelsData{list, DateOf(now), DateOf(now.Add(supportNotice))}})
}

type modelForm struct {
	ID            string
	Spec          ModelSpec
	Warranty      string
	New           bool
	Rev           string
	Errors        ui.FormErrors
	AllInterfaces []string
	Architectures []ui.Option
	TPMs          []ui.Option
}

// Has tells whether the model has an interface.
func (f modelForm) Has(name string) bool { return slices.Contains(f.Spec.Interfaces, name) }

func (p pages) editModel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := modelForm{New: true, Spec: ModelSpec{Architecture: "arm64"}, Warranty: "24"}
	if id := r.PathValue("id"); id != "" {
		m, err := p.s.Model(r.Context(), who, id)
		if err != nil {
			return err
		}
		f = modelForm{ID: m.ID, Spec: m.ModelSpec, Warranty: strconv.Itoa(m.WarrantyMonths), Rev: httpapi.ETag(m.Revision)}
	}
	return p.renderModel(w, r, who, f)
}

func (p pages) renderModel(w http.ResponseWriter, r *http.Request, who httpapi.Principal, f modelForm) error {
	f.AllInterfaces, f.TPMs = Interfaces, []ui.Option{{Name: "none"}, {Value: "1.2", Name: "TPM 1.2"}, {Value: "2.0", Name: "TPM 2.0"}}
	for _, a := range Architectures {
		f.Architectures = append(f.Architectures, ui.Option{Value: a, Name: a})
	}
	v := ui.View{Title: "New hardware model", Nav: "/orders", Crumbs: append(ordersCrumb[:1:1], ui.NavItem{Name: "Hardware models", Path: "/models"}), Data: f}
	if !f.New {
		v.Title = f.Spec.Maker + " " + f.Spec.Name
	}
	if f.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "model.html", v)
}

func (p pages) saveModel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	f := modelForm{ID: strings.TrimSpace(r.PostFormValue("id")), New: r.PostFormValue("new") != "", Rev: r.PostFormValue("rev"), Warranty: r.PostFormValue("warranty_months")}
	f.Spec = ModelSpec{
		Maker: r.PostFormValue("maker"), Name: r.PostFormValue("name"), PartNumber: strings.TrimSpace(r.PostFormValue("part_number")),
		Architecture: r.PostFormValue("architecture"), Interfaces: r.PostForm["interfaces"], TPM: r.PostFormValue("tpm"),
		SecureBoot: r.PostFormValue("secure_boot") != "", SupportEnd: Date(r.PostFormValue("support_end")),
		WarrantyMonths: int(number(f.Warranty)), Note: r.PostFormValue("note"),
	}
	err := p.taken(f.New, func() error { _, err := p.s.Model(r.Context(), who, f.ID); return err }, f.ID)
	if err == nil {
		_, err = p.s.SaveModel(r.Context(), who, f.ID, f.Spec, f.Rev)
	}
	if f.Errors = formErrors(err); f.Errors != nil {
		return p.renderModel(w, r, who, f)
	}
	if err != nil {
		return err
	}
	return done(w, r, "/models", "The hardware model "+f.ID+" is saved.")
}

// taken refuses a new thing under an ID that there is: a form for a new one must not overwrite it.
func (p pages) taken(isNew bool, find func() error, id string) error {
	if isNew && find() == nil {
		return fault.Bad("id", "%s is taken: choose another ID", id)
	}
	return nil
}

func (p pages) deleteModel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := p.s.DeleteModel(r.Context(), who, r.PathValue("id")); err != nil {
		return refused(w, r, "/models", err)
	}
	return done(w, r, "/models", "The hardware model "+r.PathValue("id")+" is deleted.")
}

func (p pages) suppliers(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	list, err := p.s.Suppliers(r.Context(), who)
	if err != nil {
		return err
	}
	return p.Render(w, r, who, "suppliers.html", ui.View{Title: "Suppliers", Nav: "/orders", Crumbs: ordersCrumb, Live: "purchase", Data: list})
}

type supplierForm struct {
	ID     string
	Spec   SupplierSpec
	New    bool
	Rev    string
	Errors ui.FormErrors
}

func (p pages) editSupplier(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := supplierForm{New: true}
	if id := r.PathValue("id"); id != "" {
		s, err := p.s.Supplier(r.Context(), who, id)
		if err != nil {
			return err
		}
		f = supplierForm{ID: s.ID, Spec: s.SupplierSpec, Rev: httpapi.ETag(s.Revision)}
	}
	return p.renderSupplier(w, r, who, f)
}

func (p pages) renderSupplier(w http.ResponseWriter, r *http.Request, who httpapi.Principal, f supplierForm) error {
	v := ui.View{Title: "New supplier", Nav: "/orders", Crumbs: append(ordersCrumb[:1:1], ui.NavItem{Name: "Suppliers", Path: "/suppliers"}), Data: f}
	if !f.New {
		v.Title = f.Spec.Name
	}
	if f.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "supplier.html", v)
}

func (p pages) saveSupplier(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	f := supplierForm{ID: strings.TrimSpace(r.PostFormValue("id")), New: r.PostFormValue("new") != "", Rev: r.PostFormValue("rev")}
	f.Spec = SupplierSpec{
		Name: r.PostFormValue("name"), Contact: r.PostFormValue("contact"), Email: strings.TrimSpace(r.PostFormValue("email")),
		Website: strings.TrimSpace(r.PostFormValue("website")), Note: r.PostFormValue("note"),
	}
	err := p.taken(f.New, func() error { _, err := p.s.Supplier(r.Context(), who, f.ID); return err }, f.ID)
	if err == nil {
		_, err = p.s.SaveSupplier(r.Context(), who, f.ID, f.Spec, f.Rev)
	}
	if f.Errors = formErrors(err); f.Errors != nil {
		return p.renderSupplier(w, r, who, f)
	}
	if err != nil {
		return err
	}
	return done(w, r, "/suppliers", "The supplier "+f.ID+" is saved.")
}

func (p pages) deleteSupplier(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := p.s.DeleteSupplier(r.Context(), who, r.PathValue("id")); err != nil {
		return refused(w, r, "/suppliers", err)
	}
	return done(w, r, "/suppliers", "The supplier "+r.PathValue("id")+" is deleted.")
}

type stockData struct {
	Rows, Ending []StockRow
	Models       nameList
	Units        int64
	Values       []string // one per currency
}

// Money writes an amount for people.
func (stockData) Money(r StockRow) string { return FormatMoney(r.Value, r.Currency) }

func (p pages) stock(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	data := stockData{}
	var err error
	if data.Rows, err = p.s.Stock(r.Context(), who); err != nil {
		return err
	}
	if data.Ending, err = p.s.EndingWarranties(r.Context(), who); err != nil {
		return err
	}
	if data.Models, _, err = p.modelNames(r.Context(), who); err != nil {
		return err
	}
	values := map[string]int64{}
	var currencies []string
	for _, row := range data.Rows {
		if _, seen := values[row.Currency]; !seen {
			currencies = append(currencies, row.Currency)
		}
		data.Units += row.Units
		values[row.Currency] += row.Value
	}
	slices.Sort(currencies)
	for _, c := range currencies {
		data.Values = append(data.Values, FormatMoney(values[c], c))
	}
	return p.Render(w, r, who, "stock.html", ui.View{Title: "Stock", Nav: "/orders", Crumbs: ordersCrumb, Live: "purchase device", Data: data})
}
