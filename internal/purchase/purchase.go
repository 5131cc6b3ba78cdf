package purchase

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
)

// Bounds of an order.
const (
	MaxLines        = 200
	MaxUnits        = 100_000 // of one order
	MaxUnitPrice    = 1_000_000_000_00
	maxTextBytes    = 200
	maxNoteBytes    = 2000
	maxWarrantyMons = 600
)

// slugPattern is the form of the IDs that people choose: suppliers and models.
var slugPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// Date is a calendar day as "2006-01-02"; empty means that it is not known.
type Date string

// DateOf returns the day of a time in UTC; the zero time gives the empty Date.
func DateOf(t time.Time) Date {
	if t.IsZero() {
		return ""
	}
	return Date(t.UTC().Format(time.DateOnly))
}

// Time returns the start of the day in UTC; the empty Date gives the zero time.
func (d Date) Time() time.Time {
	t, err := time.Parse(time.DateOnly, string(d))
	if err != nil {
		return time.Time{}
	}
	return t
}

func (d Date) check() error {
	if d == "" {
		return nil
	}
	if _, err := time.Parse(time.DateOnly, string(d)); err != nil {
		return fmt.Errorf("%q is no date: use YYYY-MM-DD", string(d))
	}
	return nil
}

// AddMonths returns the same day n months later, or the last day of that month when it is shorter:
// a warranty of one month from 31 January ends on 28 or 29 February.
func (d Date) AddMonths(n int) Date {
	t := d.Time()
	if t.IsZero() {
		return ""
	}
	first := time.Date(t.Year(), t.Month()+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
	last := first.AddDate(0, 1, -1).Day()
	return DateOf(first.AddDate(0, 0, min(t.Day(), last)-1))
}

// SupplierSpec is what people write about a supplier.
type SupplierSpec struct {
	Name    string `json:"name" maxLength:"200" doc:"As on the invoice"`
	Contact string `json:"contact,omitempty" maxLength:"200" doc:"Person or department"`
	Email   string `json:"email,omitempty" maxLength:"200"`
	Website string `json:"website,omitempty" maxLength:"200"`
	Note    string `json:"note,omitempty" maxLength:"2000"`
}

// Supplier sells devices.
type Supplier struct {
	ID string `json:"id"`
	SupplierSpec
	Created  time.Time `json:"created"`
	Revision int64     `json:"revision"`
}

// Check names each wrong field.
func (s SupplierSpec) Check() error {
	bad := &fault.Invalid{}
	text(bad, "body.name", s.Name, true, maxTextBytes)
	text(bad, "body.contact", s.Contact, false, maxTextBytes)
	text(bad, "body.website", s.Website, false, maxTextBytes)
	text(bad, "body.note", s.Note, false, maxNoteBytes)
	if s.Email != "" {
		if a, err := mail.ParseAddress(s.Email); err != nil || a.Address != s.Email || len(s.Email) > maxTextBytes {
			bad.Add("body.email", "%q is no e-mail address", s.Email)
		}
	}
	if s.Website != "" {
		if u, err := url.Parse(s.Website); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
			bad.Add("body.website", "%q is no address: it starts with https:// or http://", s.Website)
		}
	}
	return bad.OrNil()
}

// Interfaces that a model may have.
var Interfaces = []string{"ethernet", "wifi", "cellular", "bluetooth", "thread", "zigbee", "lorawan", "serial", "can", "usb", "gpio", "modbus"}

// Architectures are the GOARCH values that a model may have.
var Architectures = []string{"amd64", "arm64", "arm", "386", "riscv64", "mips", "mipsle", "mips64", "mips64le", "ppc64le", "loong64", "s390x"}

// TPMVersions that a model may have; empty means none.
var TPMVersions = []string{"", "1.2", "2.0"}

