package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"steward/internal/server"
	"steward/internal/stewardtest"
	"steward/internal/wire"
)

func restoreFile(t *testing.T, path, to string, identities ...age.Identity) Result {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	got, err := Restore(t.Context(), RestoreConfig{DataDir: to, Identities: identities, Version: "test"}, f)
	if err != nil {
		t.Fatalf("restore: %v", err)
	}
	return got
}

// running waits until a device's component has a version.
func running(h *stewardtest.House, d *stewardtest.Device, version string) {
	h.Until(d.Serial+" runs "+version, func() bool { return stewardtest.Runs(d.State, "app") == version })
}

func TestBackupUnderLoadBringsBackAllThatWasAcknowledgedBefore(t *testing.T) {
	t.Parallel()
	const n = 4
	h := stewardtest.Start(t, stewardtest.Options{Process: true, ManagedKeys: true})
	fleet := h.Enlist(h.API, 0, n)
	h.Label(fleet[0].ID, stewardtest.Object{"ring": "canary"})
	h.Push("", "1.0.0", stewardtest.Good)
	h.Push("", "1.1.0", stewardtest.Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", n)
	load := h.Traffic(fleet[0].ID)
	load.Some(20)
	before := load.Acknowledged()

	lock, opener := passphrase(t, "correct horse")
	file := filepath.Join(t.TempDir(), "steward.backup")
	if _, err := CreateFile(t.Context(), Config{DataDir: h.Dir, Recipients: []age.Recipient{lock}, Version: "test"}, file); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Dir, stagePattern)); len(left) > 0 {
		t.Errorf("left in the data directory: %v", left)
	}

	// What the backup can't know: later states that devices accept, a release, one device that has it.
	load.Some(20)
	h.AwaitState(h.Assign("1.1.0", ""), "committed", n)
	h.Push("", "2.0.0", stewardtest.Good)
	h.AwaitState(h.Assign("2.0.0", "ring=canary"), "committed", 1)
	after := load.Acknowledged()
	h.KillServer()
	load.End()
	if err := os.Rename(h.Dir, h.Dir+".lost"); err != nil {
		t.Fatal(err)
	}

	got := restoreFile(t, file, h.Dir, opener)
	if got.Devices != n || !got.Encrypted || got.Events == 0 || got.Root == "" {
		t.Errorf("restored: %+v", summaryOf(got))
	}
	h.StartServer()
	before.Check()
	if events := h.List("/events?kind=ledger.restored"); len(events) != 1 {
		t.Errorf("the ledger tells of %d restores", len(events))
	}
	if _, err := server.VerifyLedger(t.Context(), server.Config{DataDir: h.Dir}, after.Head); err == nil {
		t.Error("a head that was kept after the backup does not show that the ledger has lost events")
	}
	// Devices come back by themselves, leave what is no longer wanted, and go on.
	for _, d := range fleet[1:] {
		running(h, d, "1.0.0")
	}
	// The one that has seen the lost release takes none of an older repository, until that is published again.
	h.Until("the device names the rollback", func() bool {
		return strings.Contains(fmt.Sprint(h.Reported(fleet[0].ID, wire.SectionUpdate)), "older than one seen before")
	})
	h.Push("", "2.0.0", stewardtest.Good)
	h.Push("", "2.1.0", stewardtest.Good)
	h.AwaitState(h.Assign("2.1.0", ""), "committed", n)
	for _, d := range fleet {
		if enrolled := len(h.Events(d.ID, "provisioning.enrolled")); enrolled != 1 {
			t.Errorf("%s has enrolled %d times", d.Serial, enrolled)
		}
	}
}

func summaryOf(r Result) Result { r.Entries = nil; return r }

func TestDeviceTakesTheRestoredStateThoughItHasSeenTheSameEpochOtherwise(t *testing.T) {
	t.Parallel()
	h := stewardtest.Start(t, stewardtest.Options{ManagedKeys: true})
	d := h.Enlist(h.API, 0, 1)[0]
	h.Push("", "1.0.0", stewardtest.Good)
	h.Push("", "2.0.0", stewardtest.Good)
	file := filepath.Join(t.TempDir(), "steward.backup")
	if _, err := CreateFile(t.Context(), Config{DataDir: h.Dir, Version: "test"}, file); err != nil {
		t.Fatal(err)
	}
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1) // one change after the backup …
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	h.StopServer()
	if err := os.RemoveAll(h.Dir); err != nil {
		t.Fatal(err)
	}
	restoreFile(t, file, h.Dir)
	h.StartServer()
	asg := h.Assign("2.0.0", "") // … and another one instead, before the device is back
	d.Start()
	h.AwaitState(asg, "committed", 1)
	running(h, d, "2.0.0")
}

