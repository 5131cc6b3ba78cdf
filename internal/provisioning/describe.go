package provisioning

import (
	"encoding/json"
	"fmt"

	"steward/internal/ledger"
)

// Describe turns this room's events into sentences for people, by kind.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"provisioning.authority_created": func(e ledger.Event) string { return fact(e, "kind", "The %s certificate authority was made") },
		"provisioning.token_issued":      func(e ledger.Event) string { return fact(e, "serial", "An enrollment token was made for %s") },
		"provisioning.token_revoked":     func(e ledger.Event) string { return fact(e, "serial", "The enrollment token for %s was revoked") },
		"provisioning.token_reused": func(e ledger.Event) string {
			return fact(e, "address", "Its used enrollment token was tried with another key from %s")
		},
		"provisioning.enrolled":        func(e ledger.Event) string { return fact(e, "expires", "Enrolled; its certificate ends at %s") },
		"provisioning.renewed":         func(e ledger.Event) string { return fact(e, "expires", "Renewed its certificate, now until %s") },
		"provisioning.superseded":      func(ledger.Event) string { return "Uses its new certificate; the one before is void" },
		"provisioning.revoked":         func(e ledger.Event) string { return fact(e, "certificates", "All its certificates were revoked: %s") },
		"provisioning.clone_suspected": func(ledger.Event) string { return "Two machines use its identity: it may have been cloned" },
		"provisioning.clone_cleared":   func(ledger.Event) string { return "The suspicion of a clone was cleared" },
		"provisioning.policy_changed":  func(ledger.Event) string { return "The policy for devices that nobody bought was changed" },
	}
}

// fact puts one of the event's facts into a sentence; without the fact the ledger makes its own.
func fact(e ledger.Event, name, sentence string) string {
	var facts map[string]any
	if err := json.Unmarshal(e.Data, &facts); err != nil || facts[name] == nil {
		return ""
	}
	return fmt.Sprintf(sentence, fmt.Sprint(facts[name]))
}
