package purchase

import (
	"fmt"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
)

// Kind says why a row of a delivery could not be booked.
type Kind string

// The kinds of discrepancies.
const (
	Over         Kind = "over"          // more units of the line than are open
	WrongModel   Kind = "wrong_model"   // a known model that the order or the named line does not have
	UnknownModel Kind = "unknown_model" // neither the ID nor the part number of a hardware model
	Ambiguous    Kind = "ambiguous"     // several open lines have the model and the file names none
	Twice        Kind = "twice"         // the serial number stands on several lines of the file
	KnownSerial  Kind = "known_serial"  // a device of the tenant has this serial number already
)

// Kinds lists all kinds.
var Kinds = []Kind{Over, WrongModel, UnknownModel, Ambiguous, Twice, KnownSerial}

// Action is what somebody decided about a discrepancy.
type Action string

// The actions.
const (
	Accept Action = "accept" // take it into stock, on a line of the order
	Return Action = "return" // send it back to the supplier
	Reject Action = "reject" // the row is a mistake: there is no such unit
)

// Actions lists all actions.
var Actions = []Action{Accept, Return, Reject}

// Delivery is a delivery file that was booked.
type Delivery struct {
	ID            string       `json:"id"`
	Order         string       `json:"order"`
	SHA256        string       `json:"sha256" doc:"Of the file: the same file is booked once"`
	Note          string       `json:"note,omitempty" doc:"The supplier's delivery note"`
	Rows          int64        `json:"rows"`
	Booked        int64        `json:"booked" doc:"Rows that were booked at once"`
	Waiting       int64        `json:"waiting,omitempty" doc:"Rows that are still to be booked: it is under way"`
	Discrepancies int64        `json:"discrepancies"`
	Undecided     int64        `json:"undecided" doc:"Discrepancies that wait for a decision"`
	Created       time.Time    `json:"created"`
	Actor         device.Actor `json:"actor"`
}

// Discrepancy is a row of a delivery that was not booked by itself.
type Discrepancy struct {
	Delivery string `json:"delivery,omitempty"`
	Order    string `json:"order,omitempty"`
	Row
	Kind         Kind          `json:"kind"`
	Detail       string        `json:"detail" doc:"What is wrong, for people"`
	Decision     Action        `json:"decision,omitempty" doc:"Empty while it waits"`
	Decided      time.Time     `json:"decided,omitzero"`
	Actor        *device.Actor `json:"actor,omitempty" doc:"Who decided"`
	DecisionNote string        `json:"decision_note,omitempty"`
	DecisionLine int           `json:"decision_line,omitempty" doc:"The order line it was accepted on"`
}

// Match is a row that fits an open unit of a line.
type Match struct {
	Row
	OrderLine int `json:"order_line"`
}

// Short is what a line still waits for after the delivery.
type Short struct {
	Line  int    `json:"line"`
	Model string `json:"model"`
	Open  int64  `json:"open"`
}

// Check is what booking a file would do.
type Check struct {
	SHA256        string        `json:"sha256"`
	Rows          int           `json:"rows"`
	Matched       []Match       `json:"matched"`
	Discrepancies []Discrepancy `json:"discrepancies"`
	Short         []Short       `json:"short"`
	Repeated      *Delivery     `json:"repeated,omitempty" doc:"Set when this very file has been booked before: booking it again does nothing"`
}

// checkRows holds a file against an order. names maps model IDs and part numbers to model IDs; known
// tells for a serial number which device has it, "" when none. Only a row that names a line which the
// order does not have is an error, since it says that the file belongs to another order.
func checkRows(o Order, names map[string]string, known func(serial string) string, f File) (Check, error) {
	c := Check{SHA256: f.SHA256, Rows: len(f.Rows), Matched: []Match{}, Discrepancies: []Discrepancy{}, Short: []Short{}}
	if err := checkLineNumbers(o, f); err != nil {
		return Check{}, err
	}
	times := make(map[string][]int, len(f.Rows))
	for _, r := range f.Rows {
		times[r.Serial] = append(times[r.Serial], r.FileLine)
	}
	open := make([]int64, len(o.Lines)+1) // by line number
	for _, l := range o.Lines {
		open[l.Line] = l.OpenUnits()
	}
	for _, r := range f.Rows {
		owner := known(r.Serial)
		kind, detail := Kind(""), ""
		line := 0
		switch {
		case owner != "":
			kind, detail = KnownSerial, fmt.Sprintf("%s has this serial number already", owner)
		case len(times[r.Serial]) > 1:
			kind, detail = Twice, fmt.Sprintf("lines %s of the file have this serial number", joinInts(times[r.Serial]))
		default:
			line, kind, detail = fit(o, names, open, r)
		}
		if kind != "" {
			c.Discrepancies = append(c.Discrepancies, Discrepancy{Row: r, Kind: kind, Detail: detail})
			continue
		}
		open[line]--
		c.Matched = append(c.Matched, Match{Row: r, OrderLine: line})
	}
	for _, l := range o.Lines {
		if open[l.Line] > 0 {
			c.Short = append(c.Short, Short{Line: l.Line, Model: l.Model, Open: open[l.Line]})
		}
	}
	return c, nil
}

