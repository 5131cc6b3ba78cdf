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

// changes are what reports and uploads change of devices' reported state in one transaction. They are
// gathered on pictures in memory first and then written with a number of statements that does not grow
// with the devices or their sections.
type changes struct {
	s       *Service
	now     time.Time
	devices map[int64]*deviceChange
	docs    map[wire.Hash]document // those that the reports name, as far as they are known
	events  []ledger.Event
}

// deviceChange is a device's picture as the reports leave it, and what is to be written.
type deviceChange struct {
	*picture
	alone     bool // a report of it has to be taken alone, and so do those behind it
	speaker   bool // the session's instance, boots or strangeness have changed
	counted   bool // the session has changed at all
	adopted   map[wire.Section]adoption
	asked     map[wire.Section]wire.Hash
	dropped   map[wire.Section]struct{} // no longer asked for
	forgotten map[wire.Section]struct{} // no longer reported
}

// document is a stored one without its body.
type document struct {
	number  int64
	hash    wire.Hash
	size    int64
	touched time.Time
}

// adoption is a document that becomes the reported one; problem is why the room can't use it.
type adoption struct {
	document
	problem string
}

func (s *Service) changes() *changes { return &changes{s: s, now: s.now()} }

// read locks the devices' sessions and reads their pictures.
func (c *changes) read(ctx context.Context, tx *sqldb.Tx, nums []int64) error {
	known, err := pictures(ctx, tx, nums, true)
	if err != nil {
		return err
	}
	c.devices = make(map[int64]*deviceChange, len(known))
	for num, p := range known {
		c.devices[num] = &deviceChange{picture: p}
	}
	return nil
}

// readDocuments looks up documents by their hashes.
func (c *changes) readDocuments(ctx context.Context, tx *sqldb.Tx, named map[string]struct{}) error {
	c.docs = make(map[wire.Hash]document, len(named))
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
		c.docs[d.hash] = d
	}
	return nil
}

// adopt makes a known document the reported one of a section.
func (c *changes) adopt(of device.Device, section wire.Section, doc document, problem string) {
	d := c.devices[of.Num]
	d.drop(section)
	d.reported[section] = doc.hash
	d.adopted = put(d.adopted, section, adoption{doc, problem})
	delete(d.forgotten, section)
	if c.s.records(section) {
		c.events = append(c.events, c.s.reportedEvent(of, section, doc, c.now))
	}
}

// ask notes that the body of a section's document is not known and has to be uploaded.
func (d *deviceChange) ask(section wire.Section, hash wire.Hash) {
	if d.pending[section].hash == hash {
		return
	}
	d.pending[section] = pending{hash: hash}
	d.asked = put(d.asked, section, hash)
	delete(d.dropped, section)
}

// drop notes that a section's document is no longer asked for.
func (d *deviceChange) drop(section wire.Section) {
	if _, waits := d.pending[section]; !waits {
		return
	}
	delete(d.pending, section)
	delete(d.asked, section)
	d.dropped = put(d.dropped, section, struct{}{})
}

// forget takes a section away.
func (d *deviceChange) forget(section wire.Section) {
	d.drop(section)
	delete(d.reported, section)
	delete(d.adopted, section)
	d.forgotten = put(d.forgotten, section, struct{}{})
}

