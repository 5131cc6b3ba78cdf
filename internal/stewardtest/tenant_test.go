package stewardtest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// deviceReads are all operations that read or change one device.
var deviceReads = []string{
	"", "/twin", "/certificates", "/presence", "/metrics", "/updates", "/disposal", "/reported/inventory", "/reported/packages", "/desired/update",
}

func TestTenantsAndTheirDevicesNeverSeeOneAnother(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{ManagedKeys: true})
	b := h.Tenant("beta")
	b.Send(http.MethodPost, "/release-repository/managed", Object{})
	mine := h.Enlist(h.API, 0, 1)[0]
	theirs := h.Enlist(b, 1, 1)[0]
	h.Push("", "1.0.0", Good)
	b.Push("", "9.9.9", Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1)
	b.AwaitState(b.Assign("9.9.9", ""), "committed", 1)
	h.Until("both have reported", func() bool {
		return h.Reported(mine.ID, wire.SectionPackages) != nil && b.Reported(theirs.ID, wire.SectionPackages) != nil
	})

	operator := h.Account("alice", "release-manager", "")
	operatorSeesOnly(t, operator, mine, theirs)
	operatorSeesOnly(t, b.Account("bob", "release-manager", ""), theirs, mine)
	// The header that lets the installation's administrators act elsewhere is nothing to others.
	operator.In("beta").Refused(http.StatusForbidden, http.MethodGet, "/devices", nil)

	deviceReachesOnly(t, h, b, mine, theirs)
}

// operatorSeesOnly tries every way from one tenant to another's device.
func operatorSeesOnly(t *testing.T, who *API, own, other *Device) {
	t.Helper()
	for _, path := range deviceReads {
		who.Refused(http.StatusNotFound, http.MethodGet, "/devices/"+other.ID+path, nil)
	}
	for path, body := range map[string]Object{
		"/move": {"to": "quarantined", "reason": "x"}, "/retire": {"reason": "x"}, "/revoke": {"reason": "x"}, "/clear-clone-flag": {"reason": "x"},
		"/disposal/order": {"reason": "x", "confirm": other.Serial},
	} {
		who.Refused(http.StatusNotFound, http.MethodPost, "/devices/"+other.ID+path, body)
	}
	who.Refused(http.StatusNotFound, http.MethodPatch, "/devices/"+other.ID, Object{"name": "mine now"})
	who.Refused(http.StatusNotFound, http.MethodPost, "/enrollment-tokens", Object{"device": other.ID})
	hidden(t, who, other)
	if n := len(who.List("/devices")); n != 1 {
		t.Errorf("%d devices are seen, one is there", n)
	}
	for _, page := range []string{"", "/packages", "/dispose", "/move?to=quarantined", "/revoke"} {
		if status, _ := who.Fetch("/devices/" + other.ID + page); status != http.StatusNotFound {
			t.Errorf("page %q of the other's device: status %d", page, status)
		}
		if status, _ := who.Fetch("/devices/" + own.ID + page); status != http.StatusOK {
			t.Errorf("page %q of the own device: status %d", page, status)
		}
	}
}

// everywhere are the lists, pages and measurements in which a device could turn up.
var everywhere = []string{
	"/api/v1/devices", "/api/v1/devices?q=SIM", "/api/v1/events", "/api/v1/device-updates", "/api/v1/certificates/expiring?within_seconds=630720000",
	"/api/v1/enrollment-tokens", "/api/v1/assignments", "/api/v1/releases", "/api/v1/orders", "/api/v1/stock", "/api/v1/disposals", "/api/v1/disposal/waiting",
	"/api/v1/metrics/query?query=%7B__name__%3D~%22.%2B%22%7D", "/api/v1/metrics/query?query=system_cpu_utilization",
	"/", "/devices", "/ledger", "/updates", "/updates/devices", "/enrollment", "/enrollment/certificates", "/enrollment/clones", "/stock", "/disposal", "/releases", "/orders",
}

// hidden fails when the other's device turns up in anything that can be read.
func hidden(t *testing.T, who *API, other *Device) {
	t.Helper()
	for _, path := range everywhere {
		status, body := who.Fetch(path)
		if status >= http.StatusInternalServerError {
			t.Errorf("%s: status %d: %.200s", path, status, body)
		}
		if strings.Contains(body, other.ID) || strings.Contains(body, other.Serial) {
			at := max(strings.Index(body, other.ID), strings.Index(body, other.Serial))
			t.Errorf("%s shows the other's device: …%s…", path, body[max(0, at-200):min(len(body), at+100)])
		}
	}
	for _, e := range who.List("/events") {
		if e["device"] == other.ID {
			t.Errorf("event %v of the other's device", e["kind"])
		}
	}
	if n := len(who.List("/events?device=" + other.ID)); n != 0 {
		t.Errorf("%d events of the other's device", n)
	}
}

// deviceReachesOnly tries with one tenant's certificate what the other's devices may fetch.
func deviceReachesOnly(t *testing.T, h *House, b *API, mine, theirs *Device) {
	t.Helper()
	for _, d := range []*Device{mine, theirs} {
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	door, foreign := h.Door(mine.Identity()), h.Door(theirs.Identity())
	hashes := func(a *API, id string) []string {
		var out []string
		twin := a.Get("/devices/" + id + "/twin")
		for _, side := range []string{"desired", "reported"} {
			out = append(out, strings.Fields(strings.NewReplacer("map", " ", "[", " ", "]", " ", ":", " ").Replace(fmt.Sprint(twin[side])))...)
		}
		var found []string
		for _, word := range out {
			if _, err := wire.ParseHash(word); err == nil {
				found = append(found, word)
			}
		}
		return found
	}
	own := hashes(h.API, mine.ID)
	tried := 0
	for _, hash := range hashes(b, theirs.ID) {
		if strings.Contains(fmt.Sprint(own), hash) {
			continue // the same content is its own document, too
		}
		door.Must(http.StatusNotFound, wire.CodeDocumentMissing, http.MethodGet, wire.PathDocuments+hash, nil)
		tried++
	}
	if tried == 0 {
		t.Error("no document of the other tenant was tried")
	}
	for _, a := range b.List("/releases") {
		for _, hash := range artifactsOf(b, a) {
			foreign.Must(http.StatusOK, "", http.MethodGet, wire.PathArtifacts+hash, nil)
			door.Must(http.StatusNotFound, "", http.MethodGet, wire.PathArtifacts+hash, nil)
			tried++
		}
	}
	for _, name := range []string{"1.root.json", "timestamp.json"} {
		x, y := door.Must(http.StatusOK, "", http.MethodGet, wire.PathTUF+name, nil), foreign.Must(http.StatusOK, "", http.MethodGet, wire.PathTUF+name, nil)
		if string(x.Body) == string(y.Body) {
			t.Errorf("two tenants have the same %s", name)
		}
	}
	if body := string(door.Must(http.StatusOK, "", http.MethodGet, wire.PathTUF+"1.targets.json", nil).Body); strings.Contains(body, "9.9.9") {
		t.Error("the targets name the other tenant's release")
	}
}

// artifactsOf lists the hashes of a release's artifacts.
func artifactsOf(a *API, release Object) []string {
	var out []string
	one := a.Get(fmt.Sprintf("/releases/%v/%v", release["name"], release["version"]))
	for _, word := range strings.FieldsFunc(fmt.Sprint(one), func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		if _, err := wire.ParseHash(word); err == nil {
			if _, err := a.Try(http.MethodGet, "/artifacts/"+word, nil); err == nil {
				out = append(out, word)
			}
		}
	}
	return out
}
