// Command steward is the server, the operator's command line and the demo.
package main

import (
	"os"

	"steward/internal/cli"
)

var version = "dev" // set by the linker

func main() { os.Exit(cli.Main(version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
