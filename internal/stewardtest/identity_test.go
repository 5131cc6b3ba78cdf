package stewardtest_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"steward/internal/agent"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// oftenReporting makes the agent's contacts come quickly.
func oftenReporting(c *agent.Config) { c.ReportInterval = 200 * time.Millisecond }

func clones(h *House, d *Device) int { return clonesOf(h, d.ID) }

func clonesOf(h *House, id string) int { return len(h.Events(id, "provisioning.clone_suspected")) }

func TestCopiedIdentityIsFlaggedWithinTwoContacts(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Prepare(h.API, 0, 1)[0]
	d.Tune(oftenReporting)
	d.Start()
	h.AwaitStage(d.ID, "active")
	copied := d.Clone(h.Sim.Device(1))
	copied.Start()
	h.Until("the clone is in the ledger", func() bool { return clones(h, d) > 0 })
	out := h.Get("/devices/" + d.ID + "/certificates")
	flag, _ := out["clone"].(map[string]any)
	if flag == nil {
		t.Errorf("the device shows no flag: %v", out)
	}
	h.Until("people are told on the first page", func() bool { return strings.Contains(h.Page("/"), "cloned") })

	// The way out: revoke, so that both are out, and enroll the original anew.
	h.Send(http.MethodPost, "/devices/"+d.ID+"/revoke", Object{"reason": "cloned"})
	if err := copied.Stop(); err != nil {
		t.Error(err)
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	h.Send(http.MethodPost, "/devices/"+d.ID+"/clear-clone-flag", Object{"reason": "found the copy"})
	token := h.EnrollmentToken(d.ID)
	d.Tune(func(c *agent.Config) { c.Token = token })
	a := d.Start()
	h.Until("the original is back", func() bool { return a.Status().State == agent.StateOnline })
	copied.Start()
	Never(t, time.Second, "a flag is raised by a copy that is out", func() bool { return clones(h, d) > 1 })
}

// contact reports by hand as one boot of one instance.
func contact(door *Door, boot string, sequence int64) {
	body, _ := json.Marshal(wire.Report{ // strings and numbers only
		Protocol: wire.Protocol, Boot: strings.Repeat(boot, 32), Instance: strings.Repeat("e", 32), Sequence: sequence, Time: time.Now(),
	})
	door.Must(http.StatusOK, "", http.MethodPost, wire.PathReport, body)
}

func TestSecondContactOfAReplacedBootIsEnough(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Enlist(h.API, 0, 1)[0]
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	// A started agent is no clone, nor is one late report of the boot before.
	a, b := h.Door(d.Identity()), h.Door(d.Identity())
	contact(a, "a", 1)
	contact(b, "b", 1)
	contact(a, "a", 2)
	contact(b, "b", 2)
	if flagged(h, d) {
		t.Error("flagged after one strange contact")
	}
	contact(a, "a", 3)
	if !flagged(h, d) {
		t.Error("not flagged after the second strange contact")
	}
	for i := range 20 {
		contact(b, "b", int64(3+i))
		contact(a, "a", int64(4+i))
	}
	h.Until("the clone is in the ledger", func() bool { return clones(h, d) > 0 })
	h.Settle()
	if n := clones(h, d); n != 1 {
		t.Errorf("a lasting clone fills the ledger: %d events", n)
	}
}

// flagged tells whether the device shows the flag, which is set in the report's own transaction.
func flagged(h *House, d *Device) bool {
	return h.Get("/devices/" + d.ID + "/certificates")["clone"] != nil
}

func TestRestartAndNewEnrollmentAreNoClones(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Prepare(h.API, 0, 1)[0]
	d.Tune(oftenReporting)
	for range 4 {
		a := d.Start()
		h.Until("the agent is online", func() bool { return a.Status().State == agent.StateOnline })
		h.AwaitStage(d.ID, "active")
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	// The disk is replaced: a new state directory with a new token.
	for range 2 {
		fresh := h.Device(0, h.EnrollmentToken(d.ID))
		fresh.Tune(oftenReporting)
		a := fresh.Start()
		h.Until("the new disk is online", func() bool { return a.Status().State == agent.StateOnline })
		if err := fresh.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	h.Until("all three enrollments are in the ledger", func() bool { return len(h.Events(d.ID, "provisioning.enrolled")) == 3 })
	h.Settle()
	if n := clones(h, d); n != 0 || flagged(h, d) {
		t.Errorf("%d false alarms", n)
	}
}

func TestRevocationClosesALongPollAndRefusesTheNextContact(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Enlist(h.API, 0, 1)[0]
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	door := h.Door(d.Identity())
	now := door.Must(http.StatusOK, "", http.MethodGet, wire.PathDesired, nil)
	etag := now.Header.Get("ETag")
	began := time.Now()
	held := make(chan Answer, 1)
	go func() {
		out, _ := door.Ask(http.MethodGet, wire.PathDesired+"?wait=60", nil, "If-None-Match", etag) // a cut connection is fine, too
		held <- out
	}()
	other := h.Door(d.Identity())
	other.Must(http.StatusNotModified, "", http.MethodGet, wire.PathDesired, nil, "If-None-Match", etag)
	h.Send(http.MethodPost, "/devices/"+d.ID+"/revoke", Object{"reason": "stolen"})
	out := <-held
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the long poll went on for %s", took)
	}
	if out.Status == http.StatusOK || out.Status == http.StatusNotModified {
		t.Errorf("a revoked device was answered %d", out.Status)
	}
	for _, path := range []string{wire.PathDesired, wire.PathTUF + "timestamp.json", wire.PathDocuments + strings.Repeat("0", 64)} {
		h.Door(d.Identity()).Must(http.StatusForbidden, wire.CodeRevoked, http.MethodGet, path, nil)
	}
}

func TestDisposedDeviceStaysOutHoweverOftenItAsks(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	d := h.Enlist(h.API, 0, 1)[0]
	kept := t.TempDir() // a thief copies the disk before the end
	if err := os.CopyFS(kept, os.DirFS(d.State)); err != nil {
		t.Fatal(err)
	}
	h.Retire(d.ID)
	h.OrderDisposal(d.ID, d.Serial)
	h.AwaitStage(d.ID, "disposed")
	if err := d.Stop(); err != nil && !errors.Is(err, agent.ErrDecommissioned) {
		t.Fatal(err)
	}
	h.VerifyCertificate(d.ID)
	h.Settle()
	events := len(h.Events(d.ID, ""))

	// The device itself knows that it is over.
	if err := d.Run(10 * time.Second); !errors.Is(err, agent.ErrDecommissioned) {
		t.Errorf("the agent starts again: %v", err)
	}
	// No token is made for it, and the used one does not work on a new disk.
	h.Refused(http.StatusConflict, http.MethodPost, "/enrollment-tokens", Object{"device": d.ID})
	anew := h.Device(0, d.Token)
	a := anew.Start()
	h.Until("the new disk is refused", func() bool { return a.Status().State == agent.StateBlocked })

	// A copy of the old disk is refused for good, asks seldom, and leaves nothing in the ledger.
	identity, err := os.ReadFile(filepath.Join(kept, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	door := h.Door(identity)
	for range 20 {
		door.Must(http.StatusForbidden, wire.CodeDecommissioned, http.MethodGet, wire.PathDesired, nil)
		door.Must(http.StatusForbidden, wire.CodeDecommissioned, http.MethodPost, wire.PathReport, []byte(`{}`))
	}
	back := h.Device(0, "")
	back.Tune(func(c *agent.Config) { c.StateDir = kept })
	b := back.Start()
	h.Until("the copy is blocked", func() bool { return b.Status().State == agent.StateBlocked })
	if stage := h.Stage(d.ID); stage != "disposed" {
		t.Errorf("the device is %s", stage)
	}
	h.Settle()
	if n := len(h.Events(d.ID, "")); n != events {
		t.Errorf("knocking has made %d events", n-events)
	}
}
