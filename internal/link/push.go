package link

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"steward/internal/device"
)

// pusher brings changes to the sessions: it gathers for which devices there is news, looks up many of them
// at a time, and hands each session what is new for it. Whoever tells of news never waits.
type pusher struct {
	s    *Server
	wake chan struct{}

	mu       sync.Mutex
	nums     map[int64]struct{} // devices whose desired state may be new
	all      bool               // of all devices
	commands map[int64]struct{} // devices for which there may be commands
	changed  map[int64]struct{} // devices that are to be judged again
}

const (
	gatherTime  = 5 * time.Millisecond // news of one change come together
	pushBatch   = 256                  // devices that are looked up at a time
	pushWorkers = 4
	pushTime    = time.Second // for a device to take what is pushed; its socket is empty as a rule
	// A message of the bus can be lost: so often is looked without one, at epochs and at commands.
	lookEpochs   = time.Minute
	lookCommands = 10 * time.Minute
	retryTime    = 5 * time.Second // after the database could not be asked
)

func newPusher(s *Server) *pusher {
	return &pusher{s: s, wake: make(chan struct{}, 1), nums: map[int64]struct{}{}, commands: map[int64]struct{}{}, changed: map[int64]struct{}{}}
}

func (p *pusher) tell(note func()) {
	p.mu.Lock()
	note()
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// desired is the twin's wake-up: 0 means any number of devices.
func (p *pusher) desired(num int64) {
	if num != 0 && p.s.doors.sessionsOf(num) == nil {
		return
	}
	p.tell(func() {
		if p.all = p.all || num == 0; num != 0 {
			p.nums[num] = struct{}{}
		}
	})
}

// again looks for the device's desired state once more a little later.
func (p *pusher) again(num int64) { time.AfterFunc(retryTime, func() { p.desired(num) }) }

// command is the wake-up of commands.
func (p *pusher) command(num int64) {
	if p.s.doors.sessionsOf(num) != nil {
		p.tell(func() { p.commands[num] = struct{}{} })
	}
}

// judge has the device's sessions judged again.
func (p *pusher) judge(num int64) {
	if p.s.doors.sessionsOf(num) != nil {
		p.tell(func() { p.changed[num] = struct{}{} })
	}
}

// run works until ctx ends.
func (p *pusher) run(ctx context.Context) {
	epochs, commands := time.NewTicker(lookEpochs), time.NewTicker(lookCommands)
	defer epochs.Stop()
	defer commands.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-epochs.C:
			p.tell(func() { p.all = true })
		case <-commands.C:
			if p.s.cfg.Commands == nil {
				continue
			}
			for _, ss := range p.s.doors.everySession(downCommand) {
				p.tell(func() { p.commands[ss.conn.num] = struct{}{} })
			}
		case <-p.wake:
			gather := time.NewTimer(gatherTime)
			select {
			case <-gather.C:
				p.round(ctx)
			case <-ctx.Done():
				gather.Stop()
				return
			}
		}
	}
}

// round brings what has been told until now.
func (p *pusher) round(ctx context.Context) {
	p.mu.Lock()
	nums, all, commands, changed := p.nums, p.all, p.commands, p.changed
	p.nums, p.all, p.commands, p.changed = map[int64]struct{}{}, false, map[int64]struct{}{}, map[int64]struct{}{}
	p.mu.Unlock()
	p.each(ctx, slices.Collect(maps.Keys(changed)), p.judgeDevice)
	if all {
		for _, ss := range p.s.doors.everySession(downDesired) {
			nums[ss.conn.num] = struct{}{}
		}
	}
	p.batches(ctx, slices.Sorted(maps.Keys(nums)))
	p.each(ctx, slices.Collect(maps.Keys(commands)), p.commandsOf)
}

// each does something for each device, a few at a time.
func (p *pusher) each(ctx context.Context, nums []int64, do func(context.Context, int64)) {
	var g errgroup.Group
	g.SetLimit(pushWorkers)
	for _, num := range nums {
		g.Go(func() error {
			do(ctx, num)
			return nil
		})
	}
	_ = g.Wait() // no function has an error
}

// judgeDevice ends the sessions whose certificates no longer count.
func (p *pusher) judgeDevice(_ context.Context, num int64) {
	for _, ss := range p.s.doors.sessionsOf(num) {
		if _, err := ss.judge(); isRefusal(err) {
			ss.close(p.s.reasonText(err), farewellReason(err))
		}
	}
}

// batches brings desired states, many devices at a time.
func (p *pusher) batches(ctx context.Context, nums []int64) {
	var g errgroup.Group
	g.SetLimit(pushWorkers)
	for chunk := range slices.Chunk(nums, pushBatch) {
		g.Go(func() error {
			if err := p.batch(ctx, chunk); err != nil && ctx.Err() == nil {
				p.s.cfg.Log.Warn("link: desired states could not be pushed", "devices", len(chunk), "error", err)
				for _, num := range chunk {
					p.again(num)
				}
			}
			return nil
		})
	}
	_ = g.Wait() // no function returns an error
}

func (p *pusher) batch(ctx context.Context, nums []int64) error {
	epochs, err := p.s.cfg.Changes.Epochs(ctx, nums)
	if err != nil {
		return err
	}
	var ds []device.Device
	for _, num := range nums {
		for _, ss := range p.s.doors.sessionsOf(num) {
			if !ss.behind(epochs[num]) {
				continue
			}
			d, err := ss.judge()
			if isRefusal(err) {
				ss.close(p.s.reasonText(err), farewellReason(err))
				continue
			}
			if err != nil {
				return err
			}
			ds = append(ds, d)
			break
		}
	}
	sealed, err := p.s.cfg.Changes.Envelopes(ctx, ds)
	if err != nil {
		return err
	}
	for _, one := range sealed {
		for _, ss := range p.s.doors.sessionsOf(one.Num) {
			ss.offer(one)
		}
	}
	return nil
}

// behind tells whether a desired state of this epoch is news for the session.
func (ss *session) behind(epoch int64) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return epoch > ss.epoch && ss.subs.wants(downDesired)
}

// commandsOf brings a device's commands.
func (p *pusher) commandsOf(_ context.Context, num int64) {
	for _, ss := range p.s.doors.sessionsOf(num) {
		d, err := ss.judge()
		if err == nil {
			err = ss.sendCommands(d)
		}
		if err != nil {
			p.s.cfg.Log.Warn("link: commands could not be pushed", "device.id", string(ss.id), "error", err)
			time.AfterFunc(retryTime, func() { p.command(num) })
		}
	}
}

// sessionsOf returns the device's sessions; the slice is not changed by anyone.
func (d *doors) sessionsOf(num int64) []*session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.parties[num]; p != nil && len(p.sessions) > 0 {
		return p.sessions
	}
	return nil
}

// everySession returns the sessions that have subscribed to messages of the name; all of them for downNames.
func (d *doors) everySession(name downName) []*session {
	d.mu.Lock()
	all := make([]*session, 0, d.sessions)
	for _, p := range d.parties {
		all = append(all, p.sessions...)
	}
	d.mu.Unlock()
	if name == downNames {
		return all
	}
	return slices.DeleteFunc(all, func(ss *session) bool {
		ss.mu.Lock()
		defer ss.mu.Unlock()
		return !ss.subs.wants(name)
	})
}
