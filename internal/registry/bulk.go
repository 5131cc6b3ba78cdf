package registry

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// Action is what a bulk run does to each device.
type Action string

// The actions.
const (
	LabelAction   Action = "label"   // sets Labels
	UnlabelAction Action = "unlabel" // takes the labels of Keys away
	MoveAction    Action = "move"    // moves to the stage To
)

// Bulk is one wish for many devices.
type Bulk struct {
	Action Action            `json:"action" enum:"label,unlabel,move"`
	Filter Filter            `json:"filter"`
	Labels map[string]string `json:"labels,omitempty"`
	Keys   []string          `json:"keys,omitempty"`
	To     device.Stage      `json:"to,omitempty"`
	Reason string            `json:"reason,omitempty"`
}

// Bounds of a bulk run.
const (
	MaxBulk       = 100_000 // devices
	maxAwaited    = 1000    // up to so many are changed while the caller waits
	bulkBatch     = 100     // devices per transaction of those
	previewNames  = 20
	previewRefuse = 50
)

// Preview says what a bulk run would do, before it does it.
type Preview struct {
	Token   string                 `json:"token" doc:"Confirms exactly this: send it with the same wish to do it"`
	Total   int                    `json:"total" doc:"Devices that the filter picks"`
	Willing int                    `json:"willing" doc:"Of these, how many the action is possible for"`
	Stages  map[device.Stage]int64 `json:"stages"`
	First   []Outcome              `json:"first" doc:"The first of the devices"`
	Refused []Outcome              `json:"refused,omitempty" doc:"The first of those that the action is not possible for, with the reasons"`
}

// Outcome is what became, or would become, of one device.
type Outcome struct {
	ID     device.ID `json:"id"`
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Detail string    `json:"detail,omitempty" doc:"Why not"`
}

// BulkResult is what a bulk change has done.
type BulkResult struct {
	Done    int       `json:"done"`
	Refused int       `json:"refused"`
	Devices []Outcome `json:"devices"`
	Run     *BulkRun  `json:"run,omitempty" doc:"Set when it was more than 1000 devices: the change goes on by itself, and get-bulk-change tells how far it is"`
}

// check refuses a wish that makes no sense for any device. The reason is looked at when it is done: a
// preview can be shown before somebody has written one.
func (b Bulk) check() error {
	var wrong fault.Invalid
	switch b.Action {
	case LabelAction:
		if len(b.Labels) == 0 {
			wrong.Add("body.labels", "name at least one label to set")
		}
		if err := device.CheckLabels(b.Labels); err != nil {
			wrong.Add("body.labels", "%s", err)
		}
	case UnlabelAction:
		if len(b.Keys) == 0 {
			wrong.Add("body.keys", "name at least one label to take away")
		}
	case MoveAction:
		if _, err := device.ParseStage(string(b.To)); err != nil {
			wrong.Add("body.to", "%s", err)
		}
	default:
		wrong.Add("body.action", "want label, unlabel or move")
	}
	if b.Filter.empty() {
		wrong.Add("body.filter", "pick devices: by IDs, selector, stage, model, presence or search")
	}
	return wrong.OrNil()
}

func (f Filter) empty() bool {
	return len(f.Stages) == 0 && f.Selector.Empty() && f.Model == "" && f.Presence == "" && f.Search == "" && len(f.IDs) == 0
}

// picked returns the devices of a wish and the token that stands for the wish and exactly these devices.
func (dk *Desk) picked(ctx context.Context, who httpapi.Principal, b Bulk) ([]foundDevice, string, error) {
	if err := b.check(); err != nil {
		return nil, "", err
	}
	all, err := dk.find(ctx, who.Scope, b.Filter, position{}, MaxBulk+1, allRows)
	found := all.devices
	switch {
	case err != nil:
		return nil, "", err
	case len(found) > MaxBulk:
		return nil, "", fault.New(fault.Unprocessable, "this picks more than %d devices: narrow it down and do it in parts", MaxBulk)
	case len(found) == 0:
		return nil, "", fault.New(fault.Unprocessable, "no device in your scope is picked by this")
	}
	b.Reason = "" // may be written after the preview
	wish, err := json.Marshal(b)
	if err != nil {
		return nil, "", fmt.Errorf("encode wish: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n", who.Scope.Tenant, wish)
	for _, d := range found {
		fmt.Fprintf(h, "%d %s\n", d.Num, d.Stage)
	}
	return found, strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)[:15])), nil
}

// Preview tells what a bulk run would do.
func (dk *Desk) Preview(ctx context.Context, who httpapi.Principal, b Bulk) (Preview, error) {
	found, token, err := dk.picked(ctx, who, b)
	if err != nil {
		return Preview{}, err
	}
	p := Preview{Token: token, Total: len(found), Stages: map[device.Stage]int64{}, First: []Outcome{}}
	for _, d := range found {
		p.Stages[d.Stage]++
		one := Outcome{ID: d.ID, Name: d.DisplayName(), OK: true}
		_, refusal := dk.wouldBe(ctx, dk.db, who.Scope, b, d.Device)
		switch {
		case refusal == nil:
			p.Willing++
		case !isRefusal(refusal):
			return Preview{}, refusal
		default:
			one.OK, one.Detail = false, refusal.Error()
			if len(p.Refused) < previewRefuse {
				p.Refused = append(p.Refused, one)
			}
		}
		if len(p.First) < previewNames {
			p.First = append(p.First, one)
		}
	}
	return p, nil
}

