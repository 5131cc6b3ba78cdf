package access

import (
	"encoding/json"
	"fmt"

	"steward/internal/ledger"
)

// Describe tells the room's events to people; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	account := func(format string) func(ledger.Event) string {
		return func(e ledger.Event) string {
			var f accountFacts
			if json.Unmarshal(e.Data, &f) != nil || f.Name == "" {
				return ""
			}
			return fmt.Sprintf(format, f.Name)
		}
	}
	token := func(format string) func(ledger.Event) string {
		return func(e ledger.Event) string {
			var f tokenFacts
			if json.Unmarshal(e.Data, &f) != nil || f.Name == "" {
				return ""
			}
			return fmt.Sprintf(format, f.Name, f.Owner)
		}
	}
	words := func(text string) func(ledger.Event) string { return func(ledger.Event) string { return text } }
	return map[string]func(ledger.Event) string{
		kindAccountCreated:  account("Account %s was made"),
		kindAccountChanged:  account("Account %s was changed"),
		kindAccountDisabled: account("Account %s was disabled, its sessions and tokens ended"),
		kindAccountEnabled:  account("Account %s was enabled"),
		kindAccountDeleted:  account("Account %s was deleted"),
		kindPasswordReset:   account("Account %s got a fresh password"),
		kindPasswordChanged: words("Changed the own password"),
		kindSignedIn:        words("Signed in"),
		kindSignedOut:       words("Signed out"),
		kindSignInFailed:    describeFailure,
		kindTokenCreated:    token("API token %q was made for %s"),
		kindTokenRevoked:    token("API token %q of %s was revoked"),
		kindTenantCreated:   func(e ledger.Event) string { return "Tenant " + e.Subject + " was made" },
		kindTenantEntered:   func(e ledger.Event) string { return "Acts in the tenant " + e.Subject + " now" },
	}
}

func describeFailure(e ledger.Event) string {
	var f failureFacts
	if json.Unmarshal(e.Data, &f) != nil {
		return ""
	}
	name := f.Name
	if name == "" {
		name = "an unknown account"
	}
	return fmt.Sprintf("Signing in as %s failed, from %s", name, f.Address)
}
