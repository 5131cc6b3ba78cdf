package monitoring

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// contacts gathers what is to be written: a device's heartbeat is one map entry here and one row of a
// statement a second later. What dies with the process is at most that second, and the device is in
// contact again within its interval.
type contacts struct {
	mu       sync.Mutex
	waiting  map[int64]contact
	troubles map[troubleKey]troubleNote
	full     chan struct{} // tells Run that it should not wait for the second
	flushing sync.Mutex    // one flush at a time, so that an old one can't follow a newer
}

type contact struct {
	tenant device.TenantID
	device device.ID
	at     time.Time
}

type troubleKey struct {
	num  int64
	kind string
}

type troubleNote struct {
	tenant      device.TenantID
	n           int64
	first, last time.Time
	detail      string
}

// flushAt is how many waiting contacts cause a flush before its time.
const flushAt = 2000

// Seen notes a contact that changed nothing else. It doesn't wait for the database.
func (s *Service) Seen(d device.Device, r wire.Report) {
	s.clockOf(d, r.Time)
	s.seen(d)
}

func (s *Service) seen(d device.Device) {
	c := contact{d.Tenant, d.ID, s.now()}
	s.contacts.mu.Lock()
	s.contacts.waiting[d.Num] = c
	full := len(s.contacts.waiting) >= flushAt
	s.contacts.mu.Unlock()
	if full {
		select {
		case s.contacts.full <- struct{}{}:
		default: // Run knows already
		}
	}
}

// clockOf compares the device's clock with ours; the zero time says nothing.
func (s *Service) clockOf(d device.Device, clock time.Time) {
	if clock.IsZero() {
		return
	}
	if off := clock.Sub(s.now()); off.Abs() > maxClockError {
		s.trouble(d, TroubleClock, 1, clockWords(off))
	}
}

func clockWords(off time.Duration) string {
	if off > 0 {
		return fmt.Sprintf("its clock is %s ahead", words(off))
	}
	return fmt.Sprintf("its clock is %s behind", words(-off))
}

// words rounds a duration for people.
func words(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d minutes", int(d.Minutes()))
}

func (s *Service) trouble(d device.Device, kind string, n int64, detail string) {
	now := s.now()
	s.contacts.mu.Lock()
	defer s.contacts.mu.Unlock()
	key := troubleKey{d.Num, kind}
	note, known := s.contacts.troubles[key]
	if !known {
		note = troubleNote{tenant: d.Tenant, first: now}
	}
	note.n, note.last, note.detail = note.n+n, now, detail
	s.contacts.troubles[key] = note
}

// Contact notes a contact with what the device reported. Only one that makes the device known, its first
// report, is written in the report's transaction; any other is noted once that has committed, costs a map
// entry, and is written with the next batch, as an unchanged one is.
func (s *Service) Contact(ctx context.Context, tx *sqldb.Tx, d device.Device, r wire.Report) error {
	if d.Stage != device.Enrolled {
		tx.AfterCommit(func() { s.Seen(d, r) })
		return nil
	}
	tx.AfterCommit(func() { s.clockOf(d, r.Time) })
	err := s.writeContacts(ctx, tx, map[int64]contact{d.Num: {d.Tenant, d.ID, s.now()}})
	if err != nil {
		return fmt.Errorf("contact of %s: %w", d.ID, err)
	}
	return nil
}

// flush writes what waits. What can't be written waits on, under what has come meanwhile.
func (s *Service) flush(ctx context.Context) error {
	s.contacts.flushing.Lock()
	defer s.contacts.flushing.Unlock()
	s.contacts.mu.Lock()
	batch, troubles := s.contacts.waiting, s.contacts.troubles
	s.contacts.waiting, s.contacts.troubles = map[int64]contact{}, map[troubleKey]troubleNote{}
	s.contacts.mu.Unlock()
	notes := s.links.take()
	if len(batch) == 0 && len(troubles) == 0 && len(notes) == 0 {
		return nil
	}
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if err := writeTroubles(ctx, tx, troubles); err != nil {
			return err
		}
		if err := s.writeContacts(ctx, tx, batch); err != nil {
			return err
		}
		return s.writeLinks(ctx, tx, notes)
	})
	if err == nil {
		return nil
	}
	s.links.back(notes)
	s.contacts.mu.Lock()
	defer s.contacts.mu.Unlock()
	for num, c := range batch {
		if _, newer := s.contacts.waiting[num]; !newer {
			s.contacts.waiting[num] = c
		}
	}
	for key, old := range troubles {
		if newer, has := s.contacts.troubles[key]; has {
			newer.n, newer.first = newer.n+old.n, old.first
			old = newer
		}
		s.contacts.troubles[key] = old
	}
	return fmt.Errorf("write contacts: %w", err)
}

