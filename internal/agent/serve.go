package agent

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// serve runs the loops and the rooms. The rooms other than disposal stop when an order was accepted.
func (a *Agent) serve(ctx context.Context) error {
	a.restore(ctx)
	a.tellUnclean()
	all, ctx := errgroup.WithContext(ctx)
	working, stop := context.WithCancel(ctx)
	var rooms errgroup.Group
	if a.disposal.Accepted() {
		stop()
	}
	for _, room := range a.rooms {
		if room.Name() != a.disposal.Name() {
			rooms.Go(func() error { return runRoom(working, room) })
		}
	}
	all.Go(func() error {
		select {
		case <-a.quiesce:
			stop()
		case <-ctx.Done():
		}
		return nil
	})
	all.Go(func() error {
		defer stop()
		err := rooms.Wait()
		close(a.stopped)
		return err
	})
	a.client.Expect()
	all.Go(func() error { return a.client.Run(ctx) })
	all.Go(func() error { return runRoom(ctx, a.disposal) })
	all.Go(func() error { return a.follow(ctx) })
	all.Go(func() error { return a.report(ctx) })
	return all.Wait()
}

func runRoom(ctx context.Context, room Room) error {
	err := room.Run(ctx)
	if errors.Is(err, ErrDecommissioned) {
		return err // the end, no failure of a room
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("room %s: %w", room.Name(), err)
	}
	return nil
}

// stopRooms is the disposal room's Quiesce.
func (a *Agent) stopRooms(ctx context.Context) error {
	a.quiesceOnce()
	select {
	case <-a.stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// quiesceOnce closes the channel; only the disposal room's goroutine calls it.
func (a *Agent) quiesceOnce() {
	select {
	case <-a.quiesce:
	default:
		close(a.quiesce)
	}
}
