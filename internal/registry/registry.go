package registry

import (
	"context"
	"embed"
	"io/fs"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration returns the room's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the embedded tree is part of the program
	}
	return sqldb.Migration{Room: "registry", Files: files}
}

// MaxNameBytes bounds what people call a device.
const MaxNameBytes = 120

// MaxReasonBytes bounds the reason of a change.
const MaxReasonBytes = 500

// Guard may refuse a move. It is called inside of the transaction of the move, with the device as it
// is before; it returns what is missing, as a part of a sentence ("a licence is not assigned"), or "".
type Guard struct {
	Name  string
	Check func(ctx context.Context, q sqldb.Reader, d device.Device, to device.Stage) (missing string, err error)
}

// Moved is told of a move in its transaction, after it was written: d is the device as it is now.
type Moved func(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error

// MovedMany is Moved for all devices that moved in one go.
type MovedMany func(ctx context.Context, tx *sqldb.Tx, moved []device.Moved) error

// Change is what may be changed in a device's description. Nil and empty fields leave things as they are.
type Change struct {
	Name   *string
	Set    map[string]string // labels to set
	Remove []string          // keys of labels to take away
	Reason string
	// Check, when set, sees the device as it is before and as it would be, and may refuse.
	Check func(before, after device.Device) error
}

// Presence is what monitoring knows about a device's contact.
type Presence struct {
	State       string    `json:"state" enum:"online,late,offline,never"`
	LastContact time.Time `json:"last_contact,omitzero"`
}

// The states of presence, the good one first.
const (
	Online  = "online"
	Late    = "late"
	Offline = "offline"
	Never   = "never"
)

// PresenceStates lists them.
var PresenceStates = []string{Online, Late, Offline, Never}

// CheckName trims a name and refuses one that is too long or can't be shown on one line.
func CheckName(location, name string) (string, error) {
	name = strings.TrimSpace(name)
	switch {
	case len(name) > MaxNameBytes:
		return "", fault.Bad(location, "a name has at most %d bytes", MaxNameBytes)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "", fault.Bad(location, "a name is printable text on one line")
	}
	return name, nil
}

// checkReason trims a reason. People must give one; rooms and devices say it with the move itself.
func checkReason(actor device.Actor, reason string) (string, error) {
	reason = strings.TrimSpace(reason)
	switch {
	case reason == "" && actor.Kind == device.ActorAccount:
		return "", fault.Bad("body.reason", "say why: the reason is kept in the device's ledger")
	case len(reason) > MaxReasonBytes || !utf8.ValidString(reason):
		return "", fault.Bad("body.reason", "a reason is text of at most %d bytes", MaxReasonBytes)
	}
	return reason, nil
}

// maxTermBytes bounds one search term, and so what a search may ask for.
const maxTermBytes = 128

// maxWords bounds how many words of a name can be found by themselves.
const maxWords = 8

// termsOf returns under which lower case prefixes the device is found, without repetitions.
func termsOf(d device.Device) []string {
	all := []string{string(d.ID), d.Serial, d.Name}
	words := strings.FieldsFunc(d.Name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) })
	all = append(all, words[:min(len(words), maxWords)]...)
	seen := map[string]bool{"": true}
	var terms []string
	for _, t := range all {
		if t = foldTerm(t); !seen[t] {
			seen[t] = true
			terms = append(terms, t)
		}
	}
	return terms
}

// foldTerm brings names and searches to the form in which they are compared.
func foldTerm(s string) string {
	s = strings.ToLower(strings.ToValidUTF8(strings.TrimSpace(s), ""))
	for len(s) > maxTermBytes {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
