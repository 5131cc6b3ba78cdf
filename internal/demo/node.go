package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"steward/internal/client"
	"steward/internal/server"
)

// node is a server in this process.
type node struct {
	server *server.Server
	boot   client.Bootstrap
	api    *client.Client
	cancel context.CancelFunc
	ended  chan error // one value: what Run returned
}

// startNode opens and runs a server and returns once it serves.
func startNode(ctx context.Context, cfg server.Config) (*node, error) {
	s, err := server.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	n := &node{server: s, cancel: cancel, ended: make(chan error, 1)}
	go func() { n.ended <- s.Run(ctx) }()
	err = until(ctx, 20*time.Second, "the server serves", func() (bool, error) {
		select {
		case err := <-n.ended:
			n.ended <- err
			return false, errors.Join(errors.New("the server ended"), err)
		default:
		}
		b, err := client.ReadBootstrap(cfg.DataDir)
		n.boot = b
		return err == nil && b.Console == s.ConsoleURL(), nil
	})
	if err == nil {
		n.api, err = client.New(client.Settings{URL: n.boot.Console, Token: n.boot.Token, CA: n.boot.CA})
	}
	if err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

// stop ends the server and waits for it.
func (n *node) stop() error {
	n.cancel()
	return errors.Join(<-n.ended, n.server.Close())
}

// until asks again and again until ok, an error, or the time is up.
func until(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pause := 20 * time.Millisecond
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-time.After(pause):
			pause = min(pause*3/2, 500*time.Millisecond)
		case <-ctx.Done():
			return fmt.Errorf("waited %s in vain until %s", limit, what)
		}
	}
}

// quiet is a log that is thrown away.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
