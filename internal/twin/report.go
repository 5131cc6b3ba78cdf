package twin

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// picture is what is stored of a device's reports.
type picture struct {
	session  session
	epoch    int64
	reported map[wire.Section]wire.Hash
	pending  map[wire.Section]pending
}

// pending is a document that was asked for; known tells that it has come meanwhile, from this device or
// another.
type pending struct {
	hash  wire.Hash
	known bool
}

// Report takes what a device says that it is. It returns after the commit; the answer names the
// documents whose bodies are not known yet. Wrong input is fault.Invalid.
func (s *Service) Report(ctx context.Context, d device.Device, r wire.Report) (wire.ReportAnswer, error) {
	if err := checkReport(r); err != nil {
		return wire.ReportAnswer{}, err
	}
	answer := wire.ReportAnswer{IntervalSeconds: 60}
	if s.cfg.Interval != nil {
		answer.IntervalSeconds = max(1, int(s.cfg.Interval(ctx, d)/time.Second))
	}
	call := &reportCall{device: d, report: r, started: s.now()}
	epoch, is := s.seen.answer(d, r, call.started)
	if is == sameSeen && s.quietly() {
		call.epoch, call.contact = epoch, true
	} else if err := s.settle(ctx, call, is); err != nil {
		return wire.ReportAnswer{}, fmt.Errorf("report of %s: %w", d.ID, err)
	}
	if call.contact && s.cfg.ContactUnchanged != nil {
		s.cfg.ContactUnchanged(d, r)
	}
	answer.Missing, answer.Epoch, answer.Time = call.missing, call.epoch, s.now().UTC()
	return answer, nil
}

// quietly tells whether a report that changes nothing needs no transaction.
func (s *Service) quietly() bool { return s.cfg.ContactUnchanged != nil || s.cfg.Contact == nil }

// reportCall is a report on its way to the database, and what comes of it.
type reportCall struct {
	device  device.Device
	report  wire.Report
	started time.Time
	outcome

	alone    bool            // it has to be taken in a transaction of its own
	behind   <-chan struct{} // closed when another report of the device, which has to be taken first, is done
	finished chan struct{}   // to be closed when this one is done; nil when nobody waits for it
}

// outcome is what a report's answer needs to know.
type outcome struct {
	missing []wire.Hash
	epoch   int64
	settled bool        // it is done
	contact bool        // Config.ContactUnchanged is to be told
	left    *seenDevice // what may be remembered
}

// settle has the report compared with the database and, unless it changes nothing, taken: together with
// others where that makes no difference, else by itself.
func (s *Service) settle(ctx context.Context, call *reportCall, is memory) error {
	under := s.seen.begin(call.device.Num, call.started)
	defer func() { s.seen.end(under, call.left) }()
	if !s.quietly() {
		return s.takeAlone(ctx, call)
	}
	if is != newsSeen {
		if err := s.looks.do(ctx, call); err != nil || call.settled {
			return err
		}
	}
	if err := s.takes.do(ctx, call); err != nil || call.settled {
		return err
	}
	if call.finished != nil {
		defer close(call.finished)
	}
	if call.behind != nil {
		<-call.behind
	}
	return s.takeAlone(ctx, call)
}

// look settles the reports that change nothing, without a transaction.
func (s *Service) look(ctx context.Context, calls []*call[*reportCall]) {
	all, err := pictures(ctx, s.db, numsOf(calls), false)
	for _, c := range calls {
		if c.err = err; err != nil {
			continue
		}
		if p := all[c.item.device.Num]; p.unchangedBy(c.item.report) {
			c.item.outcome = s.unchanged(c.item, p)
		}
	}
}

// unchanged is the outcome of a report that says what is stored.
func (s *Service) unchanged(call *reportCall, p *picture) outcome {
	r := call.report
	return outcome{
		settled: true, missing: p.missing(r), epoch: p.epoch,
		contact: r.Sequence >= p.session.sequence, // else it is a replay
		left:    s.seen.left(call.device, r, p, call.started),
	}
}

