package nodestest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"steward/internal/keys"
	"steward/internal/server"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// installation is what nodes share: database, master key, artifacts. Nothing else.
type installation struct {
	t                 *testing.T
	database          string
	master, artifacts string
}

func newInstallation(t *testing.T, database string) *installation {
	t.Helper()
	in := &installation{t: t, database: database, master: filepath.Join(t.TempDir(), "master.key"), artifacts: filepath.Join(t.TempDir(), "artifacts")}
	if err := keys.NewMaster(in.master); err != nil {
		t.Fatal(err)
	}
	return in
}

// node starts a node with a data directory of its own.
func (in *installation) node(name string, o Options, change func(*server.Config)) *House {
	in.t.Helper()
	o.Process, o.ManagedKeys = true, true
	o.Change = func(c *server.Config) {
		c.Database, c.MasterKeyFile, c.Artifacts = in.database, in.master, in.artifacts
		c.NodeName, c.BusListen = name, "127.0.0.1:0"
		if change != nil {
			change(c)
		}
	}
	return Start(in.t, o)
}

// list reads the nodes as one of them sees them; nil when it doesn't answer.
func list(h *House) (out []Object) {
	answer, err := h.Try(http.MethodGet, "/nodes", nil)
	items, _ := answer["items"].([]any)
	for _, i := range items {
		if n, ok := i.(map[string]any); ok && err == nil {
			out = append(out, n)
		}
	}
	return out
}

// states are the nodes by name and state, as a node sees them.
func states(h *House) map[string]string {
	out := map[string]string{}
	for _, n := range list(h) {
		name, _ := n["name"].(string)
		out[name], _ = n["state"].(string)
	}
	return out
}

// holder is the name of the node that has the lease; "" when none has it.
func holder(h *House, lease string) string {
	for _, n := range list(h) {
		leases, _ := n["leases"].([]any)
		if name, _ := n["name"].(string); n["state"] == "alive" && slices.Contains(leases, any(lease)) {
			return name
		}
	}
	return ""
}

// metric reads one number of /metrics.
func metric(h *House, name string) (v float64) {
	_, body := h.Fetch("/metrics")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			_, _ = fmt.Sscan(rest, &v)
		}
	}
	return v
}

