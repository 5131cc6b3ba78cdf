// Package packaging_test builds what packages and images are made of and runs it for real: dpkg and systemd in a
// throw-away copy of this machine's root, HAProxy's own check, and Docker Engine.
package packaging_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"steward/internal/stewardtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// lacking skips a test that can't be run here, and fails it under CI.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			lacking(t, "%s is needed; scripts/install-test-components installs it", p)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		lacking(t, "root is needed for namespaces and mounts")
	}
}

func run(t *testing.T, env []string, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// built are two versions of both packages for this machine.
var built struct {
	once sync.Once
	dir  string
	err  error
	out  []byte
}

const oldVersion, newVersion = "0.1.0", "0.1.1"

func file(pkg, version string) string { return pkg + "_" + version + "_" + runtime.GOARCH + ".deb" }

func build(dir, version, epoch string, names ...string) ([]byte, error) {
	args := []string{dir}
	for _, name := range names {
		args = append(args, name+":"+runtime.GOARCH)
	}
	cmd := exec.Command("./build-deb", args...)
	cmd.Env = append(os.Environ(), "DEB_VERSION="+version, "SOURCE_DATE_EPOCH="+epoch, "DEB_COMPRESS=gzip")
	return cmd.CombinedOutput()
}

func packages(t *testing.T) string {
	t.Helper()
	need(t, "dpkg-deb", "lintian")
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "steward-deb-"); built.err != nil {
			return
		}
		for _, version := range []string{oldVersion, newVersion} {
			if built.out, built.err = build(built.dir, version, "1790000000", "steward-server", "steward-agent"); built.err != nil {
				return
			}
		}
	})
	if built.err != nil {
		t.Fatalf("build the packages: %v\n%s", built.err, built.out)
	}
	return built.dir
}

func hash(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func TestPackagesAreTheSameBytesEachTime(t *testing.T) {
	first, second := packages(t), t.TempDir()
	old := syscall.Umask(0o077) // something that differs between machines
	defer syscall.Umask(old)
	if out, err := build(second, oldVersion, "1790000000", "steward-agent"); err != nil { // the smaller one: both are made alike
		t.Fatalf("%v\n%s", err, out)
	}
	if name := file("steward-agent", oldVersion); hash(t, filepath.Join(first, name)) != hash(t, filepath.Join(second, name)) {
		t.Errorf("%s differs from build to build", name)
	}
}

func TestLintianFindsNothing(t *testing.T) {
	dir := packages(t)
	out := run(t, nil, "lintian", "--allow-root", "--fail-on", "error,warning", filepath.Join(dir, file("steward-server", oldVersion)), filepath.Join(dir, file("steward-agent", oldVersion)))
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "W:") || strings.HasPrefix(line, "E:") {
			t.Error(line)
		}
	}
}

// throwaway runs a script of testdata with the packages in a throw-away root and returns what it has said.
func throwaway(t *testing.T, script string, debs ...string) string {
	t.Helper()
	needRoot(t)
	need(t, "unshare", "ip", "systemd-analyze", "man", "deb-systemd-helper")
	dir := packages(t)
	folder := t.TempDir()
	for _, name := range append([]string{filepath.Join("testdata", script)}, prefixed(dir, debs)...) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, filepath.Base(name)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "testdata/in-throwaway-root", append([]string{folder, script}, debs...)...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	log, readErr := os.ReadFile(filepath.Join(folder, "log"))
	if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
		t.Error(readErr)
	}
	text := string(out) + string(log)
	if err != nil || !strings.Contains(text, "all is well") {
		t.Fatalf("%v\n%s", err, text)
	}
	return text
}

func prefixed(dir string, names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = filepath.Join(dir, n)
	}
	return out
}

func TestPackagesAreInstalledUpgradedRemovedAndPurged(t *testing.T) {
	throwaway(t, "install.sh", file("steward-server", oldVersion), file("steward-agent", oldVersion), file("steward-server", newVersion), file("steward-agent", newVersion))
}

func TestUnitsRunUnderSystemdAsTheySay(t *testing.T) {
	need(t, "nsenter", "dbus-daemon")
	throwaway(t, "boot.sh", file("steward-server", oldVersion), file("steward-agent", oldVersion))
}

