// Package steward_test holds the house rules that a compiler can't: which package may import which.
// Run it with -count=1, since it reads the source tree.
package steward_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "steward/"

var (
	pure = []string{"internal/device", "internal/fault"}
	// technology does one thing each and knows no room.
	technology = []string{"internal/sqldb", "internal/bus", "internal/blob", "internal/httpapi", "internal/ui", "internal/run", "internal/client", "internal/mqtt", "internal/lease", "internal/keys", "internal/job"}
	// spine is what all rooms stand on.
	spine = []string{"internal/ledger", "internal/twin"}
	rooms = []string{
		"internal/registry", "internal/access", "internal/purchase", "internal/provisioning", "internal/release",
		"internal/update", "internal/monitoring", "internal/disposal", "internal/remote", "internal/link",
	}
	// outside sees everything: the composition root, the command line and the test house.
	outside = []string{"internal/server", "internal/cli", "internal/demo", "internal/bench", "internal/backup", "internal/stewardtest", "cmd/"}
)

type goPackage struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
	Dir        string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles,Dir", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(bytes.NewReader(out))
	for dec.More() {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 20 {
		t.Fatalf("only %d packages found", len(pkgs))
	}
	return pkgs
}

// in tells whether the package is one of the named or lies below one.
func in(pkg string, set []string) bool {
	return slices.ContainsFunc(set, func(s string) bool {
		s = strings.TrimSuffix(s, "/")
		return pkg == s || strings.HasPrefix(pkg, s+"/")
	})
}

// roomOf returns the first two parts of a path: "internal/ui" for "internal/ui/chart".
func roomOf(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

func TestPackagesImportOnlyWhatTheHouseAllows(t *testing.T) {
	for _, p := range listPackages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasSuffix(pkg, "test") || in(pkg, outside) {
			continue
		}
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, module)
			if reason := refuse(pkg, dep, ours, imp); reason != "" {
				t.Errorf("%s imports %s: %s", pkg, imp, reason)
			}
		}
	}
}

func refuse(pkg, dep string, ours bool, imp string) string {
	sameRoom := ours && roomOf(pkg) == roomOf(dep)
	switch {
	case in(pkg, pure) && (ours || strings.Contains(strings.SplitN(imp, "/", 2)[0], ".")):
		return "it stands on the standard library only"
	case pkg == "internal/wire" && ours:
		return "the wire imports nothing of ours"
	case !ours || sameRoom:
		return ""
	case in(dep, outside):
		return "only commands stand above the composition root"
	case in(pkg, []string{"internal/agent"}) && dep != "internal/wire" && dep != "internal/mqtt":
		return "the agent knows the wire, MQTT's packets and itself"
	case !in(pkg, []string{"internal/agent"}) && in(dep, []string{"internal/agent"}):
		return "the server doesn't know the agent"
	case in(pkg, technology) && (in(dep, rooms) || in(dep, []string{"internal/twin"})):
		return "technology knows no room"
	case in(pkg, spine) && in(dep, rooms):
		return "the spine knows no room"
	case in(pkg, rooms) && in(dep, rooms):
		return "rooms meet in internal/server only"
	}
	return ""
}

func TestAgentLinksNoServerEngine(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/steward-agent").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, heavy := range []string{"modernc.org/", "github.com/jackc/", "github.com/nats-io/", "github.com/danielgtaylor/", "github.com/prometheus/prometheus", "steward/internal/server"} {
			if strings.HasPrefix(dep, heavy) {
				t.Errorf("the agent links %s", dep)
			}
		}
	}
}

func TestSourcesStayReadable(t *testing.T) {
	const wall = 800 // lines; see CONTRIBUTING.md
	for _, p := range listPackages(t) {
		for _, f := range p.GoFiles {
			if strings.HasSuffix(f, "_gen.go") {
				continue
			}
			if n := countLines(t, p.Dir+"/"+f); n > wall {
				t.Errorf("%s/%s has %d lines: split it by a noun of the field", strings.TrimPrefix(p.ImportPath, module), f, n)
			}
		}
	}
}

func countLines(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(data, []byte("\n"))
}
