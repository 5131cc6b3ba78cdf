package update

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/job"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/ui"
	"steward/internal/wire"
)

// Ledger takes the events of changes and gives them back in order.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
	Consume(ctx context.Context, name string, handle func(ctx context.Context, tx *sqldb.Tx, events []ledger.Event) error) error
}

// Twin holds the desired state. numsSQL is a SELECT of device numbers with "?" placeholders.
type Twin interface {
	SetDesiredWhere(ctx context.Context, tx *sqldb.Tx, numsSQL string, args []any, section wire.Section, doc any) (int64, error)
	ClearDesiredWhere(ctx context.Context, tx *sqldb.Tx, numsSQL string, args []any, section wire.Section) (int64, error)
}

// Devices finds devices; the room registry does.
type Devices interface {
	// Part returns the next devices that match, in the order of their numbers, and where to go on; 0 at the end.
	Part(ctx context.Context, q sqldb.Reader, scope device.Scope, part device.Part) (nums []int64, next int64, err error)
	// Counts returns how many devices of the scope are in each stage.
	Counts(ctx context.Context, q sqldb.Reader, scope device.Scope) (map[device.Stage]int64, error)
	Matching(scope device.Scope, sel device.Selector, stages []device.Stage) (query string, args []any)
	ByNums(ctx context.Context, q sqldb.Reader, nums []int64) ([]device.Device, error)
	ByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error)
}

// Releases knows what can be assigned: the manifest and its artifacts' sizes by target name.
type Releases interface {
	Manifest(ctx context.Context, q sqldb.Reader, tenant device.TenantID, name, version string) (wire.ReleaseManifest, map[string]int64, error)
}

// Config of a Service.
type Config struct {
	DB       *sqldb.DB
	Ledger   Ledger
	Twin     Twin
	Devices  Devices
	Releases Releases
	// StuckAfter is how long a device may rest between two states of a running update before it is a
	// notice; 0 means 2 hours. Devices that have not begun don't count: they may be asleep.
	StuckAfter time.Duration
	Log        *slog.Logger
	Now        func() time.Time // nil means time.Now
}

// Service is the room. It is safe for concurrent use.
type Service struct {
	cfg    Config
	runner *job.Runner
	pages  *ui.Pages // set by Pages
}

// New returns the room; it starts nothing.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.StuckAfter == 0 {
		cfg.StuckAfter = 2 * time.Hour
	}
	s := &Service{cfg: cfg}
	s.runner = s.newRunner()
	return s
}

func (s *Service) now() time.Time { return s.cfg.Now().UTC() }

// stages are those in which devices are updated. A quarantined, transferred or retired device is asked
// for nothing.
var stages = []device.Stage{device.Enrolled, device.Active}

func served(st device.Stage) bool { return st == device.Enrolled || st == device.Active }

// NewAssignment is what an operator asks for.
type NewAssignment struct {
	Release  string          `json:"name" maxLength:"64" doc:"Of the release"`
	Version  string          `json:"version" maxLength:"64"`
	Selector device.Selector `json:"selector,omitempty" doc:"Which devices; empty means all that you may see"`
	Note     string          `json:"note,omitempty" maxLength:"500"`
}

// Assign makes the devices that match now and later run the release. The operator's scope is part of
// the assignment's selector.
func (s *Service) Assign(ctx context.Context, actor device.Actor, scope device.Scope, n NewAssignment) (Assignment, error) {
	if len(n.Note) > maxNote {
		return Assignment{}, fault.Bad("note", "%d bytes: at most %d", len(n.Note), maxNote)
	}
	a := Assignment{
		ID: assignments + device.RandomName(10), Tenant: scope.Tenant, Release: n.Release, Version: n.Version,
		Selector: scope.Selector.And(n.Selector), Note: n.Note, State: Active, Created: s.now(), CreatedBy: actor,
		target: wire.ManifestTarget(n.Release, n.Version), authorScope: scope.Selector.String(),
	}
	if len(a.Selector.String()) > device.MaxSelectorBytes {
		return a, fault.Bad("selector", "longer than %d bytes together with your scope", device.MaxSelectorBytes)
	}
	if _, _, err := s.cfg.Releases.Manifest(ctx, s.cfg.DB, a.Tenant, a.Release, a.Version); err != nil {
		return a, err
	}
	// Counted before, so that the transaction that decides is short.
	devices, err := s.matching(ctx, a)
	if err != nil {
		return a, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return s.assign(ctx, tx, &a, devices) })
	if err != nil {
		return a, fmt.Errorf("assign %s %s: %w", a.Release, a.Version, err)
	}
	return s.finish(ctx, scope, a)
}

