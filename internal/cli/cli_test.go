package cli

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"steward/internal/agent/command"
)

// The scripts run this test binary under the names of both programs.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"steward":       func() { os.Exit(Main("test", os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"steward-agent": func() { os.Exit(command.Main("test", os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// patience is how long a script waits for something to happen.
const patience = 20 * time.Second

func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("STEWARD_DATA", e.WorkDir+"/data")
			e.Setenv("HOME", e.WorkDir+"/home")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":   exits,
			"await":   await,
			"capture": capture,
		},
	})
}

// exits CODE PROGRAM ARGUMENTS… runs a program that must end with the code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program arguments…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// await PATTERN PROGRAM ARGUMENTS… runs a program again and again until it succeeds and its output matches.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await pattern program arguments…")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no match for %s after %s: %v\n%s%s", args[0], patience, err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
	}
}

// capture NAME PATTERN [FILE] sets a variable to the first match, or its first group, in the last output or a file.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: capture name pattern [file]")
	}
	pattern, err := regexp.Compile(args[1])
	ts.Check(err)
	from := "stdout"
	if len(args) == 3 {
		from = args[2]
	}
	found := pattern.FindStringSubmatch(ts.ReadFile(from))
	if found == nil {
		ts.Fatalf("no match for %s in %s:\n%s", args[1], from, ts.ReadFile(from))
	}
	ts.Setenv(args[0], found[len(found)-1])
}