// put makes the map with its first key: most devices of a batch change one thing of many.
func put[V any](m map[wire.Section]V, section wire.Section, v V) map[wire.Section]V {
	if m == nil {
		m = map[wire.Section]V{}
	}
	m[section] = v
	return m
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

// write stores what has changed, devices and sections in a fixed order.
func (c *changes) write(ctx context.Context, tx *sqldb.Tx) error {
	var advanced, spoken sessionRows
	var adopted, asked, dropped, forgotten sectionRows
	used := map[int64]document{}
	for _, num := range slices.Sorted(maps.Keys(c.devices)) {
		d := c.devices[num]
		switch {
		case d.speaker:
			spoken.add(num, d.session)
		case d.counted:
			advanced.add(num, d.session)
		}
		for _, section := range slices.Sorted(maps.Keys(d.adopted)) {
			doc := d.adopted[section]
			adopted.add(num, section, doc.number, doc.problem)
			used[doc.number] = doc.document
		}
		for _, section := range slices.Sorted(maps.Keys(d.asked)) {
			asked.add(num, section, 0, string(d.asked[section]))
		}
		for _, section := range slices.Sorted(maps.Keys(d.dropped)) {
			dropped.add(num, section, 0, "")
		}
		for _, section := range slices.Sorted(maps.Keys(d.forgotten)) {
			forgotten.add(num, section, 0, "")
		}
	}
	if err := c.touch(ctx, tx, used); err != nil {
		return err
	}
	if err := advanced.advance(ctx, tx); err != nil {
		return err
	}
	if err := spoken.write(ctx, tx); err != nil {
		return err
	}
	if err := dropped.remove(ctx, tx, "twin_pending"); err != nil {
		return err
	}
	if err := forgotten.remove(ctx, tx, "twin_reported"); err != nil {
		return err
	}
	if err := c.writeSections(ctx, tx, adopted, asked); err != nil || len(c.events) == 0 {
		return err
	}
	return c.s.cfg.Ledger.Append(ctx, tx, c.events...)
}

func (w *sectionRows) remove(ctx context.Context, tx *sqldb.Tx, table string) error {
	_, err := tx.ExecRows(ctx, "DELETE FROM "+table+" WHERE (num, section) IN (SELECT num, section FROM v)", w.num(), w.section())
	if err != nil {
		return fmt.Errorf("remove from %s: %w", table, err)
	}
	return nil
}

func (c *changes) writeSections(ctx context.Context, tx *sqldb.Tx, adopted, asked sectionRows) error {
	if _, err := tx.ExecRows(ctx, `INSERT INTO twin_reported (num, section, document, at, problem) SELECT num, section, document, at, problem FROM v WHERE true
		ON CONFLICT (num, section) DO UPDATE SET document = excluded.document, at = excluded.at, problem = excluded.problem`,
		adopted.num(), adopted.section(), sqldb.Column{Name: "document", Values: adopted.documents}, adopted.times(c.now),
		sqldb.Column{Name: "problem", Values: adopted.texts}); err != nil {
		return fmt.Errorf("store reported sections: %w", err)
	}
	if _, err := tx.ExecRows(ctx, `INSERT INTO twin_pending (num, section, hash, at) SELECT num, section, hash, at FROM v WHERE true
		ON CONFLICT (num, section) DO UPDATE SET hash = excluded.hash, at = excluded.at`,
		asked.num(), asked.section(), sqldb.Column{Name: "hash", Values: asked.texts}, asked.times(c.now)); err != nil {
		return fmt.Errorf("ask for documents: %w", err)
	}
	return nil
}

// errSwept says that a document was removed between two statements.
var errSwept = errors.New("a document that a report names has just been swept")

// touch keeps the documents that somebody begins to use from being swept.
func (c *changes) touch(ctx context.Context, tx *sqldb.Tx, used map[int64]document) error {
	var old []int64
	for number, doc := range used {
		if c.now.Sub(doc.touched) >= documentLife/2 {
			old = append(old, number)
		}
	}
	if len(old) == 0 {
		return nil
	}
	slices.Sort(old)
	these, arg := tx.Dialect().Among("document", old)
	q := sqldb.NewQuery("UPDATE twin_document SET touched = ? WHERE", sqldb.Micros(c.now)).Add(these, arg)
	n, err := tx.Exec(ctx, q.SQL(), q.Args()...)
	if err == nil && n != int64(len(old)) {
		err = errSwept
	}
	return err
}

// records tells whether the ledger hears of changes of a reported section.
func (s *Service) records(section wire.Section) bool {
	return s.cfg.Ledger != nil && slices.Contains(s.cfg.Recorded, section)
}

func (s *Service) reportedEvent(d device.Device, section wire.Section, doc document, now time.Time) ledger.Event {
	facts := ledger.Facts(struct {
		Section wire.Section `json:"section"`
		Hash    wire.Hash    `json:"hash"`
		Size    int64        `json:"size_bytes"`
	}{section, doc.hash, doc.size})
	return ledger.Event{Tenant: d.Tenant, Kind: "twin.reported", Device: d.ID, Subject: string(section),
		Actor: device.Actor{Kind: device.ActorDevice, ID: string(d.ID), Name: d.DisplayName()}, Data: facts, At: now}
}
