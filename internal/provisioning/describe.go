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
		"provisioning.token_issued":      func(e ledger.Event) string { return tokenEvent(e, "was made") },
		"provisioning.token_revoked":     func(e ledger.Event) string { return tokenEvent(e, "was revoked") },
		"provisioning.token_reused": func(e ledger.Event) string {
			return fact(e, "address", "Its used enrollment token was tried with another key from %s")
		},
		"provisioning.enrolled":        ledger.Tell("Enrolled; its certificate is good until {expires}"),
		"provisioning.renewed":         ledger.Tell("Renewed its certificate, now good until {expires}"),
		"provisioning.superseded":      func(ledger.Event) string { return "Uses its new certificate; the one before is void" },
		"provisioning.revoked":         func(e ledger.Event) string { return fact(e, "certificates", "All its certificates were revoked: %s") },
		"provisioning.clone_suspected": func(ledger.Event) string { return "Two machines use its identity: it may have been cloned" },
		"provisioning.clone_cleared":   func(ledger.Event) string { return "The suspicion of a clone was cleared" },
		"provisioning.policy_changed":  func(ledger.Event) string { return "The policy for devices that nobody bought was changed" },
	}
}

// tokenEvent names the serial number when no device of the stock stands beside the sentence.
func tokenEvent(e ledger.Event, what string) string {
	if e.Device != "" {
		return "An enrollment token " + what
	}
	return fact(e, "serial", "An enrollment token for %s "+what)
}

// fact puts one of the event's facts into a sentence; without the fact the ledger makes its own.
func fact(e ledger.Event, name, sentence string) string {
	var facts map[string]any
	if err := json.Unmarshal(e.Data, &facts); err != nil || facts[name] == nil {
		return ""
	}
	return fmt.Sprintf(sentence, fmt.Sprint(facts[name]))
}
