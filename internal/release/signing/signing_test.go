package signing_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"steward/internal/fault"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

func onlineKeys(t *testing.T) signing.OnlineKeys {
	t.Helper()
	snapshot, err := signing.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	timestamp, err := signing.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return signing.OnlineKeys{Snapshot: signing.PublicHex(snapshot), Timestamp: signing.PublicHex(timestamp)}
}

func begin(t *testing.T, o signing.Options) *signing.Ceremony {
	t.Helper()
	c, err := signing.Init(filepath.Join(t.TempDir(), "keys"), onlineKeys(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func oneTarget(content string) signing.Change {
	return signing.Change{Add: []signing.Target{{Path: "artifacts/a/1/x.tar", SHA256: wire.HashOf([]byte(content)), SizeBytes: int64(len(content))}}}
}

func TestRootIsSignedByItsOwnKeysAndNamesTheServers(t *testing.T) {
	online := onlineKeys(t)
	dir := filepath.Join(t.TempDir(), "keys")
	c, err := signing.Init(dir, online, signing.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := signing.VerifyFirstRoot(c.Root().Bytes)
	if err != nil || root.Online != online || root.Version != 1 {
		t.Errorf("root %+v, error %v", root, err)
	}
	for _, name := range []string{"root-1.key", "targets-1.key"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, error %v: want 0600", name, info.Mode(), err)
		}
	}
	if _, err := signing.Init(dir, online, signing.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second ceremony in the same directory gave %v", err)
	}
}

func TestEncryptedKeysNeedTheirPassphrase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := signing.Init(dir, onlineKeys(t), signing.Options{Passphrase: []byte("correct horse")}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "root-1.key"))
	if err != nil || bytes.Contains(data, []byte("BEGIN PRIVATE KEY")) {
		t.Errorf("the key lies there in the clear")
	}
	for _, c := range []struct {
		passphrase string
		want       error
	}{{"", signing.ErrPassphraseNeeded}, {"wrong", signing.ErrPassphrase}, {"correct horse", nil}} {
		if _, err := signing.Open(dir, signing.Options{Passphrase: []byte(c.passphrase)}); !errors.Is(err, c.want) {
			t.Errorf("passphrase %q gave %v, want %v", c.passphrase, err, c.want)
		}
	}
}

func TestFewerSignaturesThanTheThresholdAreNotEnough(t *testing.T) {
	c := begin(t, signing.Options{TargetsKeys: 3, TargetsThreshold: 2})
	whole, err := c.SignTargets(nil, oneTarget("x"))
	if err != nil {
		t.Fatal(err)
	}
	for keep, ok := range map[int]bool{1: false, 2: true} {
		var doc map[string]any
		if err := json.Unmarshal(whole, &doc); err != nil {
			t.Fatal(err)
		}
		doc["signatures"] = doc["signatures"].([]any)[:keep]
		part, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Root().VerifyTargets(part); (err == nil) != ok {
			t.Errorf("%d of 3 signatures with a threshold of 2 gave %v", keep, err)
		}
	}
}

func TestTwoPeopleSignOneAfterTheOther(t *testing.T) {
	dir := t.TempDir()
	both := filepath.Join(dir, "both")
	if _, err := signing.Init(both, onlineKeys(t), signing.Options{TargetsKeys: 2, TargetsThreshold: 2}); err != nil {
		t.Fatal(err)
	}
	// Each takes one of the two targets keys away.
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	for person, key := range map[string]string{one: "targets-1.key", two: "targets-2.key"} {
		if err := os.Mkdir(person, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"root.json", key} {
			data, err := os.ReadFile(filepath.Join(both, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(person, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, err := signing.Open(one, signing.Options{})
	if err != nil {
		t.Fatal(err)
	}
	half, err := first.SignTargets(nil, oneTarget("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Root().VerifyTargets(half); err == nil {
		t.Error("half-signed targets verify")
	}
	if err := first.Keep(half); err == nil {
		t.Error("half-signed targets were kept as if a server could have accepted them")
	}
	second, err := signing.Open(two, signing.Options{})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := second.AddSignatures(half)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Root().VerifyTargets(whole); err != nil {
		t.Errorf("both signatures: %v", err)
	}
}

func TestServerThatShowsOldTargetsIsNoticed(t *testing.T) {
	c := begin(t, signing.Options{})
	first, err := c.SignTargets(nil, oneTarget("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Keep(first); err != nil {
		t.Fatal(err)
	}
	second, err := c.SignTargets(first, signing.Change{Add: []signing.Target{{Path: "artifacts/b/1/y.tar", SHA256: wire.HashOf([]byte("y")), SizeBytes: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Keep(second); err != nil {
		t.Fatal(err)
	}
	for name, current := range map[string][]byte{"old": first, "none": nil} {
		if _, err := c.SignTargets(current, signing.Change{}); !errors.Is(err, signing.ErrRollback) {
			t.Errorf("%s targets of the server gave %v", name, err)
		}
	}
	targets, err := c.Root().VerifyTargets(second)
	if err != nil || targets.Version != 2 || len(targets.Files) != 2 {
		t.Errorf("targets %+v, error %v", targets, err)
	}
}

func TestWhatWasSignedNeverChangesItsContent(t *testing.T) {
	c := begin(t, signing.Options{})
	first, err := c.SignTargets(nil, oneTarget("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SignTargets(first, oneTarget("other")); err == nil || !strings.Contains(err.Error(), "other content") {
		t.Errorf("other content under the same name gave %v", err)
	}
}

func TestRootsFollowOneAnother(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := begin(t, signing.Options{RootKeys: 2, RootThreshold: 2, Now: func() time.Time { return now }})
	first := c.Root()
	now = now.Add(365 * 24 * time.Hour)
	online := onlineKeys(t)
	data, err := c.NextRoot(signing.Rotation{Online: online})
	if err != nil {
		t.Fatal(err)
	}
	next, err := first.VerifyNextRoot(data)
	if err != nil || next.Version != 2 || next.Online != online || !next.Expires.After(first.Expires) {
		t.Errorf("next root %+v, error %v", next, err)
	}
	skipped, err := c.NextRoot(signing.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.VerifyNextRoot(skipped); err == nil {
		t.Error("a root that skips a version was accepted")
	}
	stranger := begin(t, signing.Options{})
	foreign, err := stranger.NextRoot(signing.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.VerifyNextRoot(foreign); err == nil {
		t.Error("a stranger's root was accepted as the successor")
	}
}

func TestTargetsKeyCanBeReplaced(t *testing.T) {
	c := begin(t, signing.Options{})
	fresh, err := signing.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	old, err := c.SignTargets(nil, oneTarget("x"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Signed struct {
			Keys  map[string]struct{ Keyval struct{ Public string } }
			Roles map[string]struct{ Keyids []string }
		}
	}
	if err := json.Unmarshal(c.Root().Bytes, &doc); err != nil {
		t.Fatal(err)
	}
	was := doc.Signed.Keys[doc.Signed.Roles["targets"].Keyids[0]].Keyval.Public
	if _, err := c.NextRoot(signing.Rotation{AddTargets: []string{signing.PublicHex(fresh)}, RemoveTargets: []string{was}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Root().VerifyTargets(old); err == nil {
		t.Error("targets of the replaced key are still accepted")
	}
}

func TestManifestMistakesAreNamed(t *testing.T) {
	good := wire.ReleaseManifest{Name: "app", Version: "1", Components: []wire.Component{{Name: "app", Version: "1", Type: "files"}}}
	artifact := signing.Artifact{SHA256: wire.HashOf([]byte("x")), SizeBytes: 1}
	if rel, err := signing.Compose(good, []signing.Artifact{artifact}); err != nil || len(rel.Change.Add) != 2 {
		t.Fatalf("a good manifest gave %+v, %v", rel, err)
	}
	for name, c := range map[string]struct {
		change func(m *wire.ReleaseManifest)
		want   string
	}{
		"unknown type":     {func(m *wire.ReleaseManifest) { m.Components[0].Type = "firmware" }, "components[0].type"},
		"traversing name":  {func(m *wire.ReleaseManifest) { m.Name = "../etc" }, "name"},
		"dots in version":  {func(m *wire.ReleaseManifest) { m.Components[0].Version = "1..2" }, "components[0].version"},
		"no components":    {func(m *wire.ReleaseManifest) { m.Components = nil }, "components"},
		"empty command":    {func(m *wire.ReleaseManifest) { m.Components[0].Commands.Pre = []wire.Command{{}} }, "components[0].commands.pre[0].argv"},
		"endless time-out": {func(m *wire.ReleaseManifest) { m.Components[0].Commands.HealthSeconds = 1 << 20 }, "health_seconds"},
		"twice the same":   {func(m *wire.ReleaseManifest) { m.Components = append(m.Components, m.Components[0]) }, "components[1].name"},
		"zero byte in argv": {func(m *wire.ReleaseManifest) {
			m.Components[0].Commands.Post = []wire.Command{{Argv: []string{"a\x00"}}}
		}, "post[0].argv"},
	} {
		m := good
		m.Components = append([]wire.Component(nil), good.Components...)
		c.change(&m)
		artifacts := make([]signing.Artifact, len(m.Components))
		for i := range artifacts {
			artifacts[i] = artifact
		}
		_, err := signing.Compose(m, artifacts)
		if !errors.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want a mistake at %s", name, err, c.want)
		}
	}
}
