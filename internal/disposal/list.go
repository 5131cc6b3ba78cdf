package disposal

import (
	"context"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// Filter picks disposals for a list.
type Filter struct {
	State  State // empty: all
	Limit  int   // 1 to 1000
	Cursor string
}

// List returns a page of disposals, newest first, and the cursor of the next one.
func (s *Service) List(ctx context.Context, who httpapi.Principal, f Filter) ([]Disposal, string, error) {
	var after position
	if err := httpapi.DecodeCursor(f.Cursor, &after); err != nil {
		return nil, "", err
	}
	if f.State != "" {
		if _, err := ParseState(string(f.State)); err != nil {
			return nil, "", fault.Bad("query.state", "%v", err)
		}
	}
	f.Limit = min(max(f.Limit, 1), 1000)
	nums, args := s.cfg.Devices.Matching(who.Scope, device.Selector{}, nil)
	found, err := list(ctx, s.cfg.DB, who.Scope, f, after, nums, args)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(found) > f.Limit {
		found = found[:f.Limit]
		last := found[f.Limit-1]
		next = httpapi.EncodeCursor(position{Created: sqldb.Micros(last.Created), ID: last.ID})
	}
	return found, next, nil
}

// Get returns one disposal of a device in the scope.
func (s *Service) Get(ctx context.Context, who httpapi.Principal, id string) (Disposal, error) {
	x, err := byID(ctx, s.cfg.DB, who.Scope.Tenant, id)
	if err != nil {
		return Disposal{}, err
	}
	if _, err := s.device(ctx, s.cfg.DB, who.Scope, x.Device); err != nil {
		return Disposal{}, fault.New(fault.NotFound, "there is no disposal %q", id)
	}
	return x, nil
}

// retired returns up to limit numbers of delivered devices in stage retired, behind a number.
func (s *Service) retired(ctx context.Context, q sqldb.Reader, scope device.Scope, sel device.Selector, after int64, limit int) ([]int64, error) {
	nums, args := s.cfg.Devices.Matching(scope, sel, []device.Stage{device.Retired})
	b := sqldb.NewQuery("SELECT m.num FROM ("+nums+") m WHERE m.num > ?", append(args[:len(args):len(args)], after)...)
	if s.cfg.Undelivered != nil {
		never, args := s.cfg.Undelivered(scope.Tenant)
		// Asked for each device: there may be a hundred thousand that never came.
		b.Add("AND NOT EXISTS (SELECT 1 FROM ("+never+") n WHERE n.num = m.num)", args...)
	}
	b.Add("ORDER BY m.num LIMIT ?", limit)
	list, err := sqldb.Collect(ctx, q, sqldb.Value[int64], b.SQL(), b.Args()...)
	if err != nil {
		return nil, fmt.Errorf("list retired devices: %w", err)
	}
	return list, nil
}

// Waiting is a retired device with its newest disposal, if there is one.
type Waiting struct {
	Device   device.Device `json:"device"`
	Disposal *Disposal     `json:"disposal,omitempty"`
}

type waitingPosition struct{ Num int64 }

// Waiting lists delivered devices that are retired and not yet disposed of, and the next page's cursor.
func (s *Service) Waiting(ctx context.Context, who httpapi.Principal, page httpapi.PageIn) ([]Waiting, string, error) {
	var after waitingPosition
	if err := httpapi.DecodeCursor(page.Cursor, &after); err != nil {
		return nil, "", err
	}
	limit := min(max(page.Limit, 1), 1000)
	nums, err := s.retired(ctx, s.cfg.DB, who.Scope, device.Selector{}, after.Num, limit+1)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(nums) > limit {
		nums = nums[:limit]
		next = httpapi.EncodeCursor(waitingPosition{nums[limit-1]})
	}
	found := make([]Waiting, 0, len(nums))
	for _, num := range nums {
		d, err := s.cfg.Devices.ByNum(ctx, s.cfg.DB, num)
		if err != nil {
			return nil, "", err
		}
		w := Waiting{Device: d}
		tries, err := ofDevice(ctx, s.cfg.DB, num)
		if err != nil {
			return nil, "", err
		}
		if len(tries) > 0 {
			w.Disposal = &tries[0]
		}
		found = append(found, w)
	}
	return found, next, nil
}
