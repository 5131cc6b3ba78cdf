package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"steward/internal/client"
	"steward/internal/release/push"
	"steward/internal/wire"
)

func (l *life) enroll(ctx context.Context) (string, error) {
	token, err := os.ReadFile(filepath.Join(l.dir, "token"))
	if err != nil {
		return "", err
	}
	l.agent = &agentProcess{program: l.cfg.Agent, state: filepath.Join(l.dir, "device")}
	if err := l.agent.start(l.node.boot.Link, l.serial, string(token)); err != nil {
		return "", err
	}
	var certificate client.Object
	err = until(ctx, 20*time.Second, "the device has a certificate", func() (bool, error) {
		list, err := l.certificates(ctx)
		if len(list) > 0 {
			certificate = list[0]
		}
		return len(list) > 0, err
	})
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, l.agentLog())
	}
	return fmt.Sprintf("EST simpleenroll; certificate %v", certificate["serial"]), nil
}

// agentLog is the end of the agent's log, for the line of a step that failed.
func (l *life) agentLog() string {
	data, err := os.ReadFile(l.agent.state + ".log")
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], " | ")
}

func (l *life) certificates(ctx context.Context) ([]client.Object, error) {
	out, err := l.get(ctx, "/devices/"+l.device+"/certificates")
	items, _ := out["items"].([]any)
	if items == nil {
		items, _ = out["certificates"].([]any)
	}
	var list []client.Object
	for _, i := range items {
		if o, ok := i.(map[string]any); ok {
			list = append(list, o)
		}
	}
	return list, err
}

func (l *life) report(ctx context.Context) (string, error) {
	if err := l.stage(ctx, "active", 20*time.Second); err != nil {
		return "", fmt.Errorf("%w: %s", err, l.agentLog())
	}
	var packages int
	err := until(ctx, 20*time.Second, "inventory and packages have arrived", func() (bool, error) {
		doc, err := l.get(ctx, "/devices/"+l.device+"/reported/packages")
		if missing(err) {
			return false, nil
		}
		list, _ := doc["packages"].([]any)
		packages = len(list)
		if err != nil || packages == 0 {
			return false, err
		}
		_, err = l.get(ctx, "/devices/"+l.device+"/reported/inventory")
		return err == nil, ignoreMissing(err)
	})
	return fmt.Sprintf("first report; inventory with %d packages", packages), err
}

func missing(err error) bool {
	var p *client.Problem
	return errors.As(err, &p) && p.Status == http.StatusNotFound
}

func ignoreMissing(err error) error {
	if missing(err) {
		return nil
	}
	return err
}

func (l *life) measure(ctx context.Context) (string, error) {
	var values int
	err := until(ctx, 30*time.Second, "metrics have arrived and the device is online", func() (bool, error) {
		out, err := l.get(ctx, "/devices/"+l.device+"/metrics")
		if err != nil {
			return false, ignoreMissing(err)
		}
		list, _ := out["current"].([]any)
		values = len(list)
		p, err := l.get(ctx, "/devices/"+l.device+"/presence")
		return values > 0 && p["state"] == "online", ignoreMissing(err)
	})
	return fmt.Sprintf("online; %d current values", values), err
}

// release pushes a version of the demo application, signed with the offline keys, and assigns it.
func (l *life) release(ctx context.Context, version string, health []wire.Command) (assignment string, err error) {
	dir := filepath.Join(l.dir, "build-"+version)
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return "", err
	}
	script := "#!/bin/sh\n# A stand-in for an application: it says who it is.\necho demo-app " + version + "\n"
	for name, text := range map[string]string{"bin/demo-app": script, "version": version + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return "", err
		}
	}
	spec := push.Spec{Name: "demo-app", Version: version, Components: []push.Component{{Name: "app", Dir: dir, Commands: wire.ComponentCommands{
		Pre:  []wire.Command{{Argv: []string{"test", "-x", "bin/demo-app"}}},
		Post: []wire.Command{{Argv: []string{"./bin/demo-app"}}}, Health: health, HealthSeconds: 2,
	}}}}
	if _, err := (push.Pusher{API: l.node.api, Keys: l.keys}).Push(ctx, spec); err != nil {
		return "", err
	}
	made, err := l.send(ctx, http.MethodPost, "/assignments", client.Object{"name": "demo-app", "version": version, "selector": "", "note": "demo"})
	id, _ := made["id"].(string)
	return id, err
}

