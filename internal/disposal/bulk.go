package disposal

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// MaxBulk bounds how many devices one call orders to sanitize themselves: they are ordered in one
// transaction, all or none.
const MaxBulk = 10_000

// Bulk is what ordering all retired devices of a selector would do.
type Bulk struct {
	Selector string      `json:"selector"`
	Devices  int64       `json:"devices" doc:"How many get an order; send it back to confirm exactly this"`
	Skipped  []BulkSkip  `json:"skipped" nullable:"false" doc:"Retired devices that get none, and why; at most 100 are named"`
	Skips    int64       `json:"skips"`
	Examples []device.ID `json:"examples" nullable:"false" doc:"Up to 10 of them"`
	ids      []device.Device
}

// BulkSkip is a retired device that a bulk order leaves out.
type BulkSkip struct {
	Device device.ID `json:"device"`
	Why    string    `json:"why"`
}

const maxSkipsNamed = 100

// PreviewBulk tells which retired devices a bulk order would reach.
func (s *Service) PreviewBulk(ctx context.Context, who httpapi.Principal, sel device.Selector) (Bulk, error) {
	return s.bulk(ctx, s.cfg.DB, who.Scope, sel)
}

func (s *Service) bulk(ctx context.Context, q sqldb.Reader, scope device.Scope, sel device.Selector) (Bulk, error) {
	b := Bulk{Selector: sel.String(), Skipped: []BulkSkip{}, Examples: []device.ID{}}
	nums, err := s.retired(ctx, q, scope, sel, 0, MaxBulk+1)
	if err != nil {
		return b, err
	}
	if len(nums) > MaxBulk {
		return b, fault.New(fault.TooLarge, "more than %d devices match: narrow the selector", MaxBulk)
	}
	for _, num := range nums {
		d, err := s.cfg.Devices.ByNum(ctx, q, num)
		if err != nil {
			return b, err
		}
		why, err := s.skip(ctx, q, d)
		if err != nil {
			return b, err
		}
		if why != "" {
			if b.Skips++; b.Skips <= maxSkipsNamed {
				b.Skipped = append(b.Skipped, BulkSkip{d.ID, why})
			}
			continue
		}
		b.Devices++
		b.ids = append(b.ids, d)
		if len(b.Examples) < 10 {
			b.Examples = append(b.Examples, d.ID)
		}
	}
	return b, nil
}

// skip says why a bulk order leaves a retired device out, or "".
func (s *Service) skip(ctx context.Context, q sqldb.Reader, d device.Device) (string, error) {
	tries, err := ofDevice(ctx, q, d.Num)
	if err != nil {
		return "", err
	}
	if len(tries) > 0 && tries[0].State.Open() {
		return fmt.Sprintf("order %s of %s stands", tries[0].ID, tries[0].Created.Format(time.DateOnly)), nil
	}
	_, err = s.cfg.Certificates.DeviceChain(ctx, q, d.Num)
	if errors.Is(err, fault.NotFound) {
		return "it has no valid certificate to sign with: attest its disposal", nil
	}
	return "", err
}

// OrderBulk orders the retired devices of a selector to sanitize themselves, if they are as many as
// the preview said.
func (s *Service) OrderBulk(ctx context.Context, who httpapi.Principal, sel device.Selector, reason string, confirm int64) (b Bulk, err error) {
	if err := checkReason(reason); err != nil {
		return Bulk{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if b, err = s.bulk(ctx, tx, who.Scope, sel); err != nil {
			return err
		}
		if b.Devices != confirm {
			return fault.New(fault.Conflict, "%d devices would be ordered to sanitize themselves, not %d: look at the preview again", b.Devices, confirm)
		}
		for _, d := range b.ids {
			if _, err := s.order(ctx, tx, who.Actor, d, reason); err != nil {
				return err
			}
		}
		return nil
	})
	return b, err
}

// parseCount reads the number that somebody typed to confirm.
func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n < 1 {
		return 0, fault.Bad("body.confirm", "type the number of devices to confirm")
	}
	return n, nil
}
