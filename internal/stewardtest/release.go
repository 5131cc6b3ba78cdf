package stewardtest

import (
	"context"
	"net/http"
	"os"
	"path/filepath"

	"steward/internal/release/push"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

// OfflineKeys makes release keys outside of the server and gives it their root.
func (a *API) OfflineKeys() (dir string) {
	a.t.Helper()
	dir = filepath.Join(a.t.TempDir(), "release-keys")
	if err := push.InitKeys(context.Background(), a.c, dir, signing.Options{RootKeys: 2, RootThreshold: 2}); err != nil {
		a.t.Fatalf("make the release keys: %v", err)
	}
	return dir
}

// Good and Bad are health commands that pass and fail.
var (
	Good = []wire.Command{{Argv: []string{"test", "-f", "version"}}}
	Bad  = []wire.Command{{Argv: []string{"false"}}}
)

// Push publishes a version of the release "app", whose one component, "app", has the version in a file.
// Empty keys let the server sign.
func (a *API) Push(keys, version string, health []wire.Command) {
	a.t.Helper()
	dir := a.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte(version+"\n"), 0o644); err != nil {
		a.t.Fatal(err)
	}
	_, err := push.Pusher{API: a.c, Keys: keys}.Push(context.Background(), push.Spec{
		Name: "app", Version: version,
		Components: []push.Component{{Name: "app", Dir: dir, Commands: wire.ComponentCommands{Health: health, HealthSeconds: 1}}},
	})
	if err != nil {
		a.t.Fatalf("push app %s: %v", version, err)
	}
}

// Assign gives the version to the devices of the selector and returns the assignment's ID.
func (a *API) Assign(version, selector string) string {
	a.t.Helper()
	return text(a.Send(http.MethodPost, "/assignments", Object{"name": "app", "version": version, "selector": selector}), "id")
}

// AwaitState waits until n devices of the assignment are in the state.
func (a *API) AwaitState(assignment, state string, n int) {
	a.t.Helper()
	var counts map[string]int
	if !poll(waitLimit, func() bool { counts = a.Counts(assignment); return counts[state] == n }) {
		a.t.Fatalf("want %d devices %s, there are %v", n, state, counts)
	}
}

// Retire takes a device out of service.
func (a *API) Retire(device string) {
	a.t.Helper()
	a.Send(http.MethodPost, "/devices/"+device+"/retire", Object{"reason": "end of the test"})
}

// OrderDisposal orders a retired device to destroy its data.
func (a *API) OrderDisposal(device, serial string) {
	a.t.Helper()
	a.Send(http.MethodPost, "/devices/"+device+"/disposal/order", Object{"reason": "end of the test", "confirm": serial})
}