func TestThreeNodesAreOneAndLoseNothing(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t)
	in := newInstallation(t, pg.URL())
	nodes := []*House{in.node("a", Options{}, nil), in.node("b", Options{}, nil), in.node("c", Options{}, nil)}
	byName := map[string]*House{"a": nodes[0], "b": nodes[1], "c": nodes[2]}
	for _, h := range nodes {
		h.Until("all nodes see all", func() bool { s := states(h); return s["a"] == "alive" && s["b"] == "alive" && s["c"] == "alive" })
		h.Until("the buses are one", func() bool { return metric(h, "steward_bus_peers") == 2 })
	}
	if t.Failed() {
		return
	}
	// Every node's administrator, as it stands in its own bootstrap file, is let in by every other: no
	// start has taken another's token away.
	for _, h := range nodes {
		h.Get("/whoami")
	}
	a, b, c := nodes[0], nodes[1], nodes[2]
	fleet := []*Device{a.Enlist(a.API, 0, 1)[0], b.Enlist(b.API, 1, 1)[0], c.Enlist(c.API, 2, 1)[0]}
	t.Run("a change made on one reaches devices of all", func(t *testing.T) {
		a.Push("", "1.0.0", Good)
		assignment := a.Assign("1.0.0", "")
		c.AwaitState(assignment, "committed", len(fleet))
		for _, d := range fleet {
			if got := Runs(d.State, "app"); got != "1.0.0" {
				t.Errorf("%s runs %q", d.Serial, got)
			}
		}
	})
	t.Run("a release is signed by another node with the same keys", func(t *testing.T) {
		b.Push("", "1.1.0", Good)
		c.AwaitState(b.Assign("1.1.0", ""), "committed", len(fleet))
	})
	t.Run("a live page of one shows an event of another", func(t *testing.T) { live(t, a, b) })
	t.Run("a revocation on one closes the connection on another", func(t *testing.T) { revoke(t, a, b) })
	for _, d := range fleet {
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	head := a.Checkpoint()
	t.Run("killed under load", func(t *testing.T) {
		l := startLoad(t, "kill", nodes, fleet)
		l.More(100)
		was := holder(c, "release")
		victim := byName[was]
		if victim == nil {
			t.Fatalf("no node has the lease: %q", was)
		}
		other := nodes[0]
		if other == victim {
			other = nodes[1]
		}
		victim.KillServer()
		l.More(100)
		other.Until("the lease is another node's", func() bool { now := holder(other, "release"); return now != "" && now != was })
		if s := states(other); s[was] != "silent" {
			t.Errorf("the killed node %s is %q", was, s[was])
		}
		l.More(100)
		victim.StartServer()
		l.More(100)
		l.Stop()
		l.Check(victim)
		other.Until("the killed node is one again", func() bool { return states(other)[was] == "alive" && len(states(other)) == 3 })
	})
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} { // fast and immediate
		t.Run("PostgreSQL stopped by "+how.String()+" under load", func(t *testing.T) {
			l := startLoad(t, fmt.Sprintf("pg%d", how), nodes, fleet)
			l.More(100)
			pg.Stop(how)
			from := l.failed.Load()
			Until(t, "requests are refused", func() bool { return l.failed.Load() > from+10 })
			pg.Start()
			l.More(200)
			l.Stop()
			for _, h := range nodes {
				l.Check(h)
				h.Get("/whoami") // the same process goes on
			}
		})
	}
	t.Run("a paused node goes on as one of them", func(t *testing.T) {
		var was string
		a.Until("somebody has the lease", func() bool { was = holder(a, "release"); return was != "" })
		paused, other := byName[was], nodes[0]
		if other == paused {
			other = nodes[1]
		}
		paused.Signal(syscall.SIGSTOP)
		other.Until("the lease is another node's", func() bool { now := holder(other, "release"); return now != "" && now != was })
		if s := states(other); s[was] != "silent" {
			t.Errorf("the paused node %s is %q", was, s[was])
		}
		paused.Signal(syscall.SIGCONT)
		other.Until("it lives again", func() bool { return states(other)[was] == "alive" })
		paused.Until("the buses are one", func() bool { return metric(paused, "steward_bus_peers") == 2 })
	})
	head2 := b.Checkpoint()
	for _, h := range nodes {
		h.StopServer()
	}
	verify(t, in, a.Dir, head, head2)
}

// verify recomputes the ledger as the command line does.
func verify(t *testing.T, in *installation, dir string, kept ...[]byte) {
	t.Helper()
	if _, err := server.VerifyLedger(t.Context(), server.Config{DataDir: dir, Database: in.database, MasterKeyFile: in.master}, kept...); err != nil {
		t.Errorf("the ledger does not hold: %v", err)
	}
}

// live opens a page's stream at one node and makes something happen at the other.
func live(t *testing.T, acts, shows *House) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, shows.Boot.Console+"/live?topics=purchase", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+shows.Token())
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	acts.Send(http.MethodPut, "/suppliers/live", Object{"name": "live"})
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() == "data: purchase" {
			return
		}
	}
	t.Errorf("the page did not hear of it: %v", lines.Err())
}

// revoke ends an identity at one node while the other holds a connection of it.
func revoke(t *testing.T, acts, holds *House) {
	d := holds.Enlist(holds.API, 3, 1)[0]
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(d.Identity(), d.Identity())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(holds.Boot.CA))
	host := strings.TrimPrefix(holds.Boot.Link, "https://")
	conn, err := tls.Dial("tcp", host, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the server closes it
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", wire.PathDesired, host); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	first, err := http.ReadResponse(answers, nil)
	if err != nil || first.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", first, err)
	}
	if _, err := io.Copy(io.Discard, first.Body); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	acts.Send(http.MethodPost, "/devices/"+d.ID+"/revoke", Object{"reason": "stolen"})
	// Nothing is sent: it is the server that ends the idle connection, long before its idle time.
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := answers.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection of a revoked device is open: %v", err)
	}
	t.Logf("closed %s after the order", time.Since(began).Round(time.Millisecond))
	for _, h := range []*House{acts, holds} {
		h.Door(d.Identity()).Must(http.StatusForbidden, wire.CodeRevoked, http.MethodGet, wire.PathDesired, nil)
	}
}
