package remote

import (
	"steward/internal/ledger"
	"steward/internal/wire"
)

// Describe tells the room's events to people, by kind; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	finished := map[string]func(ledger.Event) string{
		wire.CommandDone:    ledger.Tell("Did the command {name}"),
		wire.CommandFailed:  ledger.Tell("Failed at the command {name}"),
		wire.CommandRefused: ledger.Tell("Refused the command {name}"),
		Expired.String():    ledger.Tell("Did not answer the command {name} in time"),
		Cancelled.String():  ledger.Tell("The command {name} was cancelled"),
	}
	state := ledger.Tell("{state}")
	return map[string]func(ledger.Event) string{
		"remote.given": ledger.Tell("Was given the command {name}"),
		"remote.finished": func(e ledger.Event) string {
			if tell := finished[state(e)]; tell != nil {
				return tell(e)
			}
			return ""
		},
	}
}