func checkLineNumbers(o Order, f File) error {
	bad := &fault.Invalid{}
	for _, r := range f.Rows {
		if r.Line > len(o.Lines) && len(bad.Fields) < maxProblems {
			bad.Add(fmt.Sprintf("line %d, column %d", r.FileLine, f.lineColumn), "order %s has no line %d: it has %d", o.Number, r.Line, len(o.Lines))
		}
	}
	return bad.OrNil()
}

// fit finds the one open line for a row, or says why there is none.
func fit(o Order, names map[string]string, open []int64, r Row) (line int, kind Kind, detail string) {
	model, ok := names[r.Model]
	if !ok {
		return 0, UnknownModel, fmt.Sprintf("no hardware model has the ID or part number %q", r.Model)
	}
	var having, fitting []int
	for _, l := range o.Lines {
		if l.Model == model && (r.Line == 0 || r.Line == l.Line) {
			having = append(having, l.Line)
			if open[l.Line] > 0 {
				fitting = append(fitting, l.Line)
			}
		}
	}
	switch {
	case len(having) == 0 && r.Line > 0:
		l, _ := o.Line(r.Line)
		return 0, WrongModel, fmt.Sprintf("line %d is about %s, this is %s", r.Line, l.Model, model)
	case len(having) == 0:
		return 0, WrongModel, fmt.Sprintf("the order has no %s", model)
	case len(fitting) == 0:
		return 0, Over, fmt.Sprintf("no unit of line %s is open any more", joinInts(having))
	case len(fitting) > 1:
		return 0, Ambiguous, fmt.Sprintf("lines %s are all about %s: say which", joinInts(fitting), model)
	}
	return fitting[0], "", ""
}

func joinInts(list []int) string {
	s := ""
	for i, n := range list {
		switch {
		case i == 20:
			return s + fmt.Sprintf(" and %d more", len(list)-i)
		case i > 0:
			s += ", "
		}
		s += fmt.Sprint(n)
	}
	return s
}

// Decision is what to do with discrepancies of a delivery.
type Decision struct {
	FileLines []int  `json:"file_lines,omitempty" maxItems:"1000" doc:"Lines of the file; empty means all undecided ones of the kind"`
	Kind      Kind   `json:"kind,omitempty" maxLength:"20" doc:"Needed when no file lines are named"`
	Action    Action `json:"action" maxLength:"10" doc:"accept, return or reject"`
	Line      int    `json:"line,omitempty" minimum:"0" maximum:"200" doc:"Order line to accept on; may be left out when a single line has the model"`
	Note      string `json:"note,omitempty" maxLength:"2000"`
}

// Check names each wrong field.
func (d Decision) Check() error {
	bad := &fault.Invalid{}
	if !slices.Contains(Actions, d.Action) {
		bad.Add("body.action", "%q: want accept, return or reject", d.Action)
	}
	if len(d.FileLines) == 0 && d.Kind == "" {
		bad.Add("body.file_lines", "name lines of the file, or a kind to decide all of it")
	}
	if d.Kind != "" && !slices.Contains(Kinds, d.Kind) {
		bad.Add("body.kind", "%q is no kind of discrepancy", d.Kind)
	}
	if d.Line < 0 || d.Line > MaxLines {
		bad.Add("body.line", "%d is no order line", d.Line)
	}
	if d.Line > 0 && d.Action != Accept {
		bad.Add("body.line", "only accepting needs an order line")
	}
	text(bad, "body.note", d.Note, false, maxNoteBytes)
	return bad.OrNil()
}