// change is what a wish for labels means for one device.
func (b Bulk) change(scope device.Scope) Change {
	c := Change{Reason: b.Reason, Check: staysIn(scope)}
	if b.Action == LabelAction {
		c.Set = b.Labels
	} else {
		c.Remove = b.Keys
	}
	return c
}

// staysIn refuses a change of labels that begins or ends outside of what the caller may touch.
func staysIn(scope device.Scope) func(before, after device.Device) error {
	return func(before, after device.Device) error {
		if !scope.Allows(before) {
			return fault.New(fault.NotFound, "no device %s", before.ID)
		}
		if !scope.Allows(after) {
			return fault.New(fault.Forbidden, "with these labels %s would leave your scope %s", before.DisplayName(), scope.Selector)
		}
		return nil
	}
}

// isRefusal tells whether an error is about this device and not about the server.
func isRefusal(err error) bool { return httpapi.Status(err) < 500 }

// Apply does what a preview has shown, confirmed by its token. When the devices or their stages are
// others than in the preview, it is fault.Conflict and nothing is done. Up to maxAwaited devices are
// changed in small transactions before it returns: when the server stops in between, the result of the
// next change shows what is left. More of them become a BulkRun.
func (dk *Desk) Apply(ctx context.Context, who httpapi.Principal, b Bulk, token string) (BulkResult, error) {
	if b.Action == MoveAction {
		if _, err := checkReason(who.Actor, b.Reason); err != nil {
			return BulkResult{}, err
		}
	}
	found, now, err := dk.picked(ctx, who, b)
	if err != nil {
		return BulkResult{}, err
	}
	if token != now {
		return BulkResult{}, fault.New(fault.Conflict, "the devices have changed since the preview, so nothing was done: look at the preview again")
	}
	if len(found) > maxAwaited {
		run, err := dk.begin(ctx, who, b, found)
		return BulkResult{Done: int(run.Done), Refused: int(run.Refused), Devices: []Outcome{}, Run: &run}, err
	}
	res := BulkResult{Devices: make([]Outcome, 0, len(found))}
	for batch := range slices.Chunk(found, bulkBatch) {
		outcomes, err := dk.applyBatch(ctx, who, b, batch)
		if err != nil {
			if res.Done == 0 {
				return BulkResult{}, err
			}
			// What was done stays done, so the caller must learn of it.
			dk.log.ErrorContext(ctx, "bulk run stopped", "done", res.Done, "devices", len(found), "error", err)
			outcomes = nil
			for _, d := range found[len(res.Devices):] {
				outcomes = append(outcomes, Outcome{ID: d.ID, Name: d.DisplayName(), Detail: "not done: the run was stopped by an error of the server"})
			}
			res.add(outcomes)
			return res, nil
		}
		res.add(outcomes)
	}
	return res, nil
}

func (r *BulkResult) add(outcomes []Outcome) {
	r.Devices = append(r.Devices, outcomes...)
	for _, o := range outcomes {
		if o.OK {
			r.Done++
		} else {
			r.Refused++
		}
	}
}

func (dk *Desk) applyBatch(ctx context.Context, who httpapi.Principal, b Bulk, batch []foundDevice) ([]Outcome, error) {
	var outcomes []Outcome
	err := dk.db.Write(ctx, func(tx *sqldb.Tx) error {
		outcomes = make([]Outcome, 0, len(batch)) // the function may run again
		for _, d := range batch {
			one := Outcome{ID: d.ID, Name: d.DisplayName(), OK: true}
			err := savepoint(ctx, tx, func() error {
				if b.Action == MoveAction {
					_, err := dk.MoveOne(ctx, tx, who, d.ID, device.Move{To: b.To, Reason: b.Reason}, "")
					return err
				}
				_, err := dk.Describe(ctx, tx, who.Actor, d.Num, b.change(who.Scope))
				return err
			})
			if err != nil {
				if !isRefusal(err) {
					return fmt.Errorf("%s %s: %w", b.Action, d.ID, err)
				}
				one.OK, one.Detail = false, err.Error()
			}
			outcomes = append(outcomes, one)
		}
		return nil
	})
	return outcomes, err
}

// savepoint runs fn so that its failure undoes what it did and leaves the transaction usable.
func savepoint(ctx context.Context, tx *sqldb.Tx, fn func() error) error {
	if _, err := tx.Exec(ctx, "SAVEPOINT one"); err != nil {
		return err
	}
	err := fn()
	if err != nil {
		if _, undo := tx.Exec(ctx, "ROLLBACK TO SAVEPOINT one"); undo != nil {
			return errors.Join(err, undo)
		}
	}
	if _, release := tx.Exec(ctx, "RELEASE SAVEPOINT one"); release != nil {
		return errors.Join(err, release)
	}
	return err
}

// StageList returns the stages of a preview in the order of a life.
func (p Preview) StageList() []StageCount { return stageList(p.Stages) }

// StageCount is how many devices are in a stage.
type StageCount struct {
	Stage device.Stage
	Count int64
}

func stageList(counts map[device.Stage]int64) []StageCount {
	var out []StageCount
	for _, s := range device.Stages {
		if n := counts[s]; n != 0 {
			out = append(out, StageCount{s, n})
		}
	}
	return out
}

// words says what the action does, for people.
func (b Bulk) words() string {
	switch b.Action {
	case LabelAction:
		return "set " + device.FormatLabels(b.Labels)
	case UnlabelAction:
		return "take away " + strings.Join(b.Keys, ", ")
	}
	return "move to " + strings.ReplaceAll(string(b.To), "_", " ")
}
