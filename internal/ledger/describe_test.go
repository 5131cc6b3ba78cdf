package ledger_test

import (
	"testing"

	"steward/internal/ledger"
)

func TestTellPutsFactsIntoItsSentence(t *testing.T) {
	e := ledger.Event{Subject: "asg-1", Data: []byte(`{"release":"app","devices":3,"expires":"2027-02-21T07:21:20Z","list":[1]}`)}
	for sentence, want := range map[string]string{
		"{release} went to {devices} devices": "app went to 3 devices",
		"Good until {expires}":                "Good until 21 February 2027",
		"{subject} ended":                     "asg-1 ended",
		"Nothing to fill in":                  "Nothing to fill in",
		"{version} is missing":                "",
		"{list} is no word":                   "",
		"An open {release":                    "An open app",
	} {
		if got := ledger.Tell(sentence)(e); got != want {
			t.Errorf("%q: %q, want %q", sentence, got, want)
		}
	}
}
