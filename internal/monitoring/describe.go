package monitoring

import "steward/internal/ledger"

// Describe tells the room's events to people, by kind; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"monitoring.offline":        ledger.Tell("Went offline"),
		"monitoring.online":         ledger.Tell("Came back online"),
		"monitoring.group_created":  ledger.Tell("The group {name} was made"),
		"monitoring.group_changed":  ledger.Tell("The group {name} was changed"),
		"monitoring.group_deleted":  ledger.Tell("The group {name} was deleted"),
		"monitoring.policy_changed": ledger.Tell("How often devices report was changed"),
	}
}
