package release

import "steward/internal/ledger"

// Describe tells the room's events to people, by kind; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"release.published": ledger.Tell("{name} {version} was signed and published"),
		"release.removed":   ledger.Tell("{name} {version} was removed"),
		"release.rooted":    ledger.Tell("The release keys were signed, root version {version}, good until {expires}"),
		"release.managed":   ledger.Tell("The release keys were made on this server"),
	}
}
