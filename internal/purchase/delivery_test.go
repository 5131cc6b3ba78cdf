package purchase

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"steward/internal/fault"
)

// testOrder has two gw-1 lines (1: 2 open, 3: 1 open) and one cam line with nothing open.
func testOrder() Order {
	return Order{Number: "PO-1", State: Placed, Lines: []Line{
		{Line: 1, LineSpec: LineSpec{Model: "gw-1", Quantity: 2}},
		{Line: 2, LineSpec: LineSpec{Model: "cam", Quantity: 1}, Received: 1},
		{Line: 3, LineSpec: LineSpec{Model: "gw-1", Quantity: 1}},
		{Line: 4, LineSpec: LineSpec{Model: "nuc", Quantity: 2}},
	}}
}

var testNames = map[string]string{"gw-1": "gw-1", "GW1-EU": "gw-1", "cam": "cam", "nuc": "nuc", "spare": "spare"}

func TestCheckSortsRowsAndGuessesNothing(t *testing.T) {
	rows := []Row{
		{FileLine: 2, Serial: "G1", Model: "GW1-EU", Line: 1}, // part number, named line
		{FileLine: 3, Serial: "G2", Model: "gw-1"},            // lines 1 and 3 are both open
		{FileLine: 4, Serial: "G3", Model: "gw-1", Line: 3},
		{FileLine: 5, Serial: "G4", Model: "gw-1"}, // now only line 1 is open
		{FileLine: 6, Serial: "G5", Model: "gw-1"}, // nothing is open
		{FileLine: 7, Serial: "C1", Model: "cam"},
		{FileLine: 8, Serial: "N1", Model: "nuc"},
		{FileLine: 9, Serial: "T1", Model: "nuc"},
		{FileLine: 10, Serial: "T1", Model: "nuc"},
		{FileLine: 11, Serial: "OLD", Model: "nuc"},
		{FileLine: 12, Serial: "X1", Model: "toaster"},
		{FileLine: 13, Serial: "S1", Model: "spare"},
		{FileLine: 14, Serial: "S2", Model: "nuc", Line: 2},
	}
	known := func(serial string) string {
		if serial == "OLD" {
			return "dev-old"
		}
		return ""
	}
	c, err := checkRows(testOrder(), testNames, known, File{SHA256: "h", Rows: rows})
	if err != nil {
		t.Fatal(err)
	}
	var matched, wrong []string
	for _, m := range c.Matched {
		matched = append(matched, fmt.Sprintf("%s>%d", m.Serial, m.OrderLine))
	}
	for _, d := range c.Discrepancies {
		wrong = append(wrong, fmt.Sprintf("%d:%s", d.FileLine, d.Kind))
		if d.Detail == "" {
			t.Errorf("line %d has no detail", d.FileLine)
		}
	}
	if got, want := strings.Join(matched, " "), "G1>1 G3>3 G4>1 N1>4"; got != want {
		t.Errorf("matched %s, want %s", got, want)
	}
	want := "3:ambiguous 6:over 7:over 9:twice 10:twice 11:known_serial 12:unknown_model 13:wrong_model 14:wrong_model"
	if got := strings.Join(wrong, " "); got != want {
		t.Errorf("discrepancies\n%s, want\n%s", got, want)
	}
	if fmt.Sprint(c.Short) != "[{4 nuc 1}]" {
		t.Errorf("short %v, want one nuc", c.Short)
	}
	if len(c.Matched)+len(c.Discrepancies) != len(rows) {
		t.Error("a row was lost")
	}
}

func TestFileOfAnotherOrderIsRefusedByItsLineNumbers(t *testing.T) {
	_, err := checkRows(testOrder(), testNames, nil, File{Rows: []Row{{FileLine: 2, Serial: "A", Model: "nuc", Line: 9}}, lineColumn: 3})
	if !errors.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), "line 2, column 3") || !strings.Contains(err.Error(), "no line 9") {
		t.Errorf("error %v", err)
	}
}

func TestDecisionIsChecked(t *testing.T) {
	for _, tt := range []struct {
		name string
		d    Decision
		ok   bool
	}{
		{"accept named rows", Decision{FileLines: []int{2}, Action: Accept, Line: 1}, true},
		{"return a kind", Decision{Kind: Over, Action: Return}, true},
		{"nothing named", Decision{Action: Reject}, false},
		{"unknown action", Decision{FileLines: []int{2}, Action: "keep"}, false},
		{"unknown kind", Decision{Kind: "odd", Action: Reject}, false},
		{"line without accepting", Decision{FileLines: []int{2}, Action: Return, Line: 1}, false},
	} {
		if err := tt.d.Check(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
