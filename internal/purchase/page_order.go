package purchase

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

type ordersData struct {
	Orders    []Order
	Next      string
	Suppliers nameList
	States    []State
	Today     Date
}

func (p pages) orders(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	q := r.URL.Query()
	list, next, err := p.s.Orders(r.Context(), who, OrderFilter{
		State: State(q.Get("state")), Supplier: q.Get("supplier"), Number: q.Get("q"),
		Overdue: q.Get("overdue") != "", Undecided: q.Get("undecided") != "", Limit: 50, Cursor: q.Get("cursor"),
	})
	if err != nil {
		return err
	}
	names, _, err := p.supplierNames(r.Context(), who)
	if err != nil {
		return err
	}
	return p.Render(w, r, who, "orders.html", ui.View{Title: "Orders", Nav: "/orders", Live: "purchase",
		Data: ordersData{list, next, names, States, DateOf(p.s.cfg.Now())}})
}

// orderForm is the form of an order: as many lines as there are, and some empty ones below.
type orderForm struct {
	Number, Supplier, Currency, Due, Note string
	Lines                                 []lineForm
}

type lineForm struct{ Model, Quantity, Price, Note string }

// emptyLines are the empty lines of a form; "more" adds as many again.
const emptyLines = 4

type orderNewData struct {
	Form      orderForm
	Errors    ui.FormErrors
	Suppliers []ui.Option
	Models    []ui.Option
	Action    string
	Back      string
	Rev       string // ETag of the draft that is changed
}

func readOrderForm(r *http.Request) orderForm {
	f := orderForm{
		Number: strings.TrimSpace(r.PostFormValue("number")), Supplier: r.PostFormValue("supplier"),
		Currency: strings.ToUpper(strings.TrimSpace(r.PostFormValue("currency"))), Due: r.PostFormValue("due"), Note: r.PostFormValue("note"),
	}
	for i := range MaxLines {
		at := fmt.Sprintf("lines[%d].", i)
		if !r.PostForm.Has(at + "model") {
			break
		}
		l := lineForm{r.PostFormValue(at + "model"), r.PostFormValue(at + "quantity"), r.PostFormValue(at + "unit_price"), r.PostFormValue(at + "note")}
		if l != (lineForm{}) {
			f.Lines = append(f.Lines, l)
		}
	}
	return f
}

// spec turns what was typed into an order; amounts that can't be read are named.
func (f orderForm) spec() (OrderSpec, error) {
	spec := OrderSpec{Number: f.Number, Supplier: f.Supplier, Currency: f.Currency, Due: Date(f.Due), Note: f.Note}
	bad := &fault.Invalid{}
	for i, l := range f.Lines {
		price, err := ParseMoney(l.Price, f.Currency)
		if err != nil {
			bad.Add(fmt.Sprintf("lines[%d].unit_price", i), "%v", err)
		}
		spec.Lines = append(spec.Lines, LineSpec{Model: l.Model, Quantity: number(l.Quantity), UnitPrice: price, Note: l.Note})
	}
	return spec, joined(bad.OrNil(), spec.Check())
}

func formOf(o Order) orderForm {
	f := orderForm{Number: o.Number, Supplier: o.Supplier, Currency: o.Currency, Due: string(o.Due), Note: o.Note}
	for _, l := range o.Lines {
		price, _, _ := strings.Cut(strings.ReplaceAll(FormatMoney(l.UnitPrice, o.Currency), ",", ""), " ")
		f.Lines = append(f.Lines, lineForm{l.Model, strconv.FormatInt(l.Quantity, 10), price, l.Note})
	}
	return f
}

func (p pages) renderOrderForm(w http.ResponseWriter, r *http.Request, who httpapi.Principal, v ui.View, data orderNewData) error {
	var err error
	if _, data.Suppliers, err = p.supplierNames(r.Context(), who); err != nil {
		return err
	}
	if _, data.Models, err = p.modelNames(r.Context(), who); err != nil {
		return err
	}
	for range min(emptyLines, MaxLines-len(data.Form.Lines)) {
		data.Form.Lines = append(data.Form.Lines, lineForm{})
	}
	if data.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	v.Nav, v.Data = "/orders", data
	return p.Render(w, r, who, "order_form.html", v)
}

