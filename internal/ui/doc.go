// Package ui is the console's frame: layout, styles, forms, charts (package chart) and live updates.
// Rooms bring their pages as html/template files and handlers. The class names stand at the top of
// static/steward.css, the template functions above funcs in funcs.go, the partials in
// frame/partials.html; package uitest checks pages in a real browser.
//
// A list that refreshes by itself, a form with errors, and a page that asks before what cannot be undone:
//
//	//go:embed page/*.html
//	var pageFiles embed.FS
//
//	func (s *Service) Pages(c *ui.Console) {
//		pages := c.Parse(pageFiles)
//		c.Handle("GET /orders", httpapi.Viewer, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
//			list, next, err := s.Orders(r.Context(), who.Scope, r.FormValue("q"), r.FormValue("cursor"))
//			if err != nil {
//				return err // becomes an error page of its kind
//			}
//			return pages.Render(w, r, who, "orders.html", ui.View{
//				Title: "Orders", Nav: "/orders", Live: "purchase", Data: ordersData{Orders: list, Next: next}})
//		})
//		c.Handle("POST /orders", httpapi.Operator, func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
//			form := readOrderForm(r)
//			order, err := s.Place(r.Context(), who, form)
//			if fe := ui.FormErrorsFrom(err); fe != nil { // shown again with what was typed
//				return pages.Render(w, r, who, "order_new.html", ui.View{Title: "New order", Nav: "/orders",
//					Crumbs: []ui.NavItem{{Name: "Orders", Path: "/orders"}}, Status: http.StatusUnprocessableEntity,
//					Data: orderNewData{Form: form, Errors: fe}})
//			}
//			if err != nil {
//				return err
//			}
//			ui.Flash(w, r, "Order "+order.ID+" is placed.")
//			http.Redirect(w, r, "/orders/"+order.ID, http.StatusSeeOther)
//			return nil
//		})
//	}
//
// page/orders.html; the dot is *ui.Page (.Data is yours; .Who, .Can "operator", .Query "q", .With "q" "x",
// .Pager):
//
//	{{define "actions"}}{{if .Can "operator"}}<a class="button primary" href="/orders/new">New order</a>{{end}}{{end}}
//	{{define "content"}}
//	<form class="toolbar" method="get" role="search"><label class="hidden" for="q">Search</label>
//	  <input type="search" id="q" name="q" value="{{.Query "q"}}"><button class="button">Search</button></form>
//	<div id="orders" data-live>
//	{{if .Data.Orders}}<div class="table-wrap" tabindex="0" role="region" aria-label="Orders"><table class="table cards">
//	  <thead><tr><th>Order</th><th>State</th><th>Placed</th><th class="num">Units</th></tr></thead>
//	  <tbody>{{range .Data.Orders}}<tr><td data-label="Order"><a href="/orders/{{.ID}}">{{.ID}}</a></td>
//	    <td data-label="State">{{status .State}}</td><td data-label="Placed">{{reltime .Placed}}</td>
//	    <td class="num" data-label="Units">{{number .Units}}</td></tr>{{end}}</tbody></table></div>
//	  {{template "pager" (.Pager .Data.Next)}}
//	{{else}}{{template "empty" (dict "Title" "No orders yet" "Text" "…" "Command" "steward apply -f order.yaml")}}{{end}}
//	</div>{{end}}
//
// page/order_new.html, and the inside of a page that asks first (GET shows it, POST does it):
//
//	<form class="form" method="post" action="/orders">{{template "errors" .Data.Errors}}
//	  {{field "supplier" "Supplier" .Data.Form.Supplier .Data.Errors "required" true "hint" "As on the invoice."}}
//	  <div class="buttons"><button class="button primary">Place order</button> <a class="button" href="/orders">Cancel</a></div></form>
//
//	<section class="card confirm"><h2>This will hit</h2><dl class="kv">…</dl><p>It cannot be undone.</p>
//	  <form method="post"><button class="button danger">Dispose of {{plural .Data.Count "device" "devices"}}</button></form></section>
//
// A file that Fragment renders (panels) also defines "content"; its dot is the data alone.
//
// Live pages: the elements with data-live and an id are replaced when an event of a topic in View.Live is
// sequenced; focus, typed input, open details and scroll stay. Nested data-live elements: the inner win.
package ui
