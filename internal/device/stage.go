package device

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Stage is where a device stands in its life.
type Stage string

// The stages, in the order of a life.
const (
	Ordered     Stage = "ordered"     // on a placed purchase order, not yet delivered
	Received    Stage = "received"    // in stock, serial number known
	Staged      Stage = "staged"      // prepared to enroll
	Enrolled    Stage = "enrolled"    // has its operational certificate, has not reported yet
	Active      Stage = "active"      // in service
	Quarantined Stage = "quarantined" // may talk to Steward and receives nothing
	InTransfer  Stage = "in_transfer" // on its way to a new owner
	Retired     Stage = "retired"     // out of service, still to be sanitized
	Disposed    Stage = "disposed"    // sanitized, revoked, deregistered: the end
)

// Stages lists all stages in the order of a life.
var Stages = []Stage{Ordered, Received, Staged, Enrolled, Active, Quarantined, InTransfer, Retired, Disposed}

// moves is the table of allowed moves. A key's values are the stages that may follow; the key ""
// lists those in which a device may come into being.
var moves = map[Stage][]Stage{
	"":          {Ordered, Received, Staged, Quarantined},
	Ordered:     {Received, Retired},
	Received:    {Staged, Quarantined, Retired},
	Staged:      {Received, Enrolled, Quarantined, Retired},
	Enrolled:    {Active, Quarantined, Retired},
	Active:      {Quarantined, InTransfer, Retired},
	Quarantined: {Staged, Active, InTransfer, Retired},
	InTransfer:  {Received, Active, Retired},
	Retired:     {Disposed},
	Disposed:    {},
}

// ErrMove is wrapped by every refusal of a move.
var ErrMove = errors.New("move not allowed")

// ParseStage checks the name of a stage.
func ParseStage(s string) (Stage, error) {
	if st := Stage(s); slices.Contains(Stages, st) {
		return st, nil
	}
	return "", fmt.Errorf("stage %q: want one of %s", s, joinStages(Stages))
}

// Next lists the stages that may follow s.
func (s Stage) Next() []Stage { return slices.Clone(moves[s]) }

// CheckMove returns nil when a device may go from one stage to the other, else an error that wraps
// ErrMove and names the moves that are possible.
func CheckMove(from, to Stage) error {
	next, known := moves[from]
	if !known {
		return fmt.Errorf("stage %q is unknown: %w", from, ErrMove)
	}
	if slices.Contains(next, to) {
		return nil
	}
	if len(next) == 0 {
		return fmt.Errorf("a %s device goes nowhere: %w", from, ErrMove)
	}
	return fmt.Errorf("%s → %s: from %s a device may go to %s: %w", from, to, from, joinStages(next), ErrMove)
}

// InService tells whether a device in this stage holds a certificate and talks to Steward.
func (s Stage) InService() bool {
	switch s {
	case Enrolled, Active, Quarantined, InTransfer, Retired:
		return true
	}
	return false
}

func joinStages(stages []Stage) string {
	names := make([]string, len(stages))
	for i, s := range stages {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}
