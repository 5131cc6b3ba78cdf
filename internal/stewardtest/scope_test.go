package stewardtest_test

import (
	"net/http"
	"testing"

	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

func TestOperatorOfAPartSeesAndChangesOnlyThatPart(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true})
	fleet := h.Enlist(h.API, 0, 2)
	mine, theirs := fleet[0], fleet[1]
	h.Label(mine.ID, Object{"ring": "canary"})
	h.Label(theirs.ID, Object{"ring": "stable"})
	h.Push("", "1.0.0", Good)
	h.Push("", "2.0.0", Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 2)
	h.Until("both have reported", func() bool {
		return h.Reported(mine.ID, wire.SectionPackages) != nil && h.Reported(theirs.ID, wire.SectionPackages) != nil
	})
	h.EnrollmentToken(theirs.ID)
	h.Settle()

	carol := h.Account("carol", "release-manager", "ring=canary")
	operatorSeesOnly(t, carol, mine, theirs)

	// What is for all is for the operator's part only.
	carol.AwaitState(carol.Assign("2.0.0", ""), "committed", 1)
	if v := desiredUpdate(h, theirs.ID); v != "1.0.0" || Runs(theirs.State, "app") != "1.0.0" {
		t.Errorf("the other part is to run %q and runs %q", v, Runs(theirs.State, "app"))
	}
	// A label that would take a device out of, or another into, the operator's sight is not theirs to set.
	if _, err := carol.Try(http.MethodPatch, "/devices/"+mine.ID, Object{"labels": Object{"ring": "stable"}}); err == nil {
		t.Error("an operator has moved a device out of their part")
	}
	for _, call := range [][2]string{{http.MethodPut, "/enrollment-policy"}, {http.MethodPut, "/monitoring/policy"}} {
		if _, err := carol.Try(call[0], call[1], Object{"unpurchased": "accept", "report_seconds": 10, "metrics_seconds": 10}); err == nil {
			t.Errorf("%s %s: an operator of a part has changed what is for all", call[0], call[1])
		}
	}
}
