package update_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/update"
	"steward/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

const tenant device.TenantID = "acme"

var (
	operator = device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}
	all      = device.Scope{Tenant: tenant}
	tables   = []sqldb.Migration{ledger.Migration(), registry.Migration(), twin.Migration(), update.Migration()}
)

// shelf is a room release with whatever version is asked for, but "gone".
type shelf struct {
	decided func() // called after the transaction that looked for a release, when set
}

func (s *shelf) Manifest(_ context.Context, q sqldb.Reader, _ device.TenantID, name, version string) (wire.ReleaseManifest, map[string]int64, error) {
	if tx, inside := q.(*sqldb.Tx); inside && s.decided != nil {
		tx.AfterCommit(s.decided)
	}
	if version == "gone" {
		return wire.ReleaseManifest{}, nil, fault.New(fault.NotFound, "there is no release %s %s", name, version)
	}
	m := wire.ReleaseManifest{Name: name, Version: version, Components: []wire.Component{
		{Name: "arm", Version: version, Type: "files", Artifact: "artifacts/arm", Architectures: []string{"arm64"}, Models: []string{"Gateway 3"}},
		{Name: "pc", Version: version, Type: "files", Artifact: "artifacts/pc", Architectures: []string{"amd64"}},
	}}
	return m, map[string]int64{"artifacts/arm": 10, "artifacts/pc": 1000}, nil
}

type house struct {
	testing.TB
	db       *sqldb.DB
	ledger   *ledger.Ledger
	reg      *registry.Service
	twin     *twin.Service
	key      crypto.PublicKey
	releases *shelf
	*update.Service
	mu    sync.Mutex
	clock time.Time
}

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock = h.clock.Add(time.Millisecond)
	return h.clock
}

