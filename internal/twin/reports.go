package twin

import (
	"context"
	"errors"
	"maps"
	"slices"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// reportBatch takes many reports in one transaction with a number of statements that doesn't grow with them.
// It is for plain reports: the sender is known, and what is new concerns nobody but this package and
// the ledger. The others (see plan) are left to be taken alone: rooms react to them with statements of
// their own, and may refuse them, which must not touch the neighbours. When the batch fails as a whole, each
// of its reports is taken alone and gets its own error.
//
// Each device's session is locked, in the order of the numbers, before anything else of it is read. All
// that a plain report writes hangs on that lock, so on PostgreSQL read committed is enough, and spares
// the bookkeeping and the repetitions of serializable transactions.
type reportBatch struct {
	*changes
	calls []*call[*reportCall]
	plans []outcome // by call; not settled means that it has to be taken alone
}

// takeTogether runs a batch and marks the calls that are left to be taken alone.
func (s *Service) takeTogether(ctx context.Context, calls []*call[*reportCall]) {
	var b *reportBatch
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		b = &reportBatch{changes: s.changes(), calls: calls, plans: make([]outcome, len(calls))} // anew: it may run again
		return b.run(ctx, tx)
	})
	if sqldb.IsFull(err) || errors.Is(err, sqldb.ErrClosed) { // nor would it help to try each alone
		for _, c := range calls {
			c.err = err
		}
		return
	}
	if err != nil && len(calls) > 1 {
		s.log.WarnContext(ctx, "a batch of reports is taken one by one", "reports", len(calls), "error", err)
	}
	last := map[int64]*reportCall{} // of a device, to be taken alone
	for i, c := range calls {
		if err == nil && b.plans[i].settled {
			c.item.outcome = b.plans[i]
			continue
		}
		c.item.alone = true
		if before := last[c.item.device.Num]; before != nil {
			before.finished = make(chan struct{})
			c.item.behind = before.finished
		}
		last[c.item.device.Num] = c.item
	}
}

func (b *reportBatch) run(ctx context.Context, tx *sqldb.Tx) error {
	if err := tx.ReadCommitted(ctx); err != nil {
		return err
	}
	if err := b.read(ctx, tx, numsOf(b.calls)); err != nil {
		return err
	}
	named := map[string]struct{}{}
	for _, c := range b.calls {
		d := b.devices[c.item.device.Num]
		for section, hash := range c.item.report.Sections {
			if d.reported[section] != hash {
				named[string(hash)] = struct{}{}
			}
		}
	}
	if err := b.readDocuments(ctx, tx, named); err != nil {
		return err
	}
	for i, c := range b.calls {
		d := b.devices[c.item.device.Num]
		if !d.alone {
			b.plans[i] = b.plan(c.item, d)
			d.alone = !b.plans[i].settled
		}
	}
	return b.write(ctx, tx)
}

// plan takes a plain report into the device's picture and says what comes of it; it leaves the picture alone
// and the outcome unsettled when the report
//
//   - is the device's first since it enrolled, or Contact must hear of it in its transaction;
//   - shows a clone that has to be told;
//   - names an epoch that this database has not reached;
//   - changes a section to which a room reacts, or takes sections away;
//   - has too many sections, which is for the sender alone to hear.
func (b *reportBatch) plan(c *reportCall, d *deviceChange) outcome {
	r, s := c.report, b.s
	if d.unchangedBy(r) {
		return s.unchanged(c, d.picture)
	}
	session := d.session
	worth := session.judge(r)
	if d.session.boot == "" || session.suspect(b.now) || s.contactFirst(c.device) {
		return outcome{}
	}
	if worth == fresh {
		if r.Epoch > d.epoch || !b.plain(r, d) {
			return outcome{}
		}
		b.takeSections(c, d)
		if session.accepted != r.Epoch {
			session.accepted, session.acceptedAt = r.Epoch, b.now
		}
		session.reportedAt = b.now
	}
	d.counted = true
	if session.boot != d.session.boot || session.instance != d.session.instance || session.strange != d.session.strange {
		d.speaker = true
	}
	d.session = session
	return outcome{
		settled: true, missing: d.missing(r), epoch: d.epoch, contact: worth == fresh, left: s.seen.left(c.device, r, d.picture, c.started),
	}
}

// contactFirst tells whether Contact has to hear of a report of the device before it is taken.
func (s *Service) contactFirst(d device.Device) bool {
	return s.cfg.Contact != nil && d.Stage == device.Enrolled
}

// plain tells whether what is new in the sections concerns nobody else.
func (b *reportBatch) plain(r wire.Report, d *deviceChange) bool {
	all := d.sections()
	if r.Full {
		for section := range all {
			if _, named := r.Sections[section]; !named {
				return false
			}
		}
	}
	for section, hash := range r.Sections {
		all[section] = struct{}{}
		if _, known := b.docs[hash]; known && d.reported[section] != hash && b.s.cfg.Reactions[section] != nil {
			return false
		}
	}
	return len(all) <= MaxSections
}

// takeSections notes what the report's sections change.
func (b *reportBatch) takeSections(c *reportCall, d *deviceChange) {
	for _, section := range slices.Sorted(maps.Keys(c.report.Sections)) {
		hash := c.report.Sections[section]
		doc, known := b.docs[hash]
		switch {
		case d.reported[section] == hash:
			d.drop(section)
		case known:
			b.adopt(c.device, section, doc, "")
		default:
			d.ask(section, hash)
		}
	}
}