// numsOf returns the devices of the calls, each once, in ascending order.
func numsOf(calls []*call[*reportCall]) []int64 {
	nums := make([]int64, len(calls))
	for i, c := range calls {
		nums[i] = c.item.device.Num
	}
	slices.Sort(nums)
	return slices.Compact(nums)
}

// takeAlone takes a report in a transaction of its own.
func (s *Service) takeAlone(ctx context.Context, call *reportCall) error {
	var p *picture
	err := s.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		p, err = s.take(ctx, tx, call.device, call.report)
		return err
	})
	if err != nil {
		return err
	}
	call.outcome = outcome{settled: true, missing: p.missing(call.report), epoch: p.epoch, left: s.seen.left(call.device, call.report, p, call.started)}
	return nil
}

// unchangedBy tells whether the report says nothing that is not stored already.
func (p *picture) unchangedBy(r wire.Report) bool {
	if p.session.boot != r.Boot || p.session.instance != r.Instance || r.Epoch != p.session.accepted || r.Epoch > p.epoch {
		return false
	}
	if r.Sequence < p.session.sequence {
		return true // a replay
	}
	for section, hash := range r.Sections {
		wait, waits := p.pending[section]
		switch {
		case waits && (wait.hash != hash || wait.known):
			return false
		case !waits && p.reported[section] != hash:
			return false
		}
	}
	if r.Full {
		for section := range p.sections() {
			if _, named := r.Sections[section]; !named {
				return false
			}
		}
	}
	return true
}

// sections are those of which anything is stored.
func (p *picture) sections() map[wire.Section]struct{} {
	all := map[wire.Section]struct{}{}
	for s := range p.reported {
		all[s] = struct{}{}
	}
	for s := range p.pending {
		all[s] = struct{}{}
	}
	return all
}