func newHouse(t testing.TB, db *sqldb.DB) *house {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{TB: t, db: db, key: public, releases: &shelf{}, ledger: ledgertest.New(t, db), clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	h.reg = registry.New(registry.Config{DB: db, Ledger: h.ledger, Now: h.now})
	h.twin = twin.New(twin.Config{DB: db, Key: private, Now: h.now, Reactions: map[wire.Section]twin.Reaction{
		wire.SectionUpdate: func(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
			return h.OnReported(ctx, tx, d, body)
		},
	}})
	h.Service = update.New(update.Config{DB: db, Ledger: h.ledger, Twin: h.twin, Devices: h.reg, Releases: h.releases, Now: h.now})
	return h
}

func each(t *testing.T, test func(h *house)) {
	t.Helper()
	sqldbtest.Each(t, tables, func(t *testing.T, db *sqldb.DB) { test(newHouse(t, db)) })
}

func (h *house) write(fn func(tx *sqldb.Tx) error) {
	h.Helper()
	if err := h.db.Write(context.Background(), fn); err != nil {
		h.Fatal(err)
	}
}

// device makes a device that is in service.
func (h *house) device(labels map[string]string) device.Device {
	h.Helper()
	var d device.Device
	h.write(func(tx *sqldb.Tx) (err error) {
		ctx := context.Background()
		d, err = h.reg.Create(ctx, tx, operator, device.New{Tenant: tenant, Serial: "S-" + device.RandomName(5), Labels: labels, Stage: device.Staged, Reason: "test"})
		if err == nil {
			d, err = h.reg.Move(ctx, tx, operator, device.Move{Num: d.Num, To: device.Enrolled, Reason: "test"})
		}
		return err
	})
	return d
}

func (h *house) devices(n int, labels map[string]string) []device.Device {
	out := make([]device.Device, n)
	for i := range out {
		out[i] = h.device(labels)
	}
	return out
}

func (h *house) assign(name, version, selector string) update.Assignment {
	h.Helper()
	a, err := h.Assign(context.Background(), operator, all, update.NewAssignment{Release: name, Version: version, Selector: device.MustSelector(selector)})
	if err != nil {
		h.Fatal(err)
	}
	return a
}

// wants reads what the device is asked for, as it would: "app 1.0#1 tool 2.0#1".
func (h *house) wants(d device.Device) string {
	h.Helper()
	ctx := context.Background()
	envelope, _, err := h.twin.Envelope(ctx, d)
	if err != nil {
		h.Fatal(err)
	}
	var desired wire.Desired
	if err := wire.Open(envelope, wire.DesiredType, []crypto.PublicKey{h.key}, &desired); err != nil {
		h.Fatal(err)
	}
	hash, ok := desired.Sections[wire.SectionUpdate]
	if !ok {
		return ""
	}
	body, err := h.twin.Document(ctx, d, hash)
	if err != nil {
		h.Fatal(err)
	}
	var doc wire.UpdateDesired
	if err := wire.Decode(body, &doc); err != nil {
		h.Fatal(err)
	}
	var parts []string
	for _, r := range doc.Releases {
		if r.Target != wire.ManifestTarget(r.Name, r.Version) {
			h.Errorf("target %s of %s %s", r.Target, r.Name, r.Version)
		}
		parts = append(parts, fmt.Sprintf("%s %s#%d", r.Name, r.Version, r.Attempt))
	}
	return strings.Join(parts, ", ")
}

func (h *house) wantAll(devices []device.Device, want string) {
	h.Helper()
	for _, d := range devices {
		if got := h.wants(d); got != want {
			h.Errorf("%s is asked for %q, want %q", d.Serial, got, want)
		}
	}
}

func progress(a update.Assignment, attempt int, s wire.UpdateState, cause string) wire.UpdateProgress {
	return wire.UpdateProgress{Name: a.Release, Version: a.Version, Assignment: a.ID, Attempt: attempt, State: s, Cause: cause, Step: "health", Changed: time.Now()}
}

// report has the devices report one update each.
func (h *house) report(p wire.UpdateProgress, devices ...device.Device) {
	h.Helper()
	body, err := wire.Canonical(wire.UpdateReported{Installed: []wire.InstalledRelease{}, Updates: []wire.UpdateProgress{p}})
	if err != nil {
		h.Fatal(err)
	}
	for _, d := range devices {
		h.write(func(tx *sqldb.Tx) error { return h.OnReported(context.Background(), tx, d, body) })
	}
}

// counts reads an assignment's counters: "committed 2 pending 1".
func (h *house) counts(a update.Assignment) string {
	h.Helper()
	got, err := h.Assignment(context.Background(), all, a.ID)
	if err != nil {
		h.Fatal(err)
	}
	var parts []string
	for _, s := range update.States {
		if n := got.Counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", s, n))
		}
	}
	text := strings.Join(parts, " ")
	// The kept counters must say what counting says: a selector that all match forces counting.
	counted, err := h.Assignment(context.Background(), device.Scope{Tenant: tenant, Selector: device.MustSelector("!nobody-has-this")}, a.ID)
	if err != nil {
		h.Fatal(err)
	}
	for _, s := range update.States {
		if got.Counts[s] != counted.Counts[s] {
			h.Errorf("kept counter of %s is %d, counted %d", s, got.Counts[s], counted.Counts[s])
		}
	}
	return text
}

func (h *house) follow() {
	h.Helper()
	events := ledgertest.Events(h, h.ledger, ledger.Filter{})
	h.write(func(tx *sqldb.Tx) error { return h.Follow(context.Background(), tx, events) })
}

func (h *house) move(d device.Device, to device.Stage) {
	h.Helper()
	h.write(func(tx *sqldb.Tx) error {
		_, err := h.reg.Move(context.Background(), tx, operator, device.Move{Num: d.Num, To: to, Reason: "test"})
		return err
	})
	h.follow()
}

func (h *house) label(d device.Device, labels map[string]string) {
	h.Helper()
	h.write(func(tx *sqldb.Tx) error {
		_, err := h.reg.SetLabels(context.Background(), tx, operator, d.Num, labels)
		return err
	})
	h.follow()
}

func TestAssignmentReachesTheDevicesThatMatch(t *testing.T) {
	each(t, func(h *house) {
		berlin, paris := h.devices(3, map[string]string{"site": "berlin"}), h.devices(2, map[string]string{"site": "paris"})
		a := h.assign("app", "1.0", "site=berlin")
		h.wantAll(berlin, "app 1.0#1")
		h.wantAll(paris, "")
		if got := h.counts(a); got != "pending 3" {
			h.Errorf("counts %q", got)
		}
		if _, err := h.Assign(context.Background(), operator, all, update.NewAssignment{Release: "app", Version: "gone"}); !errors.Is(err, fault.NotFound) {
			h.Errorf("a release that is not there: %v", err)
		}
	})
}

