package stewardtest_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/device"
	"steward/internal/sqldb/sqldbtest"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// killed is a house whose server is killed again and again.
type killed struct {
	*House
	t      *testing.T
	random *rand.Rand
	heads  [][]byte // signed heads that were seen before each kill: nothing below them may be lost
	stages map[string]string
}

// kill kills the server, now or a short random time after do was started, starts it again, and checks
// that nothing is lost that was answered.
func (k *killed) kill(do func()) {
	k.t.Helper()
	k.note()
	done := make(chan struct{})
	if do == nil {
		close(done)
	} else {
		go func() { defer close(done); do() }()
		select {
		case <-time.After(time.Duration(k.random.IntN(60)) * time.Millisecond): // the moment is what varies
		case <-done:
		}
	}
	k.KillServer()
	<-done
	k.StartServer()
	k.check()
}

// note keeps what the server has answered.
func (k *killed) note() {
	k.t.Helper()
	k.heads = append(k.heads, k.Checkpoint())
	for _, d := range k.List("/devices") {
		id, _ := d["id"].(string)
		k.stages[id], _ = d["stage"].(string)
	}
}

// order is the place of a stage in a life.
func order(stage string) int {
	for i, s := range device.Stages {
		if string(s) == stage {
			return i
		}
	}
	return -1
}

func (k *killed) check() {
	k.t.Helper()
	now := map[string]string{}
	for _, d := range k.List("/devices") {
		id, _ := d["id"].(string)
		now[id], _ = d["stage"].(string)
	}
	for id, stage := range k.stages {
		if order(now[id]) < order(stage) {
			k.t.Errorf("device %s was %s before the kill and is %q after it", id, stage, now[id])
		}
	}
}

func TestServerKilledBetweenAnyTwoStepsLosesNothing(t *testing.T) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			h := Start(t, Options{Engine: engine, Process: true, ManagedKeys: true})
			k := &killed{House: h, t: t, random: rand.New(rand.NewPCG(1, 2)), stages: map[string]string{}}
			k.life()
		})
	}
}

// life is one device life in which the server dies at each step.
func (k *killed) life() {
	const n = 4
	serials := k.Serials(0, n)
	po := k.Order(n)
	k.kill(nil)
	if got := len(k.List("/devices?stage=ordered")); got != n {
		k.t.Fatalf("%d of %d ordered units are left", got, n)
	}
	k.deliver(po, serials)
	fleet := make([]*Device, n)
	for i, serial := range serials {
		id, _ := k.BySerial(serial)["id"].(string)
		fleet[i] = k.Device(i, k.EnrollmentToken(id))
		fleet[i].ID = id
	}
	k.kill(nil) // after the tokens
	k.kill(func() {
		for _, d := range fleet {
			d.Start()
		}
	})
	k.kill(nil) // amid the enrollments that are tried again
	for _, d := range fleet {
		k.AwaitStage(d.ID, "active")
		if enrolled := len(k.Events(d.ID, "provisioning.enrolled")); enrolled != 1 {
			k.t.Errorf("%s has enrolled %d times", d.Serial, enrolled)
		}
	}
	k.betweenReportAndUpload(fleet[0])
	k.Push("", "1.0.0", Good)
	var asg string
	k.kill(func() { asg = k.assignOnce("1.0.0") })
	if asg == "" {
		asg = k.assignOnce("1.0.0")
	}
	k.kill(nil) // amid downloads and reports
	k.AwaitState(asg, "committed", n)
	k.end(fleet)
}

// deliver books the delivery in spite of kills: all of it or nothing each time.
func (k *killed) deliver(po string, serials []string) {
	k.t.Helper()
	answered := false
	for range 3 {
		k.kill(func() { answered = k.Receive(po, serials...) == nil || answered })
		got := len(k.List("/devices?stage=received"))
		if got != 0 && got != len(serials) || answered && got == 0 {
			k.t.Fatalf("%d of %d units are booked after a kill (answered: %t)", got, len(serials), answered)
		}
	}
	// Once more, whatever came before: the same file is not booked twice.
	if err := k.Receive(po, serials...); err != nil {
		k.t.Fatalf("book again: %v", err)
	}
	if got := len(k.List("/devices?stage=received")); got != len(serials) {
		k.t.Fatalf("%d of %d units are booked", got, len(serials))
	}
}

// assignOnce assigns the release, or finds that an answer was lost.
func (k *killed) assignOnce(version string) string {
	out, err := k.Try(http.MethodPost, "/assignments", Object{"name": "app", "version": version, "selector": ""})
	if err != nil {
		list, listErr := k.Client().All(k.t.Context(), "/assignments", nil, 10)
		if listErr != nil || len(list) == 0 {
			return ""
		}
		out = list[0]
	}
	id, _ := out["id"].(string)
	return id
}

// betweenReportAndUpload kills the server after it has asked for a document.
func (k *killed) betweenReportAndUpload(d *Device) {
	k.t.Helper()
	if err := d.Stop(); err != nil {
		k.t.Fatal(err)
	}
	body := []byte(`{"manager":"by hand","services":[]}`)
	report, err := json.Marshal(wire.Report{
		Protocol: wire.Protocol, Boot: strings.Repeat("c", 32), Instance: strings.Repeat("d", 32), Sequence: 1, Time: time.Now(),
		Sections: map[wire.Section]wire.Hash{wire.SectionServices: wire.HashOf(body)},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	door := k.Door(d.Identity())
	if out := door.Must(http.StatusOK, "", http.MethodPost, wire.PathReport, report); !strings.Contains(string(out.Body), string(wire.HashOf(body))) {
		k.t.Errorf("the server does not ask for the document: %s", out.Body)
	}
	k.kill(nil)
	door.Must(http.StatusNoContent, "", http.MethodPut, wire.PathDocuments+string(wire.HashOf(body)), body)
	k.kill(nil)
	if got := k.Reported(d.ID, wire.SectionServices)["manager"]; got != "by hand" {
		k.t.Errorf("the acknowledged document is lost: %v", got)
	}
	d.Start()
}

// end takes all devices out, with kills before and amid the disposal.
func (k *killed) end(fleet []*Device) {
	for _, d := range fleet {
		k.Retire(d.ID)
	}
	k.kill(nil)
	k.kill(func() {
		for _, d := range fleet {
			// One whose answer the kill has cut off is ordered below.
			_, _ = k.Try(http.MethodPost, "/devices/"+d.ID+"/disposal/order", Object{"reason": "end", "confirm": d.Serial})
		}
	})
	for _, d := range fleet {
		_, _ = k.Try(http.MethodPost, "/devices/"+d.ID+"/disposal/order", Object{"reason": "end", "confirm": d.Serial}) // ordered already: refused
	}
	k.kill(nil)
	for _, d := range fleet {
		k.AwaitStage(d.ID, "disposed")
		if err := d.Stop(); err != nil && !errors.Is(err, agent.ErrDecommissioned) {
			k.t.Errorf("agent of %s: %v", d.Serial, err)
		}
	}
	k.kill(nil)
	for _, d := range fleet {
		k.VerifyCertificate(d.ID)
	}
	k.StopServer()
	k.VerifyLedger(k.heads...)
}
