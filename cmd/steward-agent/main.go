// Steward-agent is the device's end of Steward. See package steward/internal/agent.
package main

import (
	"os"

	"steward/internal/agent/command"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(command.Main(version, os.Args[1:], os.Stdout, os.Stderr)) }