func TestDevicesOfSeveralReleasesKeepTheOthers(t *testing.T) {
	each(t, func(h *house) {
		both, one := h.devices(2, map[string]string{"role": "edge", "tools": "yes"}), h.devices(2, map[string]string{"role": "edge"})
		h.assign("tools", "7", "tools=yes")
		h.assign("app", "1.0", "role=edge")
		h.wantAll(both, "app 1.0#1, tools 7#1")
		h.wantAll(one, "app 1.0#1")
		a := h.assign("app", "2.0", "")
		h.wantAll(both, "app 2.0#1, tools 7#1")
		h.wantAll(one, "app 2.0#1")
		if _, err := h.Cancel(context.Background(), operator, all, a.ID, "wrong version"); err != nil {
			h.Fatal(err)
		}
		h.wantAll(both, "tools 7#1") // nothing of app was committed
		h.wantAll(one, "")
	})
}

func TestNewestAssignmentWins(t *testing.T) {
	each(t, func(h *house) {
		done, busy := h.device(nil), h.device(nil)
		first := h.assign("app", "1.0", "")
		h.report(progress(first, 1, wire.UpdateCommitted, ""), done)
		h.report(progress(first, 1, wire.UpdateDownloading, ""), busy)
		second := h.assign("app", "2.0", "")
		h.wantAll([]device.Device{done, busy}, "app 2.0#1")
		if got := h.counts(first); got != "committed 1 superseded 1" {
			h.Errorf("first: %q", got)
		}
		got, err := h.Assignment(context.Background(), all, first.ID)
		if err != nil || got.State != update.Overtaken || got.SupersededBy != second.ID {
			h.Errorf("first is %s by %s, error %v", got.State, got.SupersededBy, err)
		}
		// The news of the first arrives late: it is true all the same.
		h.report(progress(first, 1, wire.UpdateCommitted, ""), busy)
		if got := h.counts(first); got != "committed 2" {
			h.Errorf("first: %q", got)
		}
		if got := h.counts(second); got != "pending 2" {
			h.Errorf("second: %q", got)
		}
	})
}

func TestCancelGoesBackToWhatWasCommitted(t *testing.T) {
	each(t, func(h *house) {
		back, stays, fresh := h.device(nil), h.device(nil), h.device(nil)
		first := h.assign("app", "1.0", "")
		h.report(progress(first, 1, wire.UpdateCommitted, ""), back, stays)
		second := h.assign("app", "2.0", "")
		h.report(progress(second, 1, wire.UpdateCommitted, ""), stays)
		h.report(progress(second, 1, wire.UpdateRolledBack, "broken"), back)
		if _, err := h.Cancel(context.Background(), operator, all, second.ID, ""); err != nil {
			h.Fatal(err)
		}
		h.wantAll([]device.Device{back}, "app 1.0#1")
		h.wantAll([]device.Device{stays}, "app 2.0#1")
		h.wantAll([]device.Device{fresh}, "")
		if got := h.counts(second); got != "committed 1 rolled_back 1 cancelled 1" {
			h.Errorf("second: %q", got)
		}
		if _, err := h.Cancel(context.Background(), operator, all, second.ID, ""); !errors.Is(err, fault.Conflict) {
			h.Errorf("a second cancel: %v", err)
		}
		// What is asked for now survives that somebody looks at the device again.
		for _, d := range []device.Device{back, stays, fresh} {
			before := h.wants(d)
			h.write(func(tx *sqldb.Tx) error { return h.Reconcile(context.Background(), tx, d) })
			h.wantAll([]device.Device{d}, before)
		}
	})
}