// states waits until the assignment has one device in the state and returns its counts.
func (l *life) states(ctx context.Context, assignment, want string) (map[string]any, error) {
	var counts map[string]any
	err := until(ctx, 30*time.Second, "the device is "+want, func() (bool, error) {
		a, err := l.get(ctx, "/assignments/"+assignment)
		counts, _ = a["states"].(map[string]any)
		return counts[want] == 1.0, err
	})
	if err != nil {
		err = fmt.Errorf("%w; counts %v: %s", err, counts, l.agentLog())
	}
	return counts, err
}

// running is what the component's link on this machine points to.
func (l *life) running() (string, error) {
	found, err := filepath.Glob(filepath.Join(l.agent.state, "components", "app", "current", "version"))
	if err != nil || len(found) == 0 {
		return "", errors.Join(errors.New("no component is installed"), err)
	}
	data, err := os.ReadFile(found[0])
	return strings.TrimSpace(string(data)), err
}

func (l *life) goodRelease(ctx context.Context) (string, error) {
	id, err := l.release(ctx, "1.0.0", []wire.Command{{Argv: []string{"./bin/demo-app"}}})
	if err != nil {
		return "", err
	}
	if _, err := l.states(ctx, id, "committed"); err != nil {
		return "", err
	}
	version, err := l.running()
	if err == nil && version != "1.0.0" {
		err = fmt.Errorf("committed, and %q runs", version)
	}
	return "demo-app 1.0.0 signed offline, downloaded, installed, healthy, committed", err
}

func (l *life) badRelease(ctx context.Context) (string, error) {
	id, err := l.release(ctx, "2.0.0", []wire.Command{{Argv: []string{"sh", "-c", "echo the database does not answer; exit 7"}}})
	if err != nil {
		return "", err
	}
	counts, err := l.states(ctx, id, "rolled_back")
	if err != nil {
		return "", err
	}
	if n, _ := counts["committed"].(float64); n != 0 {
		return "", fmt.Errorf("a rolled back release counts as committed: %v", counts)
	}
	version, err := l.running()
	if err == nil && version != "1.0.0" {
		err = fmt.Errorf("rolled back, and %q runs", version)
	}
	if err != nil {
		return "", err
	}
	u, err := l.get(ctx, "/devices/"+l.device+"/updates")
	if err != nil {
		return "", err
	}
	if cause := fmt.Sprint(u); !strings.Contains(cause, "code 7") {
		return "", fmt.Errorf("the first cause is not kept: %s", cause)
	}
	return "demo-app 2.0.0 is unhealthy (exit code 7): 1.0.0 runs again, committed counts 0, cause kept", nil
}

func (l *life) renew(ctx context.Context) (string, error) {
	var first, newest string
	err := until(ctx, certificateLife+15*time.Second, "the certificate is renewed", func() (bool, error) {
		list, err := l.certificates(ctx)
		if err != nil || len(list) < 2 {
			return false, err
		}
		first, newest = fmt.Sprint(list[len(list)-1]["serial"]), fmt.Sprint(list[0]["serial"])
		return first != newest, nil
	})
	return "renewed by simplereenroll with a new key at two thirds of its life: " + newest, err
}

// restart ends the agent and starts it again without a token: what it needs is in its state directory.
func (l *life) restart(ctx context.Context) (string, error) {
	if err := l.agent.stop(); err != nil {
		return "", err
	}
	before := time.Now().UTC()
	if err := l.agent.start(l.node.boot.Link, l.serial, ""); err != nil {
		return "", err
	}
	err := until(ctx, 20*time.Second, "the restarted agent reports", func() (bool, error) {
		p, err := l.get(ctx, "/devices/"+l.device+"/presence")
		text, _ := p["last_contact"].(string)
		at, _ := time.Parse(time.RFC3339, text)
		return at.After(before), err
	})
	return "the agent started again without its token and reports", err
}

func conflict(err error) bool {
	var p *client.Problem
	return errors.As(err, &p) && p.Status == http.StatusConflict
}
