package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"steward/internal/client"
	"steward/internal/server"
	"steward/internal/wire"
)

// Step is one line of Life's output.
type Step struct {
	Step    string  `json:"step"`
	Device  string  `json:"device"`
	Stage   string  `json:"stage"`
	OK      bool    `json:"ok"`
	Detail  string  `json:"detail"`
	Seconds float64 `json:"seconds"`
}

// LifeConfig of Life. Agent and Out are required.
type LifeConfig struct {
	Agent   string    // the steward-agent program
	Dir     string    // "" makes and removes a throw-away directory
	Out     io.Writer // one JSON line per step
	Version string
}

// life is one run of Life.
type life struct {
	cfg   LifeConfig
	node  *node
	agent *agentProcess
	dir   string
	data  string // of the server
	keys  string // offline release keys

	device, serial, order string
	checkpoint            []byte // the ledger's head at the beginning
	identity              []byte // copy of the device's key and certificate, to try after the end
	certificate           []byte
}

// certificateLife makes the agent renew within the demo: at two thirds of it.
const certificateLife = 30 * time.Second

// ErrLife says that a step did not hold; it was told in its line.
var ErrLife = errors.New("a step of the device's life failed")

// Life takes this machine from order to disposal and writes one JSON line per step. It returns ErrLife
// when one failed; those after it are not tried.
func Life(ctx context.Context, cfg LifeConfig) (err error) {
	l := &life{cfg: cfg, dir: cfg.Dir}
	if l.dir == "" {
		if l.dir, err = os.MkdirTemp("", "steward-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(l.dir)) }()
	}
	l.data, l.keys = filepath.Join(l.dir, "server"), filepath.Join(l.dir, "release-keys")
	defer func() { err = errors.Join(err, l.close()) }()
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"server", l.startServer}, {"release-keys", l.makeKeys}, {"order", l.placeOrder}, {"goods-in", l.receive}, {"token", l.issueToken},
		{"enrollment", l.enroll}, {"active", l.report}, {"monitoring", l.measure}, {"good-release", l.goodRelease}, {"bad-release", l.badRelease},
		{"renewal", l.renew}, {"agent-restart", l.restart}, {"retire", l.retire}, {"disposal", l.dispose}, {"refused", l.refused},
		{"certificate", l.verifyCertificate}, {"ledger", l.verifyLedger},
	} {
		if !l.step(ctx, s.name, s.do) {
			return ErrLife
		}
	}
	return nil
}

// step does one step and writes its line.
func (l *life) step(ctx context.Context, name string, do func(context.Context) (string, error)) bool {
	started := time.Now()
	detail, err := do(ctx)
	s := Step{Step: name, Device: l.device, OK: err == nil, Detail: detail, Seconds: float64(time.Since(started).Milliseconds()) / 1000}
	if err != nil {
		s.Detail = err.Error()
	}
	if l.device != "" && l.node != nil {
		if d, derr := l.get(ctx, "/devices/"+l.device); derr == nil {
			s.Stage, _ = d["stage"].(string)
		}
	}
	line, jerr := json.Marshal(s)
	if jerr != nil {
		return false
	}
	_, werr := fmt.Fprintf(l.cfg.Out, "%s\n", line)
	return err == nil && werr == nil
}

func (l *life) close() (err error) {
	if l.agent != nil {
		err = l.agent.stop()
	}
	if l.node != nil {
		err = errors.Join(err, l.node.stop())
	}
	return err
}

func (l *life) get(ctx context.Context, path string) (client.Object, error) {
	var out client.Object
	return out, l.node.api.Do(ctx, client.Call{Path: path}, &out)
}

func (l *life) send(ctx context.Context, method, path string, body any) (client.Object, error) {
	var out client.Object
	return out, l.node.api.Do(ctx, client.Call{Method: method, Path: path, Body: body}, &out)
}

// stage waits until the device is in the stage.
func (l *life) stage(ctx context.Context, want string, limit time.Duration) error {
	var now any
	err := until(ctx, limit, "the device is "+want, func() (bool, error) {
		d, err := l.get(ctx, "/devices/"+l.device)
		now = d["stage"]
		return now == want, err
	})
	if err != nil {
		return fmt.Errorf("%w; it is %v", err, now)
	}
	return nil
}

func (l *life) startServer(ctx context.Context) (string, error) {
	cfg := server.Config{
		DataDir: l.data, ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0", CertificateLife: certificateLife,
		Version: l.cfg.Version, Log: quiet(),
	}
	var err error
	if l.node, err = startNode(ctx, cfg); err != nil {
		return "", err
	}
	if _, err := l.send(ctx, http.MethodPut, "/monitoring/policy", client.Object{"report_seconds": 10, "metrics_seconds": 10}); err != nil {
		return "", err
	}
	var head struct {
		Checkpoint string `json:"checkpoint"`
	}
	err = until(ctx, 10*time.Second, "the ledger has a signed head", func() (bool, error) {
		err := l.node.api.Do(ctx, client.Call{Path: "/ledger/checkpoint"}, &head)
		var p *client.Problem
		if errors.As(err, &p) {
			return false, nil
		}
		return head.Checkpoint != "", err
	})
	l.checkpoint = []byte(head.Checkpoint)
	return "console " + l.node.boot.Console + ", link " + l.node.boot.Link, err
}

// inventory is what the agent says of this machine.
func (l *life) inventory(ctx context.Context) (wire.Inventory, error) {
	return machine(ctx, l.cfg.Agent, filepath.Join(l.dir, "device"))
}
