package ui

import (
	"errors"
	"net/http"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

var errCrossOrigin = fault.New(fault.Forbidden, "This form was sent from another site, so nothing was done. Open the page here and send it again.")

// errorPage is what an error page says: what happened, what it means, what to do.
type errorPage struct {
	Status int
	What   string
	Do     string
	Fields []fault.Field // of refused input
	ID     string        // under which the log has it; of internal errors only
}

// advice says what to do about a status; the error itself says what happened.
var advice = map[int]string{
	http.StatusNotFound:              "It may have been removed, or it is outside of what you may see. Go back and look for it in the list.",
	http.StatusForbidden:             "Ask an administrator for the role, or sign in as somebody who has it.",
	http.StatusUnauthorized:          "Your session has ended. Sign in and try again; nothing was done.",
	http.StatusConflict:              "Nothing was changed. Go back, reload the page and look at the present state.",
	http.StatusPreconditionFailed:    "Somebody else changed it meanwhile. Nothing was changed; reload the page and try again.",
	http.StatusUnprocessableEntity:   "Nothing was changed. Go back and correct the input.",
	http.StatusRequestEntityTooLarge: "Nothing was changed. Send a smaller file.",
	http.StatusTooManyRequests:       "Wait a moment, then try again.",
	http.StatusServiceUnavailable:    "Wait a moment, then try again.",
}

func (c *Console) showError(w http.ResponseWriter, r *http.Request, who httpapi.Principal, err error) {
	page := errorPage{Status: httpapi.Status(err), What: err.Error()}
	page.Do = advice[page.Status]
	var invalid *fault.Invalid
	switch {
	case errors.As(err, &invalid):
		page.What, page.Fields = "The input is not valid.", invalid.Fields
	case page.Status == http.StatusInternalServerError:
		page.ID = device.RandomName(5)
		page.What = "Something went wrong on the server, and what you asked for was not done."
		page.Do = "Try again. If it happens again, look for " + page.ID + " in the server's log."
		c.cfg.Log.ErrorContext(r.Context(), "page failed", "error", err, "error.id", page.ID,
			"http.request.method", r.Method, "url.path", r.URL.Path)
	}
	view := View{Title: http.StatusText(page.Status), Status: page.Status, Data: page}
	if err := c.own.Render(w, r, who, "error.html", view); err != nil {
		c.cfg.Log.ErrorContext(r.Context(), "error page failed", "error", err)
	}
}

// notFound answers every path that no room has.
func (c *Console) notFound(_ http.ResponseWriter, r *http.Request, _ httpapi.Principal) error {
	return fault.New(fault.NotFound, "There is no page at %s.", r.URL.Path)
}
