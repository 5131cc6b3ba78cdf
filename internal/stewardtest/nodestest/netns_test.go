package nodestest

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"steward/internal/server"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// network is two namespaces, each with a wire to this one, and one wire between them that can be cut:
//
//	tests ── a
//	  │      ┊ bus
//	  └───── b
type network struct {
	t     *testing.T
	names [2]string // of the namespaces
	net   string    // first three parts of the addresses
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no ip on this machine: install the package iproute2")
		}
		t.Skip("no ip on this machine: install the package iproute2")
	}
	pid := os.Getpid()
	n := &network{t: t, net: fmt.Sprintf("10.231.%d", pid%250), names: [2]string{fmt.Sprintf("swa%d", pid), fmt.Sprintf("swb%d", pid)}}
	for i, name := range n.names {
		n.ip("netns", "add", name)
		t.Cleanup(func() { n.ip("netns", "delete", name) }) // and its ends of the wires
		outer := fmt.Sprintf("h%s", name)
		n.ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
		n.ip("address", "add", n.tests(i)+"/30", "dev", outer)
		n.ip("link", "set", outer, "up")
		n.ip("-n", name, "address", "add", n.node(i)+"/30", "dev", "eth0")
		n.ip("-n", name, "link", "set", "eth0", "up")
		n.ip("-n", name, "link", "set", "lo", "up")
	}
	n.ip("-n", n.names[0], "link", "add", "bus0", "type", "veth", "peer", "name", "bus0", "netns", n.names[1])
	for i, name := range n.names {
		n.ip("-n", name, "address", "add", n.bus(i)+"/30", "dev", "bus0")
	}
	n.Heal()
	return n
}

func (n *network) tests(i int) string { return fmt.Sprintf("%s.%d", n.net, 1+4*i) }
func (n *network) node(i int) string  { return fmt.Sprintf("%s.%d", n.net, 2+4*i) }
func (n *network) bus(i int) string   { return fmt.Sprintf("%s.%d", n.net, 9+i) }

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Cut drops every packet between the nodes; nobody is told.
func (n *network) Cut() { n.t.Helper(); n.ip("-n", n.names[0], "link", "set", "bus0", "down") }

// Heal lets them through again.
func (n *network) Heal() {
	n.t.Helper()
	for _, name := range n.names {
		n.ip("-n", name, "link", "set", "bus0", "up")
	}
}

// change makes the configuration of a node in its namespace.
func (n *network) change(i int) func(*server.Config) {
	return func(c *server.Config) {
		c.ConsoleAddr, c.LinkAddr = n.node(i)+":8080", n.node(i)+":8443"
		c.LinkURL, c.BehindProxy = "https://"+n.node(i)+":8443", true
		c.BusListen = n.bus(i) + ":7443"
	}
}

func TestNodesWorkOnWhileTheNetworkBetweenThemIsCut(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	pg := startPostgres(t)
	in := newInstallation(t, pg.URL())
	var nodes []*House
	for i, name := range []string{"a", "b"} {
		nodes = append(nodes, in.node(name, Options{Within: []string{"ip", "netns", "exec", n.names[i]}}, n.change(i)))
	}
	a, b := nodes[0], nodes[1]
	joined := func() bool {
		return metric(a, "steward_bus_peers") == 1 && metric(b, "steward_bus_peers") == 1
	}
	a.Until("the buses are one", joined)
	fleet := []*Device{a.Enlist(a.API, 0, 1)[0], b.Enlist(b.API, 1, 1)[0]}
	stolen := b.Enlist(b.API, 2, 1)[0]
	if err := stolen.Stop(); err != nil {
		t.Fatal(err)
	}
	door := b.Door(stolen.Identity())
	door.Must(http.StatusOK, "", http.MethodGet, wire.PathDesired, nil)

	n.Cut()
	began := time.Now()
	since := func(what string) { t.Logf("%s after %s of the cut", what, time.Since(began).Round(time.Millisecond)) }
	a.Send(http.MethodPost, "/devices/"+stolen.ID+"/revoke", Object{"reason": "stolen"})
	a.Push("", "1.0.0", Good)
	assignment := a.Assign("1.0.0", "")
	command, _ := a.Send(http.MethodPost, "/devices/"+fleet[1].ID+"/commands", Object{"name": "ping"})["id"].(string)
	b.AwaitState(assignment, "committed", len(fleet)) // b's device learns of it by b's own looking
	since("a change reached all devices")
	a.Until("the command is done", func() bool { return a.Get("/commands/" + command)["state"] == "done" })
	since("a command was done")
	a.Until("both notice", func() bool {
		return metric(a, "steward_bus_peers") == 0 && metric(b, "steward_bus_peers") == 0
	})
	since("both noticed")
	for _, h := range nodes {
		if s := states(h); s["a"] != "alive" || s["b"] != "alive" {
			t.Errorf("a cut bus is no dead node: %v", s)
		}
		h.Settle() // writes are answered and reach the ledger
	}
	b.Until("the stolen device is refused", func() bool {
		out, err := door.Ask(http.MethodGet, wire.PathDesired, nil)
		return err == nil && out.Status == http.StatusForbidden && out.Problem.Code == wire.CodeRevoked
	})
	since("the stolen device was refused")

	n.Heal()
	began = time.Now()
	a.Until("the buses are one again", joined)
	t.Logf("healed after %s", time.Since(began).Round(time.Millisecond))
	live(t, a, b)
	b.Push("", "1.1.0", Good)
	a.AwaitState(b.Assign("1.1.0", ""), "committed", len(fleet))
	head := a.Checkpoint()
	for _, d := range fleet {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}
	for _, h := range nodes {
		h.StopServer()
	}
	verify(t, in, a.Dir, head)
}