func (p pages) newOrder(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderOrderForm(w, r, who, ui.View{Title: "New order", Crumbs: ordersCrumb},
		orderNewData{Form: orderForm{Currency: "EUR"}, Action: "/orders", Back: "/orders"})
}

func (p pages) createOrder(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	form := readOrderForm(r)
	if r.PostForm.Has("more") { // lines are added without script
		return p.renderOrderForm(w, r, who, ui.View{Title: "New order", Crumbs: ordersCrumb}, orderNewData{Form: form, Action: "/orders", Back: "/orders"})
	}
	spec, err := form.spec()
	var o Order
	if err == nil {
		o, err = p.s.CreateOrder(r.Context(), who, spec)
	}
	if fe := ui.FormErrorsFrom(err); fe != nil {
		return p.renderOrderForm(w, r, who, ui.View{Title: "New order", Crumbs: ordersCrumb}, orderNewData{Form: form, Errors: fe, Action: "/orders", Back: "/orders"})
	}
	if err != nil {
		return err
	}
	return done(w, r, "/orders/"+o.ID, "The draft is saved. Place it to create its devices.")
}

func (p pages) editOrder(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	o, err := p.s.Order(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := o.need("changing it", Draft); err != nil {
		return err
	}
	return p.renderOrderForm(w, r, who, ui.View{Title: "Change order", Crumbs: orderCrumbs(o)},
		orderNewData{Form: formOf(o), Action: "/orders/" + o.ID + "/edit", Back: "/orders/" + o.ID, Rev: httpapi.ETag(o.Revision)})
}

func (p pages) changeOrder(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	id, form := r.PathValue("id"), readOrderForm(r)
	data := orderNewData{Form: form, Action: "/orders/" + id + "/edit", Back: "/orders/" + id, Rev: r.PostFormValue("rev")}
	view := ui.View{Title: "Change order", Crumbs: ordersCrumb}
	if r.PostForm.Has("more") {
		return p.renderOrderForm(w, r, who, view, data)
	}
	spec, err := form.spec()
	if err == nil {
		_, err = p.s.ChangeOrder(r.Context(), who, id, spec, data.Rev)
	}
	if data.Errors = ui.FormErrorsFrom(err); data.Errors != nil {
		return p.renderOrderForm(w, r, who, view, data)
	}
	if err != nil {
		return err
	}
	return done(w, r, "/orders/"+id, "The draft is changed.")
}

// maxShown bounds the discrepancies that an order's page lists.
const maxShown = 200

type orderData struct {
	Order         Order
	Overdue       bool
	Supplier      string
	Models        nameList
	Deliveries    []deliveryData
	Cancellable   bool
	MayClose      bool
	LineOptions   []ui.Option
	Value, Unit   string
	MoreUndecided bool
}

type deliveryData struct {
	Delivery
	Open    []Discrepancy
	Decided []Discrepancy
}

// Price writes a line's price for people.
func (d orderData) Price(minor int64) string { return FormatMoney(minor, d.Order.Currency) }

// Sum writes what a line costs.
func (d orderData) Sum(l Line) string { return FormatMoney(l.Quantity*l.UnitPrice, d.Order.Currency) }

func (p pages) order(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	o, err := p.s.Order(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	data, err := p.orderData(r.Context(), who, o)
	if err != nil {
		return err
	}
	live := "purchase"
	if o.Progress != nil {
		live += " device" // the devices that come into being move the bar
	}
	return p.Render(w, r, who, "order.html", ui.View{Title: "Order " + o.Number, Nav: "/orders", Crumbs: ordersCrumb, Live: live, Data: data})
}

func (p pages) orderData(ctx context.Context, who httpapi.Principal, o Order) (orderData, error) {
	data := orderData{Order: o, Overdue: o.Overdue(p.s.cfg.Now()), Value: FormatMoney(o.Value(), o.Currency), LineOptions: []ui.Option{{Name: "the line with its model"}}}
	suppliers, _, err := p.supplierNames(ctx, who)
	if err != nil {
		return data, err
	}
	data.Supplier = suppliers.Of(o.Supplier)
	if data.Models, _, err = p.modelNames(ctx, who); err != nil {
		return data, err
	}
	for _, l := range o.Lines {
		data.LineOptions = append(data.LineOptions, ui.Option{Value: strconv.Itoa(l.Line), Name: fmt.Sprintf("line %d: %s", l.Line, data.Models.Of(l.Model))})
	}
	list, err := p.s.Deliveries(ctx, who, o.ID)
	if err != nil {
		return data, err
	}
	undecided := int64(0)
	for _, d := range list {
		undecided += d.Undecided
		one := deliveryData{Delivery: d}
		found, next, err := p.s.Discrepancies(ctx, who, DiscrepancyFilter{Order: o.ID, Delivery: d.ID, Limit: maxShown})
		if err != nil {
			return data, err
		}
		data.MoreUndecided = data.MoreUndecided || next != ""
		for _, x := range found {
			if x.Decision == "" {
				one.Open = append(one.Open, x)
			} else {
				one.Decided = append(one.Decided, x)
			}
		}
		data.Deliveries = append(data.Deliveries, one)
	}
	data.Cancellable = o.Progress == nil && o.mayCancel(0) == nil
	data.MayClose = o.State == Received && undecided == 0 && o.Progress == nil
	return data, nil
}

func (p pages) place(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	path := "/orders/" + r.PathValue("id")
	o, err := p.s.BeginPlace(r.Context(), who, r.PathValue("id"), r.PostFormValue("rev"))
	if err != nil {
		return refused(w, r, path, err)
	}
	if o.Progress != nil {
		return done(w, r, path, fmt.Sprintf("Order %s is being placed. You can leave this page.", o.Number))
	}
	return done(w, r, path, fmt.Sprintf("Order %s is placed: %s.", o.Number, numbered(o.Ordered(), "device is ordered", "devices are ordered")))
}

func (p pages) close(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	path := "/orders/" + r.PathValue("id")
	o, err := p.s.Close(r.Context(), who, r.PathValue("id"), r.PostFormValue("rev"))
	if err != nil {
		return refused(w, r, path, err)
	}
	return done(w, r, path, "Order "+o.Number+" is closed.")
}

type cancelData struct {
	Order   Order
	Preview CancelPreview
	Line    int64
	Reason  string
	Errors  ui.FormErrors
}

func (p pages) askCancel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	return p.renderCancel(w, r, who, cancelData{Line: number(r.URL.Query().Get("line"))})
}

func (p pages) renderCancel(w http.ResponseWriter, r *http.Request, who httpapi.Principal, data cancelData) error {
	var err error
	if data.Order, err = p.s.Order(r.Context(), who, r.PathValue("id")); err != nil {
		return err
	}
	if data.Preview, err = p.s.PreviewCancel(r.Context(), who, data.Order.ID, int(data.Line)); err != nil {
		return err
	}
	v := ui.View{Title: "Cancel order " + data.Order.Number, Nav: "/orders", Crumbs: orderCrumbs(data.Order), Data: data}
	if data.Line > 0 {
		v.Title = fmt.Sprintf("Cancel what is open of line %d", data.Line)
	}
	if data.Errors != nil {
		v.Status = http.StatusUnprocessableEntity
	}
	return p.Render(w, r, who, "order_cancel.html", v)
}

func (p pages) cancel(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	data := cancelData{Line: number(r.PostFormValue("line")), Reason: r.PostFormValue("reason")}
	o, err := p.s.beginCancel(r.Context(), who, r.PathValue("id"), cancelWish{int(data.Line), data.Reason, r.PostFormValue("rev")})
	if err == nil {
		o, err = p.s.finish(r.Context(), o, moment)
	}
	if data.Errors = ui.FormErrorsFrom(err); data.Errors != nil {
		return p.renderCancel(w, r, who, data)
	}
	if err != nil {
		return err
	}
	if o.Progress != nil {
		return done(w, r, "/orders/"+o.ID, "What is open is being cancelled. You can leave this page.")
	}
	return done(w, r, "/orders/"+o.ID, "Cancelled. The order is "+strings.ReplaceAll(string(o.State), "_", " ")+" now.")
}