func TestFirstCauseStandsAndFailureNeverBecomesSuccess(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		a := h.assign("app", "1.0", "")
		h.report(progress(a, 1, wire.UpdateRolledBack, "the first cause"), d)
		h.report(progress(a, 1, wire.UpdateRolledBack, "another cause"), d)
		h.report(progress(a, 1, wire.UpdateCommitted, ""), d)
		if got := h.counts(a); got != "rolled_back 1" {
			h.Errorf("counts %q", got)
		}
		u, err := h.OfDevice(context.Background(), d)
		if err != nil || len(u.Wanted) != 1 || u.Wanted[0].Cause != "the first cause" || len(u.History) != 1 || u.History[0].Cause != "the first cause" {
			h.Errorf("device %+v, error %v", u, err)
		}
		n, err := h.Retry(context.Background(), operator, all, a.ID, "some other cause")
		if err != nil || n != 0 {
			h.Errorf("retry of another cause: %d devices, error %v", n, err)
		}
		if n, err = h.Retry(context.Background(), operator, all, a.ID, "the first cause"); err != nil || n != 1 {
			h.Fatalf("retry: %d devices, error %v", n, err)
		}
		h.wantAll([]device.Device{d}, "app 1.0#2")
		h.report(progress(a, 1, wire.UpdateRolledBack, "old news"), d)
		if got := h.counts(a); got != "pending 1" {
			h.Errorf("after the retry: %q", got)
		}
		h.report(progress(a, 2, wire.UpdateCommitted, ""), d)
		if got := h.counts(a); got != "committed 1" {
			h.Errorf("second attempt: %q", got)
		}
		h.report(progress(a, 2, wire.UpdateRolledBack, "went back after all"), d)
		if got := h.counts(a); got != "rolled_back 1" {
			h.Errorf("a device that went back after the commit counts as %q", got)
		}
		u, err = h.OfDevice(context.Background(), d)
		if err != nil || len(u.History) != 3 {
			h.Errorf("history %+v, error %v: want one entry per attempt and state", u.History, err)
		}
	})
}

func TestLedgerTellsEachStateOnce(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		a := h.assign("app", "1.0", "")
		p := progress(a, 1, wire.UpdateCommitted, "")
		for i, s := range []wire.UpdateState{wire.UpdateDownloading, wire.UpdateDownloaded, wire.UpdateInstalled, wire.UpdateHealthy, wire.UpdateCommitted} {
			p.Reached = append(p.Reached, wire.UpdateReached{State: s, At: time.Unix(int64(1000+i), 0)})
		}
		h.report(p, d, d)
		want := "device.created device.moved update.downloaded update.installed update.healthy update.committed"
		if got := strings.Join(ledgertest.Kinds(h, h.ledger, d.ID), " "); got != want {
			h.Errorf("passport has %q, want %q", got, want)
		}
		u, err := h.OfDevice(context.Background(), d)
		if err != nil || len(u.History) != 5 || !u.History[0].Reached.Equal(time.Unix(1004, 0)) {
			h.Errorf("history %+v, error %v", u.History, err)
		}
	})
}

func TestDeviceThatComesToMatchLaterGetsTheRelease(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(map[string]string{"ring": "lab"})
		stable := h.assign("app", "1.0", "ring=stable")
		h.assign("app", "2.0", "ring=canary")
		h.wantAll([]device.Device{d}, "")
		h.label(d, map[string]string{"ring": "canary"})
		h.wantAll([]device.Device{d}, "app 2.0#1")
		h.label(d, map[string]string{"ring": "stable"})
		h.wantAll([]device.Device{d}, "app 1.0#1")
		h.label(d, map[string]string{"ring": "lab"})
		h.wantAll([]device.Device{d}, "")
		if got := h.counts(stable); got != "withdrawn 1" {
			h.Errorf("counts %q", got)
		}
		h.label(d, map[string]string{"ring": "stable"})
		if got := h.counts(stable); got != "pending 1" {
			h.Errorf("taken up again: %q", got)
		}
		late := h.device(map[string]string{"ring": "stable"})
		h.follow()
		h.wantAll([]device.Device{late}, "app 1.0#1")
	})
}

func TestQuarantinedDeviceIsAskedForNothing(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		a := h.assign("app", "1.0", "")
		h.move(d, device.Active)
		h.wantAll([]device.Device{d}, "app 1.0#1")
		h.move(d, device.Quarantined)
		h.wantAll([]device.Device{d}, "")
		if got := h.counts(a); got != "withdrawn 1" {
			h.Errorf("counts %q", got)
		}
		h.move(d, device.Active)
		h.wantAll([]device.Device{d}, "app 1.0#1")
		if got := h.counts(a); got != "pending 1" {
			h.Errorf("back in service: %q", got)
		}
	})
}

