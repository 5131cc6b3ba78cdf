package purchase

import (
	"errors"
	"strings"
	"testing"
	"time"

	"steward/internal/fault"
)

func TestWarrantyEndsOnTheLastDayOfAShortMonth(t *testing.T) {
	for _, tt := range []struct {
		from   Date
		months int
		want   Date
	}{
		{"2026-01-31", 1, "2026-02-28"}, {"2028-01-31", 1, "2028-02-29"}, {"2026-11-30", 3, "2027-02-28"},
		{"2026-05-15", 24, "2028-05-15"}, {"2026-12-31", 12, "2027-12-31"}, {"", 12, ""},
	} {
		if got := tt.from.AddMonths(tt.months); got != tt.want {
			t.Errorf("%s + %d months = %s, want %s", tt.from, tt.months, got, tt.want)
		}
	}
}

func TestMoneyIsWrittenAndReadInTheCurrencysDigits(t *testing.T) {
	for _, tt := range []struct {
		minor    int64
		currency string
		text     string
	}{
		{1234567, "EUR", "12,345.67 EUR"}, {5, "USD", "0.05 USD"}, {-150, "EUR", "-1.50 EUR"},
		{1234, "JPY", "1,234 JPY"}, {1234567, "KWD", "1,234.567 KWD"}, {0, "EUR", "0.00 EUR"},
	} {
		if got := FormatMoney(tt.minor, tt.currency); got != tt.text {
			t.Errorf("%d %s = %q, want %q", tt.minor, tt.currency, got, tt.text)
		}
	}
	for _, tt := range []struct {
		text, currency string
		minor          int64
		ok             bool
	}{
		{"12.5", "EUR", 1250, true}, {"7", "EUR", 700, true}, {"7", "JPY", 7, true}, {"0.005", "KWD", 5, true},
		{"7.5", "JPY", 0, false}, {"1.005", "EUR", 0, false}, {"-1", "EUR", 0, false}, {"1,50", "EUR", 0, false}, {"", "EUR", 0, false},
	} {
		got, err := ParseMoney(tt.text, tt.currency)
		if (err == nil) != tt.ok || got != tt.minor {
			t.Errorf("%q %s = %d, %v", tt.text, tt.currency, got, err)
		}
	}
}

func TestWrongFieldsAreNamed(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for _, tt := range []struct {
		name  string
		err   error
		field string
	}{
		{"supplier without a name", SupplierSpec{Name: " "}.Check(), "body.name"},
		{"supplier's address", SupplierSpec{Name: "A", Email: "a@b <x>"}.Check(), "body.email"},
		{"supplier's site", SupplierSpec{Name: "A", Website: "javascript:alert(1)"}.Check(), "body.website"},
		{"supplier's note", SupplierSpec{Name: "A", Note: long}.Check(), "body.note"},
		{"architecture", ModelSpec{Maker: "A", Name: "B", Architecture: "z80"}.Check(), "body.architecture"},
		{"interface", ModelSpec{Maker: "A", Name: "B", Architecture: "arm", Interfaces: []string{"ethernet", "token-ring"}}.Check(), "body.interfaces[1]"},
		{"interface twice", ModelSpec{Maker: "A", Name: "B", Architecture: "arm", Interfaces: []string{"wifi", "wifi"}}.Check(), "body.interfaces[1]"},
		{"TPM", ModelSpec{Maker: "A", Name: "B", Architecture: "arm", TPM: "3"}.Check(), "body.tpm"},
		{"date", ModelSpec{Maker: "A", Name: "B", Architecture: "arm", SupportEnd: "2026-02-30"}.Check(), "body.support_end"},
		{"warranty", ModelSpec{Maker: "A", Name: "B", Architecture: "arm", WarrantyMonths: 601}.Check(), "body.warranty_months"},
		{"no lines", OrderSpec{Number: "1", Supplier: "a", Currency: "EUR"}.Check(), "body.lines"},
		{"quantity", OrderSpec{Number: "1", Supplier: "a", Currency: "EUR", Lines: []LineSpec{{Model: "m"}}}.Check(), "body.lines[0].quantity"},
		{"price", OrderSpec{Number: "1", Supplier: "a", Currency: "EUR", Lines: []LineSpec{{Model: "m", Quantity: 1, UnitPrice: -1}}}.Check(), "body.lines[0].unit_price"},
		{"currency", OrderSpec{Number: "1", Supplier: "a", Currency: "eur", Lines: []LineSpec{{Model: "m", Quantity: 1}}}.Check(), "body.currency"},
		{"number", OrderSpec{Number: "", Supplier: "a", Currency: "EUR", Lines: []LineSpec{{Model: "m", Quantity: 1}}}.Check(), "body.number"},
		{"too many units", OrderSpec{Number: "1", Supplier: "a", Currency: "EUR", Lines: []LineSpec{{Model: "m", Quantity: MaxUnits}, {Model: "n", Quantity: 1}}}.Check(), "body.lines"},
		{"ID", CheckID("id", "No Blanks"), "id"},
	} {
		var bad *fault.Invalid
		if !errors.As(tt.err, &bad) || bad.Fields[0].Location != tt.field {
			t.Errorf("%s: %v, want %s", tt.name, tt.err, tt.field)
		}
	}
}

func TestOrderStateFollowsFromItsUnits(t *testing.T) {
	line := func(quantity, extra, received, cancelled int64) Line {
		return Line{LineSpec: LineSpec{Quantity: quantity}, Extra: extra, Received: received, Cancelled: cancelled}
	}
	for _, tt := range []struct {
		lines []Line
		want  State
	}{
		{[]Line{line(2, 0, 0, 0)}, Placed},
		{[]Line{line(2, 0, 1, 0)}, PartlyReceived},
		{[]Line{line(2, 0, 0, 1)}, Placed},
		{[]Line{line(2, 0, 1, 1), line(1, 0, 0, 0)}, PartlyReceived},
		{[]Line{line(2, 0, 1, 1)}, Received},
		{[]Line{line(2, 1, 3, 0)}, Received},
		{[]Line{line(2, 0, 0, 2)}, Cancelled},
	} {
		if got := (Order{Lines: tt.lines}).settled(); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.lines, got, tt.want)
		}
	}
}

func TestOrderIsOverdueTheDayAfterItsDueDate(t *testing.T) {
	o := Order{State: Placed, Due: "2026-06-30", Lines: []Line{{LineSpec: LineSpec{Quantity: 1}}}}
	at := func(s string) time.Time { return Date(s).Time().Add(23 * time.Hour) }
	if o.Overdue(at("2026-06-30")) || !o.Overdue(at("2026-07-01")) {
		t.Error("want overdue from 1 July")
	}
	if o.State = Received; o.Overdue(at("2026-07-01")) {
		t.Error("a received order is not overdue")
	}
}
