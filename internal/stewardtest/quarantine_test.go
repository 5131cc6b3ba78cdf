package stewardtest_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"steward/internal/agent"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

func policy(h *House, unpurchased string) {
	h.Send(http.MethodPut, "/enrollment-policy", Object{"unpurchased": unpurchased})
}

// uninvited makes a token for a serial number that nobody bought, and its device.
func uninvited(h *House, n int) *Device {
	serial := h.Serials(n, 1)[0]
	token, _ := h.Send(http.MethodPost, "/enrollment-tokens", Object{"serial": serial})["token"].(string)
	return h.Device(n, token)
}

// desiredUpdate is the version that the device should run; "" means that nothing is desired.
func desiredUpdate(h *House, id string) string {
	out, err := h.Try(http.MethodGet, "/devices/"+id+"/desired/"+string(wire.SectionUpdate), nil)
	if err != nil {
		return ""
	}
	releases, _ := out["releases"].([]any)
	if len(releases) == 0 {
		return ""
	}
	first, _ := releases[0].(map[string]any)
	version, _ := first["version"].(string)
	return version
}

func TestDeviceThatNobodyBoughtIsQuarantinedAndGetsNothing(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true})
	h.Push("", "1.0.0", Good)
	bought := h.Enlist(h.API, 0, 1)[0]
	stranger := uninvited(h, 1)
	a := stranger.Start()
	h.Until("the stranger is online", func() bool { return a.Status().State == agent.StateOnline && a.Status().Device != "" })
	id := a.Status().Device
	h.AwaitStage(id, "quarantined")
	h.Until("its inventory is known", func() bool { return h.Reported(id, wire.SectionInventory) != nil })

	asg := h.Assign("1.0.0", "")
	h.AwaitState(asg, "committed", 1)
	if v := desiredUpdate(h, id); v != "" || Runs(stranger.State, "app") != "" {
		t.Errorf("a device in quarantine is to run %q and runs %q", v, Runs(stranger.State, "app"))
	}
	if Runs(bought.State, "app") != "1.0.0" {
		t.Error("the bought device runs nothing")
	}
	if !strings.Contains(h.Page("/"), "nobody bought") {
		t.Error("the first page does not tell of the stranger")
	}
	h.Door(stranger.Identity()).Must(http.StatusForbidden, wire.CodeQuarantined, http.MethodGet, wire.PathArtifacts+strings.Repeat("0", 64), nil)

	// Let in by an operator, it gets what is assigned to its like.
	h.Send(http.MethodPost, "/devices/"+id+"/move", Object{"to": "active", "reason": "found the invoice"})
	h.AwaitState(asg, "committed", 2)
	if got := Runs(stranger.State, "app"); got != "1.0.0" {
		t.Errorf("released from quarantine, it runs %q", got)
	}
}

func TestPolicyAcceptsOrRefusesWhatNobodyBought(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	policy(h, "accept")
	welcome := uninvited(h, 0)
	a := welcome.Start()
	h.Until("the accepted device is enrolled", func() bool { return a.Status().Device != "" })
	h.AwaitStage(a.Status().Device, "active")

	late := uninvited(h, 1) // its token was made before the policy changed
	policy(h, "refuse")
	refused := late.Start()
	h.Until("the device is refused", func() bool {
		s := refused.Status()
		return s.State == agent.StateBlocked && strings.Contains(s.Detail, "nobody bought")
	})
	h.Refused(http.StatusConflict, http.MethodPost, "/enrollment-tokens", Object{"serial": "UNHEARD-OF-1"})
	for _, d := range h.List("/devices") {
		if d["serial"] == late.Serial {
			t.Errorf("the refused device was made: %v", d)
		}
	}

	// Bought after all, the same device with the same token comes in by itself.
	ids := h.Buy(late.Serial)
	h.AwaitStage(ids[0], "active")
}

func TestQuarantineTakesTheUpdateAwayAndReleaseGivesItBack(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true})
	d := h.Enlist(h.API, 0, 1)[0]
	h.Push("", "1.0.0", Good)
	h.Push("", "2.0.0", Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1)

	h.Send(http.MethodPost, "/devices/"+d.ID+"/move", Object{"to": "quarantined", "reason": "behaves oddly"})
	h.Until("nothing is desired of it", func() bool { return desiredUpdate(h, d.ID) == "" })
	asg := h.Assign("2.0.0", "")
	Never(t, 1500*time.Millisecond, "a device in quarantine is updated", func() bool {
		return Runs(d.State, "app") != "1.0.0" || desiredUpdate(h, d.ID) != ""
	})
	h.Send(http.MethodPost, "/devices/"+d.ID+"/move", Object{"to": "active", "reason": "it was the cable"})
	h.AwaitState(asg, "committed", 1)
	if got := Runs(d.State, "app"); got != "2.0.0" {
		t.Errorf("it runs %q", got)
	}
}