func TestReportsThatMakeNoSenseAreRefused(t *testing.T) {
	each(t, func(h *house) {
		d, other := h.device(nil), h.device(map[string]string{"site": "x"})
		a := h.assign("app", "1.0", "site=x")
		for name, body := range map[string]string{
			"no JSON":        `{`,
			"unknown state":  `{"installed":[],"updates":[{"name":"app","version":"1","assignment":"a","attempt":1,"state":"great","changed":"2026-01-01T00:00:00Z"}]}`,
			"attempt zero":   `{"installed":[],"updates":[{"name":"app","version":"1","assignment":"a","attempt":0,"state":"committed","changed":"2026-01-01T00:00:00Z"}]}`,
			"path as a name": `{"installed":[{"name":"../x","version":"1","since":"2026-01-01T00:00:00Z"}],"updates":[]}`,
		} {
			err := h.db.Write(context.Background(), func(tx *sqldb.Tx) error { return h.OnReported(context.Background(), tx, d, []byte(body)) })
			if !errors.Is(err, fault.Unprocessable) {
				h.Errorf("%s gave %v", name, err)
			}
		}
		h.report(progress(a, 1, wire.UpdateCommitted, ""), d)     // never asked for it
		h.report(progress(a, 7, wire.UpdateCommitted, ""), other) // an attempt that nobody asked for
		h.report(progress(update.Assignment{ID: "asg-none", Release: "app", Version: "1.0"}, 1, wire.UpdateCommitted, ""), other)
		if got := h.counts(a); got != "pending 1" {
			h.Errorf("counts %q", got)
		}
	})
}

func TestScopedOperatorSeesAndTouchesTheirPartOnly(t *testing.T) {
	each(t, func(h *house) {
		mine, theirs := h.devices(2, map[string]string{"site": "a"}), h.devices(3, map[string]string{"site": "b"})
		scope := device.Scope{Tenant: tenant, Selector: device.MustSelector("site=a")}
		a, err := h.Assign(context.Background(), operator, scope, update.NewAssignment{Release: "app", Version: "1.0"})
		if err != nil {
			h.Fatal(err)
		}
		h.wantAll(mine, "app 1.0#1")
		h.wantAll(theirs, "")
		b := h.assign("app", "2.0", "")
		seen, err := h.Assignment(context.Background(), scope, b.ID)
		if err != nil || seen.Total() != 2 {
			h.Errorf("sees %d devices of the whole tenant's assignment, error %v", seen.Total(), err)
		}
		list, _, err := h.DeviceStates(context.Background(), scope, update.DeviceFilter{Assignment: b.ID})
		if err != nil || len(list) != 2 {
			h.Errorf("lists %d devices, error %v", len(list), err)
		}
		if _, err := h.Cancel(context.Background(), operator, scope, b.ID, ""); !errors.Is(err, fault.Forbidden) {
			h.Errorf("cancels another's assignment: %v", err)
		}
		if _, err := h.Assignment(context.Background(), device.Scope{Tenant: "other"}, a.ID); !errors.Is(err, fault.NotFound) {
			h.Errorf("another tenant reads it: %v", err)
		}
	})
}

func TestPreviewNamesWhatDoesNotFit(t *testing.T) {
	each(t, func(h *house) {
		for _, m := range []struct{ arch, product string }{{"amd64", "PC"}, {"arm64", "gateway 3"}, {"arm64", "Gateway 2"}, {"mips", "Router"}, {"", ""}} {
			d := h.device(nil)
			if m.arch == "" {
				continue
			}
			body := []byte(fmt.Sprintf(`{"architecture":%q,"machine":{"product":%q}}`, m.arch, m.product))
			h.write(func(tx *sqldb.Tx) error { return h.OnInventory(context.Background(), tx, d, body) })
		}
		p, err := h.Preview(context.Background(), all, update.NewAssignment{Release: "app", Version: "1.0"})
		if err != nil || p.Devices != 5 || p.Unknown != 1 || p.Incompatible != 2 || p.Bytes != 1000+10+1010 || len(p.Misfits) != 2 {
			h.Fatalf("preview %+v, error %v", p, err)
		}
		reasons := p.Misfits[0].Reason + "; " + p.Misfits[1].Reason
		for _, want := range []string{"architecture mips", `product "Gateway 2"`} {
			if !strings.Contains(reasons, want) {
				h.Errorf("reasons %q do not name %q", reasons, want)
			}
		}
		h.assign("app", "1.0", "")
		if p, err = h.Preview(context.Background(), all, update.NewAssignment{Release: "app", Version: "2.0"}); err != nil || len(p.Replaces) != 1 || p.Replaces[0].Devices != 5 {
			h.Errorf("preview %+v, error %v", p, err)
		}
	})
}