// writeContacts stores contacts, oldest numbers first so that two nodes lock rows in the same order, and
// brings back those that were new, late or offline.
func (s *Service) writeContacts(ctx context.Context, tx *sqldb.Tx, batch map[int64]contact) error {
	nums := slices.Sorted(maps.Keys(batch))
	intervals, err := s.intervals(ctx, tx, batch)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(nums, rowsPerStatement) {
		if err := upsertContacts(ctx, tx, chunk, batch, intervals); err != nil {
			return err
		}
		back, err := notOnline(ctx, tx, chunk)
		if err != nil {
			return err
		}
		if err := s.comeBack(ctx, tx, back); err != nil {
			return err
		}
	}
	return nil
}

// intervals are the reporting intervals of the tenants in the batch, in seconds.
func (s *Service) intervals(ctx context.Context, tx *sqldb.Tx, batch map[int64]contact) (map[device.TenantID]int64, error) {
	out := map[device.TenantID]int64{}
	for _, c := range batch {
		if _, has := out[c.tenant]; !has {
			p, err := s.policyIn(ctx, tx, c.tenant)
			if err != nil {
				return nil, err
			}
			out[c.tenant] = int64(p.ReportSeconds)
		}
	}
	return out, nil
}

// comeBack sets rows that have just been in contact to online.
func (s *Service) comeBack(ctx context.Context, tx *sqldb.Tx, back []seenRow) error {
	if len(back) == 0 {
		return nil
	}
	counts := countChange{}
	var events []ledger.Event
	changes := make([]stateChange, len(back))
	for i, row := range back {
		counts.move(row.tenant, row.state, Online)
		if row.state == Offline {
			events = append(events, event(row, "monitoring.online", map[string]any{
				"offline_since": row.since.UTC(), "offline_seconds": int64(row.lastContact.Sub(row.since).Seconds()),
			}))
		}
		changes[i] = stateChange{row.num, Online, row.lastContact, row.lastContact.Add(lateAfter(row.interval))}
	}
	if err := setStates(ctx, tx, changes); err != nil {
		return err
	}
	return s.settle(ctx, tx, counts, events)
}

func (s *Service) settle(ctx context.Context, tx *sqldb.Tx, counts countChange, events []ledger.Event) error {
	if err := writeCounts(ctx, tx, counts); err != nil {
		return err
	}
	if len(events) == 0 {
		return nil
	}
	return s.cfg.Ledger.Append(ctx, tx, events...)
}

func event(row seenRow, kind string, facts map[string]any) ledger.Event {
	return ledger.Event{Tenant: row.tenant, Kind: kind, Device: row.device, Actor: device.System("monitoring"), Data: ledger.Facts(facts)}
}

// watchGap is how long nobody may have swept before the time counts as the server's own absence: a
// server that was down, suspended or stalled must not take its own silence for the fleet's.
const watchGap = 45 * time.Second

// sweepBatches bounds the batches of one sweep, so that a fleet that falls silent as one is judged at
// 5,000 devices a second and leaves the database to others in between.
const sweepBatches = 50

