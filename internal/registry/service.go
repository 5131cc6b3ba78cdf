package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/job"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// Ledger takes the events of a change in its transaction.
type Ledger interface {
	Append(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error
}

// Config of a Service.
type Config struct {
	DB     *sqldb.DB // required
	Ledger Ledger    // required
	Guards []Guard   // asked in this order before each move; empty lets every allowed move happen
	Moved  []Moved   // told of each move in its transaction, in this order
	// MovedMany are told of all that moves in one go, in the same transaction and after Moved.
	MovedMany []MovedMany
	Now       func() time.Time // nil means time.Now
	Log       *slog.Logger     // nil means slog.Default
}

// Service holds the records of devices. It is safe for concurrent use; what changes a device takes the
// caller's transaction and locks the device's row in it.
type Service struct {
	db        *sqldb.DB
	ledger    Ledger
	guards    []Guard
	moved     []Moved
	movedMany []MovedMany
	runner    *job.Runner
	now       func() time.Time
	log       *slog.Logger
}

// New returns a Service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Service{db: cfg.DB, ledger: cfg.Ledger, guards: cfg.Guards, moved: cfg.Moved, movedMany: cfg.MovedMany, now: cfg.Now, log: cfg.Log}
	s.runner = s.newRunner()
	return s
}

// Create brings a device into being. It returns fault.Conflict when the tenant has a device with that
// model and serial number already, and fault.Invalid for what has the wrong form. A conflict leaves the
// transaction usable on both engines.
func (s *Service) Create(ctx context.Context, tx *sqldb.Tx, actor device.Actor, n device.New) (device.Device, error) {
	list, err := s.CreateMany(ctx, tx, actor, []device.New{n})
	if err != nil {
		return device.Device{}, err
	}
	return list[0], nil
}