// matching counts the devices that an assignment reaches now.
func (s *Service) matching(ctx context.Context, a Assignment) (n int64, err error) {
	counts, err := s.cfg.Devices.Counts(ctx, s.cfg.DB, device.Scope{Tenant: a.Tenant, Selector: a.Selector})
	for _, st := range stages {
		n += counts[st]
	}
	return n, err
}

func (s *Service) assign(ctx context.Context, tx *sqldb.Tx, a *Assignment, devices int64) error {
	// Read again: the release must not be removed between the check and the commit.
	if _, _, err := s.cfg.Releases.Manifest(ctx, tx, a.Tenant, a.Release, a.Version); err != nil {
		return err
	}
	if err := insertAssignment(ctx, tx, a); err != nil {
		return err
	}
	if err := overtake(ctx, tx, *a); err != nil {
		return err
	}
	n, err := s.begin(ctx, tx, a, work{Progress: Progress{Task: Assigning, Total: devices}})
	if err != nil {
		return err
	}
	return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: a.Tenant, Kind: EventAssigned, Subject: a.ID, Actor: a.CreatedBy, Reason: a.Note,
		Data: ledger.Facts(map[string]any{"release": a.Release, "version": a.Version, "selector": a.Selector.String(), "devices": n}),
	})
}

// newMark is what the devices of one change are marked with.
func newMark() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return int64(binary.BigEndian.Uint64(b[:])>>1) | 1
}

// Cancel takes an assignment back. Devices that have not committed it are asked for what they had
// committed before, or for nothing; those that have committed keep it.
func (s *Service) Cancel(ctx context.Context, actor device.Actor, scope device.Scope, id, reason string) (Assignment, error) {
	var a Assignment
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
		if a, err = s.changeable(ctx, tx, scope, id); err != nil {
			return err
		}
		// Whatever else is under way ends here.
		if _, err := tx.Exec(ctx, `DELETE FROM update_work WHERE assignment = $1`, a.num); err != nil {
			return err
		}
		a.Progress = nil
		if err := endAssignment(ctx, tx, a, CalledBack, s.now()); err != nil {
			return err
		}
		total, err := asked(ctx, tx, a, func(st State) bool { return st != wire.UpdateCommitted })
		if err != nil {
			return err
		}
		n, err := s.begin(ctx, tx, &a, work{Progress: Progress{Task: Cancelling, Total: total}})
		if err != nil {
			return err
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: a.Tenant, Kind: EventCancelled, Subject: a.ID, Actor: actor, Reason: reason,
			Data: ledger.Facts(map[string]any{"release": a.Release, "version": a.Version, "devices": n}),
		})
	})
	if err != nil {
		return Assignment{}, fmt.Errorf("cancel assignment %.40s: %w", id, err)
	}
	return s.finish(ctx, scope, a)
}

// Retry asks the devices that failed or rolled back for another attempt; a cause limits it to those
// that failed for it. It returns how many.
func (s *Service) Retry(ctx context.Context, actor device.Actor, scope device.Scope, id, cause string) (n int64, err error) {
	var a Assignment
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
		if a, err = s.changeable(ctx, tx, scope, id); err != nil {
			return err
		}
		if err := underWay(a); err != nil {
			return err
		}
		total, err := countFailed(ctx, tx, a, cause)
		if n = total; err != nil || n == 0 {
			return err
		}
		if n, err = s.begin(ctx, tx, &a, work{cause: cause, Progress: Progress{Task: Retrying, Total: total}}); err != nil {
			return err
		}
		return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
			Tenant: a.Tenant, Kind: EventRetried, Subject: a.ID, Actor: actor,
			Data: ledger.Facts(map[string]any{"release": a.Release, "version": a.Version, "devices": n, "cause": cause}),
		})
	})
	if err != nil {
		return 0, fmt.Errorf("retry assignment %.40s: %w", id, err)
	}
	_, err = s.finish(ctx, scope, a)
	return n, err
}

