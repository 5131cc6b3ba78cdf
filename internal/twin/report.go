package twin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"steward/internal/device"
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
