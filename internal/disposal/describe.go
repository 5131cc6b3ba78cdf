package disposal

import "steward/internal/ledger"

// Describe tells the room's events to people, by kind; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"disposal.ordered":    ledger.Tell("Was ordered to sanitize itself"),
		"disposal.accepted":   ledger.Tell("Accepted the order to sanitize itself"),
		"disposal.sanitized":  ledger.Tell("Destroyed its data and its key, and signed it"),
		"disposal.attested":   ledger.Tell("Its end was attested by {performer}, seen by {witness}"),
		"disposal.failed":     ledger.Tell("Could not sanitize itself"),
		"disposal.superseded": ledger.Tell("The order to sanitize itself was superseded"),
		"disposal.certified":  ledger.Tell("The certificate of disposal was issued"),
	}
}
