package purchase

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
)

// State is how far an order is.
type State string

// The states of an order.
const (
	Draft          State = "draft"           // may be changed, creates nothing
	BeingPlaced    State = "placing"         // its units are being created; it takes nothing else until all are there
	Placed         State = "placed"          // its units exist as devices in stage ordered
	PartlyReceived State = "partly_received" // some units are delivered, some are open
	Received       State = "received"        // nothing is open
	Closed         State = "closed"          // settled, the end
	Cancelled      State = "cancelled"       // nothing was ever delivered, the end
)

// States lists all states in their order.
var States = []State{Draft, BeingPlaced, Placed, PartlyReceived, Received, Closed, Cancelled}

// Open tells whether the order still waits for units.
func (s State) Open() bool { return s == Placed || s == PartlyReceived }

// ParseState checks the name of a state.
func ParseState(s string) (State, error) {
	if st := State(s); slices.Contains(States, st) {
		return st, nil
	}
	names := make([]string, len(States))
	for i, st := range States {
		names[i] = string(st)
	}
	return "", fmt.Errorf("state %q: want one of %s", s, strings.Join(names, ", "))
}

// LineSpec is what people write in one line of an order.
type LineSpec struct {
	Model     string `json:"model" maxLength:"63" doc:"ID of the hardware model"`
	Quantity  int64  `json:"quantity" minimum:"1" maximum:"100000"`
	UnitPrice int64  `json:"unit_price" minimum:"0" doc:"In minor units of the order's currency, e.g. cents"`
	Note      string `json:"note,omitempty" maxLength:"2000"`
}

// Line is one line of an order with what became of it.
type Line struct {
	Line int `json:"line" doc:"From 1"`
	LineSpec
	Extra     int64 `json:"extra" doc:"Units accepted beyond the quantity"`
	Received  int64 `json:"received" doc:"Units delivered, extra ones included"`
	Cancelled int64 `json:"cancelled" doc:"Units that will not come"`
}

// OpenUnits is how many ordered units are neither delivered nor cancelled.
func (l Line) OpenUnits() int64 { return l.Quantity + l.Extra - l.Received - l.Cancelled }

// OrderSpec is what people write in an order.
type OrderSpec struct {
	Number   string     `json:"number" maxLength:"64" doc:"Your order number, unique in the tenant"`
	Supplier string     `json:"supplier" maxLength:"63" doc:"ID of the supplier"`
	Currency string     `json:"currency" maxLength:"3" doc:"ISO 4217 code, e.g. EUR"`
	Due      Date       `json:"due,omitempty" maxLength:"10" doc:"Agreed day of delivery; after it the order counts as overdue"`
	Note     string     `json:"note,omitempty" maxLength:"2000"`
	Lines    []LineSpec `json:"lines" maxItems:"200"`
}

// Order is a purchase order.
type Order struct {
	ID       string          `json:"id"`
	Tenant   device.TenantID `json:"-"`
	Number   string          `json:"number"`
	Supplier string          `json:"supplier"`
	Currency string          `json:"currency"`
	Due      Date            `json:"due,omitempty"`
	Note     string          `json:"note,omitempty"`
	State    State           `json:"state"`
	Lines    []Line          `json:"lines"`
	Created  time.Time       `json:"created"`
	Placed   time.Time       `json:"placed,omitzero"`
	Ended    time.Time       `json:"ended,omitzero" doc:"When it was closed or cancelled"`
	Revision int64           `json:"revision"`
	Progress *Progress       `json:"progress,omitempty" doc:"Long work that is under way; until it is done the order takes nothing else"`
}

// Check names each wrong field. That the supplier and the models exist is checked with the database.
func (o OrderSpec) Check() error {
	bad := &fault.Invalid{}
	text(bad, "body.number", o.Number, true, 64)
	if strings.TrimSpace(o.Number) != o.Number || strings.ContainsAny(o.Number, "\r\n\t") {
		bad.Add("body.number", "starts or ends with a blank, or has a line break")
	}
	text(bad, "body.note", o.Note, false, maxNoteBytes)
	if err := CheckID("supplier", o.Supplier); err != nil {
		bad.Add("body.supplier", "name a supplier by its ID")
	}
	if !currencyPattern.MatchString(o.Currency) {
		bad.Add("body.currency", "%q: want a code of three capital letters, as of ISO 4217", o.Currency)
	}
	if err := o.Due.check(); err != nil {
		bad.Add("body.due", "%v", err)
	}
	o.checkLines(bad)
	return bad.OrNil()
}

func (o OrderSpec) checkLines(bad *fault.Invalid) {
	if len(o.Lines) == 0 || len(o.Lines) > MaxLines {
		bad.Add("body.lines", "an order has 1 to %d lines, this has %d", MaxLines, len(o.Lines))
		return
	}
	var units int64
	for i, l := range o.Lines {
		at := fmt.Sprintf("body.lines[%d].", i)
		if !slugPattern.MatchString(l.Model) {
			bad.Add(at+"model", "name a hardware model by its ID")
		}
		if l.Quantity < 1 || l.Quantity > MaxUnits {
			bad.Add(at+"quantity", "%d: want 1 to %d", l.Quantity, MaxUnits)
			continue
		}
		if l.UnitPrice < 0 || l.UnitPrice > MaxUnitPrice {
			bad.Add(at+"unit_price", "%d: want 0 to %d minor units", l.UnitPrice, int64(MaxUnitPrice))
		}
		text(bad, at+"note", l.Note, false, maxNoteBytes)
		units += l.Quantity
	}
	if units > MaxUnits {
		bad.Add("body.lines", "%d units in all: an order has at most %d; split it", units, MaxUnits)
	}
}

// Sum returns a total over the order's lines.
func (o Order) Sum(of func(Line) int64) (n int64) {
	for _, l := range o.Lines {
		n += of(l)
	}
	return n
}

// Ordered, Delivered, Dropped and Open are totals of units.
func (o Order) Ordered() int64 { return o.Sum(func(l Line) int64 { return l.Quantity }) }

// Delivered is how many units have come, extra ones included.
func (o Order) Delivered() int64 { return o.Sum(func(l Line) int64 { return l.Received }) }

// Open is how many units are still to come.
func (o Order) Open() int64 {
	if !o.State.Open() {
		return 0
	}
	return o.Sum(Line.OpenUnits)
}

// Value is what the ordered units cost, in minor units.
func (o Order) Value() int64 {
	return o.Sum(func(l Line) int64 { return l.Quantity * l.UnitPrice })
}

// Overdue tells whether units are open after the agreed day.
func (o Order) Overdue(now time.Time) bool {
	return o.State.Open() && o.Due != "" && DateOf(now) > o.Due
}

// Line returns the line of that number.
func (o Order) Line(no int) (Line, bool) {
	if no < 1 || no > len(o.Lines) {
		return Line{}, false
	}
	return o.Lines[no-1], true // stored gapless from 1
}

// settled returns the state that follows from the lines once units came or were cancelled.
func (o Order) settled() State {
	open, got := o.Sum(Line.OpenUnits), o.Delivered()
	switch {
	case open == 0 && got == 0:
		return Cancelled
	case open == 0:
		return Received
	case got > 0:
		return PartlyReceived
	}
	return Placed
}

// need refuses what the order's state does not allow.
func (o Order) need(what string, states ...State) error {
	if slices.Contains(states, o.State) {
		return nil
	}
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = string(s)
	}
	return fault.New(fault.Conflict, "order %s is %s: %s needs %s", o.Number, o.State, what, strings.Join(names, " or "))
}
