package ui

import (
	"context"
	"encoding/base64"
	"errors"
	"html/template"
	"net/http"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

// Panel is a room's part of the device page.
type Panel struct {
	ID    string // of the HTML section, so "#metrics" links to it; lower case, unique
	Title string
	Order int // ascending; rooms go by hundreds
	// Aside puts a short list of facts beside the other panels, where the screen is wide.
	Aside bool
	// Render returns the panel's inside; "" leaves the panel out. It runs with the reader's scope
	// already checked against d.
	Render func(ctx context.Context, who httpapi.Principal, d device.Device) (template.HTML, error)
}

// Level says how urgent something is.
type Level int

// The levels.
const (
	Info Level = iota
	Good
	Warn
	Bad
)

var levelNames = [...]string{"info", "good", "warn", "bad"}

// String is the level's CSS suffix.
func (l Level) String() string {
	if l < 0 || int(l) >= len(levelNames) {
		return "info"
	}
	return levelNames[l]
}

// Notice is one line of "what needs me now": what happened, what to do, and a link to the things it
// is about.
type Notice struct {
	Level  Level
	Title  string // e.g. "3 devices are offline"
	Detail string // what it means and what to do
	Href   string // list of exactly these things
	Count  int64  // how many; 0 when it is no count
}

// FormErrors holds what is wrong with a form, by the name of the field; "" is about the whole form.
type FormErrors map[string]string

// FormErrorsFrom turns a refusal of input into FormErrors: an *fault.Invalid by its fields ("body.name"
// belongs to the field "name"), a conflict or another refusal of what was sent as a text for the whole
// form. It returns nil for every other error, which the handler then returns.
func FormErrorsFrom(err error) FormErrors {
	var invalid *fault.Invalid
	var refused *fault.Error
	switch {
	case errors.As(err, &invalid):
		fe := FormErrors{}
		for _, f := range invalid.Fields {
			fe.add(strings.TrimPrefix(f.Location, "body."), f.Message)
		}
		return fe
	case errors.As(err, &refused) && (errors.Is(err, fault.Conflict) || errors.Is(err, fault.Unprocessable) ||
		errors.Is(err, fault.TooLarge) || errors.Is(err, fault.Precondition)):
		return FormErrors{"": refused.Detail}
	}
	return nil
}

func (fe FormErrors) add(name, message string) {
	if old := fe[name]; old != "" {
		message = old + "; " + message
	}
	fe[name] = message
}

// Of returns the message of a field, or "".
func (fe FormErrors) Of(name string) string { return fe[name] }

// flashCookie carries one message over the redirect after a form.
const flashCookie = "steward_flash"

const maxFlashBytes = 500

// Flash leaves a message that the next page shows once: call it before http.Redirect.
func Flash(w http.ResponseWriter, r *http.Request, message string) {
	if len(message) > maxFlashBytes {
		message = message[:maxFlashBytes]
	}
	http.SetCookie(w, &http.Cookie{
		Name: flashCookie, Value: base64.RawURLEncoding.EncodeToString([]byte(message)), Path: "/",
		MaxAge: 60, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.TLS != nil,
	})
}

func takeFlash(w http.ResponseWriter, r *http.Request) string {
	ck, err := r.Cookie(flashCookie)
	if err != nil {
		return ""
	}
	http.SetCookie(w, &http.Cookie{Name: flashCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.TLS != nil})
	text, err := base64.RawURLEncoding.DecodeString(ck.Value)
	if err != nil || len(text) > maxFlashBytes {
		return ""
	}
	return strings.ToValidUTF8(string(text), "")
}

// noticeWords say a notice's level in words, beside its shape.
var noticeWords = map[string]string{"info": "to know", "good": "good", "warn": "look at it", "bad": "act now"}
