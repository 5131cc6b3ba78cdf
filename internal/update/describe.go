package update

import "steward/internal/ledger"

// Describe tells the room's events to people, by kind; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"update.assigned":    ledger.Tell("{release} {version} was assigned"),
		"update.withdrawn":   ledger.Tell("{release} {version} is asked for no more"),
		"update.cancelled":   ledger.Tell("The assignment of {release} {version} was cancelled"),
		"update.complete":    ledger.Tell("A change of {release} {version} has come to all of its {devices} devices"),
		"update.retried":     ledger.Tell("{release} {version} is tried again"),
		"update.downloading": ledger.Tell("{release} {version} is being downloaded"),
		"update.downloaded":  ledger.Tell("{release} {version} was downloaded"),
		"update.installed":   ledger.Tell("{release} {version} was installed"),
		"update.healthy":     ledger.Tell("{release} {version} is healthy"),
		"update.committed":   ledger.Tell("{release} {version} was committed"),
		"update.rolled_back": ledger.Tell("{release} {version} was rolled back"),
		"update.failed":      ledger.Tell("{release} {version} could not be installed"),
	}
}
