package remote

import (
	"context"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// Selection picks devices: those of a group, or that a selector matches, within the giver's scope.
type Selection struct {
	Selector string // label selector; empty with no group means every device in the scope
	Group    string // name; with it the selector is empty
}

// Preview is what giving a command to a selection would hit.
type Preview struct {
	Selector string `json:"selector" doc:"The selector; of the group when one was named"`
	Name     string `json:"name"`
	Devices  int64  `json:"devices" doc:"How many would get the command; send it back to confirm exactly this"`
	Examples []Hit  `json:"examples" nullable:"false" doc:"Up to 10 of them"`
	Skips    int64  `json:"skips" doc:"Matching devices in service that would not get it"`
	Skipped  []Skip `json:"skipped" nullable:"false" doc:"Up to 100 of those, and why"`
	Looks    bool   `json:"looks_only" doc:"The command only looks at devices (ping, report, diagnose)"`
	hit      []device.Device
}

// Hit names a device that a selection reaches.
type Hit struct {
	Device device.ID `json:"device"`
	Name   string    `json:"name" doc:"As people call it"`
}

// Skip is a device that a selection leaves out.
type Skip struct {
	Hit
	Why string `json:"why"`
}

const (
	maxExamples   = 10
	maxSkipsNamed = 100
	maxMatched    = 2 * MaxBatch // looked at, of which at most MaxBatch may be hit
	selectorField = "body.selector"
)

// resolve finds the selector of a selection.
func (s *Service) resolve(ctx context.Context, who httpapi.Principal, sel Selection) (device.Selector, error) {
	if sel.Group == "" {
		parsed, err := device.ParseSelector(sel.Selector)
		if err != nil {
			return device.Selector{}, fault.Bad(selectorField, "%s", err)
		}
		return parsed, nil
	}
	if sel.Selector != "" {
		return device.Selector{}, fault.Bad("body.group", "give a group or a selector, not both")
	}
	if s.cfg.Group == nil {
		return device.Selector{}, fault.Bad("body.group", "there are no groups")
	}
	return s.cfg.Group(ctx, who.Scope.Tenant, sel.Group)
}

// mayMatch are the stages in which a device can get a command at all.
var mayMatch = []device.Stage{device.Enrolled, device.Active, device.Quarantined}

// PreviewGive tells what giving the command to the selection would hit; it gives nothing.
func (s *Service) PreviewGive(ctx context.Context, who httpapi.Principal, sel Selection, w Wish) (Preview, error) {
	w, err := w.settle()
	if err != nil {
		return Preview{}, err
	}
	selector, err := s.resolve(ctx, who, sel)
	if err != nil {
		return Preview{}, err
	}
	return s.preview(ctx, s.cfg.DB, who.Scope, selector, w.Name)
}

func (s *Service) preview(ctx context.Context, q sqldb.Reader, scope device.Scope, sel device.Selector, name string) (Preview, error) {
	p := Preview{Selector: sel.String(), Name: name, Examples: []Hit{}, Skipped: []Skip{}, Looks: Harmless(name)}
	nums, err := s.matching(ctx, q, scope, sel)
	if err != nil {
		return p, err
	}
	for _, num := range nums {
		d, err := s.cfg.Devices.ByNum(ctx, q, num)
		if err != nil {
			return p, err
		}
		why, err := s.skip(ctx, q, d, name)
		if err != nil {
			return p, err
		}
		hit := Hit{d.ID, d.DisplayName()}
		if why != "" {
			if p.Skips++; p.Skips <= maxSkipsNamed {
				p.Skipped = append(p.Skipped, Skip{hit, why})
			}
			continue
		}
		p.hit = append(p.hit, d)
		if p.Devices++; p.Devices <= maxExamples {
			p.Examples = append(p.Examples, hit)
		}
	}
	if p.Devices > MaxBatch {
		return p, tooMany(selectorField)
	}
	return p, nil
}

func tooMany(where string) error {
	return fault.Bad(where, "more than %d devices match: narrow it, and give the command part by part", MaxBatch)
}

func (s *Service) matching(ctx context.Context, q sqldb.Reader, scope device.Scope, sel device.Selector) ([]int64, error) {
	query, args := s.cfg.Devices.Matching(scope, sel, mayMatch)
	b := sqldb.NewQuery("SELECT m.num FROM ("+query+") m", args...).Add("LIMIT ?", maxMatched+1)
	rows, err := q.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("devices of a selection: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var nums []int64
	for rows.Next() {
		var num int64
		if err := rows.Scan(&num); err != nil {
			return nil, fmt.Errorf("devices of a selection: %w", err)
		}
		nums = append(nums, num)
	}
	if len(nums) > maxMatched {
		return nil, tooMany(selectorField)
	}
	return nums, rows.Err()
}

// GiveMany gives the command to every device of the selection, all or none, if they are as many as the
// preview said. Devices that can't get it are left out.
func (s *Service) GiveMany(ctx context.Context, who httpapi.Principal, sel Selection, w Wish, confirm int64) (b Batch, err error) {
	if w, err = w.settle(); err != nil {
		return Batch{}, err
	}
	if confirm < 1 || confirm > MaxBatch {
		return Batch{}, fault.Bad("body.confirm", "want the preview's number of devices, 1 to %d", MaxBatch)
	}
	selector, err := s.resolve(ctx, who, sel)
	if err != nil {
		return Batch{}, err
	}
	if err := s.takeRate(who.Scope.Tenant, int(confirm)); err != nil {
		return Batch{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		p, err := s.preview(ctx, tx, who.Scope, selector, w.Name)
		if err != nil {
			return err
		}
		if p.Devices != confirm {
			return fault.New(fault.Conflict, "%d devices would get the command, not %d: look at the preview again", p.Devices, confirm)
		}
		b, err = s.giveAll(ctx, tx, who, p, w)
		return err
	})
	if err != nil {
		s.rate.back(who.Scope.Tenant, int(confirm))
		return Batch{}, wrap(err, "give a command to a selection")
	}
	return b, nil
}

func (s *Service) giveAll(ctx context.Context, tx *sqldb.Tx, who httpapi.Principal, p Preview, w Wish) (Batch, error) {
	now := s.now().UTC().Truncate(time.Microsecond)
	b := Batch{
		ID: "bat-" + device.RandomName(10), Selector: p.Selector, Name: w.Name, Devices: p.Devices, States: map[string]int64{Waiting.String(): p.Devices},
		By: who.Actor, Issued: now, Deadline: now.Add(w.Deadline),
	}
	if err := insertBatch(ctx, tx, who.Scope.Tenant, b); err != nil {
		return Batch{}, err
	}
	nums := make([]int64, len(p.hit))
	for i, d := range p.hit {
		if _, err := s.give(ctx, tx, who.Actor, d, w, b.ID); err != nil {
			return Batch{}, err
		}
		nums[i] = d.Num
	}
	tx.AfterCommit(func() { s.tellGiven(nums) })
	return b, httpapi.Settle(ctx, tx, b)
}

// CancelBatch ends the open commands of a batch in the reader's scope and returns how many.
func (s *Service) CancelBatch(ctx context.Context, who httpapi.Principal, id string) (n int64, err error) {
	if _, err := s.Batch(ctx, who, id); err != nil {
		return 0, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		n = 0
		q := sqldb.NewQuery("SELECT c.id FROM remote_command c WHERE c.batch <> '' AND c.batch = ? AND c.state < 2", id)
		if !who.Scope.Selector.Empty() {
			nums, args := s.cfg.Devices.Matching(who.Scope, device.Selector{}, nil)
			q.Add("AND c.num IN ("+nums+")", args...)
		}
		ids, err := scanTexts(tx.QueryContext(ctx, q.SQL(), q.Args()...))
		if err != nil {
			return err
		}
		for _, id := range ids {
			c, ok, err := byID(ctx, tx, id)
			if err != nil {
				return err
			}
			if !ok || !c.State.Open() {
				continue
			}
			if err := s.cancel(ctx, tx, who.Actor, &c, ""); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, wrap(err, "cancel a batch")
}