// fresh checks the input and fills in what a new device begins with.
func (s *Service) fresh(actor device.Actor, n device.New) (device.Device, error) {
	var wrong fault.Invalid
	if _, err := device.ParseTenantID(string(n.Tenant)); err != nil {
		wrong.Add("body.tenant", "%s", err)
	}
	if n.Serial != "" {
		var err error
		if n.Serial, err = device.ParseSerial(n.Serial); err != nil {
			wrong.Add("body.serial", "%s", err)
		}
	}
	name, err := CheckName("body.name", n.Name)
	gather(&wrong, err)
	if err := device.CheckLabels(n.Labels); err != nil {
		wrong.Add("body.labels", "%s", err)
	}
	if err := device.CheckMove("", n.Stage); err != nil {
		wrong.Add("body.stage", "a device can't begin as %q", n.Stage)
	}
	if n.Stage != device.Ordered && n.Serial == "" {
		wrong.Add("body.serial", "a device that is %s has a serial number", n.Stage)
	}
	reason, err := checkReason(actor, n.Reason)
	gather(&wrong, err)
	if err := wrong.OrNil(); err != nil {
		return device.Device{}, err
	}
	now := s.now().UTC().Truncate(time.Microsecond)
	labels := maps.Clone(n.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	return device.Device{
		ID: device.NewID(), Tenant: n.Tenant, Name: name, Serial: n.Serial, Model: n.Model, Stage: n.Stage,
		StageSince: now, Reason: reason, Labels: labels, Created: now, Revision: 1,
	}, nil
}

// gather adds the fields of a refusal of input to those found before.
func gather(to *fault.Invalid, err error) {
	var wrong *fault.Invalid
	if errors.As(err, &wrong) {
		to.Fields = append(to.Fields, wrong.Fields...)
	}
}

// Move takes a device to another stage. It returns fault.Conflict when the lifecycle does not allow it
// (wrapping device.ErrMove) or when guards refuse; the text then lists everything that is missing.
func (s *Service) Move(ctx context.Context, tx *sqldb.Tx, actor device.Actor, m device.Move) (device.Device, error) {
	list, err := s.MoveMany(ctx, tx, actor, []device.Move{m})
	if err != nil {
		return device.Device{}, err
	}
	return list[0], nil
}

// MayMove tells whether the lifecycle and the guards let the device go to the stage; the error is the
// same that Move would return.
func (s *Service) MayMove(ctx context.Context, q sqldb.Reader, d device.Device, to device.Stage) error {
	if d.Stage == to {
		return refuseMove("%s is %s already", d.DisplayName(), to)
	}
	if err := device.CheckMove(d.Stage, to); err != nil {
		return refuseMove("%s: %s", d.DisplayName(), strings.TrimSuffix(err.Error(), ": "+device.ErrMove.Error()))
	}
	var missing []string
	if d.Serial == "" && to != device.Retired {
		missing = append(missing, "its serial number is not known")
	}
	for _, g := range s.guards {
		m, err := g.Check(ctx, q, d, to)
		if err != nil {
			return fmt.Errorf("guard %s of the move of %s to %s: %w", g.Name, d.ID, to, err)
		}
		if m != "" {
			missing = append(missing, m)
		}
	}
	if len(missing) > 0 {
		return refuseMove("%s can't go to %s yet: %s", d.DisplayName(), to, strings.Join(missing, "; "))
	}
	return nil
}

// moveError is a fault.Conflict that is a device.ErrMove too.
type moveError struct{ refusal error }

func refuseMove(format string, args ...any) error {
	return &moveError{fault.New(fault.Conflict, format, args...)}
}

func (e *moveError) Error() string   { return e.refusal.Error() }
func (e *moveError) Unwrap() []error { return []error{e.refusal, device.ErrMove} }

// AssignSerial notes the serial number of a device that had none yet. Assigning the same again changes
// nothing; another one is fault.Conflict, as is one that belongs to another device of that model.
func (s *Service) AssignSerial(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, serial string) (device.Device, error) {
	serial, err := device.ParseSerial(serial)
	if err != nil {
		return device.Device{}, fault.Bad("body.serial", "%s", err)
	}
	before, err := lockDevice(ctx, tx, num)
	switch {
	case err != nil:
		return device.Device{}, err
	case before.Serial == serial:
		return before, nil
	case before.Serial != "":
		return device.Device{}, fault.New(fault.Conflict, "%s has the serial number %s already; it can't become %s", before.ID, before.Serial, serial)
	}
	d := before
	d.Serial = serial
	if d, err = s.write(ctx, tx, before, d); err != nil {
		return device.Device{}, err
	}
	return d, s.tell(ctx, tx, s.identified(actor, d))
}

// Rename changes what people call the device.
func (s *Service) Rename(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, name string) (device.Device, error) {
	return s.Describe(ctx, tx, actor, num, Change{Name: &name})
}

// SetLabels gives the device exactly these labels.
func (s *Service) SetLabels(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, labels map[string]string) (device.Device, error) {
	now, err := lockDevice(ctx, tx, num)
	if err != nil {
		return device.Device{}, err
	}
	var remove []string
	for k := range now.Labels {
		if _, stays := labels[k]; !stays {
			remove = append(remove, k)
		}
	}
	return s.Describe(ctx, tx, actor, num, Change{Set: labels, Remove: remove})
}

// Describe changes name and labels. What is so already is no change: no event, the same revision.
func (s *Service) Describe(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, c Change) (device.Device, error) {
	before, err := lockDevice(ctx, tx, num)
	if err != nil {
		return device.Device{}, err
	}
	d, err := described(before, c)
	if err != nil {
		return device.Device{}, err
	}
	if c.Check != nil {
		if err := c.Check(before, d); err != nil {
			return device.Device{}, err
		}
	}
	if d, err = s.write(ctx, tx, before, d); err != nil {
		return device.Device{}, fmt.Errorf("describe device %s: %w", d.ID, err)
	}
	return d, s.tell(ctx, tx, s.describedEvents(actor, change{before, d}, c.Reason)...)
}

// describedEvents tell what changed in a device's description; nothing did when there are none.
func (s *Service) describedEvents(actor device.Actor, c change, reason string) []ledger.Event {
	var events []ledger.Event
	if c.after.Name != c.before.Name {
		events = append(events, s.event(actor, c.after, "device.renamed", reason, ledger.Facts(map[string]string{"from": c.before.Name, "to": c.after.Name})))
	}
	if !maps.Equal(c.after.Labels, c.before.Labels) {
		events = append(events, s.event(actor, c.after, "device.labeled", reason, labelFacts(c.before.Labels, c.after.Labels)))
	}
	return events
}

// described applies a change to a copy of the device.
func described(d device.Device, c Change) (device.Device, error) {
	if c.Name != nil {
		name, err := CheckName("body.name", *c.Name)
		if err != nil {
			return d, err
		}
		d.Name = name
	}
	d.Labels = maps.Clone(d.Labels)
	for _, k := range c.Remove {
		delete(d.Labels, k)
	}
	maps.Copy(d.Labels, c.Set)
	if err := device.CheckLabels(d.Labels); err != nil {
		return d, fault.Bad("body.labels", "%s", err)
	}
	return d, nil
}

// labelFacts is what the ledger keeps of a change of labels.
func labelFacts(before, after map[string]string) []byte {
	facts := struct {
		Set     map[string]string `json:"set,omitempty"`
		Removed []string          `json:"removed,omitempty"`
	}{Set: map[string]string{}}
	for k, v := range after {
		if old, had := before[k]; !had || old != v {
			facts.Set[k] = v
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if _, has := after[k]; !has {
			facts.Removed = append(facts.Removed, k)
		}
	}
	return ledger.Facts(facts)
}

// write stores the device with its next revision and what is found and counted by it. What is so already
// is not written.
func (s *Service) write(ctx context.Context, tx *sqldb.Tx, before, d device.Device) (device.Device, error) {
	list := []change{{before, d}}
	err := s.writeAll(ctx, tx, list)
	return list[0].after, err
}

func (s *Service) tell(ctx context.Context, tx *sqldb.Tx, events ...ledger.Event) error {
	return s.ledger.Append(ctx, tx, events...)
}

func (s *Service) event(actor device.Actor, d device.Device, kind, reason string, facts []byte) ledger.Event {
	return ledger.Event{Tenant: d.Tenant, Kind: kind, Device: d.ID, Actor: actor, Reason: reason, Data: facts, At: s.now()}
}

// taken names the device that has the serial number.
func taken(ctx context.Context, q sqldb.Reader, tenant device.TenantID, model, serial string) error {
	other, err := bySerialAndModel(ctx, q, tenant, model, serial)
	if err != nil {
		return fmt.Errorf("look for the owner of serial number %s: %w", serial, err)
	}
	of := ""
	if model != "" {
		of = " of model " + model
	}
	return fault.New(fault.Conflict, "serial number %s%s belongs to %s already, which is %s", serial, of, other.ID, other.Stage)
}

// ByID returns a device of the tenant, or fault.NotFound.
func (s *Service) ByID(ctx context.Context, q sqldb.Reader, tenant device.TenantID, id device.ID) (device.Device, error) {
	d, err := oneDevice(q.QueryRowContext(ctx, "SELECT "+deviceColumns+" FROM registry_device d WHERE d.id = $1 AND d.tenant = $2", id, tenant))
	return d, named(err, "no device %s", id)
}

// ByNum returns a device by its number inside this database, or fault.NotFound.
func (s *Service) ByNum(ctx context.Context, q sqldb.Reader, num int64) (device.Device, error) {
	d, err := oneDevice(q.QueryRowContext(ctx, "SELECT "+deviceColumns+" FROM registry_device d WHERE d.num = $1", num))
	return d, named(err, "no device number %d", num)
}

// BySerial returns the tenant's device with the serial number, or fault.NotFound; when devices of
// several models have it, fault.Conflict that names them.
func (s *Service) BySerial(ctx context.Context, q sqldb.Reader, tenant device.TenantID, serial string) (device.Device, error) {
	found, err := bySerial(ctx, q, tenant, serial)
	switch {
	case err != nil:
		return device.Device{}, err
	case len(found) == 0:
		return device.Device{}, fault.New(fault.NotFound, "no device has the serial number %s", serial)
	case len(found) == 1:
		return found[0], nil
	}
	var names []string
	for _, d := range found {
		names = append(names, fmt.Sprintf("%s (model %q, %s)", d.ID, d.Model, d.Stage))
	}
	return device.Device{}, fault.New(fault.Conflict, "several devices have the serial number %s: %s", serial, strings.Join(names, " and "))
}

// named gives a missing row its sentence.
func named(err error, format string, args ...any) error {
	if errors.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, format, args...)
	}
	return err
}
