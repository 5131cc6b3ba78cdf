// Command steward-bench measures a server that it starts by itself. See package steward/internal/bench.
package main

import (
	"os"

	"steward/internal/bench"
)

var version = "dev" // set by the linker

func main() { os.Exit(bench.Main(version, os.Args[1:], os.Stdout, os.Stderr)) }