func TestHAProxyTakesItsConfiguration(t *testing.T) {
	need(t, "haproxy")
	for line := range strings.Lines(run(t, nil, "haproxy", "-c", "-f", "haproxy.cfg")) {
		if strings.Contains(line, "[WARNING]") {
			t.Error(line)
		}
	}
}

// engine is a Docker Engine of this test's own.
func engine(t *testing.T) (socket string) {
	t.Helper()
	runtime.LockOSThread() // Pdeathsig is about the thread that has started it
	t.Cleanup(runtime.UnlockOSThread)
	needRoot(t)
	need(t, "dockerd", "docker")
	dir, err := os.MkdirTemp("", "stwd-") // a short path, for the sockets in it
	if err != nil {
		t.Fatal(err)
	}
	socket = "unix://" + dir + "/s"
	cmd := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "--host", socket,
		"--bridge", "none", "--iptables=false", "--ip-forward=false", "--storage-driver", "vfs")
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // it ends with the tests, by whatever cause
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = log.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	stewardtest.Until(t, "Docker Engine answers", func() bool {
		select {
		case <-ended:
			text, _ := os.ReadFile(dir + "/log")
			t.Fatalf("Docker Engine has ended: %s", text)
		default:
		}
		return exec.Command("docker", "--host", socket, "info").Run() == nil
	})
	return socket
}

func TestImageRunsAsNobodyOnAReadOnlyRoot(t *testing.T) {
	socket := engine(t)
	env := []string{"DOCKER_HOST=" + socket, "DOCKER_BUILDKIT=0"}
	docker := func(args ...string) string { return run(t, env, "docker", args...) }
	context := t.TempDir()
	run(t, []string{"CGO_ENABLED=0"}, "go", "build", "-ldflags", "-s -w -X main.version=1.2.3", "-o", filepath.Join(context, "built"), "steward/cmd/steward")
	run(t, nil, "container/context", filepath.Join(context, "image"), filepath.Join(context, "built"))
	docker("build", "--tag", "steward:test", filepath.Join(context, "image"))
	if out := docker("run", "--rm", "--network", "none", "steward:test", "--version"); !strings.Contains(out, "1.2.3") {
		t.Errorf("version: %s", out)
	}
	start := func() {
		docker("run", "--detach", "--name", "one", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
			"--volume", "data:/var/lib/steward", "--env", "STEWARD_BEHIND_PROXY=true", "--env", "STEWARD_LINK_URL=https://devices.example.com:8443", "steward:test")
		stewardtest.Until(t, "the container is ready", func() bool {
			if out, err := exec.Command("docker", "--host", socket, "exec", "one", "/usr/bin/steward", "health").CombinedOutput(); err != nil {
				if state := docker("inspect", "--format", "{{.State.Status}}", "one"); strings.TrimSpace(state) != "running" {
					t.Fatalf("it is %s: %s%s", state, out, docker("logs", "one"))
				}
				return false
			}
			return true
		})
	}
	stop := func() {
		docker("stop", "--time", "40", "one")
		if code := strings.TrimSpace(docker("inspect", "--format", "{{.State.ExitCode}}", "one")); code != "0" {
			t.Errorf("it ended with %s: %s", code, docker("logs", "one"))
		}
		docker("rm", "one")
	}
	start()
	docker("exec", "one", "/usr/bin/steward", "--server-data", "/var/lib/steward/node", "--url", "http://127.0.0.1:8080", "device", "create", "GW-IMG-1", "--reason", "test")
	if out := docker("top", "one", "-eo", "pid,uid,args"); !strings.Contains(out, "65532") {
		t.Errorf("it runs as somebody else:\n%s", out)
	}
	stop()
	start() // the volume has everything
	if out := docker("exec", "one", "/usr/bin/steward", "--server-data", "/var/lib/steward/node", "--url", "http://127.0.0.1:8080", "get", "devices"); !strings.Contains(out, "GW-IMG-1") {
		t.Errorf("the device is lost: %s", out)
	}
	stop()
}
