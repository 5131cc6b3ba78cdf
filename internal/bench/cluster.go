package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"steward/internal/keys"
)

// startNodes starts one server, or several that share a database, a master key and the artifacts, and whose buses
// are joined. It returns those that it has started with an error, too.
func (b *bench) startNodes(ctx context.Context) (nodes []*node, err error) {
	if b.nodes <= 1 {
		n, err := b.startNode(ctx, b.server)
		if err != nil {
			return nil, err
		}
		return []*node{n}, nil
	}
	master := filepath.Join(b.dir, "master.key")
	if err := keys.NewMaster(master); err != nil {
		return nil, err
	}
	shared := []string{"--master-key-file", master, "--artifacts", filepath.Join(b.dir, "artifacts")}
	for i := range b.nodes {
		bus, err := freeAddress()
		if err != nil {
			return nodes, err
		}
		more := append(shared[:len(shared):len(shared)], "--node-name", fmt.Sprintf("bench-%d", i+1), "--bus-listen", bus)
		if i > 0 {
			more = append(more, "--database", nodes[0].db.url)
		}
		n, err := b.startNode(ctx, b.server, more...)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	return nodes, joined(ctx, nodes)
}

// joined waits until each node's bus is connected to all others.
func joined(ctx context.Context, nodes []*node) error {
	want := fmt.Sprintf("steward_bus_peers %d\n", len(nodes)-1)
	for _, n := range nodes {
		err := until(ctx, startTime, func() (bool, error) {
			text, err := n.metrics(ctx)
			return strings.Contains(text, want), err
		})
		if err != nil {
			return fmt.Errorf("the nodes do not find each other: %w", err)
		}
	}
	return nil
}

// metrics reads the node's own, which it shows on a loopback address.
func (n *node) metrics(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.boot.Console+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return string(text), err
}