func TestBackupOfAStoppedServerIsTheSame(t *testing.T) {
	t.Parallel()
	h := stewardtest.Start(t, stewardtest.Options{ManagedKeys: true})
	d := h.Enlist(h.API, 0, 1)[0]
	h.Push("", "1.0.0", stewardtest.Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1)
	head := h.Checkpoint()
	h.StopServer()
	file := filepath.Join(t.TempDir(), "b")
	if _, err := CreateFile(t.Context(), Config{DataDir: h.Dir, Version: "test"}, file); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(h.Dir); err != nil {
		t.Fatal(err)
	}
	restoreFile(t, file, h.Dir)
	h.StartServer()
	h.VerifyLedger(head)
	h.Until("the device reports", func() bool { return h.Reported(d.ID, wire.SectionInventory) != nil })
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1) // artifacts and keys are there
}

// small is a data directory with little in it, and its backup.
func small(t *testing.T) (dir, file string) {
	t.Helper()
	dir, file = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "b")
	s, err := server.Open(t.Context(), server.Config{DataDir: dir, ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stewardtest.Until(t, "it serves", func() bool { _, err := os.Stat(filepath.Join(dir, "bootstrap.json")); return err == nil })
	cancel()
	if err := errors.Join(<-ended, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFile(t.Context(), Config{DataDir: dir, Version: "test"}, file); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

// nothingBeside fails when the folder holds anything else than the named.
func nothingBeside(t *testing.T, folder string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, n := range names {
		want[n] = true
	}
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("%s is left in %s", e.Name(), folder)
		}
	}
}

func TestRestoreLeavesNothingAfterADamagedArchive(t *testing.T) {
	t.Parallel()
	_, file := small(t)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	to := filepath.Join(parent, "data")
	for name, bad := range map[string][]byte{
		"cut off": data[:len(data)*2/3], "flipped": func() []byte { d := append([]byte(nil), data...); d[len(d)/2] ^= 4; return d }(), "empty": nil,
	} {
		path := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Restore(t.Context(), RestoreConfig{DataDir: to}, f)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		_ = f.Close()
		nothingBeside(t, parent)
	}
}

func TestRestoreRefusesADirectoryWithSomethingInIt(t *testing.T) {
	t.Parallel()
	dir, file := small(t)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	if _, err := Restore(t.Context(), RestoreConfig{DataDir: dir}, f); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("onto a data directory: %v", err)
	}
	nothingBeside(t, filepath.Dir(dir), "data")
}

func TestRestoreGivesTheFilesToTheOwnerOfTheEmptyDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("run as root: only root can give files away")
		}
		t.Skip("only root can give files away")
	}
	_, file := small(t)
	to := filepath.Join(t.TempDir(), "data")
	if err := errors.Join(os.Mkdir(to, 0o700), os.Chown(to, 4711, 4712)); err != nil {
		t.Fatal(err)
	}
	restoreFile(t, file, to)
	err := filepath.WalkDir(to, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return ownedBy(path, 4711, 4712)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRehearsalLeavesNothing(t *testing.T) {
	t.Parallel()
	_, file := small(t)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	scratch := t.TempDir()
	got, err := Rehearse(t.Context(), RestoreConfig{Version: "test"}, f, scratch)
	if err != nil || got.Root == "" {
		t.Errorf("%+v, %v", summaryOf(got), err)
	}
	nothingBeside(t, scratch)
}

func TestBackupNamesWhatItCantDo(t *testing.T) {
	t.Parallel()
	dir, file := small(t)
	if _, err := CreateFile(t.Context(), Config{DataDir: t.TempDir()}, file+".2"); !errors.Is(err, ErrNotEmbedded) {
		t.Errorf("without a database: %v", err)
	}
	if _, err := CreateFile(t.Context(), Config{DataDir: dir}, file); err == nil {
		t.Error("an archive that was there was written over")
	}
	if err := server.Hold(dir, "the database has moved", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFile(t.Context(), Config{DataDir: dir}, file+".2"); err == nil || errors.Is(err, ErrNotEmbedded) {
		t.Errorf("a held directory: %v", err)
	}
	nothingBeside(t, filepath.Dir(file), filepath.Base(file))
}

func TestStagesOfKilledBackupsAreRemoved(t *testing.T) {
	t.Parallel()
	dir, file := small(t)
	dead := filepath.Join(dir, ".backup-12345")
	if err := os.MkdirAll(filepath.Join(dead, "files"), 0o700); err != nil {
		t.Fatal(err)
	}
	living, err := newStage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead stage is there: %v", err)
	}
	if _, err := CreateFile(t.Context(), Config{DataDir: dir}, file+".2"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(living.dir); err != nil {
		t.Errorf("the stage of a backup that works was removed: %v", err)
	}
	if err := living.remove(); err != nil {
		t.Error(err)
	}
}
