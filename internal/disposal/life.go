package disposal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
)

// life is what the ledger says about a device, as far as a certificate speaks of it.
type life struct {
	created, received, enrolled, retired, disposed *ledger.Event
	end                                            *ledger.Event // disposal.sanitized or disposal.attested
	ordered                                        *ledger.Event // disposal.ordered of a statement
	revoked                                        *ledger.Event
	events                                         []ledger.Event // all of these, in the order of the tree
}

// movedFacts are the facts of device.moved.
type movedFacts struct {
	From device.Stage `json:"from"`
	To   device.Stage `json:"to"`
}

// revokedFacts are the facts of provisioning.revoked.
type revokedFacts struct {
	Certificates int64 `json:"certificates"`
	Tokens       int64 `json:"tokens"`
}

// receivedFacts are the facts of purchase.received.
type receivedFacts struct {
	Order    string `json:"order"`
	OrderID  string `json:"order_id"`
	Line     int    `json:"line"`
	Delivery string `json:"delivery"`
	Serial   string `json:"serial"`
	Model    string `json:"model"`
}

// lifeKinds are the kinds of events that a certificate may speak of.
var lifeKinds = []string{
	"device.created", "device.moved", "purchase.received", "provisioning.revoked",
	"disposal.ordered", "disposal.sanitized", "disposal.attested",
}

// lifeOf reads a disposed device's life. The events of the end come from one transaction, so a tree
// that lacks one of them is only late: fault.Unavailable.
func (s *Service) lifeOf(ctx context.Context, d device.Device, x Disposal) (life, error) {
	var l life
	f := ledger.Filter{Tenant: d.Tenant, Device: d.ID, Kinds: lifeKinds, Limit: ledger.MaxPage}
	for {
		events, next, err := s.cfg.Ledger.Events(ctx, f)
		if err != nil {
			return l, err
		}
		for _, e := range events {
			l.take(e, x.ID)
		}
		if next == "" {
			break
		}
		f.Cursor = next
	}
	if l.end == nil || l.disposed == nil || l.retired == nil {
		return l, fault.New(fault.Unavailable, "the disposal of %s is not in the ledger's signed tree yet; try again in a moment", d.DisplayName())
	}
	if l.created == nil {
		return l, fmt.Errorf("the ledger does not tell how %s came into being", d.ID)
	}
	if l.revoked != nil && l.revoked.Sequence < l.retired.Sequence {
		l.revoked = nil // of an earlier certificate, long before the end
	}
	for _, e := range []*ledger.Event{l.created, l.received, l.enrolled, l.retired, l.ordered, l.revoked, l.disposed, l.end} {
		if e != nil {
			l.events = append(l.events, *e)
		}
	}
	slices.SortFunc(l.events, func(a, b ledger.Event) int { return int(a.Sequence - b.Sequence) })
	return l, nil
}

// take keeps an event that matters; they come in the order of the tree, and the last of a kind counts,
// but for the first enrollment.
func (l *life) take(e ledger.Event, disposal string) {
	switch e.Kind {
	case "device.created":
		l.created = &e
	case "purchase.received":
		l.received = &e
	case "provisioning.revoked":
		l.revoked = &e
	case "device.moved":
		var moved movedFacts
		if json.Unmarshal(e.Data, &moved) != nil {
			return
		}
		switch {
		case moved.To == device.Enrolled && l.enrolled == nil:
			l.enrolled = &e
		case moved.To == device.Retired:
			l.retired = &e
		case moved.To == device.Disposed:
			l.disposed = &e
		}
	default: // of this room
		switch {
		case e.Subject != disposal:
		case e.Kind == "disposal.ordered":
			l.ordered = &e
		default:
			l.end = &e
		}
	}
}

// write fills in what the document says from events.
func (l *life) write(c *Certificate) error {
	c.Lifecycle = Lifecycle{
		Created: l.created.At, Retired: l.retired.At, RetiredReason: l.retired.Reason, Disposed: l.disposed.At,
	}
	if l.enrolled != nil {
		c.Lifecycle.Enrolled = l.enrolled.At
	}
	if l.ordered != nil {
		c.Sanitization.Ordered = l.ordered.At
	} else {
		c.Sanitization.Ordered = l.end.At // an attestation is its own order
	}
	c.Sanitization.Reason = l.end.Reason
	if l.revoked != nil {
		var facts revokedFacts
		if err := json.Unmarshal(l.revoked.Data, &facts); err != nil {
			return fmt.Errorf("read revocation: %w", err)
		}
		c.Revocation = &Revocation{At: l.revoked.At, Reason: l.revoked.Reason, Certificates: facts.Certificates, Tokens: facts.Tokens}
	}
	return nil
}
