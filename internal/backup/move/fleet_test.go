package move

import (
	"testing"
	"time"

	"steward/internal/sqldb/sqldbtest"
	"steward/internal/stewardtest"
)

func TestFleetMovesToPostgresWhileItWorks(t *testing.T) {
	t.Parallel()
	const n = 4
	to := sqldbtest.URL(t, sqldbtest.PostgresEngine) // first, so that it is dropped after the server has ended
	h := stewardtest.Start(t, stewardtest.Options{Process: true, ManagedKeys: true})
	fleet := h.Enlist(h.API, 0, n)
	h.Push("", "1.0.0", stewardtest.Good)
	h.Push("", "2.0.0", stewardtest.Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", n)
	load := h.Traffic(fleet[0].ID)
	load.Some(10)

	waits := make(chan struct{})
	type end struct {
		Result
		error
	}
	ended := make(chan end, 1)
	go func() {
		got, err := Run(t.Context(), Config{DataDir: h.Dir, Target: to, Wait: true, Running: func() { close(waits) }})
		ended <- end{got, err}
	}()
	select {
	case <-waits: // the first pass is done, beside the running server
	case e := <-ended:
		t.Fatalf("it ended before the server did: %v", e.error)
	case <-time.After(time.Minute):
		t.Fatal("it does not come to the end of the first pass")
	}
	load.Some(20)
	asg := h.Assign("2.0.0", "") // a rollout is under way when the server dies
	acked := load.Acknowledged()
	h.KillServer()
	load.End()
	e := <-ended
	if e.error != nil || e.Changed == 0 {
		t.Fatalf("%+v, %v", e.Result, e.error)
	}

	h.MoveTo(to, "")
	h.StartServer()
	acked.Check()
	h.AwaitState(asg, "committed", n)
	for _, d := range fleet {
		if enrolled := len(h.Events(d.ID, "provisioning.enrolled")); enrolled != 1 {
			t.Errorf("%s has enrolled %d times", d.Serial, enrolled)
		}
	}
	newcomer := h.Enlist(h.API, n, 1)[0] // numbers and certificates go on
	for _, d := range fleet {
		if d.ID == newcomer.ID {
			t.Error("an ID was given twice")
		}
	}
}