// ModelSpec is what people write about a hardware model.
type ModelSpec struct {
	Maker          string   `json:"maker" maxLength:"200"`
	Name           string   `json:"name" maxLength:"200" doc:"As the maker calls it"`
	PartNumber     string   `json:"part_number,omitempty" maxLength:"64" doc:"Maker's part number; delivery files may use it in the place of the ID"`
	Architecture   string   `json:"architecture" maxLength:"20" doc:"A GOARCH value, e.g. arm64"`
	Interfaces     []string `json:"interfaces,omitempty" maxItems:"20" doc:"ethernet, wifi, cellular, bluetooth, thread, zigbee, lorawan, serial, can, usb, gpio, modbus"`
	TPM            string   `json:"tpm,omitempty" maxLength:"3" doc:"TPM version 1.2 or 2.0; empty for none"`
	SecureBoot     bool     `json:"secure_boot,omitempty"`
	SupportEnd     Date     `json:"support_end,omitempty" maxLength:"10" doc:"Last day of the maker's support, YYYY-MM-DD"`
	WarrantyMonths int      `json:"warranty_months,omitempty" minimum:"0" maximum:"600" doc:"Counted from the day of delivery; 0 means none"`
	Note           string   `json:"note,omitempty" maxLength:"2000"`
}

// Model is a hardware model.
type Model struct {
	ID string `json:"id"`
	ModelSpec
	Created  time.Time `json:"created"`
	Revision int64     `json:"revision"`
}

// Check names each wrong field.
func (m ModelSpec) Check() error {
	bad := &fault.Invalid{}
	text(bad, "body.maker", m.Maker, true, maxTextBytes)
	text(bad, "body.name", m.Name, true, maxTextBytes)
	text(bad, "body.part_number", m.PartNumber, false, 64)
	text(bad, "body.note", m.Note, false, maxNoteBytes)
	if !slices.Contains(Architectures, m.Architecture) {
		bad.Add("body.architecture", "%q: want one of %s", m.Architecture, strings.Join(Architectures, ", "))
	}
	for i, name := range m.Interfaces {
		if !slices.Contains(Interfaces, name) {
			bad.Add(fmt.Sprintf("body.interfaces[%d]", i), "%q: want one of %s", name, strings.Join(Interfaces, ", "))
		} else if slices.Contains(m.Interfaces[:i], name) {
			bad.Add(fmt.Sprintf("body.interfaces[%d]", i), "%s is named twice", name)
		}
	}
	if !slices.Contains(TPMVersions, m.TPM) {
		bad.Add("body.tpm", "%q: want 1.2, 2.0 or nothing", m.TPM)
	}
	if err := m.SupportEnd.check(); err != nil {
		bad.Add("body.support_end", "%v", err)
	}
	if m.WarrantyMonths < 0 || m.WarrantyMonths > maxWarrantyMons {
		bad.Add("body.warranty_months", "%d: want 0 to %d", m.WarrantyMonths, maxWarrantyMons)
	}
	return bad.OrNil()
}

// CheckID checks the ID that people give to a supplier or a model.
func CheckID(location, id string) error {
	if !slugPattern.MatchString(id) {
		return fault.Bad(location, "%q: use 1 to 63 lower case letters, digits, dots, dashes or underscores", id)
	}
	return nil
}

// joined returns one refusal that names the fields of all.
func joined(errs ...error) error {
	all := &fault.Invalid{}
	for _, err := range errs {
		var bad *fault.Invalid
		switch {
		case errors.As(err, &bad):
			all.Fields = append(all.Fields, bad.Fields...)
		case err != nil:
			return err
		}
	}
	return all.OrNil()
}

// text checks a field for people: valid UTF-8 without control characters, bounded, not only blanks.
func text(bad *fault.Invalid, location, s string, required bool, limit int) {
	switch {
	case required && strings.TrimSpace(s) == "":
		bad.Add(location, "is missing")
	case len(s) > limit:
		bad.Add(location, "has %d bytes: at most %d", len(s), limit)
	case !utf8.ValidString(s):
		bad.Add(location, "is not valid UTF-8")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7f }):
		bad.Add(location, "has control characters")
	}
}

// actorJSON is how an actor is stored beside what it did.
func actorJSON(a device.Actor) string {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // three strings
	}
	return string(b)
}