// Sweep moves devices that have been silent for too long to late and offline. It reads only rows whose
// time has come, by an index, and is safe on several nodes.
func (s *Service) Sweep(ctx context.Context) error {
	if err := s.flush(ctx); err != nil {
		return err
	}
	since, err := s.watch(ctx)
	if err != nil {
		return fmt.Errorf("watch presence: %w", err)
	}
	for range sweepBatches {
		more, err := s.sweepOnce(ctx, since)
		if err != nil {
			return fmt.Errorf("watch presence: %w", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// watch notes that this node watches and returns since when somebody does without a hole. When the one
// before is gone, the hole begins anew even if it was short: devices that have lost their server come back
// spread over some time, and each gets the whole of its intervals for it.
func (s *Service) watch(ctx context.Context) (since time.Time, err error) {
	now := s.now()
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		var alive time.Time
		var node string
		since, alive, node, err = readWatch(ctx, tx)
		if err != nil {
			return err
		}
		if now.Sub(alive) > watchGap || now.Before(alive.Add(-watchGap)) || !s.nodeAlive(node) {
			since = now // nobody watched, or the clock was set
		}
		return writeWatch(ctx, tx, since, now, s.cfg.Node())
	})
	return since, err
}

// sweepOnce looks at one batch of rows whose time has come. A device's silence counts from the latest of
// its last contact, the time since which somebody watches, and the time when it lost its node; a state
// never improves here, since only a contact does that.
func (s *Service) sweepOnce(ctx context.Context, since time.Time) (more bool, err error) {
	now := s.now()
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		rows, err := dueRows(ctx, tx, now)
		if err != nil || len(rows) == 0 {
			more = false
			return err
		}
		more = len(rows) == rowsPerStatement
		counts := countChange{}
		var events []ledger.Event
		changes := make([]stateChange, len(rows))
		for i, row := range rows {
			changes[i] = row.judge(now, since)
			if changes[i].state == row.state {
				continue
			}
			counts.move(row.tenant, row.state, changes[i].state)
			if changes[i].state == Offline {
				events = append(events, event(row, "monitoring.offline", map[string]any{
					"last_contact": row.lastContact.UTC(), "interval_seconds": int64(row.interval.Seconds()),
				}))
			}
		}
		if err := setStates(ctx, tx, changes); err != nil {
			return err
		}
		return s.settle(ctx, tx, counts, events)
	})
	return more, err
}

// judge says what a row whose time has come should be, and when to look at it again.
func (row seenRow) judge(now, since time.Time) stateChange {
	from := row.lastContact
	for _, later := range []time.Time{since, row.excused} {
		if later.After(from) {
			from = later
		}
	}
	state, look := judge(now.Sub(from), row.interval)
	change := stateChange{row.num, state, now, from.Add(look)}
	if state <= row.state {
		change.state, change.since = row.state, row.since
		if row.state == Late {
			change.checkAt = from.Add(offlineAfter(row.interval))
		}
	}
	return change
}

// Of returns what is known of these devices; one that was never in contact is left out.
func (s *Service) Of(ctx context.Context, nums []int64) (map[int64]Presence, error) {
	known := make(map[int64]Presence, len(nums))
	for chunk := range slices.Chunk(nums, rowsPerStatement) {
		if err := readPresence(ctx, s.cfg.DB, chunk, known); err != nil {
			return nil, fmt.Errorf("read presence: %w", err)
		}
	}
	s.contacts.mu.Lock()
	defer s.contacts.mu.Unlock()
	for _, num := range nums { // what this node knows and hasn't written yet
		c, waits := s.contacts.waiting[num]
		if p, has := known[num]; waits && (!has || c.at.After(p.LastContact)) {
			p.LastContact = c.at
			known[num] = p
			if !has {
				known[num] = Presence{State: Online, LastContact: c.at, Since: c.at}
			}
		}
	}
	return known, nil
}

// Where is the condition that the device whose number is in numColumn is in the named state, with "?"
// placeholders; an unknown name matches no device.
func (s *Service) Where(numColumn, state string) (string, []any) {
	st, err := ParseState(state)
	switch {
	case err != nil:
		return "1 = 0", nil
	case st == Never:
		return "NOT EXISTS (SELECT 1 FROM monitoring_seen ms WHERE ms.num = " + numColumn + ")", nil
	}
	return "EXISTS (SELECT 1 FROM monitoring_seen ms WHERE ms.num = " + numColumn + " AND ms.state = ?)", []any{int(st)}
}