// changeable reads an assignment that the caller may change now.
func (s *Service) changeable(ctx context.Context, tx *sqldb.Tx, scope device.Scope, id string) (Assignment, error) {
	a, err := assignmentByID(ctx, tx, scope.Tenant, id)
	if err != nil {
		return a, err
	}
	if own := scope.Selector.String(); own != "" && own != a.authorScope {
		return a, fault.New(fault.Forbidden, "assignment %s reaches devices outside of your scope", id)
	}
	if a.State != Active {
		return a, fault.New(fault.Conflict, "assignment %s is %s already", id, a.State)
	}
	return a, nil
}

// Reconcile gives one device what its labels and its stage entitle it to. It is called when either has
// changed; called without need it changes nothing.
func (s *Service) Reconcile(ctx context.Context, tx *sqldb.Tx, d device.Device) error {
	if err := meetDevice(ctx, tx, d); err != nil {
		return err
	}
	wanted, err := s.wantedBy(ctx, tx, d)
	if err != nil {
		return err
	}
	current, err := currentOf(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for name := range wanted {
		names[name] = true
	}
	for name := range current {
		names[name] = true
	}
	for name := range names {
		a, want := wanted[name]
		row, has := current[name]
		if want && has && row.assignment == a.num {
			continue
		}
		if !want && has && row.state == wire.UpdateCommitted && served(d.Stage) {
			continue // nothing newer is wanted: what was committed stays asked for
		}
		if err := s.reassign(ctx, tx, d, reassignment{name: name, old: row, has: has, next: a, want: want}); err != nil {
			return err
		}
	}
	return nil
}

// wantedBy finds, per release name, the newest active assignment that matches the device.
func (s *Service) wantedBy(ctx context.Context, tx *sqldb.Tx, d device.Device) (map[string]Assignment, error) {
	wanted := map[string]Assignment{}
	if !served(d.Stage) {
		return wanted, nil
	}
	active, err := activeAssignments(ctx, tx, d.Tenant) // newest first
	if err != nil {
		return nil, err
	}
	for _, a := range active {
		if _, taken := wanted[a.Release]; !taken && a.Selector.Matches(d.Labels) {
			wanted[a.Release] = a
		}
	}
	return wanted, nil
}

type reassignment struct {
	name      string
	old       stateRow
	has, want bool
	next      Assignment
}

func (s *Service) reassign(ctx context.Context, tx *sqldb.Tx, d device.Device, r reassignment) error {
	c := change{s: s, tx: tx, name: r.name, mark: newMark(), at: s.now()}
	if err := c.pickOne(ctx, d.Num); err != nil {
		return err
	}
	ending, event := Withdrawn, ledger.Event{
		Tenant: d.Tenant, Device: d.ID, Kind: EventWithdrawn, Actor: device.System("update"),
		Data: ledger.Facts(map[string]any{"release": r.name, "version": r.old.version, "stage": d.Stage}),
	}
	if r.has {
		event.Subject = r.old.assignmentID
	}
	if r.want {
		ending = Superseded
		event.Kind, event.Subject = EventAssigned, r.next.ID
		event.Data = ledger.Facts(map[string]any{"release": r.name, "version": r.next.Version, "selector": r.next.Selector.String()})
	}
	if err := c.retire(ctx, ending); err != nil {
		return err
	}
	if r.want {
		if err := c.take(ctx, r.next); err != nil {
			return err
		}
	}
	if err := c.rewrite(ctx); err != nil {
		return err
	}
	return s.cfg.Ledger.Append(ctx, tx, event)
}

// Follow reconciles the devices that the events are about. Run gives it the ledger.
func (s *Service) Follow(ctx context.Context, tx *sqldb.Tx, events []ledger.Event) error {
	type key struct {
		tenant device.TenantID
		id     device.ID
	}
	done := map[key]bool{}
	for _, e := range events {
		k := key{e.Tenant, e.Device}
		if e.Device == "" || done[k] || !matters(e) {
			continue
		}
		done[k] = true
		d, err := s.cfg.Devices.ByID(ctx, tx, e.Tenant, e.Device)
		if errors.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.Reconcile(ctx, tx, d); err != nil {
			return fmt.Errorf("reconcile %s: %w", d.ID, err)
		}
	}
	return nil
}

// matters tells whether an event may change what its device is entitled to. A move between stages in
// which devices are asked for nothing does not: a delivery of 100,000 devices is none of this room's.
func matters(e ledger.Event) bool {
	switch e.Kind {
	case "device.labeled":
		return true
	case "device.moved":
		var move struct{ From, To device.Stage }
		return json.Unmarshal(e.Data, &move) != nil || served(move.From) || served(move.To)
	}
	return false
}
