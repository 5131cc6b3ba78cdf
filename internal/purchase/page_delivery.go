package purchase

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ui"
)

// maxCarried bounds the file that a preview carries to its booking; a larger one is uploaded again.
const maxCarried = 4 << 20

// maxListed bounds the rows that a preview shows.
const maxListed = 100

type deliverData struct {
	Order    Order
	Check    *Check
	Problems []fault.Field // what is wrong with the file
	Refused  string        // why the order takes no delivery
	Carried  string        // the file in base64
	Note     string
	Matched  []Match // the first of them
	Wrong    []Discrepancy
}

// deliver shows what a file would do, or books it.
func (p pages) deliver(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	data := deliverData{}
	var err error
	if data.Order, err = p.s.Order(r.Context(), who, r.PathValue("id")); err != nil {
		return err
	}
	body, err := deliveryFile(r)
	if err != nil {
		return err
	}
	data.Note = r.PostFormValue("note")
	f, err := ReadFile(bytes.NewReader(body))
	if err == nil && r.PostFormValue("sha256") != "" && r.PostFormValue("sha256") != f.SHA256 {
		err = fault.New(fault.Conflict, "this is another file than the one that was checked: check it first")
	}
	if err == nil && r.PostFormValue("do") == "book" {
		var b Booked
		if b, err = p.s.BeginDelivery(r.Context(), who, data.Order.ID, data.Note, f); err == nil {
			return done(w, r, "/orders/"+data.Order.ID, bookedText(b))
		}
	}
	if err == nil {
		var c Check
		if c, err = p.s.CheckDelivery(r.Context(), who, data.Order.ID, f); err == nil {
			data.Check = &c
			data.Matched, data.Wrong = c.Matched[:min(maxListed, len(c.Matched))], c.Discrepancies[:min(maxListed, len(c.Discrepancies))]
			if len(body) <= maxCarried {
				data.Carried = base64.StdEncoding.EncodeToString(body)
			}
		}
	}
	v := ui.View{Title: "Check delivery", Nav: "/orders", Crumbs: orderCrumbs(data.Order)}
	var bad *fault.Invalid
	switch fe := ui.FormErrorsFrom(err); {
	case errors.As(err, &bad):
		data.Problems, v.Status = bad.Fields, http.StatusUnprocessableEntity
	case fe != nil:
		data.Refused, v.Status = fe.Of(""), http.StatusUnprocessableEntity
	case err != nil:
		return err
	}
	v.Data = data
	return p.Render(w, r, who, "delivery.html", v)
}

// deliveryFile reads the uploaded file, or the one that the preview carried.
func deliveryFile(r *http.Request) ([]byte, error) {
	if err := r.ParseMultipartForm(1 << 20); err != nil && !errors.Is(err, http.ErrNotMultipart) {
		return nil, err
	}
	if carried := r.PostFormValue("carried"); carried != "" {
		body, err := base64.StdEncoding.DecodeString(carried)
		if err != nil {
			return nil, fault.Bad("carried", "the file got damaged: upload it again")
		}
		return body, nil
	}
	part, _, err := r.FormFile("file")
	if errors.Is(err, http.ErrMissingFile) {
		return nil, fault.Bad("file", "choose a CSV file")
	}
	if err != nil {
		return nil, err
	}
	defer part.Close() //nolint:errcheck // it is only read
	return io.ReadAll(io.LimitReader(part, MaxFileBytes+1))
}

func bookedText(b Booked) string {
	if b.Repeated {
		return "This file had been booked before; nothing was done now."
	}
	if b.Delivery.Waiting > 0 {
		return "The delivery is being booked. You can leave this page."
	}
	text := numbered(b.Delivery.Booked, "device is", "devices are") + " received"
	if n := b.Delivery.Discrepancies; n > 0 {
		text += "; " + numbered(n, "row waits", "rows wait") + " for your decision"
	}
	return text + "."
}

func (p pages) decide(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	if err := r.ParseForm(); err != nil {
		return err
	}
	d, err := p.s.delivery(r.Context(), who, r.PathValue("id"))
	if err != nil {
		return err
	}
	path := "/orders/" + d.Order + "#" + d.ID
	dec := Decision{Action: Action(r.PostFormValue("action")), Line: int(number(r.PostFormValue("line"))), Note: r.PostFormValue("note")}
	if dec.Action != Accept {
		dec.Line = 0 // the select is sent with every action
	}
	for _, text := range r.PostForm["file_line"] {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fault.Bad("file_line", "%q is no line", text)
		}
		dec.FileLines = append(dec.FileLines, n)
	}
	if len(dec.FileLines) == 0 {
		return done(w, r, path, "Nothing was done: tick the rows that you decide about.")
	}
	list, err := p.s.Decide(r.Context(), who, d.ID, dec)
	if err != nil {
		return refused(w, r, path, err)
	}
	return done(w, r, path, fmt.Sprintf("Decided: %s %s.", numbered(int64(len(list)), "row", "rows"), map[Action]string{Accept: "accepted", Return: "to be returned", Reject: "rejected"}[dec.Action]))
}
