package device

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// allowedMoves repeats the table on purpose: a change of the lifecycle must be made in two places.
var allowedMoves = map[Stage]string{
	"":          "ordered received staged quarantined",
	Ordered:     "received retired",
	Received:    "staged quarantined retired",
	Staged:      "received enrolled quarantined retired",
	Enrolled:    "active quarantined retired",
	Active:      "quarantined in_transfer retired",
	Quarantined: "staged active in_transfer retired",
	InTransfer:  "received active retired",
	Retired:     "disposed",
	Disposed:    "",
}

func TestEveryMoveIsAllowedOrRefusedAsTheLifecycleSays(t *testing.T) {
	for from, list := range allowedMoves {
		allowed := strings.Fields(list)
		for _, to := range append(slices.Clone(Stages), "", "lost") {
			err := CheckMove(from, to)
			if want := slices.Contains(allowed, string(to)); (err == nil) != want {
				t.Errorf("%q → %q: error %v, allowed should be %v", from, to, err, want)
			}
			if err != nil && !errors.Is(err, ErrMove) {
				t.Errorf("%q → %q: %v does not wrap ErrMove", from, to, err)
			}
		}
	}
}

func TestRefusedMoveNamesWhatIsPossible(t *testing.T) {
	tests := []struct {
		from, to Stage
		want     string
	}{
		{Ordered, Active, "received, retired"},
		{Disposed, Active, "goes nowhere"},
		{"lost", Active, `stage "lost" is unknown`},
	}
	for _, tt := range tests {
		if err := CheckMove(tt.from, tt.to); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s → %s: %v, want it to say %q", tt.from, tt.to, err, tt.want)
		}
	}
}

func TestEveryStageIsReachableAndOnlyDisposedIsTheEnd(t *testing.T) {
	seen := map[Stage]bool{}
	var walk func(Stage)
	walk = func(s Stage) {
		for _, n := range s.Next() {
			if !seen[n] {
				seen[n] = true
				walk(n)
			}
		}
	}
	walk("")
	for _, s := range Stages {
		if !seen[s] {
			t.Errorf("no way leads to %s", s)
		}
		if end := len(s.Next()) == 0; end != (s == Disposed) {
			t.Errorf("%s is an end: %v", s, end)
		}
	}
}

func TestNextCannotBeUsedToChangeTheTable(t *testing.T) {
	Ordered.Next()[0] = Disposed
	if CheckMove(Ordered, Disposed) == nil {
		t.Fatal("the caller changed the table of moves")
	}
}

func TestParseStageKnowsExactlyTheStages(t *testing.T) {
	for _, s := range Stages {
		if got, err := ParseStage(string(s)); err != nil || got != s {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "Active", "in-transfer", "active "} {
		if _, err := ParseStage(s); err == nil || !strings.Contains(err.Error(), "in_transfer") {
			t.Errorf("%q: %v, want an error that lists the stages", s, err)
		}
	}
}

func TestInServiceAreTheStagesThatHoldACertificate(t *testing.T) {
	for _, s := range Stages {
		want := slices.Contains([]Stage{Enrolled, Active, Quarantined, InTransfer, Retired}, s)
		if s.InService() != want {
			t.Errorf("%s: in service %v", s, !want)
		}
	}
}