// missing lists what the device has named and should upload, without repetitions and in a fixed order.
func (p *picture) missing(r wire.Report) []wire.Hash {
	var out []wire.Hash
	for section, hash := range r.Sections {
		if w, waits := p.pending[section]; waits && w.hash == hash {
			out = append(out, hash)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// take brings the stored picture to what the report says, in a transaction.
func (s *Service) take(ctx context.Context, tx *sqldb.Tx, d device.Device, r wire.Report) (*picture, error) {
	if err := holdSession(ctx, tx, d.Num); err != nil {
		return nil, err
	}
	all, err := pictures(ctx, tx, []int64{d.Num}, true)
	if err != nil {
		return nil, err
	}
	p := all[d.Num]
	before := p.session.instance
	worth := p.session.judge(r)
	now := s.now()
	suspect := p.session.suspect(now)
	if suspect {
		p.session.cloned = now
	}
	if worth == fresh {
		if err := s.takeFresh(ctx, tx, d, r, p); err != nil {
			return nil, err
		}
		p.session.reportedAt = now
	}
	var row sessionRows
	row.add(d.Num, p.session)
	if err := row.write(ctx, tx); err != nil {
		return nil, err
	}
	if suspect {
		return p, s.tellClone(ctx, tx, d, before, r.Instance)
	}
	return p, nil
}

func (s *Service) tellClone(ctx context.Context, tx *sqldb.Tx, d device.Device, old, new string) error {
	s.log.WarnContext(ctx, "two agents speak for one device", "device.id", d.ID, "instance.old", old, "instance.new", new)
	if s.cfg.Clone == nil {
		return nil
	}
	if err := s.cfg.Clone(ctx, tx, d, old, new); err != nil {
		return fmt.Errorf("tell of the clone of %s: %w", d.ID, err)
	}
	return nil
}

// takeFresh stores what is new in a report that counts and tells those who want to know.
func (s *Service) takeFresh(ctx context.Context, tx *sqldb.Tx, d device.Device, r wire.Report, p *picture) error {
	if p.session.accepted != r.Epoch {
		p.session.accepted, p.session.acceptedAt = r.Epoch, s.now()
	}
	if r.Epoch > p.epoch && r.Epoch < maxEpoch {
		// The device has seen a later state than this database knows, which was restored from a backup.
		// It refuses to go back, so its next state must be a later one still.
		if err := s.raiseTo(ctx, tx, d.Num, r.Epoch+1); err != nil {
			return err
		}
		p.epoch = r.Epoch + 1
	}
	if s.cfg.Contact != nil {
		if err := s.cfg.Contact(ctx, tx, d, r); err != nil {
			return fmt.Errorf("tell of the contact: %w", err)
		}
	}
	all := p.sections()
	for section := range r.Sections {
		all[section] = struct{}{}
	}
	if !r.Full && len(all) > MaxSections {
		return fault.Bad("sections", "%d sections with those reported before: at most %d", len(all), MaxSections)
	}
	for _, section := range slices.Sorted(maps.Keys(all)) {
		hash, named := r.Sections[section]
		switch {
		case named:
			if err := s.takeSection(ctx, tx, d, section, hash, p); err != nil {
				return err
			}
		case r.Full:
			if err := forgetSection(ctx, tx, d.Num, section, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) raiseTo(ctx context.Context, tx *sqldb.Tx, num, epoch int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO twin_epoch (num, epoch, since) VALUES ($1, $2, $3)
		ON CONFLICT (num) DO UPDATE SET epoch = excluded.epoch, since = excluded.since WHERE twin_epoch.epoch < excluded.epoch`,
		num, epoch, sqldb.Micros(s.now()))
	if err != nil {
		return fmt.Errorf("raise epoch: %w", err)
	}
	tx.AfterCommit(func() { s.wake(num) })
	return nil
}

// takeSection stores that the device has the document, or that its body is asked for.
func (s *Service) takeSection(ctx context.Context, tx *sqldb.Tx, d device.Device, section wire.Section, hash wire.Hash, p *picture) error {
	if p.reported[section] == hash {
		return dropPending(ctx, tx, d.Num, section, p)
	}
	doc, err := s.useDocument(ctx, tx, hash)
	if errors.Is(err, sql.ErrNoRows) {
		if p.pending[section].hash == hash {
			return nil
		}
		p.pending[section] = pending{hash: hash}
		_, err := tx.Exec(ctx, `INSERT INTO twin_pending (num, section, hash, at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (num, section) DO UPDATE SET hash = excluded.hash, at = excluded.at`, d.Num, section, hash, sqldb.Micros(s.now()))
		return err
	}
	if err != nil {
		return err
	}
	if err := dropPending(ctx, tx, d.Num, section, p); err != nil {
		return err
	}
	p.reported[section] = hash
	return s.adopt(ctx, tx, d, section, doc)
}

func dropPending(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section, p *picture) error {
	if _, waits := p.pending[section]; !waits {
		return nil
	}
	delete(p.pending, section)
	_, err := tx.Exec(ctx, "DELETE FROM twin_pending WHERE num = $1 AND section = $2", num, section)
	return err
}

func forgetSection(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section, p *picture) error {
	if err := dropPending(ctx, tx, num, section, p); err != nil {
		return err
	}
	delete(p.reported, section)
	_, err := tx.Exec(ctx, "DELETE FROM twin_reported WHERE num = $1 AND section = $2", num, section)
	return err
}

// adopt makes a known document the device's reported one and runs the room's reaction.
func (s *Service) adopt(ctx context.Context, tx *sqldb.Tx, d device.Device, section wire.Section, doc int64) error {
	var hash wire.Hash
	var size int64
	if err := tx.QueryRowContext(ctx, "SELECT hash, size FROM twin_document WHERE document = $1", doc).Scan(&hash, &size); err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	problem, err := s.react(ctx, tx, d, section, doc)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO twin_reported (num, section, document, at, problem) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (num, section) DO UPDATE SET document = excluded.document, at = excluded.at, problem = excluded.problem`,
		d.Num, section, doc, sqldb.Micros(s.now()), problem)
	if err != nil {
		return fmt.Errorf("store reported section %s: %w", section, err)
	}
	if !s.records(section) {
		return nil
	}
	return s.cfg.Ledger.Append(ctx, tx, s.reportedEvent(d, section, document{hash: hash, size: size}, s.now()))
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

// maxProblemBytes bounds what is kept of why a document could not be used.
const maxProblemBytes = 500

// react runs the reaction of a section in a savepoint. It returns the problem when the document makes
// no sense to the room, and an error when the report must be repeated.
func (s *Service) react(ctx context.Context, tx *sqldb.Tx, d device.Device, section wire.Section, doc int64) (problem string, err error) {
	reaction := s.cfg.Reactions[section]
	if reaction == nil {
		return "", nil
	}
	var body []byte
	if err := tx.QueryRowContext(ctx, "SELECT body FROM twin_document WHERE document = $1", doc).Scan(&body); err != nil {
		return "", fmt.Errorf("read document: %w", err)
	}
	if _, err := tx.Exec(ctx, "SAVEPOINT reaction"); err != nil {
		return "", err
	}
	if err := reaction(ctx, tx, d, body); err != nil {
		if !errors.Is(err, fault.Unprocessable) {
			return "", fmt.Errorf("reaction to section %s: %w", section, err)
		}
		s.log.WarnContext(ctx, "reported document could not be used", "device.id", d.ID, "section", section, "error", err)
		problem = err.Error()
		problem = problem[:min(len(problem), maxProblemBytes)]
		if _, err := tx.Exec(ctx, "ROLLBACK TO SAVEPOINT reaction"); err != nil {
			return "", err
		}
	}
	_, err = tx.Exec(ctx, "RELEASE SAVEPOINT reaction")
	return problem, err
}

// Upload takes the body of a document that the server has asked this device for, makes it the reported
// one and runs the reactions. Sending it again is fine. It returns fault.Invalid when the body is not
// what the hash says or no JSON, fault.TooLarge, and fault.Conflict when nobody has asked for it.
func (s *Service) Upload(ctx context.Context, d device.Device, hash wire.Hash, body []byte) error {
	switch {
	case len(body) > wire.MaxDocumentBytes:
		return fault.New(fault.TooLarge, "a document has at most %d bytes", wire.MaxDocumentBytes)
	case wire.HashOf(body) != hash:
		return fault.Bad("body", "the SHA-256 of the %d bytes is %s, not %s", len(body), wire.HashOf(body), hash)
	case !json.Valid(body):
		return fault.Bad("body", "the document is not valid JSON")
	}
	under := s.seen.begin(d.Num, s.now())
	defer s.seen.end(under, nil)
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		sections, err := askedFor(ctx, tx, d.Num, hash)
		if err != nil || len(sections) == 0 {
			return err
		}
		doc, err := s.putDocument(ctx, tx, hash, body)
		if err != nil {
			return err
		}
		for _, section := range sections {
			if _, err := tx.Exec(ctx, "DELETE FROM twin_pending WHERE num = $1 AND section = $2", d.Num, section); err != nil {
				return err
			}
			if err := s.adopt(ctx, tx, d, section, doc); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("document of %s: %w", d.ID, err)
	}
	return nil
}

// askedFor returns the sections for which the document was asked from the device. None and no error:
// the device has reported it already, so an answer was lost.
func askedFor(ctx context.Context, tx *sqldb.Tx, num int64, hash wire.Hash) ([]wire.Section, error) {
	if err := holdSession(ctx, tx, num); err != nil {
		return nil, err
	}
	if _, err := readSessions(ctx, tx, []int64{num}, true); err != nil {
		return nil, err
	}
	sections, err := sectionsOf(ctx, tx, "SELECT section FROM twin_pending WHERE num = $1 AND hash = $2 ORDER BY section", num, hash)
	if err != nil || len(sections) > 0 {
		return sections, err
	}
	has, err := sectionsOf(ctx, tx, `SELECT r.section FROM twin_reported r JOIN twin_document doc ON doc.document = r.document
		WHERE r.num = $1 AND doc.hash = $2`, num, hash)
	if err == nil && len(has) == 0 {
		err = fault.New(fault.Conflict, "the server has not asked this device for the document %s: report it first", hash)
	}
	return nil, err
}

func sectionsOf(ctx context.Context, q sqldb.Reader, query string, args ...any) ([]wire.Section, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []wire.Section
	for rows.Next() {
		var s wire.Section
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}
