package remote

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// This file is what an operator does: give, look at, wait for and cancel commands.

var idPattern = regexp.MustCompile(`^(cmd|bat)-[0-9a-hjkmnp-tv-z]{16}$`)

// Give gives a command to one device of the operator's scope. It returns fault.Conflict when the device is
// in no stage to get it or has too many open ones, and fault.TooMany.
func (s *Service) Give(ctx context.Context, who httpapi.Principal, id string, n Wish) (c Command, err error) {
	if n, err = n.settle(); err != nil {
		return Command{}, err
	}
	if err := s.takeRate(who.Scope.Tenant, 1); err != nil {
		return Command{}, err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		d, err := s.find(ctx, tx, who.Scope, id)
		if err != nil {
			return err
		}
		why, err := s.skip(ctx, tx, d, n.Name)
		if err != nil {
			return err
		}
		if why != "" {
			return fault.New(fault.Conflict, "%s gets no command %s: %s", d.ID, n.Name, why)
		}
		if c, err = s.give(ctx, tx, who.Actor, d, n, ""); err != nil {
			return err
		}
		tx.AfterCommit(func() { s.tellGiven([]int64{d.Num}) })
		return httpapi.Settle(ctx, tx, c)
	})
	if err != nil {
		s.rate.back(who.Scope.Tenant, 1)
		return Command{}, wrap(err, "give a command")
	}
	return c, nil
}

func (s *Service) takeRate(tenant device.TenantID, n int) error {
	wait, ok := s.rate.take(tenant, n, s.now())
	if ok {
		return nil
	}
	refused := fault.Later(fault.TooMany, "", wait, "more than %d commands in a row, or %g a second, are given: wait %s",
		s.cfg.Rate.Burst, s.cfg.Rate.PerSecond, wait.Round(time.Second))
	return &httpapi.Later{Err: refused, After: wait}
}

// skip says why a device gets no command of this name now, or "".
func (s *Service) skip(ctx context.Context, q sqldb.Reader, d device.Device, name string) (string, error) {
	if why := mayGet(d.Stage, name); why != "" {
		return why, nil
	}
	n, err := countOpen(ctx, q, d.Num)
	if err == nil && n >= MaxOpen {
		return fmt.Sprintf("%d commands are open, as many as a device may have: wait for their results or cancel some", n), nil
	}
	return "", err
}

func (s *Service) give(ctx context.Context, tx *sqldb.Tx, by device.Actor, d device.Device, n Wish, batch string) (Command, error) {
	now := s.now().UTC().Truncate(time.Microsecond)
	c := Command{
		ID: "cmd-" + device.RandomName(10), Device: d.ID, Batch: batch, Name: n.Name, Params: n.Params, State: Waiting, By: by,
		Issued: now, Deadline: now.Add(n.Deadline), num: d.Num, tenant: d.Tenant,
	}
	if err := insert(ctx, tx, c); err != nil {
		return Command{}, err
	}
	facts := map[string]any{"command": c.ID, "name": c.Name, "deadline": c.Deadline.Format(time.RFC3339)}
	if len(c.Params) > 0 {
		facts["params_bytes"], facts["params_sha256"] = len(c.Params), sum(c.Params)
	}
	if batch != "" {
		facts["batch"] = batch
	}
	return c, s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: d.Tenant, Kind: "remote.given", Device: d.ID, Subject: c.ID, Actor: by, Data: ledger.Facts(facts),
	})
}

// wrap says what was being done, unless the error already says it for the caller.
func wrap(err error, doing string) error {
	var refused *fault.Error
	var invalid *fault.Invalid
	if err == nil || errors.As(err, &refused) || errors.As(err, &invalid) {
		return err
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Cancel ends an open command. A device that has got it already may do it all the same; what it answers
// then is kept. Cancelling a finished one is fault.Conflict.
func (s *Service) Cancel(ctx context.Context, who httpapi.Principal, id string) (c Command, err error) {
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if c, err = s.get(ctx, tx, who.Scope, id); err != nil {
			return err
		}
		if !c.State.Open() {
			return fault.New(fault.Conflict, "the command is over: %s", c.State)
		}
		return s.cancel(ctx, tx, who.Actor, &c, "")
	})
	return c, wrap(err, "cancel a command")
}

func (s *Service) cancel(ctx context.Context, tx *sqldb.Tx, by device.Actor, c *Command, why string) error {
	before := c.State
	c.State, c.Finished, c.Cause = Cancelled, s.now().UTC().Truncate(time.Microsecond), why
	tx.AfterCommit(func() { s.tellGiven([]int64{c.num}) }) // its link forgets it
	return s.finish(ctx, tx, by, before, *c)
}

// Moved is told of each move of a device in its transaction. Leaving service ends what is open; a device
// that goes to a new owner, or to its end, takes nothing of its history along.
func (s *Service) Moved(ctx context.Context, tx *sqldb.Tx, d device.Device, from device.Stage) error {
	if !from.InService() || d.Stage == device.Active || d.Stage == device.Quarantined {
		return nil
	}
	open, err := openIDs(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	for _, id := range open {
		c, ok, err := byID(ctx, tx, id)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := s.cancel(ctx, tx, device.System("remote"), &c, "the device is "+string(d.Stage)); err != nil {
			return err
		}
	}
	if d.Stage == device.Received || d.Stage == device.Disposed {
		if _, err := tx.Exec(ctx, "DELETE FROM remote_command WHERE num = $1", d.Num); err != nil {
			return fmt.Errorf("forget the commands of %s: %w", d.ID, err)
		}
	}
	return nil
}

// Wait returns the command as soon as it is over, or as it is when the time has passed.
func (s *Service) Wait(ctx context.Context, who httpapi.Principal, id string, atMost time.Duration) (Command, error) {
	woken, done, ok := s.results.add(id) // before the first look, so that no result falls between
	c, err := s.Get(ctx, who, id)
	if !ok {
		return c, err
	}
	defer done()
	end, look := time.NewTimer(atMost), time.NewTicker(lookAgain)
	defer end.Stop()
	defer look.Stop()
	for err == nil && c.State.Open() {
		select {
		case <-woken:
		case <-look.C:
		case <-end.C:
			return s.Get(ctx, who, id)
		case <-s.stop.done:
			return c, nil
		case <-ctx.Done():
			return c, ctx.Err()
		}
		c, err = s.Get(ctx, who, id)
	}
	return c, err
}

const (
	// MaxWait bounds a long poll, below what proxies usually allow.
	MaxWait = 60 * time.Second
	// lookAgain is how long a waiter trusts that it would have been woken: a lost message costs this much.
	lookAgain = 5 * time.Second
)
