package update_test

import (
	"archive/tar"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"steward/internal/release/signing"
	"steward/internal/wire"
)

func TestReleaseIsInstalledAndCommitted(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	ref := repo.publish(m, a)
	d.install(ref)
	if got := d.running("app"); got != "1.0" {
		t.Errorf("runs %q", got)
	}
	p := d.progress(ref)
	var states []string
	for _, r := range p.Reached {
		states = append(states, string(r.State))
	}
	if want := "downloading downloaded installed healthy committed"; strings.Join(states, " ") != want {
		t.Errorf("reached %v, want %s", states, want)
	}
	if in := d.report().Installed; len(in) != 1 || in[0].Version != "1.0" {
		t.Errorf("installed %+v", in)
	}
	if want := []string{"pre 1.0", "post 1.0", "health 1.0"}; !slices.Equal(d.host.calls, want) {
		t.Errorf("commands %v, want %v", d.host.calls, want)
	}
	info, err := os.Stat(filepath.Join(d.components(), "app", "current", "bin", "run"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}

func TestSameWishesAgainDoNothing(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	ref := repo.publish(m, a)
	d.install(ref)
	before := d.report()
	reads := repo.metaReads
	d.boot()
	d.install(ref)
	d.apply(ref)
	d.halt()
	if repo.metaReads != reads || len(d.host.calls) != 3 {
		t.Errorf("%d metadata reads and %v after a restart", repo.metaReads-reads, d.host.calls)
	}
	if after := d.report(); after.Installed[0] != before.Installed[0] {
		t.Errorf("installed changed from %+v to %+v", before.Installed, after.Installed)
	}
}

func TestSameVersionUnderAnotherAssignmentIsCommittedAtOnce(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	ref := repo.publish(m, a)
	d.install(ref)
	ref.Assignment = "asg-other"
	d.install(ref)
	if d.host.called("post 1.0") != 1 {
		t.Errorf("installed again: %v", d.host.calls)
	}
}

func TestBadReleaseGoesBackWithItsFirstCause(t *testing.T) {
	for step, code := range map[string]string{"pre": "pre 2.0", "post": "post 2.0", "health": "health 2.0"} {
		t.Run(step, func(t *testing.T) {
			repo := newRepository(t, signing.Options{})
			d := newDevice(t, repo)
			d.boot()
			m, a := simple(t, "1.0")
			first := repo.publish(m, a)
			d.install(first)
			m, a = simple(t, "2.0")
			bad := repo.publish(m, a)
			d.host.codes[code] = 7
			d.apply(bad)
			p, _ := d.wait(bad)
			if p.State != wire.UpdateRolledBack || p.Step != step || !strings.Contains(p.Cause, code) || !strings.Contains(p.Cause, "7") || p.Output != "output of "+code {
				t.Errorf("ended %+v", p)
			}
			if got := d.running("app"); got != "1.0" {
				t.Errorf("runs %q", got)
			}
			if d.host.called("post 1.0") != 2 {
				t.Errorf("commands %v: want the post command of 1.0 once more", d.host.calls)
			}
			if in := d.report().Installed; len(in) != 1 || in[0].Version != "1.0" {
				t.Errorf("installed %+v", in)
			}
			d.eventually("the refused version is removed", func() bool { return !slices.Contains(d.versions("app"), "2.0") })
		})
	}
}

func TestRefusedAttemptIsNotRepeatedUntilTheNextIsAsked(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	ref := repo.publish(m, a)
	d.host.codes["health 1.0"] = 1
	d.apply(ref)
	if p, _ := d.wait(ref); p.State != wire.UpdateRolledBack {
		t.Fatalf("ended %+v", p)
	}
	if got := d.running("app"); got != "" {
		t.Errorf("a first installation that failed left %q", got)
	}
	calls := len(d.host.calls)
	d.boot()
	d.apply(ref)
	d.apply(ref)
	d.halt()
	if len(d.host.calls) != calls {
		t.Errorf("it was tried again: %v", d.host.calls[calls:])
	}
	d.host.codes = map[string]int{}
	d.boot()
	ref.Attempt = 2
	d.install(ref)
	if got := d.running("app"); got != "1.0" {
		t.Errorf("runs %q", got)
	}
}

func TestHealthIsAskedUntilItPasses(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	m, a := simple(t, "1.0")
	ref := repo.publish(m, a)
	d.host.codes["health 1.0"] = 1
	d.host.on = func(call string) {
		if call == "health 1.0" && d.host.called(call) == 3 {
			d.host.mu.Lock()
			d.host.codes["health 1.0"] = 0
			d.host.mu.Unlock()
		}
	}
	d.boot()
	d.install(ref)
	if n := d.host.called("health 1.0"); n != 4 {
		t.Errorf("asked %d times", n)
	}
}

// pair is a release of the components app and lib.
func pair(t *testing.T, version string) (wire.ReleaseManifest, []byte, []byte) {
	m, a := simple(t, version)
	lib := m.Components[0]
	lib.Name = "lib"
	lib.Commands = wire.ComponentCommands{Post: []wire.Command{{Argv: []string{"lib-post", version}}}}
	m.Components = append(m.Components, lib)
	return m, a, archive(t, entry{name: "version", content: version}, entry{name: "bin/run", content: "run " + version}, entry{name: "lib", content: "lib"})
}

func TestSeveralComponentsGoForwardAndBackTogether(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a, b := pair(t, "1.0")
	d.install(repo.publish(m, a, b))
	m, a, b = pair(t, "2.0")
	bad := repo.publish(m, a, b)
	d.host.codes["lib-post 2.0"] = 1
	d.apply(bad)
	if p, _ := d.wait(bad); p.State != wire.UpdateRolledBack {
		t.Fatalf("ended %+v", p)
	}
	if d.running("app") != "1.0" || d.running("lib") != "1.0" {
		t.Errorf("runs app %s and lib %s", d.running("app"), d.running("lib"))
	}
	if d.host.called("post 1.0") != 2 || d.host.called("lib-post 1.0") != 2 {
		t.Errorf("commands %v", d.host.calls)
	}
}

func TestOldVersionsAndDroppedComponentsAreRemoved(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	stranger := filepath.Join(d.components(), "mine", "versions", "1")
	if err := os.MkdirAll(stranger, 0o755); err != nil {
		t.Fatal(err)
	}
	m, a, b := pair(t, "1.0")
	d.install(repo.publish(m, a, b))
	for _, v := range []string{"2.0", "3.0", "4.0"} {
		m, a := simple(t, v)
		d.install(repo.publish(m, a))
	}
	d.eventually("current and previous are kept", func() bool { return slices.Equal(d.versions("app"), []string{"3.0", "4.0"}) })
	d.halt()
	if _, err := os.Stat(filepath.Join(d.components(), "lib")); !os.IsNotExist(err) {
		t.Errorf("the dropped component is there: %v", err)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Errorf("a directory that is not ours was removed: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(d.dir, "state", "downloads")); err != nil || len(left) != 0 {
		t.Errorf("%d downloads left, error %v", len(left), err)
	}
}

func TestOnlyFittingComponentsAreInstalled(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a, b := pair(t, "1.0")
	m.Components[0].Models = []string{"gateway 3"}
	m.Components[1].Architectures = []string{"arm64"}
	d.install(repo.publish(m, a, b))
	if d.running("app") != "1.0" || d.running("lib") != "" {
		t.Errorf("runs app %q and lib %q", d.running("app"), d.running("lib"))
	}
	m, a = simple(t, "2.0")
	m.Components[0].Architectures = []string{"riscv64"}
	ref := repo.publish(m, a)
	d.apply(ref)
	if p, _ := d.wait(ref); p.State != wire.UpdateFailed || !strings.Contains(p.Cause, "architecture amd64") {
		t.Errorf("ended %+v", p)
	}
}

func TestComponentOfAnotherReleaseIsNotTakenOver(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	app := repo.publish(m, a)
	d.install(app)
	m.Name = "rival"
	rival := repo.publish(m, a)
	d.apply(app, rival)
	if p, _ := d.wait(rival); p.State != wire.UpdateFailed || !strings.Contains(p.Cause, "belongs to release app") {
		t.Errorf("ended %+v", p)
	}
}

func TestNewerWishReplacesADownloadAndWaitsForASwitch(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	m, a := simple(t, "1.0")
	first := repo.publish(m, a)
	m, a = simple(t, "2.0")
	second := repo.publish(m, a)
	repo.onMeta = func(name string) ([]byte, error, bool) { return nil, os.ErrDeadlineExceeded, name == "timestamp.json" }
	d.boot()
	d.apply(first)
	d.eventually("the download begins", func() bool { return d.progress(first).State == wire.UpdateDownloading })
	d.apply(second)
	repo.mu.Lock()
	repo.onMeta = nil
	repo.mu.Unlock()
	if p, _ := d.wait(second); p.State != wire.UpdateCommitted {
		t.Fatalf("ended %+v", p)
	}
	if d.host.called("pre 1.0") != 0 {
		t.Errorf("the replaced wish was installed: %v", d.host.calls)
	}
	// From pre on a run goes to its end before the next wish counts.
	m, a = simple(t, "3.0")
	third := repo.publish(m, a)
	d.host.mu.Lock()
	d.host.on = func(call string) {
		if call == "post 3.0" {
			d.apply(second)
		}
	}
	d.host.mu.Unlock()
	d.apply(third)
	d.eventually("3.0 is committed and 2.0 follows", func() bool { return d.host.called("health 3.0") > 0 && d.host.called("health 2.0") == 2 })
}

func TestUnsafeArchivesAreRefused(t *testing.T) {
	for name, entries := range map[string][]entry{
		"parent directory":       {{name: "../evil", content: "x"}},
		"absolute path":          {{name: "/etc/evil", content: "x"}},
		"hidden parent":          {{name: "a/../../evil", content: "x"}},
		"link to the outside":    {{name: "l", kind: tar.TypeSymlink, link: "../../outside"}},
		"absolute link":          {{name: "l", kind: tar.TypeSymlink, link: "/etc"}},
		"write through a link":   {{name: "l", kind: tar.TypeSymlink, link: "sub"}, {name: "l/evil", content: "x"}},
		"link up behind a link":  {{name: "d/up", kind: tar.TypeSymlink, link: ".."}, {name: "l", kind: tar.TypeSymlink, link: "d/up/.."}},
		"hard link outside":      {{name: "h", kind: tar.TypeLink, link: "../../journal/journal.log"}},
		"hard link to a link":    {{name: "l", kind: tar.TypeSymlink, link: "x"}, {name: "h", kind: tar.TypeLink, link: "l"}},
		"device":                 {{name: "dev", kind: tar.TypeChar}},
		"pipe":                   {{name: "pipe", kind: tar.TypeFifo}},
		"same file twice":        {{name: "f", content: "1"}, {name: "./f", content: "2"}},
		"file under a file":      {{name: "f", content: "1"}, {name: "f/g", content: "2"}},
		"backslash in the name":  {{name: `..\evil`, content: "x"}},
		"link in place of a dir": {{name: "d/f", content: "1"}, {name: "d", kind: tar.TypeSymlink, link: "e"}},
	} {
		t.Run(name, func(t *testing.T) {
			repo := newRepository(t, signing.Options{})
			d := newDevice(t, repo)
			d.boot()
			m, _ := simple(t, "1.0")
			ref := repo.publish(m, archive(t, entries...))
			d.apply(ref)
			p, _ := d.wait(ref)
			if p.State != wire.UpdateFailed || p.Step != "unpack" {
				t.Errorf("ended %+v", p)
			}
			if got := d.versions("app"); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
			if found, _ := filepath.Glob(filepath.Join(d.dir, "*", "evil")); len(found) > 0 {
				t.Errorf("wrote %v", found)
			}
		})
	}
}

func TestArchiveKeepsLinksAndMasksModes(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, _ := simple(t, "1.0")
	ref := repo.publish(m, archive(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o777}, entry{name: "version", content: "1.0"}, entry{name: "bin/run", content: "run 1.0", mode: 0o6777},
		entry{name: "lib/deep/link", kind: tar.TypeSymlink, link: "../../bin/run"}, entry{name: "hard", kind: tar.TypeLink, link: "bin/run"},
		entry{name: "secret", content: "s", mode: 0o400}))
	d.install(ref)
	current := filepath.Join(d.components(), "app", "current")
	for name, mode := range map[string]os.FileMode{"bin/run": 0o755, "lib/deep/link": 0o755, "hard": 0o755, "secret": 0o600, "bin": 0o755} {
		info, err := os.Stat(filepath.Join(current, name))
		if err != nil || info.Mode()&(os.ModePerm|os.ModeSetuid|os.ModeSetgid) != mode {
			t.Errorf("%s: %v, error %v: want %v", name, info, err, mode)
		}
	}
}

func TestDamagedArchiveIsRefused(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	for name, content := range map[string][]byte{"cut off": a[:len(a)/2], "no archive": []byte(strings.Repeat("not a tar file ", 100)), "empty": {}} {
		m.Version = strings.ReplaceAll(name, " ", "")
		m.Components[0].Version = m.Version
		ref := repo.publish(m, content)
		d.apply(ref)
		p, _ := d.wait(ref)
		if name == "empty" {
			continue // an empty archive is an empty directory; what it is good for, its commands tell
		}
		if p.State != wire.UpdateFailed || p.Step != "unpack" {
			t.Errorf("%s ended %+v", name, p)
		}
	}
}

func TestFullDiskIsRefusedBeforeAnythingChanges(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	d.install(repo.publish(m, a))
	m, a = simple(t, "2.0")
	ref := repo.publish(m, a)
	d.host.mu.Lock()
	d.host.free = 100 // bytes
	d.host.mu.Unlock()
	calls := len(d.host.calls)
	d.apply(ref)
	p, _ := d.wait(ref)
	if p.State != wire.UpdateFailed || p.Step != "download" || !strings.Contains(p.Cause, "not enough space") {
		t.Errorf("ended %+v", p)
	}
	if d.running("app") != "1.0" || len(d.host.calls) != calls {
		t.Errorf("runs %s after %v", d.running("app"), d.host.calls[calls:])
	}
}

func TestSanitizeDestroysWhatWasInstalled(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	d.install(repo.publish(m, a))
	d.halt()
	for range 2 { // a kill may have it called again
		items := d.room.Sanitize(t.Context())
		for _, item := range items {
			if item.Result != "destroyed" {
				t.Errorf("%+v", item)
			}
		}
		if !strings.Contains(items[0].What, "app 1.0") {
			t.Errorf("first item %+v", items[0])
		}
	}
	if _, err := os.Lstat(filepath.Join(d.components(), "app")); !os.IsNotExist(err) {
		t.Errorf("component: %v", err)
	}
	d.boot()
	if r := d.report(); len(r.Installed) != 0 || len(r.Updates) != 0 {
		t.Errorf("still reports %+v", r)
	}
}

func TestWishesOfTheWrongFormAreRefused(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.boot()
	for name, body := range map[string]string{
		"no JSON":       `{`,
		"path as name":  `{"releases":[{"name":"../x","version":"1","target":"releases/../x/1.json","assignment":"a","attempt":1}]}`,
		"other target":  `{"releases":[{"name":"app","version":"1","target":"releases/app/2.json","assignment":"a","attempt":1}]}`,
		"twice the app": `{"releases":[{"name":"app","version":"1","target":"releases/app/1.json"},{"name":"app","version":"2","target":"releases/app/2.json"}]}`,
	} {
		if err := d.room.Apply(t.Context(), []byte(body)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