func TestFailuresAreGroupedByCauseAndNoticed(t *testing.T) {
	each(t, func(h *house) {
		devices := h.devices(6, nil)
		a := h.assign("app", "1.0", "")
		h.report(progress(a, 1, wire.UpdateRolledBack, "health command failed"), devices[:3]...)
		h.report(progress(a, 1, wire.UpdateFailed, "disk is full"), devices[3])
		h.report(progress(a, 1, wire.UpdateInstalled, ""), devices[4])
		failures, err := h.Failures(context.Background(), all, a0(h, a))
		if err != nil || len(failures) != 2 || failures[0].Count != 3 || failures[0].Cause != "health command failed" || failures[1].Count != 1 {
			h.Errorf("failures %+v, error %v", failures, err)
		}
		list, next, err := h.DeviceStates(context.Background(), all, update.DeviceFilter{Assignment: a.ID, Cause: "health command failed", Limit: 2})
		if err != nil || len(list) != 2 || next == "" {
			h.Fatalf("%d devices, next %q, error %v", len(list), next, err)
		}
		if list, next, err = h.DeviceStates(context.Background(), all, update.DeviceFilter{Assignment: a.ID, Cause: "health command failed", Limit: 2, Cursor: next}); err != nil || len(list) != 1 || next != "" {
			h.Errorf("second page: %d devices, next %q, error %v", len(list), next, err)
		}
		notices, err := h.Notices(context.Background(), all)
		if err != nil || len(notices) != 2 {
			h.Errorf("notices %+v, error %v", notices, err)
		}
		h.mu.Lock()
		h.clock = h.clock.Add(3 * time.Hour)
		h.mu.Unlock()
		if notices, err = h.Notices(context.Background(), all); err != nil || len(notices) != 3 || notices[2].Count != 1 {
			h.Errorf("three hours later: %+v, error %v: want the one that rests, not those that have not begun", notices, err)
		}
	})
}

// a0 reads the assignment again, as a page does.
func a0(h *house, a update.Assignment) update.Assignment {
	got, err := h.Assignment(context.Background(), all, a.ID)
	if err != nil {
		h.Fatal(err)
	}
	return got
}

func TestReleaseInUseIsKnown(t *testing.T) {
	each(t, func(h *house) {
		d := h.device(nil)
		check := func(when string, assignments, devices int64) {
			h.Helper()
			a, n, err := h.InUse(context.Background(), h.db, tenant, "app", "1.0")
			if err != nil || a != assignments || n != devices {
				h.Errorf("%s: %d assignments and %d devices, error %v; want %d and %d", when, a, n, err, assignments, devices)
			}
		}
		check("before", 0, 0)
		a := h.assign("app", "1.0", "")
		check("assigned", 1, 1)
		body := []byte(`{"installed":[{"name":"app","version":"1.0","since":"2026-01-01T00:00:00Z"}],"updates":[]}`)
		h.write(func(tx *sqldb.Tx) error { return h.OnReported(context.Background(), tx, d, body) })
		if _, err := h.Cancel(context.Background(), operator, all, a.ID, ""); err != nil {
			h.Fatal(err)
		}
		check("cancelled but installed", 0, 1)
		h.write(func(tx *sqldb.Tx) error {
			return h.OnReported(context.Background(), tx, d, []byte(`{"installed":[],"updates":[]}`))
		})
		check("gone", 0, 0)
	})
}

func TestChangesAtTheSameTimeLeaveOneTruth(t *testing.T) {
	each(t, func(h *house) {
		devices := h.devices(20, nil)
		var done sync.WaitGroup
		for i := range 6 {
			done.Go(func() {
				if _, err := h.Assign(context.Background(), operator, all, update.NewAssignment{Release: "app", Version: fmt.Sprintf("%d", i)}); err != nil {
					h.Error(err)
				}
			})
			done.Go(func() {
				for _, d := range devices {
					err := h.db.Write(context.Background(), func(tx *sqldb.Tx) error { return h.Reconcile(context.Background(), tx, d) })
					if err != nil {
						h.Error(err)
					}
				}
			})
		}
		done.Wait()
		list, _, err := h.Assignments(context.Background(), all, update.Filter{State: update.Active})
		if err != nil || len(list) == 0 {
			h.Fatalf("%d active assignments, error %v", len(list), err)
		}
		for _, d := range devices {
			h.write(func(tx *sqldb.Tx) error { return h.Reconcile(context.Background(), tx, d) })
		}
		h.wantAll(devices, "app "+list[0].Version+"#1")
		every, _, err := h.Assignments(context.Background(), all, update.Filter{})
		if err != nil {
			h.Fatal(err)
		}
		for _, a := range every {
			h.counts(a)
		}
	})
}
