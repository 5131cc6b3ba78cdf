package twin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
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
	s       *Service
	now     time.Time
	calls   []*call[*reportCall]
	plans   []outcome // by call; not settled means that it has to be taken alone
	devices map[int64]*batchDevice
	docs    map[wire.Hash]document
	events  []ledger.Event
}

// batchDevice is a device's picture as the reports of the batch leave it, and what is to be written.
type batchDevice struct {
	*picture
	alone   bool // a report of it has to be taken alone, and so do those behind it
	speaker bool // the session's instance, boots or strangeness have changed
	counted bool // the session has changed at all
	adopted map[wire.Section]document
	asked   map[wire.Section]wire.Hash
	dropped map[wire.Section]struct{} // no longer asked for
}

// document is a stored one without its body.
type document struct {
	number  int64
	hash    wire.Hash
	size    int64
	touched time.Time
}

// takeTogether runs a batch and marks the calls that are left to be taken alone.
func (s *Service) takeTogether(ctx context.Context, calls []*call[*reportCall]) {
	var b *reportBatch
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		b = &reportBatch{s: s, now: s.now(), calls: calls, plans: make([]outcome, len(calls))} // anew: it may run again
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
	known, err := pictures(ctx, tx, numsOf(b.calls), true)
	if err != nil {
		return err
	}
	b.devices = make(map[int64]*batchDevice, len(known))
	for num, p := range known {
		b.devices[num] = &batchDevice{picture: p}
	}
	if err := b.readDocuments(ctx, tx); err != nil {
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

// readDocuments looks up what the reports name and the devices don't have already.
func (b *reportBatch) readDocuments(ctx context.Context, tx *sqldb.Tx) error {
	named := map[string]struct{}{}
	for _, c := range b.calls {
		d := b.devices[c.item.device.Num]
		for section, hash := range c.item.report.Sections {
			if d.reported[section] != hash {
				named[string(hash)] = struct{}{}
			}
		}
	}
	b.docs = make(map[wire.Hash]document, len(named))
	if len(named) == 0 {
		return nil
	}
	these, arg := tx.Dialect().AmongTexts("hash", slices.Collect(maps.Keys(named)))
	q := sqldb.NewQuery("SELECT document, hash, size, touched FROM twin_document WHERE "+these, arg)
	docs, err := sqldb.Collect(ctx, tx, func(rows *sql.Rows) (d document, err error) {
		err = rows.Scan(&d.number, &d.hash, &d.size, sqldb.ScanMicros(&d.touched))
		return d, err
	}, q.SQL(), q.Args()...)
	if err != nil {
		return fmt.Errorf("read documents: %w", err)
	}
	for _, d := range docs {
		b.docs[d.hash] = d
	}
	return nil
}

// plan takes a plain report into the device's picture and says what comes of it; it leaves the picture alone
// and the outcome unsettled when the report
//
//   - is the device's first since it enrolled, or Contact must hear of it in its transaction;
//   - shows a clone that has to be told;
//   - names an epoch that this database has not reached;
//   - changes a section to which a room reacts, or takes sections away;
//   - has too many sections, which is for the sender alone to hear.
func (b *reportBatch) plan(c *reportCall, d *batchDevice) outcome {
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
func (b *reportBatch) plain(r wire.Report, d *batchDevice) bool {
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
func (b *reportBatch) takeSections(c *reportCall, d *batchDevice) {
	for _, section := range slices.Sorted(maps.Keys(c.report.Sections)) {
		hash := c.report.Sections[section]
		doc, known := b.docs[hash]
		switch {
		case d.reported[section] == hash:
			d.drop(section)
		case known:
			d.drop(section)
			d.reported[section] = hash
			if d.adopted == nil {
				d.adopted = map[wire.Section]document{}
			}
			d.adopted[section] = doc
			if b.s.records(section) {
				b.events = append(b.events, b.s.reportedEvent(c.device, section, doc, b.now))
			}
		case d.pending[section].hash != hash:
			d.pending[section] = pending{hash: hash}
			if d.asked == nil {
				d.asked = map[wire.Section]wire.Hash{}
			}
			d.asked[section] = hash
			delete(d.dropped, section)
		}
	}
}

// drop notes that a section's document is no longer asked for.
func (d *batchDevice) drop(section wire.Section) {
	if _, waits := d.pending[section]; !waits {
		return
	}
	delete(d.pending, section)
	delete(d.asked, section)
	if d.dropped == nil {
		d.dropped = map[wire.Section]struct{}{}
	}
	d.dropped[section] = struct{}{}
}

// sectionRows are rows of a table by device and section.
type sectionRows struct {
	nums, documents []int64
	sections, texts []string
}

func (w *sectionRows) add(num int64, section wire.Section, document int64, text string) {
	w.nums, w.sections = append(w.nums, num), append(w.sections, string(section))
	w.documents, w.texts = append(w.documents, document), append(w.texts, text)
}

func (w *sectionRows) num() sqldb.Column { return sqldb.Column{Name: "num", Values: w.nums} }
func (w *sectionRows) section() sqldb.Column {
	return sqldb.Column{Name: "section", Values: w.sections}
}
func (w *sectionRows) times(now time.Time) sqldb.Column {
	return sqldb.Column{Name: "at", Values: slices.Repeat([]int64{sqldb.Micros(now)}, len(w.nums))}
}

// write stores what the plans have changed, devices and sections in a fixed order.
func (b *reportBatch) write(ctx context.Context, tx *sqldb.Tx) error {
	var advanced, spoken sessionRows
	var adopted, asked, dropped sectionRows
	used := map[int64]document{}
	for _, num := range slices.Sorted(maps.Keys(b.devices)) {
		d := b.devices[num]
		switch {
		case d.speaker:
			spoken.add(num, d.session)
		case d.counted:
			advanced.add(num, d.session)
		}
		for _, section := range slices.Sorted(maps.Keys(d.adopted)) {
			doc := d.adopted[section]
			adopted.add(num, section, doc.number, "")
			used[doc.number] = doc
		}
		for _, section := range slices.Sorted(maps.Keys(d.asked)) {
			asked.add(num, section, 0, string(d.asked[section]))
		}
		for _, section := range slices.Sorted(maps.Keys(d.dropped)) {
			dropped.add(num, section, 0, "")
		}
	}
	if err := b.touch(ctx, tx, used); err != nil {
		return err
	}
	if err := advanced.advance(ctx, tx); err != nil {
		return err
	}
	if err := spoken.write(ctx, tx); err != nil {
		return err
	}
	if err := b.writeSections(ctx, tx, adopted, asked, dropped); err != nil || len(b.events) == 0 {
		return err
	}
	return b.s.cfg.Ledger.Append(ctx, tx, b.events...)
}

func (b *reportBatch) writeSections(ctx context.Context, tx *sqldb.Tx, adopted, asked, dropped sectionRows) error {
	if _, err := tx.ExecRows(ctx, "DELETE FROM twin_pending WHERE (num, section) IN (SELECT num, section FROM v)",
		dropped.num(), dropped.section()); err != nil {
		return fmt.Errorf("drop asked documents: %w", err)
	}
	if _, err := tx.ExecRows(ctx, `INSERT INTO twin_reported (num, section, document, at, problem) SELECT num, section, document, at, '' FROM v WHERE true
		ON CONFLICT (num, section) DO UPDATE SET document = excluded.document, at = excluded.at, problem = excluded.problem`,
		adopted.num(), adopted.section(), sqldb.Column{Name: "document", Values: adopted.documents}, adopted.times(b.now)); err != nil {
		return fmt.Errorf("store reported sections: %w", err)
	}
	if _, err := tx.ExecRows(ctx, `INSERT INTO twin_pending (num, section, hash, at) SELECT num, section, hash, at FROM v WHERE true
		ON CONFLICT (num, section) DO UPDATE SET hash = excluded.hash, at = excluded.at`,
		asked.num(), asked.section(), sqldb.Column{Name: "hash", Values: asked.texts}, asked.times(b.now)); err != nil {
		return fmt.Errorf("ask for documents: %w", err)
	}
	return nil
}

// errSwept says that a document was removed between two statements.
var errSwept = errors.New("a document that a report names has just been swept")

// touch keeps the documents that the batch begins to use from being swept.
func (b *reportBatch) touch(ctx context.Context, tx *sqldb.Tx, used map[int64]document) error {
	var old []int64
	for number, doc := range used {
		if b.now.Sub(doc.touched) >= documentLife/2 {
			old = append(old, number)
		}
	}
	if len(old) == 0 {
		return nil
	}
	slices.Sort(old)
	these, arg := tx.Dialect().Among("document", old)
	q := sqldb.NewQuery("UPDATE twin_document SET touched = ? WHERE", sqldb.Micros(b.now)).Add(these, arg)
	n, err := tx.Exec(ctx, q.SQL(), q.Args()...)
	if err == nil && n != int64(len(old)) {
		err = errSwept
	}
	return err
}
