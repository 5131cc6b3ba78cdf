package command_test

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/agenttest"
	"steward/internal/agent/command"
	"steward/internal/wire"
)

// run calls the command line in this process.
func run(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = command.Main("9.9.9", args, &out, &errs)
	return out.String(), errs.String(), code
}

func TestUsageErrorsNameTheMistake(t *testing.T) {
	dir := t.TempDir()
	cases := []struct {
		args []string
		want string
		code int
	}{
		{[]string{"--nonsense"}, "--nonsense", command.ExitUsage},
		{[]string{"fly"}, `"fly"`, command.ExitUsage},
		{[]string{"run", "fast"}, `"fast"`, command.ExitUsage},
		{[]string{"--state", dir, "--token", "abc"}, "stw1.<secret>.<pin>", command.ExitUsage},
		{[]string{"--state", dir, "--log", "loud"}, "--log", command.ExitUsage},
		{[]string{"--state", dir, "--link", "pigeon"}, "--link \"pigeon\": want auto, mqtt or https", command.ExitUsage},
		{[]string{"--state", dir, "--keep-alive", "1h"}, "--keep-alive", command.ExitUsage},
		{[]string{"--state", dir}, "--server", command.ExitFailure},
		{[]string{"--state", dir, "--server", "http://x"}, "https://", command.ExitFailure},
		{[]string{"--state", dir, "--release-root", filepath.Join(dir, "absent.json")}, "--release-root", command.ExitFailure},
		{[]string{"inventory", "-o", "xml"}, "text or json", command.ExitUsage},
		{[]string{"status", "--state", filepath.Join(dir, "absent")}, "no agent's state", command.ExitFailure},
	}
	for _, c := range cases {
		_, stderr, code := run(c.args...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: code %d, %s", c.args, code, stderr)
		}
	}
}

func TestVersionAndInventory(t *testing.T) {
	if out, _, code := run("version"); code != 0 || out != "steward-agent 9.9.9, protocol 1\n" {
		t.Errorf("%d %s", code, out)
	}
	out, _, code := run("inventory", "-o", "json")
	var facts struct {
		Inventory wire.Inventory `json:"inventory"`
		Packages  wire.Packages  `json:"packages"`
	}
	if err := json.Unmarshal([]byte(out), &facts); err != nil || code != 0 || facts.Inventory.Hostname == "" {
		t.Errorf("%d %v", code, err)
	}
	if out, _, code := run("inventory"); code != 0 || !strings.Contains(out, "processor") {
		t.Errorf("%d %s", code, out)
	}
}

func findings(t *testing.T, args ...string) (map[string]agent.Finding, int) {
	t.Helper()
	out, stderr, code := run(append([]string{"diagnose", "-o", "json"}, args...)...)
	var list []agent.Finding
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s %s", err, out, stderr)
	}
	byCheck := map[string]agent.Finding{}
	for _, f := range list {
		byCheck[f.Check] = f
	}
	return byCheck, code
}

func TestDiagnoseNamesTheCause(t *testing.T) {
	s, other := agenttest.Start(t), agenttest.Start(t)
	dir := t.TempDir()
	cases := []struct {
		name, server, token, check, detail string
	}{
		{"no server", "", "", "address", "no server"},
		{"name", "https://steward.invalid:1", "", "dns", "steward.invalid does not resolve"},
		{"port", "https://127.0.0.1:1", "", "tcp", "refused"},
		{"no TLS", "https://" + plainPort(t), "", "tls", "no TLS"},
		{"no token", s.URL, "", "token", "no token"},
		{"broken token", s.URL, "stw1.x", "token", "not an enrollment token"},
		{"token of another server", s.URL, other.Token, "token", "trust document"},
	}
	for _, c := range cases {
		got, code := findings(t, "--state", dir, "--server", c.server, "--token", c.token)
		if f := got[c.check]; code != command.ExitUnwell || f.OK || !strings.Contains(f.Detail, c.detail) || f.Hint == "" {
			t.Errorf("%s: code %d, %+v", c.name, code, got)
		}
	}
	if got, code := findings(t, "--state", dir, "--server", s.URL, "--token", s.Token); code != command.ExitOK || !got["token"].OK {
		t.Errorf("right token: code %d, %+v", code, got)
	}
}

// plainPort accepts and answers with what is no TLS.
func plainPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-x\r\n"))
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// The real program as a user without rights: it serves, and names what it can't see.
func TestProgramRunsAsAnyUser(t *testing.T) {
	bin := build(t)
	s := agenttest.Start(t)
	dir := t.TempDir()
	open(t, dir)
	open(t, filepath.Dir(bin))
	var stderr bytes.Buffer
	cmd := exec.Command(bin, "--state", filepath.Join(dir, "state"), "--server", s.URL, "--serial", agenttest.Serial)
	cmd.Env = append(os.Environ(), "STEWARD_TOKEN="+s.Token)
	cmd.Stderr = &stderr
	unprivileged(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var section wire.AgentReported
	agenttest.Eventually(t, "report", func() bool {
		body := s.Reported(wire.SectionAgent)
		return body != nil && json.Unmarshal(body, &section) == nil && s.Reported(wire.SectionPackages) != nil
	})
	if section.Root || section.Version != "7.7.7" || section.User == "root" {
		t.Errorf("%+v", section)
	}
	checkMemory(t, cmd.Process.Pid)
	status := exec.Command(bin, "status", "-o", "json", "--state", filepath.Join(dir, "state"))
	unprivileged(status)
	out, err := status.Output()
	var st agent.Status
	if err != nil || json.Unmarshal(out, &st) != nil || !st.Running || st.State != agent.StateOnline || st.Device != agenttest.DeviceID {
		t.Errorf("%v %s", err, out)
	}
	if got, code := findings(t, "--state", filepath.Join(dir, "state"), "--server", s.URL); code != command.ExitOK || !got["server"].OK {
		t.Errorf("diagnose: %d %+v", code, got)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%v: %s", err, stderr.String())
		}
	case <-time.After(10 * time.Second):
		t.Error("SIGTERM did not end it")
		_ = cmd.Process.Kill()
	}
	if strings.Contains(stderr.String(), strings.Split(s.Token, ".")[1]) {
		t.Error("the log shows the token's secret")
	}
}

// build makes the program as it is delivered.
func build(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "steward-agent")
	compile := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=7.7.7", "-o", bin, "steward/cmd/steward-agent")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(bin)
	if err != nil || info.Size() > 15<<20 {
		t.Errorf("the program has %d bytes, at most 15 MiB: %v", info.Size(), err)
	}
	return bin
}

// checkMemory compares the resident memory with the design's 20 MB.
func checkMemory(t *testing.T, pid int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch name {
		case "VmRSS", "VmHWM", "RssAnon":
			t.Logf("%s %s kB", name, fields[0])
			if kib, err := strconv.Atoi(fields[0]); name == "VmRSS" && (err != nil || kib > 20_000) {
				t.Errorf("resident memory of %d kB", kib)
			}
		}
	}
}

// open lets other users into a directory of the test.
func open(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
}

// unprivileged runs the command as nobody when the test is root; else it has no rights to give up.
func unprivileged(cmd *exec.Cmd) {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}
