package twin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// takeAlone takes a report with all that the rooms do about it.
func (s *Service) takeAlone(ctx context.Context, call *reportCall) error {
	var p *picture
	err := s.db.WriteShared(ctx, func(tx *sqldb.Tx) (err error) {
		p, err = s.take(ctx, tx, call.device, call.report)
		return err
	})
	if err != nil {
		return err
	}
	call.outcome = outcome{settled: true, missing: p.missing(call.report), epoch: p.epoch, left: s.seen.left(call.device, call.report, p, call.started)}
	return nil
}

// take brings the stored picture to what the report says, in a transaction.
func (s *Service) take(ctx context.Context, tx *sqldb.Tx, d device.Device, r wire.Report) (*picture, error) {
	c := s.changes()
	if err := c.read(ctx, tx, []int64{d.Num}); err != nil {
		return nil, err
	}
	p := c.devices[d.Num]
	p.speaker = true // perhaps there is no row yet
	before := p.session.instance
	worth := p.session.judge(r)
	suspect := p.session.suspect(c.now)
	if suspect {
		p.session.cloned = c.now
	}
	if worth == fresh {
		if err := c.takeFresh(ctx, tx, d, r); err != nil {
			return nil, err
		}
		p.session.reportedAt = c.now
	}
	if err := c.write(ctx, tx); err != nil {
		return nil, err
	}
	if suspect {
		return p.picture, s.tellClone(ctx, tx, d, before, r.Instance)
	}
	return p.picture, nil
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

// takeFresh notes what is new in a report that counts and tells those who want to know.
func (c *changes) takeFresh(ctx context.Context, tx *sqldb.Tx, d device.Device, r wire.Report) error {
	p, s := c.devices[d.Num], c.s
	if p.session.accepted != r.Epoch {
		p.session.accepted, p.session.acceptedAt = r.Epoch, c.now
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
	all, named := p.sections(), map[string]struct{}{}
	for section, hash := range r.Sections {
		all[section] = struct{}{}
		if p.reported[section] != hash {
			named[string(hash)] = struct{}{}
		}
	}
	if !r.Full && len(all) > MaxSections {
		return fault.Bad("sections", "%d sections with those reported before: at most %d", len(all), MaxSections)
	}
	if err := c.readDocuments(ctx, tx, named); err != nil {
		return err
	}
	for _, section := range slices.Sorted(maps.Keys(all)) {
		hash, named := r.Sections[section]
		switch doc, known := c.docs[hash]; {
		case !named && r.Full:
			p.forget(section)
		case !named:
		case p.reported[section] == hash:
			p.drop(section)
		case !known:
			p.ask(section, hash)
		default:
			if err := c.adoptAndReact(ctx, tx, d, section, doc, nil); err != nil {
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

// maxProblemBytes bounds what is kept of why a document could not be used.
const maxProblemBytes = 500

// adoptAndReact makes a known document the reported one after the room has had it. body may be nil, and is
// read then.
func (c *changes) adoptAndReact(ctx context.Context, tx *sqldb.Tx, d device.Device, section wire.Section, doc document, body []byte) error {
	reaction := c.s.cfg.Reactions[section]
	if reaction == nil {
		c.adopt(d, section, doc, "")
		return nil
	}
	if body == nil {
		var err error
		if body, err = c.s.body(ctx, tx, doc.hash); err != nil {
			return err
		}
	}
	problem, err := c.s.react(ctx, tx, d, section, func() error { return reaction(ctx, tx, d, body) })
	if err != nil {
		return err
	}
	c.adopt(d, section, doc, problem)
	return nil
}

// react runs the reaction of a section in a savepoint. It returns the problem when the document makes
// no sense to the room, and an error when the report must be repeated.
func (s *Service) react(ctx context.Context, tx *sqldb.Tx, d device.Device, section wire.Section, reaction func() error) (problem string, err error) {
	if _, err := tx.Exec(ctx, "SAVEPOINT reaction"); err != nil {
		return "", err
	}
	if err := reaction(); err != nil {
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
